//! Restore and reverse of mirrors on a returned cluster, as the API asks for them.
//!
//! Both only ever concern a link whose destination is *not* the active cluster, by a record that is read fresh for the purpose: a restore deletes records there.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use standfast_discovery::FleetRecord;
use standfast_link::{
    LinkHandle, MirrorRestore, MirrorStatus, RestoreExport, RestoreMode, RestoreOptions,
    Transition, TransitionErrorCode, Wanted,
};

use super::link::{LinkControl, Phase};
use super::mirrors::{LinkSet, mirrors_of};
use super::transitions::{error, select};
use crate::api::{ErrorBody, ErrorCode, MirrorsRequest, RestoreRequest, RestoreResults};
use crate::failover::{Coordination as _, DiscoveryCoordination, handoff_epoch};

/// Folder in data_dir that lost tails are exported to.
const LOST: &str = "lost";
/// How long discovery may take to name the active cluster.
const RECORD_WITHIN: Duration = Duration::from_secs(10);
/// How long mirrors that are reversed may take to start.
const STARTED_WITHIN: Duration = Duration::from_secs(30);

/// Restores mirrors. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Restores {
    links: LinkSet,
    coordination: DiscoveryCoordination,
    lost: PathBuf,
}

impl Restores {
    pub(super) fn new(
        links: LinkSet,
        coordination: DiscoveryCoordination,
        data_dir: &std::path::Path,
    ) -> Self {
        Self {
            links,
            coordination,
            lost: data_dir.join(LOST),
        }
    }

    /// Exports what only the returned cluster holds, deletes it, and lets its mirrors go on. One result per topic.
    ///
    /// # Errors
    /// The request as a whole cannot be done; nothing was changed.
    pub(crate) async fn restore(
        &self,
        request: RestoreRequest,
    ) -> Result<RestoreResults, ErrorBody> {
        let control = self.links.the_link(request.link.as_deref())?;
        let selection = MirrorsRequest {
            link: request.link,
            mirror_topic_names: request.mirror_topic_names,
            mirror_topic_name_pattern: request.mirror_topic_name_pattern,
            all: request.all,
            ..MirrorsRequest::default()
        };
        let named = !selection.mirror_topic_names.is_empty();
        let mut names = select(&control, Transition::Resume, &selection)?;
        if !named {
            names = only_failed(&control, names)?;
        }
        let export = match (request.export_to, request.export_topic) {
            (Some(_), true) => {
                return Err(error(
                    ErrorCode::BadRequest,
                    "export to a file or to a topic, not both",
                ));
            }
            (Some(file), false) if !file.is_absolute() => {
                return Err(error(
                    ErrorCode::BadRequest,
                    "the file to export to is on the agent's machine; give its absolute path",
                ));
            }
            (Some(file), false) => RestoreExport::File(file),
            (None, true) => RestoreExport::Topic,
            (None, false) => RestoreExport::Folder(
                std::path::absolute(&self.lost)
                    .map_err(|broken| error(ErrorCode::Internal, format!("data_dir: {broken}")))?,
            ),
        };
        let (handle, hints) = self.ready(&control).await?;
        let options = RestoreOptions {
            mode: request.mode,
            export,
            hints,
            dry_run: request.dry_run,
        };
        let dry_run = request.dry_run;
        let work = async move {
            let topics: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut data = handle.restore(&topics, &options).await;
            if !dry_run {
                note_unsaved(&control, &mut data).await;
            }
            data
        };
        Ok(RestoreResults {
            dry_run,
            data: in_its_own_task(work).await?,
        })
    }

