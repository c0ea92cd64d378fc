//! The few Kafka requests that running a cluster takes, by hand and blocking, so that no test waits for a JVM to create a topic.
//!
//! All in versions without tagged fields (<https://kafka.apache.org/protocol>): Metadata 4, CreateTopics 4,
//! DeleteTopics 1, ListOffsets 1, which Kafka 4 still serves (KIP-896).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::{Error, Result};

const METADATA: (i16, i16) = (3, 4);
const LIST_OFFSETS: (i16, i16) = (2, 1);
const CREATE_TOPICS: (i16, i16) = (19, 4);
const DELETE_TOPICS: (i16, i16) = (20, 1);
const MAX_FRAME: usize = 16 << 20;
const IO_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const OPERATION_TIMEOUT_MS: i32 = 10_000;

/// What Metadata answered.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) brokers: Vec<(i32, String)>,
    pub(crate) cluster_id: String,
    pub(crate) controller: i32,
    pub(crate) topics: Vec<TopicMetadata>,
}

/// One topic: error code and, in partition order, the leaders.
#[derive(Debug, Default)]
pub(crate) struct TopicMetadata {
    pub(crate) error: i16,
    pub(crate) leaders: Vec<(i32, i32)>,
}

/// A blocking connection to one broker.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    address: SocketAddr,
    correlation: i32,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let connect = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(IO_TIMEOUT))?;
            stream.set_write_timeout(Some(IO_TIMEOUT))?;
            Ok(stream)
        };
        let stream = connect().map_err(Error::io(format!("connect to Kafka at {address}")))?;
        Ok(Self {
            stream,
            address,
            correlation: 0,
        })
    }

    /// Brokers, controller, and the named topics (`None`: all).
    pub(crate) fn metadata(&mut self, topics: Option<&[&str]>) -> Result<Metadata> {
        let mut body = Writer::default();
        body.i32(topics.map_or(-1, |topics| topics.len() as i32));
        topics
            .unwrap_or_default()
            .iter()
            .for_each(|topic| body.string(topic));
        body.i8(0); // no automatic creation
        self.call(METADATA, body, |answer| {
            answer.i32()?; // throttle time
            let brokers = answer.array(|item| {
                let id = item.i32()?;
                let host = item.string()?;
                let port = item.i32()?;
                item.string()?; // rack
                Some((id, format!("{host}:{port}")))
            })?;
            let cluster_id = answer.string()?;
            let controller = answer.i32()?;
            let topics = answer.array(read_topic)?;
            Some(Metadata {
                brokers,
                cluster_id,
                controller,
                topics,
            })
        })
    }

    /// Creates a topic; the answer is an error code and message.
    pub(crate) fn create_topic(
        &mut self,
        name: &str,
        partitions: i32,
        replication: i16,
        configs: &[(&str, &str)],
    ) -> Result<(i16, String)> {
        let mut body = Writer::default();
        body.i32(1);
        body.string(name);
        body.i32(partitions);
        body.i16(replication);
        body.i32(0); // no explicit assignment
        body.i32(configs.len() as i32);
        for (key, value) in configs {
            body.string(key);
            body.string(value);
        }
        body.i32(OPERATION_TIMEOUT_MS);
        body.i8(0); // not only validate
        self.call(CREATE_TOPICS, body, |answer| {
            answer.i32()?;
            let results = answer.array(|item| {
                item.string()?;
                Some((item.i16()?, item.string()?))
            })?;
            results.into_iter().next()
        })
    }

    /// Deletes a topic; the answer is an error code.
    pub(crate) fn delete_topic(&mut self, name: &str) -> Result<i16> {
        let mut body = Writer::default();
        body.i32(1);
        body.string(name);
        body.i32(OPERATION_TIMEOUT_MS);
        self.call(DELETE_TOPICS, body, |answer| {
            answer.i32()?;
            let results = answer.array(|item| {
                item.string()?;
                item.i16()
            })?;
            results.into_iter().next()
        })
    }

    /// The offset at `timestamp` (-1: log end, -2: log start) of partitions that this broker leads:
    /// (partition, error code, offset).
    pub(crate) fn list_offsets(
        &mut self,
        topic: &str,
        partitions: &[i32],
        timestamp: i64,
    ) -> Result<Vec<(i32, i16, i64)>> {
        let mut body = Writer::default();
        body.i32(-1);
        body.i32(1);
        body.string(topic);
        body.i32(partitions.len() as i32);
        for partition in partitions {
            body.i32(*partition);
            body.i64(timestamp);
        }
        self.call(LIST_OFFSETS, body, |answer| {
            let topics = answer.array(|item| {
                item.string()?;
                item.array(|part| {
                    let partition = part.i32()?;
                    let error = part.i16()?;
                    part.i64()?; // timestamp
                    Some((partition, error, part.i64()?))
                })
            })?;
            topics.into_iter().next()
        })
    }

    fn call<T>(
        &mut self,
        (api, version): (i16, i16),
        body: Writer,
        read: impl FnOnce(&mut Reader) -> Option<T>,
    ) -> Result<T> {
        self.correlation += 1;
        let mut head = Writer::default();
        head.i16(api);
        head.i16(version);
        head.i32(self.correlation);
        head.string("standfast-servers");
        let length = (head.0.len() + body.0.len()) as i32;
        let frame = [&length.to_be_bytes()[..], &head.0, &body.0].concat();
        let answer = self
            .exchange(&frame)
            .map_err(Error::io(format!("ask Kafka at {}", self.address)))?;
        let mut reader = Reader(&answer);
        let correlation = reader.i32();
        (correlation == Some(self.correlation))
            .then_some(())
            .and_then(|()| read(&mut reader))
            .ok_or_else(|| Error::Answer {
                server: "Kafka",
                address: self.address.to_string(),
                detail: format!("answer to api {api} version {version} cannot be read"),
            })
    }

    fn exchange(&mut self, frame: &[u8]) -> io::Result<Vec<u8>> {
        self.stream.write_all(frame)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > MAX_FRAME {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("frame of {length} bytes"),
            ));
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        Ok(answer)
    }
}

