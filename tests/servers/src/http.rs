//! A blocking HTTP client of a page, for JSON APIs on loopback.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

use crate::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const IO_TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER: u64 = 16 << 20;

/// A JSON API on loopback.
#[derive(Debug)]
pub struct Api<'a> {
    /// The server's name, for errors.
    pub server: &'static str,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// Header name and value that are sent along.
    pub token: Option<(&'static str, &'a str)>,
}

/// Status code and body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Api<'_> {
    /// Sends a request whatever the status of the answer.
    pub(crate) fn send(&self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        let asked = self.exchange(method, path, body);
        asked.map_err(Error::io(format!(
            "{method} {path} at {} on 127.0.0.1:{}",
            self.server, self.port
        )))
    }

    /// Sends JSON; the JSON of a successful answer (null if it is empty), an error otherwise.
    pub fn json(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let answer = self.send(method, path, text.as_bytes())?;
        let failed = |detail: String| Error::Answer {
            server: self.server,
            address: format!("127.0.0.1:{}", self.port),
            detail: format!("{method} {path}: {detail}"),
        };
        if !(200..300).contains(&answer.status) {
            return Err(failed(format!(
                "status {}: {}",
                answer.status,
                answer.body.trim()
            )));
        }
        if answer.body.trim().is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_str(&answer.body).map_err(|error| failed(error.to_string()))
    }

    /// HTTP/1.0, so that the answer ends with the connection and is never chunked.
    fn exchange(&self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
        let mut stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        let token = self
            .token
            .map(|(header, token)| format!("{header}: {token}\r\n"))
            .unwrap_or_default();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: {address}\r\n{token}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let parsed = answer.split_once("\r\n\r\n").and_then(|(head, body)| {
            let status = head.split(' ').nth(1)?.parse().ok()?;
            Some(Answer {
                status,
                body: body.to_owned(),
            })
        });
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an HTTP answer"))
    }
}
