//! Writes lost tails out, before anything is deleted: into a file of JSON lines, or into a topic.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use standfast_wire::admin::NewTopic;
use standfast_wire::batch::{ProducerStamp, RawBatch};
use standfast_wire::{Cluster, FrameReader, FrameWriter, ResponseError};

use super::record::{self, Place, Transaction};
use super::tail::{Failed, Reader, Tail};
use crate::calls;
use crate::codec;
use crate::filler::{GZIP, Shape, assemble};
use crate::membership::lease::Lease;
use crate::partition::PartitionId;
use crate::records::{self, Record};
use crate::rewrite::{Decoded, decoding};
use crate::startup::Refusal;

/// Name of the topic that keeps lost tails: this, then the topic's own name.
pub(crate) const LOST_TOPIC: &str = "standfast.lost.";
const TOPIC_NAME_MAX: usize = 249;

/// The lost topic takes a batch of any size that the topic itself took, with the headers that say where each record stood.
const LOST_MAX_MESSAGE_BYTES: u64 = 64 << 20;

const PRODUCE_TIMEOUT_MS: i32 = 25_000;
const PRODUCE_OVERDUE: std::time::Duration = std::time::Duration::from_secs(30);

/// Where the lost tails of one topic were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostTail {
    /// File of JSON lines on the machine of the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Topic on the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Records written there.
    pub records: u64,
}

/// Where to write. One sink takes the tails of all partitions of a topic.
pub(crate) enum Sink {
    File(LinesFile),
    Topic(Box<LostTopic>),
}

impl Sink {
    /// Writes one tail.
    pub(crate) async fn tail(
        &mut self,
        cluster: &Cluster,
        id: &PartitionId,
        tail: &Tail,
    ) -> Result<(), String> {
        for (base, producer_id) in &tail.committed_in_front {
            let found = calls::batch_at(cluster, id, *base)
                .await
                .map_err(|e| format!("destination: {e}"))?;
            let same = |b: &RawBatch| {
                b.header.base_offset == *base && b.header.producer_id == *producer_id
            };
            let batch = found
                .filter(same)
                .ok_or_else(|| format!("{id}: the batch at offset {base} is gone"))?;
            let about = About {
                from: *base,
                transaction: Some(Transaction::Committed),
                aborted_on_source: true,
            };
            self.batch(id, batch, about).await?;
        }
        let mut reader = Reader::new(cluster, id, tail.from, tail.to);
        while let Some(batches) = reader.next().await.map_err(|e: Failed| e.to_string())? {
            for batch in batches {
                if batch.header.attributes.is_control() || batch.header.record_count == 0 {
                    continue;
                }
                let about = About {
                    from: tail.from,
                    transaction: tail.transaction(&batch),
                    aborted_on_source: false,
                };
                self.batch(id, batch, about).await?;
            }
        }
        Ok(())
    }

    async fn batch(
        &mut self,
        id: &PartitionId,
        batch: RawBatch,
        about: About,
    ) -> Result<(), String> {
        match self {
            Self::File(file) => file.batch(id, batch, about).await,
            Self::Topic(topic) => topic.batch(id, batch, about).await,
        }
    }

    /// Everything is on disk, or acknowledged by the destination's brokers, when this returns.
    pub(crate) async fn finish(self) -> Result<LostTail, String> {
        match self {
            Self::File(file) => file.finish().await,
            Self::Topic(topic) => Ok(LostTail {
                file: None,
                topic: Some(topic.name),
                records: topic.records,
            }),
        }
    }
}

/// What is known of all records of a batch.
#[derive(Debug, Clone, Copy)]
struct About {
    /// Records below are not part of the tail.
    from: i64,
    transaction: Option<Transaction>,
    aborted_on_source: bool,
}

impl About {
    fn place<'a>(&self, id: &'a PartitionId, offset: i64, timestamp: i64) -> Place<'a> {
        Place {
            topic: &id.topic,
            partition: id.partition,
            offset,
            timestamp,
            transaction: self.transaction,
            aborted_on_source: self.aborted_on_source,
        }
    }
}