    /// Lets mirrors run in this direction: those whose logs allow it start, the others are told what a restore would truncate. Deletes nothing.
    ///
    /// # Errors
    /// The request as a whole cannot be done; nothing was changed.
    pub(crate) async fn reverse(
        &self,
        request: MirrorsRequest,
    ) -> Result<RestoreResults, ErrorBody> {
        let control = self.links.the_link(request.link.as_deref())?;
        refuse_prefixed(&control)?;
        // Promoted ones too: they are what a reverse is for.
        let names = select(&control, Transition::Promote, &request)?;
        let (handle, hints) = self.ready(&control).await?;
        let dry_run = request.dry_run;
        let work = async move {
            let mut data = look(&control, &handle, &names, hints).await;
            if !dry_run {
                start(&handle, &mut data).await;
                note_unsaved(&control, &mut data).await;
            }
            data
        };
        Ok(RestoreResults {
            dry_run,
            data: in_its_own_task(work).await?,
        })
    }

    /// The running link, and what the last handoff says of the logs, if the fleet record allows writing to the link's destination.
    async fn ready(
        &self,
        control: &LinkControl,
    ) -> Result<(LinkHandle, BTreeMap<String, Vec<Option<i64>>>), ErrorBody> {
        let section = control.section();
        let unreachable = |text: String| {
            error(
                ErrorCode::DiscoveryUnreachable,
                format!(
                    "which cluster is active cannot be read now, so nothing is deleted: {text}"
                ),
            )
        };
        let read = tokio::time::timeout(RECORD_WITHIN, self.coordination.read());
        let record = match read.await {
            Ok(Ok(Some(found))) => found.value,
            Ok(Ok(None)) => {
                return Err(error(ErrorCode::Refused, "there is no fleet record"));
            }
            Ok(Err(broken)) => return Err(unreachable(broken.to_string())),
            Err(_) => return Err(unreachable(format!("no answer within {RECORD_WITHIN:?}"))),
        };
        if record.active == section.destination {
            return Err(error(
                ErrorCode::Refused,
                format!(
                    "{} is the active cluster (epoch {}): applications write there, and link \"{}\" never does; run this at the agent of a link that leads from {}",
                    record.active, record.epoch, section.name, record.active
                ),
            ));
        }
        let handle = control.handle().ok_or_else(|| {
            let why = match control.phase() {
                Phase::Held { reason } | Phase::Stopped { reason } => reason,
                Phase::Failed { error } => error,
                Phase::Running { .. } => "it is starting".to_owned(),
            };
            error(
                ErrorCode::Refused,
                format!("link \"{}\" does not run: {why}", section.name),
            )
        })?;
        Ok((handle, self.hints(control, &record).await))
    }

    /// Up to where both logs were the same at the last flip away from the destination. Only a hint: without it the logs are read from their beginnings.
    async fn hints(
        &self,
        control: &LinkControl,
        record: &FleetRecord,
    ) -> BTreeMap<String, Vec<Option<i64>>> {
        let section = control.section();
        let read = self.coordination.read_handoff(handoff_epoch(record));
        match tokio::time::timeout(RECORD_WITHIN, read).await {
            Ok(Ok(Some(handoff)))
                if handoff.from == section.destination && handoff.to == section.source =>
            {
                handoff.topics
            }
            other => {
                tracing::debug!(link = section.name, handoff = ?other.map(|r| r.is_ok()), "no handoff to begin the comparison at");
                BTreeMap::new()
            }
        }
    }
}

/// What a link with a prefix mirrors goes by another name at its destination, so no link leads back from there to the same topic.
fn refuse_prefixed(control: &LinkControl) -> Result<(), ErrorBody> {
    let section = control.section();
    if section.prefix.is_empty() {
        return Ok(());
    }
    let (prefix, link) = (&section.prefix, &section.name);
    Err(error(
        ErrorCode::Refused,
        format!(
            "link \"{link}\" mirrors with the prefix \"{prefix}\", so its mirrors have nothing of the same name to be turned round to; \
             `standfast mirror create {prefix}TOPIC --link {link}` begins a stopped one again, and what was written into {prefix}TOPIC \
             since it was stopped comes to \"{}\" as {prefix}TOPIC by a link without a prefix that leads there",
            section.source
        ),
    ))
}

async fn in_its_own_task<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ErrorBody> {
    // The caller may hang up, the work goes on to its end.
    tokio::spawn(work)
        .await
        .map_err(|broken| error(ErrorCode::Internal, format!("it broke down: {broken}")))
}

