//! Errors as JSON, also those that axum would word itself.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::api::{ErrorBody, ErrorCode};
use crate::failover::Failure;

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct ApiError(ErrorBody);

impl ApiError {
    pub(super) fn new(error_code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorBody {
            error_code,
            message: message.into(),
            report: None,
        })
    }
}

impl From<ErrorBody> for ApiError {
    fn from(body: ErrorBody) -> Self {
        Self(body)
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        Self(ErrorBody {
            error_code: failure.code,
            message: failure.message,
            report: failure.report,
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.0.error_code {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::OperationInProgress | ErrorCode::Refused => StatusCode::CONFLICT,
            ErrorCode::DiscoveryUnreachable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::OperationFailed | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(self.0)).into_response()
    }
}

/// A JSON body. Refuses any other content type, which keeps web pages from posting here.
#[derive(Debug)]
pub(super) struct Body<T>(pub(super) T);

impl<T, S> FromRequest<S> for Body<T>
where
    Json<T>: FromRequest<S, Rejection = JsonRejection>,
    S: Send + Sync,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(body)) => Ok(Self(body)),
            Err(rejection) => Err(ApiError::new(ErrorCode::BadRequest, rejection.body_text())),
        }
    }
}
