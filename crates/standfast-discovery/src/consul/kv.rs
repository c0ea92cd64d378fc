//! Consul's key-value store: developer.hashicorp.com/consul/api-docs/kv.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::Deserialize;

use super::Consul;
use super::address::{Answer, Failure, Request};

/// A stored key.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: Vec<u8>,
    pub(super) modify_index: u64,
    /// Grows each time the key is acquired as a lock.
    pub(super) lock_index: u64,
    /// The session that holds it as a lock.
    pub(super) session: Option<String>,
}

/// What a read found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) entry: Option<Entry>,
    /// `X-Consul-Index`, 0 if there was none.
    pub(super) index: u64,
    pub(super) known_leader: bool,
}

/// How to read.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mode {
    /// At once, confirmed by a quorum.
    Consistent,
    /// When the index has passed `index`, at the latest after `wait`; at once if `index` is 0.
    Blocking {
        index: u64,
        wait: Duration,
        stale: bool,
    },
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(super) enum Put<'a> {
    Replace,
    /// If the key's `ModifyIndex` is this; 0 = if it does not exist.
    CheckAndSet(u64),
    Acquire(&'a str),
    Release(&'a str),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryJson {
    value: Option<String>,
    modify_index: u64,
    #[serde(default)]
    lock_index: u64,
    session: Option<String>,
}

impl Consul {
    pub(super) async fn get(
        &self,
        address: usize,
        key: &str,
        mode: Mode,
    ) -> Result<Found, Failure> {
        let mut query = Vec::new();
        let timeout = match mode {
            Mode::Consistent => {
                query.push(("consistent", String::new()));
                self.options.request_timeout
            }
            Mode::Blocking { index, wait, stale } => {
                if stale {
                    query.push(("stale", String::new()));
                }
                if index > 0 {
                    query.push(("index", index.to_string()));
                    query.push(("wait", format!("{}ms", wait.as_millis())));
                    self.blocking_timeout(wait)
                } else {
                    self.options.request_timeout
                }
            }
        };
        let (path, rule) = (format!("kv/{key}"), key_rule(key, "read"));
        let answer = self
            .send(address, Method::GET, &path, query, None, timeout, &rule)
            .await?;
        let (index, known_leader) = (answer.index.unwrap_or(0), answer.known_leader);
        let entry = if answer.found {
            Some(self.parse_entry(address, &answer)?)
        } else {
            None
        };
        Ok(Found {
            entry,
            index,
            known_leader,
        })
    }

    fn parse_entry(&self, address: usize, answer: &Answer) -> Result<Entry, Failure> {
        let not_consul = |what: &str| Failure::Answer {
            address: self.address_name(address),
            reason: format!("the answer is not Consul's: {what}"),
        };
        let entries: Vec<EntryJson> = serde_json::from_slice(&answer.body)
            .map_err(|_| not_consul("no JSON list of one key"))?;
        let entry = entries
            .into_iter()
            .next()
            .ok_or_else(|| not_consul("an empty list"))?;
        let value = STANDARD
            .decode(entry.value.unwrap_or_default())
            .map_err(|_| not_consul("a value not in base64"))?;
        Ok(Entry {
            value,
            modify_index: entry.modify_index,
            lock_index: entry.lock_index,
            session: entry.session.filter(|s| !s.is_empty()),
        })
    }

    /// Writes; false if the condition of `put` did not hold.
    pub(super) async fn put(
        &self,
        address: usize,
        key: &str,
        put: Put<'_>,
        value: &[u8],
    ) -> Result<bool, Failure> {
        let query = match put {
            Put::Replace => Vec::new(),
            Put::CheckAndSet(index) => vec![("cas", index.to_string())],
            Put::Acquire(session) => vec![("acquire", session.to_owned())],
            Put::Release(session) => vec![("release", session.to_owned())],
        };
        let path = format!("kv/{key}");
        let rule = key_rule(key, "write");
        let timeout = self.options.request_timeout;
        let answer = self
            .send(
                address,
                Method::PUT,
                &path,
                query,
                Some(value.to_vec()),
                timeout,
                &rule,
            )
            .await?;
        match (answer.found, answer.body.trim_ascii()) {
            (true, b"true") => Ok(true),
            (true, b"false") => Ok(false),
            _ => Err(Failure::Answer {
                address: self.address_name(address),
                reason: "the answer to a write is neither true nor false".to_owned(),
            }),
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "private; each is one part of an HTTP request"
    )]
    pub(super) async fn send(
        &self,
        address: usize,
        method: Method,
        path: &str,
        mut query: Vec<(&str, String)>,
        body: Option<Vec<u8>>,
        timeout: Duration,
        rule: &str,
    ) -> Result<Answer, Failure> {
        let Some(target) = self.addresses.get(address) else {
            let reason = "the address is not configured".to_owned();
            return Err(Failure::NotSent {
                address: String::new(),
                reason,
            });
        };
        if let Some(datacenter) = &self.options.datacenter {
            query.push(("dc", datacenter.clone()));
        }
        if let Some(namespace) = &self.options.namespace {
            query.push(("ns", namespace.clone()));
        }
        target
            .send(
                Request {
                    method,
                    path,
                    query: &query,
                    body,
                    timeout,
                    rule,
                },
                &self.token,
            )
            .await
    }
}

fn key_rule(key: &str, policy: &str) -> String {
    format!("key \"{key}\" {{ policy = \"{policy}\" }}")
}