fn read_topic(item: &mut Reader) -> Option<TopicMetadata> {
    let error = item.i16()?;
    item.string()?; // name
    item.i8()?; // internal
    let mut leaders = item.array(|part| {
        part.i16()?;
        let index = part.i32()?;
        let leader = part.i32()?;
        part.array(Reader::i32)?; // replicas
        part.array(Reader::i32)?; // in sync
        Some((index, leader))
    })?;
    leaders.sort_unstable();
    Some(TopicMetadata { error, leaders })
}

#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn i8(&mut self, value: i8) {
        self.0.extend(value.to_be_bytes());
    }
    fn i16(&mut self, value: i16) {
        self.0.extend(value.to_be_bytes());
    }
    fn i32(&mut self, value: i32) {
        self.0.extend(value.to_be_bytes());
    }
    fn i64(&mut self, value: i64) {
        self.0.extend(value.to_be_bytes());
    }
    fn string(&mut self, value: &str) {
        self.i16(value.len() as i16);
        self.0.extend(value.as_bytes());
    }
}

#[derive(Debug)]
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
    fn i8(&mut self) -> Option<i8> {
        self.take().map(i8::from_be_bytes)
    }
    fn i16(&mut self) -> Option<i16> {
        self.take().map(i16::from_be_bytes)
    }
    fn i32(&mut self) -> Option<i32> {
        self.take().map(i32::from_be_bytes)
    }
    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_be_bytes)
    }
    /// A null string reads as an empty one.
    fn string(&mut self) -> Option<String> {
        let length = usize::try_from(self.i16()?).unwrap_or(0);
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(String::from_utf8_lossy(text).into_owned())
    }
    fn array<T>(&mut self, mut item: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.i32()?.max(0);
        (0..count).map(|_| item(self)).collect()
    }
}
