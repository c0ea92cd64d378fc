//! `POST /v1/mirrors/{topic}/verify`: a stream of JSON lines, progress and then the report.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;

use super::error::{ApiError, Body};
use crate::api::VerifyRequest;
use crate::daemon::DaemonState;

const JSON_LINES: &str = "application/x-ndjson";

pub(super) async fn verify(
    State(daemon): State<DaemonState>,
    Path(topic): Path<String>,
    Body(request): Body<VerifyRequest>,
) -> Result<Response, ApiError> {
    let lines = daemon
        .verifications
        .start(&topic, &request)
        .map_err(ApiError::from)?;
    // A client that goes away drops the stream, and with it the comparison.
    let lines = stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        let text = serde_json::to_string(&line).map(|text| text + "\n");
        Some((text, lines))
    });
    let body = axum::body::Body::from_stream(lines);
    Ok(([(header::CONTENT_TYPE, JSON_LINES)], body).into_response())
}
