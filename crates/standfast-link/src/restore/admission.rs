//! Which mirrors may be restored now, and why others may not.

use std::collections::HashMap;
use std::sync::Arc;

use super::{RestoreExport, RestoreOptions, RestorePhase};
use crate::handle::LinkHandle;
use crate::lifecycle::{TransitionErrorCode, Wanted};
use crate::topics::Topic;
use crate::transitions::Refusal;

impl LinkHandle {
    pub(super) fn sort_out_restore(
        &self,
        topics: &[&str],
        options: &RestoreOptions,
    ) -> (Vec<Arc<str>>, HashMap<Arc<str>, Refusal>) {
        let (mut go, mut refused) = (Vec::new(), HashMap::new());
        let state = self.lifecycle().state();
        let outside = !self.inner.share.is_member();
        let known = self.inner.topics();
        let known: HashMap<Arc<str>, &Topic> = known.iter().map(|t| (t.name(), t)).collect();
        for name in topics {
            let topic = known.get(*name).copied();
            let wanted = state.wanted(name);
            let several = topics.len() > 1 && matches!(options.export, RestoreExport::File(_));
            let stopped = self.inner.stop.is_cancelled();
            let refusal = match topic {
                _ if stopped => Some((
                    TransitionErrorCode::LinkNotRunning,
                    "the link was stopped by a failover or switchover",
                )),
                None => Some((
                    TransitionErrorCode::UnknownMirror,
                    "the link does not mirror this topic; `standfast mirror list` shows those that it does",
                )),
                _ if several => Some((
                    TransitionErrorCode::NotRestorable,
                    "one file takes the lost tail of one topic; name one topic, or leave the file out",
                )),
                _ if state.restore_phase(name) == Some(RestorePhase::PendingSetupForRestore) => {
                    Some((
                        TransitionErrorCode::RestoreInProgress,
                        "the mirror is being restored already",
                    ))
                }
                _ if options.dry_run => None,
                _ if outside => Some((
                    TransitionErrorCode::NotRestorable,
                    "this agent is not a member of the link's group now (`standfast link describe` says why); run it again when it is, or at another agent of the link",
                )),
                _ if self.inner.share.restored_elsewhere(name).is_some() => Some((
                    TransitionErrorCode::RestoreInProgress,
                    "the mirror is being restored by another agent of the link",
                )),
                _ if wanted == Wanted::Paused || (state.paused && wanted == Wanted::Active) => {
                    Some((
                        TransitionErrorCode::MirrorPaused,
                        "the mirror is paused; resume it first, then what is wrong with it is seen",
                    ))
                }
                Some(topic) if wanted == Wanted::Active && !self.has_failed_anywhere(topic) => {
                    Some((
                        TransitionErrorCode::NotRestorable,
                        "the mirror is neither FAILED nor STOPPED: there is nothing to restore; if it was started a moment ago, try again when `standfast mirror list` shows what became of it",
                    ))
                }
                Some(_) => None,
            };
            match refusal {
                None => go.push(Arc::from(*name)),
                Some((code, text)) => {
                    drop(refused.insert(Arc::from(*name), (code, text.to_owned())))
                }
            }
        }
        (go, refused)
    }

    /// FAILED here, or at another engine that shares the link.
    fn has_failed_anywhere(&self, topic: &Topic) -> bool {
        let elsewhere = |id| self.inner.share.failed_elsewhere(&id).is_some();
        topic.has_failed() || topic.ids().any(elsewhere)
    }
}
