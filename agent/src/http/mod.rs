//! The HTTP API.
//!
//! | route | |
//! |---|---|
//! | `GET /v1/status` | fleet, clusters, links, running operation |
//! | `GET /v1/mirrors[?link=L]` | every mirror topic |
//! | `GET /v1/mirrors/{topic}[?link=L]` | one mirror topic; a list, since several links may mirror it |
//! | `POST /v1/mirrors:{pause,resume,promote,failover,create}` | [`MirrorsRequest`](crate::api::MirrorsRequest) → [`MirrorChanges`](crate::api::MirrorChanges), one result per topic |
//! | `POST /v1/mirrors:restore` | [`RestoreRequest`](crate::api::RestoreRequest) → [`RestoreResults`](crate::api::RestoreResults), one result per topic |
//! | `POST /v1/mirrors:reverse` | [`MirrorsRequest`](crate::api::MirrorsRequest) → [`RestoreResults`](crate::api::RestoreResults) |
//! | `GET /v1/links`, `GET /v1/links/{link}` | the links, with states counted and groups |
//! | `POST /v1/links:{create,update,delete}` | [`LinkCreateRequest`](crate::api::LinkCreateRequest) … → [`LinkChange`](crate::api::LinkChange) |
//! | `POST /v1/links:{pause,resume}` | [`LinkRequest`](crate::api::LinkRequest) → [`Link`](crate::api::Link) |
//! | `POST /v1/mirrors/{topic}/verify` | [`VerifyRequest`](crate::api::VerifyRequest) → JSON lines: progress, then the report |
//! | `GET /v1/fleet` | the fleet record |
//! | `POST /v1/failover` | [`FailoverRequest`] → [`Report`] |
//! | `POST /v1/switchover` | [`SwitchoverRequest`] → [`Report`] |
//! | `GET /metrics` | Prometheus |
//! | `GET /healthz`, `GET /readyz` | the process answers; the record is known and the links run |
//!
//! A POST needs `Content-Type: application/json`: a browser sends that to another site only after asking, and it is
//! told no. The `Host` header must name this machine when the API listens on loopback, so that a web page cannot reach
//! it under a name of its own.

mod error;
mod guard;
mod restore;
mod transitions;
mod verify;

use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::{
    ErrorCode, FailoverRequest, FleetAnswer, MirrorList, Report, Status, SwitchoverRequest,
};
use crate::daemon::DaemonState;
use crate::metrics;

use error::{ApiError, Body};

/// Largest request body; the largest sensible one is a reason text.
const BODY_MAX_BYTES: usize = 64 * 1024;
/// Longest wait for an answer that needs nothing but memory.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then finishes the requests that are under way.
pub(crate) async fn serve(
    listener: TcpListener,
    state: DaemonState,
    shutdown: CancellationToken,
) -> std::io::Result<()> {
    let local = listener.local_addr()?.ip().is_loopback();
    axum::serve(listener, router(state, local))
        .with_graceful_shutdown(shutdown.cancelled_owned())
        .await
}

fn router(state: DaemonState, local: bool) -> Router {
    let reads = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/mirrors", get(mirrors))
        .route("/v1/mirrors/{topic}", get(mirror))
        .route("/v1/fleet", get(fleet))
        .route("/metrics", get(prometheus))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .layer(middleware::from_fn(time_limit));
    let operations = Router::new()
        .route("/v1/mirrors/{topic}/verify", post(verify::verify))
        .route("/v1/failover", post(failover))
        .route("/v1/switchover", post(switchover));
    reads
        .merge(operations)
        .merge(transitions::routes())
        .merge(restore::routes())
        .fallback(|| async {
            ApiError::new(ErrorCode::NotFound, "no such path; see `standfast --help`")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(ErrorCode::BadRequest, "this path does not take that method")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX_BYTES))
        .layer(middleware::from_fn_with_state(local, guard::check_host))
        .with_state(state)
}

async fn time_limit(request: Request, next: Next) -> Response {
    match tokio::time::timeout(READ_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(
            ErrorCode::Internal,
            format!("no answer within {READ_TIMEOUT:?}"),
        )
        .into_response(),
    }
}

async fn status(State(daemon): State<DaemonState>) -> Json<Status> {
    Json(daemon.status())
}

#[derive(Debug, Deserialize)]
struct MirrorFilter {
    link: Option<String>,
}

async fn mirrors(
    State(daemon): State<DaemonState>,
    Query(filter): Query<MirrorFilter>,
) -> Result<Json<MirrorList>, ApiError> {
    check_link(&daemon, filter.link.as_deref())?;
    Ok(Json(MirrorList {
        data: daemon.links.mirrors(filter.link.as_deref()),
    }))
}

async fn mirror(
    State(daemon): State<DaemonState>,
    Path(topic): Path<String>,
    Query(filter): Query<MirrorFilter>,
) -> Result<Json<MirrorList>, ApiError> {
    check_link(&daemon, filter.link.as_deref())?;
    let mut data = daemon.links.mirrors(filter.link.as_deref());
    data.retain(|mirror| mirror.description.mirror_topic_name == topic);
    if data.is_empty() {
        return Err(ApiError::new(
            ErrorCode::NotFound,
            format!(
                "no link mirrors the topic \"{topic}\"; `standfast mirror list` shows those that are"
            ),
        ));
    }
    Ok(Json(MirrorList { data }))
}

fn check_link(daemon: &DaemonState, link: Option<&str>) -> Result<(), ApiError> {
    let Some(link) = link else { return Ok(()) };
    let links = daemon.links.links();
    let names: Vec<&str> = links.iter().map(|l| l.section().name.as_str()).collect();
    if names.contains(&link) {
        return Ok(());
    }
    Err(ApiError::new(
        ErrorCode::NotFound,
        format!(
            "there is no link \"{link}\"; this agent has: {}",
            names.join(", ")
        ),
    ))
}

async fn fleet(State(daemon): State<DaemonState>) -> Json<FleetAnswer> {
    Json(daemon.fleet_answer())
}

async fn prometheus(State(daemon): State<DaemonState>) -> Result<Response, ApiError> {
    let text = metrics::encode(&daemon)
        .map_err(|error| ApiError::new(ErrorCode::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

async fn ready(State(daemon): State<DaemonState>) -> Response {
    match daemon.not_ready() {
        None => "ready\n".into_response(),
        Some(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {why}\n"),
        )
            .into_response(),
    }
}

async fn failover(
    State(daemon): State<DaemonState>,
    Body(request): Body<FailoverRequest>,
) -> Result<Json<Report>, ApiError> {
    Ok(Json(daemon.operations.failover(request).await?))
}

async fn switchover(
    State(daemon): State<DaemonState>,
    Body(request): Body<SwitchoverRequest>,
) -> Result<Json<Report>, ApiError> {
    Ok(Json(daemon.operations.switchover(request).await?))
}
