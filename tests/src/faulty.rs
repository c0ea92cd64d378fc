//! A broker that tells nonsense: a proxy in front of a real one, which spoils what it answers to Fetch, holds Produce requests back, or names no
//! broker.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{BrokerId, MetadataResponse, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, StrBytes};

use crate::wait;

const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
const LEADER_NOT_AVAILABLE: i16 = 5;
/// How long the broker may take for requests that were held back.
const DELIVERY: Duration = Duration::from_secs(20);
/// Larger than any frame of these tests.
const MAX_FRAME: usize = 64 << 20;

/// What is done to answers to Fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The frame says that it is 2 GiB long.
    AbsurdLength,
    /// The frame says that its length is negative.
    NegativeLength,
    /// Half of the frame, then the connection is closed.
    HalfFrame,
    /// A frame of the right length with the right correlation id and noise after it.
    Noise,
    /// Text, as when something else listens at the port.
    Http,
    /// The answer's last record batch says that it is 2 GiB long.
    AbsurdBatch,
}

impl Fault {
    /// All that is wrong.
    pub const ALL: [Self; 6] = [
        Self::AbsurdLength,
        Self::NegativeLength,
        Self::HalfFrame,
        Self::Noise,
        Self::Http,
        Self::AbsurdBatch,
    ];
}

/// The proxy. It names itself in Metadata, so that clients stay with it. Its threads end with the connections.
#[derive(Debug)]
pub struct FaultyBroker {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    upstream: String,
    port: u16,
    fault: Mutex<Fault>,
    spoiled: AtomicUsize,
    /// Produce requests are held back.
    holds: AtomicBool,
    held: Mutex<Vec<(TcpStream, Vec<u8>)>>,
    /// Answers to Produce so far.
    produced: AtomicUsize,
    /// Metadata names no broker.
    forgets: AtomicBool,
    /// Answers of that kind so far.
    forgotten: AtomicUsize,
}

impl FaultyBroker {
    /// Listens on a loopback port, in front of a cluster of one broker.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("address");
        let state = Arc::new(State {
            upstream: upstream.to_owned(),
            port: address.port(),
            fault: Mutex::new(Fault::None),
            spoiled: AtomicUsize::new(0),
            holds: AtomicBool::new(false),
            held: Mutex::default(),
            produced: AtomicUsize::new(0),
            forgets: AtomicBool::new(false),
            forgotten: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&state);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = Arc::clone(&accepting);
                thread::spawn(move || serve(client, &state));
            }
        });
        Self { address, state }
    }

    /// `127.0.0.1:port`.
    pub fn bootstrap(&self) -> String {
        self.address.to_string()
    }

    /// From now on, also on connections that exist.
    pub fn set(&self, fault: Fault) {
        *self.state.fault.lock().expect("fault") = fault;
    }

    /// Names no broker in Metadata and leads no partition, as a cluster does for a moment when broker and controller wake up together.
    pub fn forget(&self, forgets: bool) {
        self.state.forgets.store(forgets, Ordering::SeqCst);
    }

    /// Answers so far that named no broker.
    pub fn forgotten(&self) -> usize {
        self.state.forgotten.load(Ordering::SeqCst)
    }

    /// Holds Produce requests back from now on, as the network or a frozen sender's kernel would. They outlive the client.
    pub fn hold(&self) {
        self.state.holds.store(true, Ordering::SeqCst);
    }

    /// Produce requests that are held back.
    pub fn held(&self) -> usize {
        self.state.held.lock().expect("held").len()
    }

    /// Delivers what was held back, waits until the broker has answered, and holds nothing back any more.
    pub fn deliver(&self) -> usize {
        self.state.holds.store(false, Ordering::SeqCst);
        let held = std::mem::take(&mut *self.state.held.lock().expect("held"));
        let (count, before) = (held.len(), self.state.produced.load(Ordering::SeqCst));
        for (broker, frame) in &held {
            let mut broker = broker.try_clone().expect("the connection");
            write_frame(&mut broker, frame).expect("the broker takes it");
        }
        wait::until_true("the broker answers what came late", DELIVERY, || {
            self.state.produced.load(Ordering::SeqCst) >= before + count
        });
        count
    }

    /// Answers spoiled so far.
    pub fn spoiled(&self) -> usize {
        self.state.spoiled.load(Ordering::Relaxed)
    }
}

/// API key and version of the requests that have not been answered.
type Asked = Mutex<HashMap<i32, (i16, i16)>>;

fn serve(client: TcpStream, state: &State) {
    let Ok(broker) = TcpStream::connect(&state.upstream) else {
        return;
    };
    let asked = Asked::default();
    let (Ok(to_client), Ok(to_broker)) = (client.try_clone(), broker.try_clone()) else {
        return;
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            // An error here is the end of the connection, for whatever reason.
            let _ = forward_requests(&client, to_broker, &asked, state);
            // What is held back is still to be delivered over it.
            if !state.holds.load(Ordering::SeqCst) {
                close(&client, &broker);
            }
        });
        let _ = forward_answers(&broker, to_client, &asked, state);
        close(&client, &broker);
    });
}