/// Calls `each` for every record of the tail in a batch.
fn each_record(
    id: &PartitionId,
    batch: &RawBatch,
    about: About,
    mut each: impl FnMut(Place<'_>, &record::Content<'_>) -> Result<(), String>,
) -> Result<u64, String> {
    let base = batch.header.base_offset;
    let at = |text: String| format!("{id}: the batch at offset {base}: {text}");
    let decoded = Decoded::new(batch).map_err(at)?;
    let mut count = 0;
    for (found, timestamp) in decoded.records() {
        let offset = base + found.offset_delta;
        if offset < about.from {
            continue;
        }
        let content = record::parse(found.content)
            .ok_or_else(|| at(format!("the record at offset {offset} is malformed")))?;
        each(about.place(id, offset, timestamp), &content).map_err(at)?;
        count += 1;
    }
    Ok(count)
}

fn broke_down(refusal: Refusal) -> String {
    format!("the export broke down: {refusal:?}")
}

/// A file under another name until it is complete.
pub(crate) struct LinesFile {
    path: PathBuf,
    part: PathBuf,
    /// Away while a batch is written.
    file: Option<BufWriter<File>>,
    records: u64,
}

impl LinesFile {
    /// Begins a file that only its owner may read. One that exists already is never touched.
    pub(crate) async fn begin(path: PathBuf) -> Result<Self, String> {
        let opened = tokio::task::spawn_blocking(move || begin_file(path)).await;
        opened.map_err(|e| e.to_string())?
    }

    async fn batch(
        &mut self,
        id: &PartitionId,
        batch: RawBatch,
        about: About,
    ) -> Result<(), String> {
        let mut file = self
            .file
            .take()
            .ok_or("an earlier write to the file failed")?;
        let id = id.clone();
        let written = decoding(move || {
            let mut lines = Vec::new();
            let count = each_record(&id, &batch, about, |place, content| {
                record::put_line(&mut lines, place, content)
            })?;
            file.write_all(&lines).map_err(|e| e.to_string())?;
            Ok::<_, String>((file, count))
        });
        let (file, count) = written
            .await
            .map_err(broke_down)?
            .map_err(|text| format!("{}: {text}", self.part.display()))?;
        self.file = Some(file);
        self.records += count;
        Ok(())
    }

    async fn finish(mut self) -> Result<LostTail, String> {
        let file = self
            .file
            .take()
            .ok_or("an earlier write to the file failed")?;
        let (path, part, records) = (self.path.clone(), self.part.clone(), self.records);
        let done = tokio::task::spawn_blocking(move || finish_file(file, &part, &path)).await;
        done.map_err(|e| e.to_string())?
            .map_err(|e| format!("{}: {e}", self.path.display()))?;
        Ok(LostTail {
            file: Some(self.path.clone()),
            topic: None,
            records,
        })
    }
}

impl Drop for LinesFile {
    /// What is not complete is no export.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part);
    }
}

