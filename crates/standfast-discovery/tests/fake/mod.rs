//! A small HTTP/1.1 responder for faults that a real Consul does not produce.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) enum Reply {
    /// Status, `X-Consul-Index`, further header lines, body.
    Answer(u16, Option<u64>, &'static str, Vec<u8>),
    /// The connection stays open and silent.
    Hang,
    /// The request is passed on to a real Consul (`host:port`), whose answer is lost.
    PassOnAndClose(String),
}

/// Answers a request by its number, method and path.
type Script = dyn Fn(usize, &str) -> Reply + Send + Sync;

pub(crate) struct Fake {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) async fn start(
        script: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(None, script).await
    }

    pub(crate) async fn start_with(
        tls: Option<TlsAcceptor>,
        script: impl Fn(usize, &str) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (script, seen): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&asked));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, seen, tls) = (Arc::clone(&script), Arc::clone(&seen), tls.clone());
                connections.spawn(async move {
                    match tls {
                        None => serve(stream, &*script, &seen).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => serve(stream, &*script, &seen).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { port, asked, task }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Every request so far: method and path with query.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    script: &Script,
    asked: &Mutex<Vec<String>>,
) -> Option<()> {
    loop {
        let (request, line) = read_request(&mut stream).await?;
        let number = {
            let mut asked = asked.lock().unwrap();
            asked.push(line.clone());
            asked.len() - 1
        };
        match script(number, &line) {
            Reply::Answer(status, index, headers, body) => {
                let index = index.map_or_else(String::new, |i| format!("X-Consul-Index: {i}\r\n"));
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n{index}{headers}\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await.ok()?;
                stream.write_all(&body).await.ok()?;
            }
            Reply::Hang => std::future::pending().await,
            Reply::PassOnAndClose(to) => {
                let mut upstream = tokio::net::TcpStream::connect(to).await.ok()?;
                upstream.write_all(&request).await.ok()?;
                let _ = upstream.read(&mut [0; 1024]).await;
                return None;
            }
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(Vec<u8>, String)> {
    let mut request = Vec::new();
    let head = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        request.extend(byte);
        if request.ends_with(b"\r\n\r\n") {
            break String::from_utf8_lossy(&request).to_lowercase();
        }
    };
    let length = head
        .lines()
        .find_map(|l| l.strip_prefix("content-length: "))
        .map_or(0, |n| n.parse().unwrap());
    let start = request.len();
    request.resize(start + length, 0);
    stream.read_exact(&mut request[start..]).await.ok()?;
    let line = String::from_utf8_lossy(&request);
    let line = line
        .lines()
        .next()?
        .trim_end_matches(" HTTP/1.1")
        .to_owned();
    Some((request, line))
}
