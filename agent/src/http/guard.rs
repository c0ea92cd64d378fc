//! Keeps web pages out: DNS rebinding makes a browser call a loopback address under the page's own host name.

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{HOST, ORIGIN};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::error::ApiError;
use crate::api::ErrorCode;

/// On loopback, only this machine's own names are accepted as `Host`; and no request that a web page sent.
pub(super) async fn check_host(
    State(local): State<bool>,
    request: Request,
    next: Next,
) -> Response {
    match refusal(local, request.headers()) {
        Some(message) => ApiError::new(ErrorCode::BadRequest, message).into_response(),
        None => next.run(request).await,
    }
}

fn refusal(local: bool, headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(origin) = text(ORIGIN) {
        return Some(format!(
            "requests from web pages are refused (Origin: {origin})"
        ));
    }
    let host = text(HOST)?;
    (local && !is_local_name(host)).then(|| {
        format!("\"{host}\" is not a name of this machine's loopback interface; use 127.0.0.1")
    })
}

fn is_local_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || address
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_local() {
        for local in [
            "127.0.0.1:9370",
            "localhost",
            "LOCALHOST:1",
            "[::1]:9370",
            "127.8.8.8",
        ] {
            assert!(is_local_name(local), "{local}");
        }
        for foreign in [
            "evil.example:9370",
            "127.0.0.1.evil.example",
            "10.0.0.1",
            "",
            "localhost.evil:80",
        ] {
            assert!(!is_local_name(foreign), "{foreign}");
        }
    }
}
