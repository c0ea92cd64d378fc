//! Names for what a cluster refuses to this link's user, as Confluent names them.

use standfast_wire::{Error, ResponseError};

use crate::description::MirrorTopicError;

const AUTHENTICATION: &str = "AUTHENTICATION_ERROR";
pub(crate) const AUTHORIZATION: &str = "AUTHORIZATION_ERROR";

/// Whether the code says that an ACL is missing. Nothing is broken then: it is tried again until the ACL is there.
pub(crate) fn is_authorization(code: ResponseError) -> bool {
    matches!(
        code,
        ResponseError::TopicAuthorizationFailed
            | ResponseError::GroupAuthorizationFailed
            | ResponseError::ClusterAuthorizationFailed
            | ResponseError::TransactionalIdAuthorizationFailed
    )
}

/// What an error means for a mirror topic that is retried.
pub(crate) fn topic_error(error: &Error, otherwise: MirrorTopicError) -> MirrorTopicError {
    if error.code().is_some_and(is_authorization) {
        MirrorTopicError::AuthorizationError
    } else {
        otherwise
    }
}

/// The error's text, with the name that operators look for in front if the cluster refuses the user.
pub(crate) fn text(error: &Error) -> String {
    match error {
        Error::Authentication { .. } | Error::Tls { .. } => format!("{AUTHENTICATION}: {error}"),
        _ if error.code().is_some_and(is_authorization) => format!("{AUTHORIZATION}: {error}"),
        _ => error.to_string(),
    }
}