fn begin_file(path: PathBuf) -> Result<LinesFile, String> {
    let cannot = |what: &Path, error: io::Error| format!("{}: {error}", what.display());
    if path.exists() {
        return Err(format!(
            "{} exists already; name another file",
            path.display()
        ));
    }
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let part = PathBuf::from(part);
    // Left behind by an engine that was killed: not complete, so not an export.
    match fs::remove_file(&part) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(cannot(&part, error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(|error| cannot(&part, error))?;
    Ok(LinesFile {
        path,
        part,
        file: Some(BufWriter::new(file)),
        records: 0,
    })
}

fn finish_file(file: BufWriter<File>, part: &Path, path: &Path) -> io::Result<()> {
    let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    // Fails if somebody has put a file there meanwhile.
    fs::hard_link(part, path)?;
    fs::remove_file(part)?;
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// A path in `folder` for the tails of a topic that does not exist yet. The folder is created, for its owner alone.
pub(crate) async fn path_in(folder: PathBuf, link: &str, topic: &str) -> Result<PathBuf, String> {
    let stem = format!("{link}.{topic}.{}", crate::status::now_ms());
    let found = tokio::task::spawn_blocking(move || {
        use std::os::unix::fs::DirBuilderExt;
        let mut builder = fs::DirBuilder::new();
        let created = builder.recursive(true).mode(0o700).create(&folder);
        created.map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(folder.join(format!("{stem}.jsonl")))
    });
    found.await.map_err(|e| e.to_string())?
}

/// A topic on the destination that keeps lost tails.
pub(crate) struct LostTopic {
    name: String,
    partition: PartitionId,
    client_id: String,
    connection: (FrameReader, FrameWriter),
    records: u64,
}

impl LostTopic {
    /// Creates the topic if need be. It has one partition: the records say where they stood.
    pub(crate) async fn begin(
        cluster: &Cluster,
        topic: &str,
        replication_factor: i16,
    ) -> Result<Self, String> {
        let name = format!("{LOST_TOPIC}{topic}");
        if name.len() > TOPIC_NAME_MAX {
            return Err(format!(
                "{name:?} is no topic name, it is longer than {TOPIC_NAME_MAX}; export to a file"
            ));
        }
        let configs = [
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", "-1".to_owned()),
            ("retention.bytes", "-1".to_owned()),
            ("compression.type", "producer".to_owned()),
            ("message.timestamp.type", "CreateTime".to_owned()),
            ("message.timestamp.before.max.ms", i64::MAX.to_string()),
            ("message.timestamp.after.max.ms", i64::MAX.to_string()),
            ("max.message.bytes", LOST_MAX_MESSAGE_BYTES.to_string()),
        ];
        let new = NewTopic {
            name: name.clone(),
            partitions: 1,
            replication_factor,
            configs: configs
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
        };
        let at = |error: standfast_wire::Error| format!("topic {name}: {error}");
        match cluster.create_topic(new).await {
            Err(error) if error.code() != Some(ResponseError::TopicAlreadyExists) => {
                return Err(at(error));
            }
            _ => {}
        }
        cluster.topics(&[&name]).await.map_err(at)?;
        let leader = cluster.leader(&name, 0).await.map_err(at)?;
        let connection = cluster.open_raw(leader).await.map_err(at)?.into_split();
        Ok(Self {
            partition: PartitionId::new(name.as_str(), 0),
            name,
            client_id: cluster.options().client_id.clone(),
            connection,
            records: 0,
        })
    }

    async fn batch(
        &mut self,
        id: &PartitionId,
        batch: RawBatch,
        about: About,
    ) -> Result<(), String> {
        let id = id.clone();
        let (batch, count) = decoding(move || with_origin(&id, &batch, about))
            .await
            .map_err(broke_down)??;
        if count == 0 {
            return Ok(());
        }
        let at = |text: String| format!("topic {}: {text}", self.name);
        let stamp = ProducerStamp {
            producer_id: -1,
            producer_epoch: -1,
            base_sequence: -1,
        };
        let batch = batch.restamp(stamp).map_err(|e| at(e.to_string()))?;
        // Not a mirror: whoever writes there, nothing can diverge.
        let lease = Lease::for_ever();
        let produced = calls::produce_one(
            &mut self.connection,
            &lease,
            &self.client_id,
            PRODUCE_TIMEOUT_MS,
            (&self.partition.topic, 0, batch),
        );
        let answer = tokio::time::timeout(PRODUCE_OVERDUE, produced)
            .await
            .map_err(|_| at(format!("no answer to Produce within {PRODUCE_OVERDUE:?}")))?
            .map_err(|e| at(e.to_string()))?;
        if let Some(code) = ResponseError::try_from_code(answer.error_code) {
            return Err(at(format!("Produce: {code:?} ({})", code.code())));
        }
        self.records += count;
        Ok(())
    }
}

/// The records of the tail in a batch, each with headers that say where it stood.
fn with_origin(
    id: &PartitionId,
    batch: &RawBatch,
    about: About,
) -> Result<(RawBatch, u64), String> {
    let mut out = Vec::new();
    let mut base_timestamp = None;
    let (mut max_timestamp, mut next) = (-1, 0);
    let count = each_record(id, batch, about, |place, content| {
        let base = *base_timestamp.get_or_insert(place.timestamp);
        max_timestamp = place.timestamp.max(max_timestamp);
        let content = record::content_with_origin(place, content);
        records::put(
            &mut out,
            Record {
                attributes: 0,
                timestamp_delta: place.timestamp.saturating_sub(base),
                offset_delta: next,
                content: &content,
            },
        );
        next += 1;
        if out.len() > codec::MAX_RECORDS_BYTES {
            return Err("with headers its records take more than can be encoded".to_owned());
        }
        Ok(())
    })?;
    let body = codec::compress(standfast_wire::batch::Compression::Gzip, out)?;
    let shape = Shape {
        base_offset: 0,
        attributes: GZIP,
        base_timestamp: base_timestamp.unwrap_or_default(),
        max_timestamp,
        count: next,
    };
    let encoded = assemble(shape, &body).map_err(|e| e.to_string())?;
    Ok((encoded, count))
}
