//! Frames that come in drips, and reads and writes that are cancelled half-way.
#![allow(clippy::unwrap_used)] // helpers of tests

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiVersionsResponse, ResponseHeader};
use kafka_protocol::protocol::Encodable;
use standfast_wire::{ClusterOptions, FrameReader, FrameWriter, HostPort, RawConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

/// A connection to a peer that answers ApiVersions and is then in the test's hands.
async fn connected() -> (FrameReader, FrameWriter, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let length = stream.read_i32().await.unwrap();
        stream
            .read_exact(&mut vec![0; length as usize])
            .await
            .unwrap();
        let api = ApiVersion::default().with_api_key(18).with_max_version(3);
        let mut body = BytesMut::new();
        ResponseHeader::default().encode(&mut body, 0).unwrap();
        ApiVersionsResponse::default()
            .with_api_keys(vec![api])
            .encode(&mut body, 3)
            .unwrap();
        stream.write_i32(body.len() as i32).await.unwrap();
        stream.write_all(&body).await.unwrap();
        stream
    });
    let host = "127.0.0.1".to_owned();
    let raw = RawConnection::connect(&HostPort { host, port }, &ClusterOptions::default())
        .await
        .unwrap();
    let (reader, writer) = raw.into_split();
    (reader, writer, peer.await.unwrap())
}

fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at.wrapping_mul(31) + seed) as u8)
        .collect()
}

#[tokio::test]
async fn reads_that_are_cancelled_lose_nothing() {
    let (mut reader, _writer, mut peer) = connected().await;
    let lengths = [4, 5, 8188, 8192, 8193, 100_000, 17, 1_000_000, 4];
    let sender = tokio::spawn(async move {
        let mut bytes = BytesMut::new();
        for (seed, length) in lengths.into_iter().enumerate() {
            bytes.put_i32(length as i32);
            bytes.put_slice(&pattern(length, seed));
        }
        for (step, drip) in bytes.chunks(9_973).enumerate() {
            peer.write_all(drip).await.unwrap();
            if step % 7 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        peer
    });
    for (seed, length) in lengths.into_iter().enumerate() {
        let frame = loop {
            // The future is dropped whenever it is not ready at once.
            match timeout(Duration::ZERO, reader.read()).await {
                Ok(frame) => break frame.unwrap(),
                Err(_) => tokio::task::yield_now().await,
            }
        };
        assert!(
            frame == pattern(length, seed),
            "frame {seed} of {length} bytes is damaged"
        );
    }
    drop(sender.await.unwrap());
    let error = reader.read().await.unwrap_err().to_string();
    assert!(error.ends_with("connection closed"), "{error}");
}

#[tokio::test]
async fn writes_that_are_cancelled_neither_lose_nor_repeat() {
    let (_reader, mut writer, mut peer) = connected().await;
    const FRAMES: usize = 20;
    let receiver = tokio::spawn(async move {
        for seed in 0..FRAMES {
            let length = peer.read_i32().await.unwrap() as usize;
            let mut frame = vec![0; length];
            peer.read_exact(&mut frame).await.unwrap();
            assert!(frame == pattern(length, seed), "frame {seed} is damaged");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    for seed in 0..FRAMES {
        let whole = Bytes::from(pattern(600_000 + seed, seed));
        // Many parts, some of them empty: more than one vectored write.
        let parts: Vec<Bytes> = (0..whole.len())
            .step_by(4_000)
            .map(|at| whole.slice(at..whole.len().min(at + 4_000)))
            .collect();
        let parts = [&[Bytes::new()][..], &parts].concat();
        let _ = timeout(Duration::from_micros(300), writer.write(&parts)).await;
    }
    writer.flush().await.unwrap();
    assert!(!writer.has_pending());
    receiver.await.unwrap();
}
