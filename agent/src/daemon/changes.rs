//! Create, update and delete of links, as the API asks for them.

use std::time::Duration;

use standfast_link::admits_topic;

use super::mirrors::LinkSet;
use crate::api::{ErrorBody, LinkChange, LinkCreateRequest, LinkDeleteRequest, LinkUpdateRequest};
use crate::config::LinkEntry;

/// How long the source may take to say which topics it has.
const TOPICS_LIMIT: Duration = Duration::from_secs(3);

impl LinkSet {
    /// # Errors
    /// The link would break a rule of the configuration, or there is another of that name. Nothing was changed.
    pub(crate) async fn create_link(
        &self,
        request: LinkCreateRequest,
    ) -> Result<LinkChange, ErrorBody> {
        let (change, entry) = self.all().create(request).await?;
        Ok(self.with_matches(change, entry).await)
    }

    /// # Errors
    /// There is no such link, or it would break a rule of the configuration. Nothing was changed.
    pub(crate) async fn update_link(
        &self,
        request: LinkUpdateRequest,
    ) -> Result<LinkChange, ErrorBody> {
        let (change, entry) = self.all().update(request).await?;
        let filters = change.configs.iter().any(|c| c.name == "topic_filters");
        Ok(self.with_matches(change, entry.filter(|_| filters)).await)
    }

    /// # Errors
    /// There is no such link, or its mirrors are not stopped. Nothing was changed.
    pub(crate) async fn delete_link(
        &self,
        request: LinkDeleteRequest,
    ) -> Result<LinkChange, ErrorBody> {
        Ok(self.all().delete(request).await?.0)
    }

    /// Adds which topics of the source the filters take now, if the source can be asked.
    async fn with_matches(&self, mut change: LinkChange, entry: Option<LinkEntry>) -> LinkChange {
        let Some(section) = entry
            .map(|entry| entry.section)
            .filter(|section| !section.topic_filters.is_empty())
        else {
            return change;
        };
        let source = &section.source;
        let probe = self.probes().find(|probe| probe.name() == source);
        let Some(cluster) = probe.and_then(|probe| probe.cluster()) else {
            change.warnings.push(format!(
                "cluster {source} was not reached, so it is not known which topics the filters take"
            ));
            return change;
        };
        let found = match tokio::time::timeout(TOPICS_LIMIT, cluster.all_topics()).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                let text = format!("cluster {source} does not say which topics it has: {error}");
                change.warnings.push(text);
                return change;
            }
            Err(_) => {
                let text =
                    format!("cluster {source} did not name its topics within {TOPICS_LIMIT:?}");
                change.warnings.push(text);
                return change;
            }
        };
        let topics = found.topics.iter();
        let mut taken: Vec<String> = topics
            .filter(|(_, topic)| topic.error.is_none() && !topic.is_internal)
            .filter(|(name, _)| admits_topic(&section.topic_filters, name))
            .map(|(name, _)| name.to_string())
            .collect();
        if !section.prefix.is_empty() && !taken.is_empty() {
            change.warnings.push(
                "of the topics that the filters take, those that are mirrors with a prefix themselves are left out; \
                 name one in `topics` to mirror it"
                    .to_owned(),
            );
        }
        taken.sort_unstable();
        change.matching_topics = Some(taken);
        change
    }
}
