//! `POST /v1/mirrors:VERB` and `POST /v1/links:VERB`: changing what mirrors and links do.

use axum::Json;
use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::routing::{MethodRouter, get, post};
use standfast_link::Transition;

use super::check_link;
use super::error::{ApiError, Body};
use crate::api::{
    ErrorCode, Link, LinkChange, LinkCreateRequest, LinkDeleteRequest, LinkList, LinkRequest,
    LinkUpdateRequest, MirrorChanges, MirrorsRequest,
};
use crate::daemon::DaemonState;

/// Largest request body: the names of ten thousands of topics.
pub(super) const TOPICS_MAX_BYTES: usize = 8 << 20;

pub(super) fn routes() -> Router<DaemonState> {
    let verbs = [
        ("pause", Transition::Pause),
        ("resume", Transition::Resume),
        ("promote", Transition::Promote),
        ("failover", Transition::Failover),
        ("create", Transition::Create),
    ];
    let mut router = Router::new();
    for (verb, transition) in verbs {
        router = router.route(&format!("/v1/mirrors:{verb}"), change(transition));
    }
    router
        .layer(DefaultBodyLimit::max(TOPICS_MAX_BYTES))
        .route("/v1/links:create", post(create))
        .route("/v1/links:update", post(update))
        .route("/v1/links:delete", post(delete))
        .route("/v1/links:pause", pause(true))
        .route("/v1/links:resume", pause(false))
        .route("/v1/links", get(links))
        .route("/v1/links/{link}", get(link))
}

fn change(transition: Transition) -> MethodRouter<DaemonState> {
    post(
        async move |State(daemon): State<DaemonState>,
                    Body(request): Body<MirrorsRequest>|
                    -> Result<Json<MirrorChanges>, ApiError> {
            Ok(Json(daemon.links.transition(transition, request).await?))
        },
    )
}

fn pause(paused: bool) -> MethodRouter<DaemonState> {
    post(
        async move |State(daemon): State<DaemonState>,
                    Body(request): Body<LinkRequest>|
                    -> Result<Json<Link>, ApiError> {
            Ok(Json(daemon.links.pause_link(request, paused).await?))
        },
    )
}

async fn create(
    State(daemon): State<DaemonState>,
    Body(request): Body<LinkCreateRequest>,
) -> Result<Json<LinkChange>, ApiError> {
    no_operation(&daemon)?;
    Ok(Json(daemon.links.create_link(request).await?))
}

async fn update(
    State(daemon): State<DaemonState>,
    Body(request): Body<LinkUpdateRequest>,
) -> Result<Json<LinkChange>, ApiError> {
    no_operation(&daemon)?;
    Ok(Json(daemon.links.update_link(request).await?))
}

async fn delete(
    State(daemon): State<DaemonState>,
    Body(request): Body<LinkDeleteRequest>,
) -> Result<Json<LinkChange>, ApiError> {
    no_operation(&daemon)?;
    Ok(Json(daemon.links.delete_link(request).await?))
}

/// While a failover or switchover counts on the links, they stay what they are.
fn no_operation(daemon: &DaemonState) -> Result<(), ApiError> {
    match daemon.operations.current() {
        None => Ok(()),
        Some(operation) => Err(ApiError::new(
            ErrorCode::OperationInProgress,
            format!(
                "a {} is running; links are not changed meanwhile",
                operation.kind
            ),
        )),
    }
}

async fn links(State(daemon): State<DaemonState>) -> Json<LinkList> {
    Json(LinkList {
        data: daemon.links.describe_links(None),
    })
}

async fn link(
    State(daemon): State<DaemonState>,
    Path(name): Path<String>,
) -> Result<Json<LinkList>, ApiError> {
    check_link(&daemon, Some(&name))?;
    Ok(Json(LinkList {
        data: daemon.links.describe_links(Some(&name)),
    }))
}
