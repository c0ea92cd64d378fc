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

    async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&B>,
        limit: Duration,
    ) -> Result<T, CallError> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => {
                return Err(CallError::Failed(Failed::usage(
                    "--agent cannot be a base URL",
                )));
            }
        };
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
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(error) => Err(CallError::Agent(error)),
            Err(_) => Err(self.not_an_agent(&format!("HTTP status {status}"))),
        }
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
