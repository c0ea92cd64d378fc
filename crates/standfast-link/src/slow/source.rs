//! What the slow path reads from: a connection to the source's leader, for one partition alone.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use standfast_wire::fetch::{self, FetchPosition, FetchRequest, FetchTopic, Isolation};
use standfast_wire::{FrameReader, FrameWriter, ResponseError};

use crate::partition::Doubt;
use crate::startup::{Refusal, Request, Started, own_name, source};

/// Bytes asked for at a time. One batch is always answered, however large it is.
const FETCH_BYTES: usize = 256 << 10;

/// How long the source may wait for records before it answers with none.
const FETCH_WAIT: Duration = Duration::from_millis(100);

/// A source broker without an answer for so long is lost.
const FETCH_OVERDUE: Duration = Duration::from_secs(5);

/// A connection to the source's leader for one partition.
pub(super) struct Source {
    reader: FrameReader,
    writer: FrameWriter,
    version: i16,
    correlation_id: i32,
    /// Its name there.
    topic: Arc<str>,
}

pub(super) struct Fetched {
    pub(super) high_watermark: i64,
    pub(super) last_stable_offset: i64,
    pub(super) records: Bytes,
}

impl Source {
    pub(super) async fn open(request: &Request, started: &Started) -> Result<Self, Refusal> {
        let connection = request
            .context
            .source
            .open_raw(started.source_leader)
            .await
            .map_err(source)?;
        let version = fetch::negotiate(connection.versions(), !request.source_topic_id.is_nil())
            .map_err(source)?;
        let (reader, writer) = connection.into_split();
        Ok(Self {
            reader,
            writer,
            version,
            correlation_id: 0,
            topic: own_name(request).into(),
        })
    }

    pub(super) async fn fetch(
        &mut self,
        request: &Request,
        offset: i64,
    ) -> Result<Fetched, Refusal> {
        let lost = |text: String| Refusal::Later(Doubt::source(format!("Fetch: {text}")));
        self.correlation_id = self.correlation_id.wrapping_add(1);
        let most = request.context.rate.slice(FETCH_BYTES);
        let most = i32::try_from(most).unwrap_or(i32::MAX);
        let asked = fetch::encode(
            self.correlation_id,
            &request.context.options.source.client_id,
            self.version,
            &FetchRequest {
                max_wait_ms: i32::try_from(FETCH_WAIT.as_millis()).unwrap_or(i32::MAX),
                max_bytes: most,
                // Up to the last stable offset: the outcome of every transaction is then known.
                isolation: Isolation::ReadCommitted,
                topics: vec![FetchTopic {
                    name: self.topic.clone(),
                    topic_id: request.source_topic_id,
                    partitions: vec![FetchPosition {
                        partition: request.id.partition,
                        current_leader_epoch: -1,
                        offset,
                        last_fetched_epoch: -1,
                        max_bytes: most,
                    }],
                }],
                ..FetchRequest::default()
            },
        );
        let exchange = async {
            self.writer.write(&[asked]).await?;
            self.reader.read().await
        };
        let frame = match tokio::time::timeout(FETCH_OVERDUE, exchange).await {
            Ok(frame) => frame.map_err(source)?,
            Err(_) => return Err(lost(format!("no answer within {FETCH_OVERDUE:?}"))),
        };
        request.context.rate.took(frame.len());
        let response = fetch::decode(frame, self.version).map_err(source)?;
        if response.correlation_id != self.correlation_id {
            return Err(lost("the answer belongs to another request".to_owned()));
        }
        let mut partitions = response.topics.iter().flat_map(|t| t.partitions.iter());
        let fetched = partitions
            .next()
            .filter(|fetched| fetched.partition == request.id.partition);
        let code = fetched.map_or(0, |f| f.error_code);
        for code in [response.error_code, code] {
            if let Some(code) = ResponseError::try_from_code(code) {
                return Err(lost(format!("{code:?} ({})", code.code())));
            }
        }
        let fetched =
            fetched.ok_or_else(|| lost("the answer does not name the partition".to_owned()))?;
        Ok(Fetched {
            high_watermark: fetched.high_watermark,
            last_stable_offset: fetched.last_stable_offset,
            records: fetched.records.clone(),
        })
    }
}
