//! A broker that misbehaves: what a real one will not do. In-process, on a loopback port.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::metadata_response::MetadataResponseBroker;
use kafka_protocol::messages::{
    ApiVersionsResponse, MetadataRequest, MetadataResponse, ResponseHeader,
};
use kafka_protocol::protocol::{Encodable, HeaderVersion, StrBytes};
use standfast_wire::{Cluster, ClusterOptions, Connection, ConnectionState, Error, HostPort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the fake does with a Metadata request.
#[derive(Clone)]
enum Fault {
    /// Answers as cluster `0`.
    None(&'static str),
    /// Sends these bytes, then closes.
    Bytes(Vec<u8>),
    /// Never answers.
    Silence,
    /// Answers with another correlation id.
    WrongCorrelation,
    /// Sends half of the answer, then closes.
    HalfAnswer,
    /// Answers twice.
    TwoAnswers,
    /// Sends an answer with an array that claims 2^31 - 1 (v4) or 2^32 - 2 (flexible) elements.
    AbsurdArray,
}

struct FakeBroker {
    address: HostPort,
    connections: Arc<AtomicUsize>,
}

impl FakeBroker {
    /// `metadata_max` chooses between flexible (12) and fixed (4) encodings.
    async fn start(fault: Fault, metadata_max: i16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, fault.clone(), metadata_max, port));
            }
        });
        let host = "127.0.0.1".to_owned();
        Self {
            address: HostPort { host, port },
            connections,
        }
    }

    fn options(&self) -> ClusterOptions {
        ClusterOptions {
            request_timeout: Duration::from_millis(400),
            connect_timeout: Duration::from_secs(2),
            max_frame_bytes: 1 << 20,
            ..ClusterOptions::new(vec![self.address.clone()])
        }
    }

    async fn connect(&self) -> Connection {
        Connection::connect(&self.address, &self.options())
            .await
            .unwrap()
    }
}

async fn serve(mut stream: TcpStream, fault: Fault, metadata_max: i16, port: u16) -> Option<()> {
    loop {
        let length = stream.read_i32().await.ok()?;
        let mut request = vec![0; length as usize];
        stream.read_exact(&mut request).await.ok()?;
        let key = i16::from_be_bytes([request[0], request[1]]);
        let version = i16::from_be_bytes([request[2], request[3]]);
        let correlation_id = i32::from_be_bytes([request[4], request[5], request[6], request[7]]);
        if key == 18 {
            let api = |key, max| {
                ApiVersion::default()
                    .with_api_key(key)
                    .with_min_version(0)
                    .with_max_version(max)
            };
            let response = ApiVersionsResponse::default()
                .with_api_keys(vec![api(3, metadata_max), api(18, 3)]);
            stream
                .write_all(&frame(&response, version, correlation_id))
                .await
                .ok()?;
            continue;
        }
        let answer = |cluster: &'static str, correlation_id| {
            let broker = MetadataResponseBroker::default()
                .with_node_id(1.into())
                .with_host(StrBytes::from_static_str("127.0.0.1"))
                .with_port(port.into());
            let response = MetadataResponse::default()
                .with_brokers(vec![broker])
                .with_controller_id(1.into())
                .with_cluster_id(Some(StrBytes::from_static_str(cluster)));
            frame(&response, version, correlation_id)
        };
        match &fault {
            Fault::None(cluster) => stream
                .write_all(&answer(cluster, correlation_id))
                .await
                .ok()?,
            Fault::Bytes(bytes) => {
                stream.write_all(bytes).await.ok()?;
                return None;
            }
            Fault::Silence => {}
            Fault::WrongCorrelation => stream
                .write_all(&answer("fake", correlation_id ^ 1))
                .await
                .ok()?,
            Fault::HalfAnswer => {
                let whole = answer("fake", correlation_id);
                stream.write_all(&whole[..whole.len() / 2]).await.ok()?;
                return None;
            }
            Fault::TwoAnswers => {
                let whole = answer("fake", correlation_id);
                stream
                    .write_all(&[whole.clone(), whole].concat())
                    .await
                    .ok()?;
            }
            Fault::AbsurdArray => {
                let mut body = BytesMut::new();
                body.put_i32(correlation_id);
                if version >= 9 {
                    body.put_u8(0); // no tags in the header
                    body.put_i32(0); // throttle time
                    body.put_slice(&[0xFF, 0xFF, 0xFF, 0xFF, 0x0F]);
                } else {
                    body.put_i32(0);
                    body.put_i32(i32::MAX);
                }
                body.put_slice(&[0; 60]);
                let mut frame = BytesMut::new();
                frame.put_i32(body.len() as i32);
                frame.put_slice(&body);
                stream.write_all(&frame).await.ok()?;
            }
        }
    }
}

fn frame<R: Encodable + HeaderVersion>(response: &R, version: i16, correlation_id: i32) -> Bytes {
    let mut body = BytesMut::new();
    let header = ResponseHeader::default().with_correlation_id(correlation_id);
    header
        .encode(&mut body, R::header_version(version))
        .unwrap();
    response.encode(&mut body, version).unwrap();
    let mut frame = BytesMut::new();
    frame.put_i32(body.len() as i32);
    frame.put_slice(&body);
    frame.freeze()
}

fn request() -> MetadataRequest {
    MetadataRequest::default()
}

