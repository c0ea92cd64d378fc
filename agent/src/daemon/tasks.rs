//! What a link does beside copying records, as Confluent's link tasks.

use standfast_link::{LinkDescription, LinkState, MirrorTopicError};

use super::link::{LinkControl, Phase};
use crate::api::{Task, TaskState, TransitionError};

/// Most errors shown per task; there may be thousands of groups.
const ERRORS_MAX: usize = 20;
/// Confluent's code for those that are left out.
const SUPPRESSED: &str = "SUPPRESSED_ERRORS";

/// The tasks of a link, in a fixed order.
pub(super) fn tasks(link: &LinkControl, description: &LinkDescription) -> Vec<Task> {
    let section = link.section();
    let groups = !(section.groups.is_empty() && section.group_filters.is_empty());
    let acls = section.acl_sync.as_ref().is_some_and(|sync| sync.enable);
    let of_the_link = link_state(&link.phase(), description);
    vec![
        task(
            "ConsumerOffsetSync",
            groups,
            of_the_link,
            group_errors(description),
        ),
        task("AclSync", acls, of_the_link, acl_errors(description)),
        task(
            "AutoCreateMirror",
            !section.topic_filters.is_empty(),
            of_the_link,
            creation_errors(description),
        ),
        task(
            "TopicConfigsSync",
            true,
            of_the_link,
            config_errors(description),
        ),
    ]
}

/// The state of every task of a link that does not run as it should.
fn link_state(phase: &Phase, description: &LinkDescription) -> Option<TaskState> {
    match phase {
        Phase::Held { .. } | Phase::Stopped { .. } => Some(TaskState::LinkStopped),
        Phase::Failed { .. } => Some(TaskState::LinkFailed),
        Phase::Running { .. } => match description.link_state {
            LinkState::Failed => Some(TaskState::LinkFailed),
            LinkState::Unavailable | LinkState::Unknown => Some(TaskState::LinkUnavailable),
            LinkState::Paused => Some(TaskState::LinkPaused),
            LinkState::Stopped => Some(TaskState::LinkStopped),
            _ => None,
        },
    }
}

fn task(
    name: &str,
    configured: bool,
    of_the_link: Option<TaskState>,
    mut errors: Vec<TransitionError>,
) -> Task {
    if !configured {
        errors.clear();
    }
    let state = match of_the_link {
        _ if !configured => TaskState::NotConfigured,
        Some(state) => state,
        None if errors.is_empty() => TaskState::Active,
        None => TaskState::InError,
    };
    if errors.len() > ERRORS_MAX {
        let more = errors.len() - ERRORS_MAX;
        errors.truncate(ERRORS_MAX);
        errors.push(TransitionError {
            error_code: SUPPRESSED.to_owned(),
            error_message: format!("{more} more"),
        });
    }
    Task {
        task_name: name.to_owned(),
        state,
        errors,
    }
}

fn group_errors(description: &LinkDescription) -> Vec<TransitionError> {
    let failed = |g: &standfast_link::GroupDescription| {
        let text = g.error.as_ref()?;
        Some(coded(text, &format!("group \"{}\": ", g.group)))
    };
    description.groups.iter().filter_map(failed).collect()
}

fn acl_errors(description: &LinkDescription) -> Vec<TransitionError> {
    let error = description.acl_sync.as_ref().and_then(|s| s.error.as_ref());
    error.map(|text| coded(text, "")).into_iter().collect()
}

/// Mirrors that could not be created or started; what became of one that runs is its own matter.
fn creation_errors(description: &LinkDescription) -> Vec<TransitionError> {
    let missing = description.mirrors.iter().filter(|mirror| {
        mirror.num_partitions == 0 && mirror.mirror_topic_error != MirrorTopicError::NoError
    });
    missing
        .filter_map(|mirror| {
            let text = mirror.error.as_ref()?;
            let mut error = coded(text, &format!("topic \"{}\": ", mirror.mirror_topic_name));
            if error.error_code == UNKNOWN {
                error.error_code = super::mirrors::name_of(&mirror.mirror_topic_error);
            }
            Some(error)
        })
        .collect()
}

fn config_errors(description: &LinkDescription) -> Vec<TransitionError> {
    let failed = |mirror: &standfast_link::MirrorDescription| {
        let text = mirror.config_sync.error.as_ref()?;
        Some(coded(
            text,
            &format!("topic \"{}\": ", mirror.mirror_topic_name),
        ))
    };
    description.mirrors.iter().filter_map(failed).collect()
}

const UNKNOWN: &str = "UNKNOWN";

/// The engine's errors begin with their code where there is one.
fn coded(text: &str, about: &str) -> TransitionError {
    let is_code = |word: &str| {
        word.len() > 3
            && word
                .bytes()
                .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
    };
    let code = text.split(": ").find(|word| is_code(word));
    TransitionError {
        error_code: code.unwrap_or(UNKNOWN).to_owned(),
        error_message: format!("{about}{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_says_what_is_wrong_with_it_or_with_its_link() {
        let error = || {
            coded(
                "CONSUMER_GROUP_IN_USE_ERROR: it has 2 members",
                "group \"g\": ",
            )
        };
        assert_eq!(error().error_code, "CONSUMER_GROUP_IN_USE_ERROR");
        assert_eq!(
            coded("source: AUTHORIZATION_ERROR: no", "").error_code,
            "AUTHORIZATION_ERROR"
        );
        assert_eq!(coded("source: no answer", "").error_code, "UNKNOWN");
        for (configured, link, errors, state) in [
            (true, None, vec![], TaskState::Active),
            (true, None, vec![error()], TaskState::InError),
            (
                true,
                Some(TaskState::LinkPaused),
                vec![error()],
                TaskState::LinkPaused,
            ),
            (
                false,
                Some(TaskState::LinkPaused),
                vec![],
                TaskState::NotConfigured,
            ),
            (false, None, vec![error()], TaskState::NotConfigured),
        ] {
            assert_eq!(task("t", configured, link, errors).state, state);
        }
        let many = task("t", true, None, vec![error(); 50]);
        assert_eq!(many.errors.len(), ERRORS_MAX + 1);
        assert_eq!(many.errors[ERRORS_MAX].error_code, SUPPRESSED);
    }
}