fn only_failed(control: &LinkControl, names: Vec<String>) -> Result<Vec<String>, ErrorBody> {
    let failed: Vec<String> = mirrors_of(control)
        .into_iter()
        .map(|mirror| mirror.description)
        .filter(|m| m.mirror_status == MirrorStatus::Failed && names.contains(&m.mirror_topic_name))
        .map(|m| m.mirror_topic_name)
        .collect();
    if failed.is_empty() {
        return Err(error(
            ErrorCode::NotFound,
            format!(
                "none of these mirrors of link \"{}\" is FAILED; one that was stopped is restored by its name",
                control.section().name
            ),
        ));
    }
    Ok(failed)
}

async fn note_unsaved(control: &LinkControl, data: &mut [MirrorRestore]) {
    let Err(text) = control.on_disk().await else {
        return;
    };
    for change in data.iter_mut().map(|r| &mut r.change) {
        if change.error_code.is_none() {
            change.error_code = Some(TransitionErrorCode::NotSaved);
            change.error_message = Some(format!(
                "done, but it could not be saved, so a restart of the agent would not know: {text}"
            ));
        }
    }
}

/// What a restore would truncate, without those that mirror: they are what they should be.
async fn look(
    control: &LinkControl,
    handle: &LinkHandle,
    names: &[String],
    hints: BTreeMap<String, Vec<Option<i64>>>,
) -> Vec<MirrorRestore> {
    let options = RestoreOptions {
        mode: RestoreMode::Fast,
        // Nothing is exported.
        export: RestoreExport::Topic,
        hints,
        dry_run: true,
    };
    let topics: Vec<&str> = names.iter().map(String::as_str).collect();
    let mirrors = handle.describe().mirrors;
    let runs = |topic: &str| {
        let found = mirrors.iter().find(|m| m.mirror_topic_name == topic);
        found.is_some_and(|m| {
            m.mirror_status == MirrorStatus::Active
                || m.mirror_status == MirrorStatus::PendingMirror
        }) && control.lifecycle().wanted(topic) == Wanted::Active
    };
    let (running, others): (Vec<&str>, Vec<&str>) = topics.iter().partition(|t| runs(t));
    let mut found = handle.restore(&others, &options).await;
    let as_it_is = handle.rehearse(&running, Transition::Pause);
    found.extend(as_it_is.into_iter().map(|change| MirrorRestore {
        change,
        messages_truncated: 0,
        partition_level_truncation_data: Vec::new(),
        export: None,
    }));
    found.sort_by_key(|r| {
        let name = r.change.mirror_topic_name.as_str();
        topics.iter().position(|topic| *topic == name)
    });
    for restore in &mut found {
        let lost = &restore.partition_level_truncation_data;
        if lost.is_empty() || restore.change.error_code.is_some() {
            continue;
        }
        restore.change.error_code = Some(TransitionErrorCode::RestoreNeeded);
        restore.change.error_message = Some(format!(
            "{} records in {} partitions are on {} only; `standfast mirror restore` exports and deletes them",
            restore.messages_truncated,
            lost.len(),
            control.section().destination
        ));
    }
    found
}

/// Starts those that can go on from where they are.
async fn start(handle: &LinkHandle, data: &mut [MirrorRestore]) {
    let clean: Vec<String> = data
        .iter()
        .filter(|r| r.change.error_code.is_none())
        .map(|r| r.change.mirror_topic_name.clone())
        .collect();
    let (stopped, others): (Vec<&str>, Vec<&str>) = clean
        .iter()
        .map(String::as_str)
        .partition(|topic| handle.lifecycle().wanted(topic) == Wanted::Stopped);
    let mut changes = handle.resume(&others).await;
    changes.extend(handle.create(&stopped, STARTED_WITHIN).await);
    for change in changes {
        let of = |r: &&mut MirrorRestore| r.change.mirror_topic_name == change.mirror_topic_name;
        if let Some(restore) = data.iter_mut().find(of) {
            restore.change = change;
        }
    }
}
