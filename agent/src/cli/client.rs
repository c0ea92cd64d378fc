//! Talks to the agent's HTTP API.

use std::time::Duration;

use reqwest::{Method, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::{ErrorBody, ErrorCode};
use crate::exit::{Exit, Failed};

/// How long the agent may take to accept the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Largest answer that is read: some thousand topics.
const ANSWER_MAX_BYTES: usize = 256 * 1024 * 1024;

/// Longest silence between two lines of a streamed answer: a fetch and its repeats.
const LINE_LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct AgentClient {
    base: Url,
    http: reqwest::Client,
}

/// What the agent said instead of doing it.
#[derive(Debug)]
pub(super) enum CallError {
    /// The agent answered with an error.
    Agent(ErrorBody),
    /// Everything else.
    Failed(Failed),
}

impl AgentClient {
    pub(super) fn new(agent: &str) -> Result<Self, Failed> {
        let base: Url = agent.parse().map_err(|error| {
            Failed::usage(format!(
                "--agent {agent:?} is not a URL: {error}; write http://127.0.0.1:9370"
            ))
        })?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(Failed::usage(format!(
                "--agent {agent:?}: write http://127.0.0.1:9370"
            )));
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Failed::failure(format!("cannot set up the HTTP client: {error}")))?;
        Ok(Self { base, http })
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
        limit: Duration,
    ) -> Result<T, CallError> {
        self.call(Method::GET, path, query, None::<&()>, limit)
            .await
    }

    pub(super) async fn post<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        limit: Duration,
    ) -> Result<T, CallError> {
        self.call(Method::POST, path, &[], Some(body), limit).await
    }

    /// Posts, and hands over each line of the answer as it comes.
    pub(super) async fn post_lines<B: Serialize, T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &B,
        mut each: impl FnMut(T),
    ) -> Result<(), CallError> {
        let request = self.http.post(self.url(path)?).json(body);
        let silent = || {
            CallError::Failed(Failed::failure(format!(
                "the agent at {} said nothing for {LINE_LIMIT:?}",
                self.base
            )))
        };
        let mut response = tokio::time::timeout(LINE_LIMIT, request.send())
            .await
            .map_err(|_| silent())?
            .map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            let status = response.status();
            let bytes = response
                .bytes()
                .await
                .map_err(|error| self.unreachable(&error))?;
            return Err(self.refusal(status, &bytes));
        }
        let mut open: Vec<u8> = Vec::new();
        loop {
            let chunk = tokio::time::timeout(LINE_LIMIT, response.chunk())
                .await
                .map_err(|_| silent())?
                .map_err(|error| self.unreachable(&error))?;
            let Some(chunk) = chunk else { return Ok(()) };
            open.extend_from_slice(&chunk);
            while let Some(end) = open.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = open.drain(..=end).collect();
                let line = serde_json::from_slice(&line)
                    .map_err(|error| self.not_an_agent(&error.to_string()))?;
                each(line);
            }
            if open.len() > ANSWER_MAX_BYTES {
                return Err(self.not_an_agent("a line without an end"));
            }
        }
    }

    fn url(&self, path: &[&str]) -> Result<Url, CallError> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => {
                return Err(CallError::Failed(Failed::usage(
                    "--agent cannot be a base URL",
                )));
            }
        };
        Ok(url)
    }

    fn refusal(&self, status: reqwest::StatusCode, bytes: &[u8]) -> CallError {
        match serde_json::from_slice::<ErrorBody>(bytes) {
            Ok(error) => CallError::Agent(error),
            Err(_) => self.not_an_agent(&format!("HTTP status {status}")),
        }
    }

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&B>,
        limit: Duration,
    ) -> Result<T, CallError> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.http.request(method, url).timeout(limit);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request
            .send()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let status = response.status();
        if response
            .content_length()
            .is_some_and(|bytes| bytes > ANSWER_MAX_BYTES as u64)
        {
            return Err(CallError::Failed(Failed::failure(
                "the agent's answer is too large to be one",
            )));
        }
        let bytes = response
            .bytes()
            .await
            .map_err(|error| self.unreachable(&error))?;
        if status.is_success() {
            return serde_json::from_slice(&bytes)
                .map_err(|error| self.not_an_agent(&error.to_string()));
        }
        Err(self.refusal(status, &bytes))
    }

    fn unreachable(&self, error: &reqwest::Error) -> CallError {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        let hint = "is it running? `standfast agent --config FILE` starts it; --agent or STANDFAST_AGENT says where it is";
        CallError::Failed(Failed::new(
            Exit::AgentUnreachable,
            format!("no answer from the agent at {}: {cause}; {hint}", self.base),
        ))
    }

    fn not_an_agent(&self, what: &str) -> CallError {
        CallError::Failed(Failed::failure(format!(
            "{} does not answer like a standfast agent: {what}",
            self.base
        )))
    }
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Failed(failed) => failed,
            CallError::Agent(body) => Self::new(exit_of(body.error_code), body.message),
        }
    }
}

pub(super) fn exit_of(code: ErrorCode) -> Exit {
    match code {
        ErrorCode::BadRequest => Exit::Usage,
        ErrorCode::NotFound | ErrorCode::Internal => Exit::Failure,
        ErrorCode::OperationFailed => Exit::FailoverIncomplete,
        ErrorCode::Refused | ErrorCode::DiscoveryUnreachable | ErrorCode::OperationInProgress => {
            Exit::Refused
        }
    }
}
