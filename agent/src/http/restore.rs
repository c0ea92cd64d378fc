//! `POST /v1/mirrors:restore` and `POST /v1/mirrors:reverse`.

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::routing::post;

use super::error::{ApiError, Body};
use super::transitions::TOPICS_MAX_BYTES;
use crate::api::{MirrorsRequest, RestoreRequest, RestoreResults};
use crate::daemon::DaemonState;

pub(super) fn routes() -> Router<DaemonState> {
    Router::new()
        .route("/v1/mirrors:restore", post(restore))
        .route("/v1/mirrors:reverse", post(reverse))
        .layer(DefaultBodyLimit::max(TOPICS_MAX_BYTES))
}

async fn restore(
    State(daemon): State<DaemonState>,
    Body(request): Body<RestoreRequest>,
) -> Result<Json<RestoreResults>, ApiError> {
    Ok(Json(daemon.restores.restore(request).await?))
}

async fn reverse(
    State(daemon): State<DaemonState>,
    Body(request): Body<MirrorsRequest>,
) -> Result<Json<RestoreResults>, ApiError> {
    Ok(Json(daemon.restores.reverse(request).await?))
}