fn close(client: &TcpStream, broker: &TcpStream) {
    for stream in [client, broker] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn forward_requests(
    mut client: &TcpStream,
    mut broker: TcpStream,
    asked: &Asked,
    state: &State,
) -> io::Result<()> {
    loop {
        let frame = read_frame(&mut client)?;
        let mut head = &frame[..8];
        let (key, version, correlation) = (head.get_i16(), head.get_i16(), head.get_i32());
        asked
            .lock()
            .expect("asked")
            .insert(correlation, (key, version));
        if key == PRODUCE && state.holds.load(Ordering::SeqCst) {
            let connection = broker.try_clone()?;
            let mut held = state.held.lock().expect("held");
            held.push((connection, frame));
        } else {
            write_frame(&mut broker, &frame)?;
        }
    }
}

fn forward_answers(
    mut broker: &TcpStream,
    mut client: TcpStream,
    asked: &Asked,
    state: &State,
) -> io::Result<()> {
    loop {
        let mut frame = read_frame(&mut broker)?;
        let correlation = (&frame[..4]).get_i32();
        let request = asked.lock().expect("asked").remove(&correlation);
        let fault = *state.fault.lock().expect("fault");
        match request {
            Some((METADATA, version)) => {
                let forgets = state.forgets.load(Ordering::SeqCst);
                let port = (!forgets).then_some(state.port);
                write_frame(&mut client, &rename(&frame, version, port))?;
                state
                    .forgotten
                    .fetch_add(usize::from(forgets), Ordering::SeqCst);
            }
            Some((FETCH, _)) if fault != Fault::None => {
                let spoiled = spoil(&mut client, &mut frame, fault)?;
                state.spoiled.fetch_add(spoiled, Ordering::Relaxed);
                if fault == Fault::HalfFrame {
                    return Ok(());
                }
            }
            Some((PRODUCE, _)) => {
                state.produced.fetch_add(1, Ordering::SeqCst);
                // The client may be gone.
                let _ = write_frame(&mut client, &frame);
            }
            _ => write_frame(&mut client, &frame)?,
        }
    }
}

/// Sends the answer spoiled; returns how many answers were: none if there was nothing to spoil in it.
fn spoil(client: &mut TcpStream, frame: &mut [u8], fault: Fault) -> io::Result<usize> {
    match fault {
        Fault::None => write_frame(client, frame)?,
        Fault::AbsurdLength | Fault::NegativeLength => {
            let length = if fault == Fault::AbsurdLength {
                i32::MAX
            } else {
                -1
            };
            client.write_all(&length.to_be_bytes())?;
            client.write_all(frame)?;
        }
        Fault::HalfFrame => {
            client.write_all(&(frame.len() as u32).to_be_bytes())?;
            client.write_all(&frame[..frame.len() / 2])?;
        }
        Fault::Noise => {
            frame[4..].fill(0xA7);
            write_frame(client, frame)?;
        }
        Fault::Http => {
            client.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")?
        }
        Fault::AbsurdBatch => {
            let Some(at) = batch_length_at(frame) else {
                write_frame(client, frame)?;
                return Ok(0);
            };
            frame[at..at + 4].copy_from_slice(&i32::MAX.to_be_bytes());
            write_frame(client, frame)?;
        }
    }
    Ok(1)
}

/// Where a record batch has its length: 8 bytes of offset, the length, 4 bytes of leader epoch, magic 2.
fn batch_length_at(frame: &[u8]) -> Option<usize> {
    const HEADER: usize = 61;
    (8..frame.len().checked_sub(HEADER)?).find(|&at| {
        let length = (&frame[at..at + 4]).get_i32();
        let fits = usize::try_from(length)
            .is_ok_and(|length| length > 49 && at + 4 + length <= frame.len());
        fits && frame[at - 8..at - 4] == [0; 4] && frame[at + 8] == 2
    })
}

/// The Metadata answer with the proxy in place of the broker, or without any.
fn rename(frame: &[u8], version: i16, port: Option<u16>) -> Vec<u8> {
    let mut bytes = Bytes::copy_from_slice(frame);
    let header_version = MetadataResponse::header_version(version);
    let header = ResponseHeader::decode(&mut bytes, header_version).expect("response header");
    let mut answer = MetadataResponse::decode(&mut bytes, version).expect("Metadata");
    match port {
        Some(port) => {
            for broker in &mut answer.brokers {
                broker.host = StrBytes::from_static_str("127.0.0.1");
                broker.port = i32::from(port);
            }
        }
        None => {
            answer.brokers.clear();
            answer.controller_id = BrokerId(-1);
            let partitions = answer.topics.iter_mut().flat_map(|t| &mut t.partitions);
            for partition in partitions {
                partition.error_code = LEADER_NOT_AVAILABLE;
                partition.leader_id = BrokerId(-1);
            }
        }
    }
    let mut renamed = BytesMut::new();
    header
        .encode(&mut renamed, header_version)
        .expect("response header");
    answer.encode(&mut renamed, version).expect("Metadata");
    renamed.to_vec()
}

fn read_frame(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    assert!(
        (4..MAX_FRAME).contains(&length),
        "a frame of {length} bytes"
    );
    let mut frame = vec![0; length];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

fn write_frame(to: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    let mut bytes = BytesMut::with_capacity(4 + frame.len());
    bytes.put_u32(frame.len() as u32);
    bytes.put_slice(frame);
    to.write_all(&bytes)
}
