//! Access control lists (KIP-50, patterns of KIP-290, Kafka 2.0).

use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::delete_acls_request::DeleteAclsFilter;
use kafka_protocol::messages::{CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest};

use super::str_bytes;
use crate::cluster::Cluster;
use crate::error::{Error, ResponseError};

/// The protocol's "any" for types, operations and permissions.
const ANY: i8 = 1;
/// Bindings put into one request.
const BINDINGS_PER_REQUEST: usize = 1000;

/// What an ACL is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AclResource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// The cluster itself; its name is `kafka-cluster`.
    Cluster,
    /// A transactional id.
    TransactionalId,
    /// A delegation token.
    DelegationToken,
    /// A user.
    User,
}

/// How the resource name of an ACL is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AclPattern {
    /// This very name; `*` means all.
    Literal,
    /// Every name that begins so.
    Prefixed,
}

/// What is allowed or denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // Kafka's own names
pub enum AclOperation {
    All,
    Read,
    Write,
    Create,
    Delete,
    Alter,
    Describe,
    ClusterAction,
    DescribeConfigs,
    AlterConfigs,
    IdempotentWrite,
    CreateTokens,
    DescribeTokens,
    TwoPhaseCommit,
}

/// Whether the operation is allowed or denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AclPermission {
    /// Denied, whatever else allows it.
    Deny,
    /// Allowed.
    Allow,
}

/// One ACL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AclBinding {
    /// What it is about.
    pub resource: AclResource,
    /// Name of the resource, `*` for all, or a prefix.
    pub name: String,
    /// How `name` is to be read.
    pub pattern: AclPattern,
    /// Such as `User:alice`.
    pub principal: String,
    /// Address of the client, or `*`.
    pub host: String,
    /// The operation.
    pub operation: AclOperation,
    /// Allowed or denied.
    pub permission: AclPermission,
}

impl AclBinding {
    /// Allows `principal` an operation from every host.
    pub fn allow(
        principal: &str,
        operation: AclOperation,
        resource: AclResource,
        pattern: AclPattern,
        name: &str,
    ) -> Self {
        Self {
            resource,
            name: name.to_owned(),
            pattern,
            principal: principal.to_owned(),
            host: "*".to_owned(),
            operation,
            permission: AclPermission::Allow,
        }
    }
}

impl Cluster {
    /// Every ACL of the cluster. Those of kinds that this crate does not know are left out.
    ///
    /// # Errors
    /// [`Error::Server`] such as CLUSTER_AUTHORIZATION_FAILED (needs DESCRIBE on the cluster) or SECURITY_DISABLED, or the request failed.
    pub async fn describe_acls(&self) -> Result<Vec<AclBinding>, Error> {
        let request = DescribeAclsRequest::default()
            .with_resource_type_filter(ANY)
            .with_resource_name_filter(None)
            .with_pattern_type_filter(ANY)
            .with_principal_filter(None)
            .with_host_filter(None)
            .with_operation(ANY)
            .with_permission_type(ANY);
        let response = self
            .call_any(request, |response| {
                ResponseError::try_from_code(response.error_code)
            })
            .await?;
        let each = response.resources.iter().flat_map(|resource| {
            resource.acls.iter().filter_map(|acl| {
                Some(AclBinding {
                    resource: named(&RESOURCES, resource.resource_type)?,
                    name: resource.resource_name.to_string(),
                    pattern: named(&PATTERNS, resource.pattern_type)?,
                    principal: acl.principal.to_string(),
                    host: acl.host.to_string(),
                    operation: named(&OPERATIONS, acl.operation)?,
                    permission: named(&PERMISSIONS, acl.permission_type)?,
                })
            })
        });
        Ok(each.collect())
    }

    /// Creates ACLs; those that are there already are fine. One result per binding, in their order.
    ///
    /// # Errors
    /// A request failed; what is wrong with one ACL is in its result.
    pub async fn create_acls(
        &self,
        bindings: &[AclBinding],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let mut results = Vec::with_capacity(bindings.len());
        for chunk in bindings.chunks(BINDINGS_PER_REQUEST) {
            let creations = chunk.iter().map(|binding| {
                AclCreation::default()
                    .with_resource_type(code(&RESOURCES, binding.resource))
                    .with_resource_name(str_bytes(&binding.name))
                    .with_resource_pattern_type(code(&PATTERNS, binding.pattern))
                    .with_principal(str_bytes(&binding.principal))
                    .with_host(str_bytes(&binding.host))
                    .with_operation(code(&OPERATIONS, binding.operation))
                    .with_permission_type(code(&PERMISSIONS, binding.permission))
            });
            let request = CreateAclsRequest::default().with_creations(creations.collect());
            let response = self.call_any(request, |_| None).await?;
            let mut answers = response.results.iter();
            results.extend(chunk.iter().map(|binding| match answers.next() {
                Some(answer) => self.acl_result(
                    "CreateAcls",
                    binding,
                    answer.error_code,
                    answer.error_message.as_deref(),
                ),
                None => self.acl_result(
                    "CreateAcls",
                    binding,
                    ResponseError::UnknownServerError.code(),
                    None,
                ),
            }));
        }
        Ok(results)
    }