#[tokio::test]
async fn a_sane_answer_passes_in_both_encodings() {
    for version in [4, 8, 9, 12] {
        let fake = FakeBroker::start(Fault::None("fake"), version).await;
        let response = fake.connect().await.call(request()).await.unwrap();
        assert_eq!(response.cluster_id.as_deref(), Some("fake"), "v{version}");
    }
}

#[tokio::test]
async fn absurd_lengths_are_refused_before_anything_is_allocated() {
    for stated in [-1i32, 0, 3, (1 << 20) + 1, i32::MAX, i32::MIN, 0x4854_5450] {
        let fake = FakeBroker::start(Fault::Bytes(stated.to_be_bytes().to_vec()), 12).await;
        let error = fake.connect().await.call(request()).await.unwrap_err();
        assert!(matches!(error, Error::Frame { .. }), "{stated}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(&stated.to_string()) && text.contains(&fake.address.to_string()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn absurd_array_lengths_are_refused_in_both_encodings() {
    for version in [4, 8, 9, 12] {
        let fake = FakeBroker::start(Fault::AbsurdArray, version).await;
        let error = fake.connect().await.call(request()).await.unwrap_err();
        assert!(matches!(error, Error::Decode { .. }), "v{version}: {error}");
        assert!(error.to_string().contains("Metadata"), "{error}");
    }
}

#[tokio::test]
async fn every_waiter_gets_the_error_that_breaks_the_connection() {
    let fake = FakeBroker::start(Fault::WrongCorrelation, 12).await;
    let connection = fake.connect().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let connection = connection.clone();
        calls.spawn(async move { connection.call(request()).await.unwrap_err().to_string() });
    }
    let mut errors: Vec<String> = calls.join_all().await;
    errors.sort();
    errors.dedup();
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(errors[0].contains("correlation id"), "{errors:?}");
    assert!(connection.is_closed());
    assert!(matches!(
        connection.state(),
        ConnectionState::Poisoned(Error::Frame { .. })
    ));
    let later = connection.call(request()).await.unwrap_err();
    assert_eq!(later.to_string(), errors[0], "later callers get it too");
}

#[tokio::test]
async fn an_answer_that_nobody_asked_for_breaks_the_connection() {
    let fake = FakeBroker::start(Fault::TwoAnswers, 12).await;
    let connection = fake.connect().await;
    let _ = connection.call(request()).await;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !connection.is_closed() {
        assert!(
            Instant::now() < deadline,
            "the second answer went unnoticed"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn half_an_answer_is_a_closed_connection() {
    let fake = FakeBroker::start(Fault::HalfAnswer, 12).await;
    let error = fake.connect().await.call(request()).await.unwrap_err();
    assert!(matches!(error, Error::Closed { .. }), "{error}");
    assert!(
        error.to_string().contains("in the middle of an answer"),
        "{error}"
    );
    assert!(error.is_retriable());
}

#[tokio::test]
async fn silence_times_out_and_breaks_the_connection() {
    let fake = FakeBroker::start(Fault::Silence, 12).await;
    let connection = fake.connect().await;
    let waiting = connection.clone();
    let patient = tokio::spawn(async move {
        let version = waiting.version_for::<MetadataRequest>().unwrap();
        waiting
            .call_with(request(), version, Duration::from_secs(60))
            .await
    });
    tokio::task::yield_now().await;
    let began = Instant::now();
    let error = tokio::time::timeout(Duration::from_secs(10), connection.call(request()))
        .await
        .unwrap()
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::Timeout {
                what: "Metadata",
                ..
            }
        ),
        "{error}"
    );
    assert!(began.elapsed() < Duration::from_secs(5));
    let other = patient.await.unwrap().unwrap_err();
    assert_eq!(
        other.to_string(),
        error.to_string(),
        "the patient caller shares the fate of the connection"
    );
    assert!(connection.is_closed());
}

#[tokio::test]
async fn a_dead_address_costs_half_a_second_and_a_foreign_cluster_is_refused() {
    let silent = FakeBroker::start(Fault::Silence, 12).await;
    let good = FakeBroker::start(Fault::None("fake"), 12).await;
    let options = ClusterOptions {
        bootstrap: vec![silent.address.clone(), good.address.clone()],
        request_timeout: Duration::from_secs(30),
        ..good.options()
    };
    let began = Instant::now();
    let cluster = Cluster::connect(options.clone()).await.unwrap();
    assert_eq!(cluster.cluster_id(), "fake");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );

    // The bootstrap address leads to another cluster than the one learned: refused, and never asked for anything else.
    let foreign = FakeBroker::start(Fault::None("foreign"), 12).await;
    let wrong = ClusterOptions {
        bootstrap: vec![foreign.address.clone()],
        expected_cluster_id: Some("fake".to_owned()),
        ..options
    };
    let error = Cluster::connect(wrong).await.unwrap_err();
    assert!(matches!(error, Error::WrongClusterId { .. }), "{error}");
    assert!(!error.is_retriable());
}

#[tokio::test]
async fn refreshes_at_the_same_time_share_one_connection() {
    let fake = FakeBroker::start(Fault::None("fake"), 12).await;
    let cluster = Cluster::connect(fake.options()).await.unwrap();
    let before = fake.connections.load(Ordering::SeqCst);
    let mut refreshes = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let cluster = cluster.clone();
        refreshes.spawn(async move { cluster.refresh_metadata().await.map(|_| ()) });
    }
    while let Some(refreshed) = refreshes.join_next().await {
        refreshed.unwrap().unwrap();
    }
    assert_eq!(fake.connections.load(Ordering::SeqCst) - before, 1);
}