    /// Deletes exactly these ACLs; those that are gone already are fine. One result per binding, in their order.
    ///
    /// # Errors
    /// A request failed; what is wrong with one ACL is in its result.
    pub async fn delete_acls(
        &self,
        bindings: &[AclBinding],
    ) -> Result<Vec<Result<(), Error>>, Error> {
        let mut results = Vec::with_capacity(bindings.len());
        for chunk in bindings.chunks(BINDINGS_PER_REQUEST) {
            let filters = chunk.iter().map(|binding| {
                DeleteAclsFilter::default()
                    .with_resource_type_filter(code(&RESOURCES, binding.resource))
                    .with_resource_name_filter(Some(str_bytes(&binding.name)))
                    .with_pattern_type_filter(code(&PATTERNS, binding.pattern))
                    .with_principal_filter(Some(str_bytes(&binding.principal)))
                    .with_host_filter(Some(str_bytes(&binding.host)))
                    .with_operation(code(&OPERATIONS, binding.operation))
                    .with_permission_type(code(&PERMISSIONS, binding.permission))
            });
            let request = DeleteAclsRequest::default().with_filters(filters.collect());
            let response = self.call_any(request, |_| None).await?;
            let mut answers = response.filter_results.iter();
            results.extend(chunk.iter().map(|binding| {
                let Some(answer) = answers.next() else {
                    let code = ResponseError::UnknownServerError.code();
                    return self.acl_result("DeleteAcls", binding, code, None);
                };
                let matching = answer.matching_acls.iter().find(|acl| acl.error_code != 0);
                let (code, message) = match matching {
                    Some(acl) => (acl.error_code, acl.error_message.as_deref()),
                    None => (answer.error_code, answer.error_message.as_deref()),
                };
                self.acl_result("DeleteAcls", binding, code, message)
            }));
        }
        Ok(results)
    }

    fn acl_result(
        &self,
        api: &'static str,
        binding: &AclBinding,
        code: i16,
        message: Option<&str>,
    ) -> Result<(), Error> {
        let subject = format!(
            "{:?} {:?} of {} on {:?} {:?}",
            binding.permission,
            binding.operation,
            binding.principal,
            binding.resource,
            binding.name
        );
        self.outcome(api, &subject, code, message)
    }
}

const RESOURCES: [(i8, AclResource); 6] = [
    (2, AclResource::Topic),
    (3, AclResource::Group),
    (4, AclResource::Cluster),
    (5, AclResource::TransactionalId),
    (6, AclResource::DelegationToken),
    (7, AclResource::User),
];

const PATTERNS: [(i8, AclPattern); 2] = [(3, AclPattern::Literal), (4, AclPattern::Prefixed)];

const PERMISSIONS: [(i8, AclPermission); 2] = [(2, AclPermission::Deny), (3, AclPermission::Allow)];

const OPERATIONS: [(i8, AclOperation); 14] = [
    (2, AclOperation::All),
    (3, AclOperation::Read),
    (4, AclOperation::Write),
    (5, AclOperation::Create),
    (6, AclOperation::Delete),
    (7, AclOperation::Alter),
    (8, AclOperation::Describe),
    (9, AclOperation::ClusterAction),
    (10, AclOperation::DescribeConfigs),
    (11, AclOperation::AlterConfigs),
    (12, AclOperation::IdempotentWrite),
    (13, AclOperation::CreateTokens),
    (14, AclOperation::DescribeTokens),
    (15, AclOperation::TwoPhaseCommit),
];

fn named<T: Copy>(table: &[(i8, T)], code: i8) -> Option<T> {
    table
        .iter()
        .find(|(found, _)| *found == code)
        .map(|(_, value)| *value)
}

fn code<T: Copy + PartialEq>(table: &[(i8, T)], value: T) -> i8 {
    // Every value is in its table; 0 is the protocol's "unknown", which a broker refuses.
    table
        .iter()
        .find(|(_, found)| *found == value)
        .map_or(0, |(code, _)| *code)
}
