//! Membership in a classic group (JoinGroup, SyncGroup, Heartbeat, LeaveGroup), for groups that are no consumer groups.
//!
//! The coordinator elects a leader, hands it what every member said of itself, and gives every member what the leader assigns. What both
//! mean is the caller's. The protocol is Kafka's own: kafka.apache.org/protocol, "Group Membership Protocol" of the Kafka wiki, KIP-394.

use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;

use crate::cluster::{Cluster, CoordinatorKind};
use crate::connection::Connection;
use crate::error::{Error, ResponseError};

/// What the coordinator may take for an answer beyond the time for which it holds one back.
const ANSWER_SLACK: Duration = Duration::from_secs(5);

/// How a group is joined. All members must agree on the protocol type and name.
#[derive(Debug, Clone)]
pub struct GroupOptions {
    /// The group.
    pub group: String,
    /// Kind of group. Anything but `consumer`: then no tool takes it for a group with offsets.
    pub protocol_type: &'static str,
    /// Name of the protocol that the members speak among themselves.
    pub protocol: &'static str,
    /// A member without a heartbeat for so long is out. The broker has bounds of its own (`group.min.session.timeout.ms`, 6 s by default).
    pub session_timeout: Duration,
    /// Members that do not join again within this time after a rebalance began are out.
    pub rebalance_timeout: Duration,
}

/// What a member said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// The coordinator's name for it.
    pub member_id: String,
    /// Its own words.
    pub metadata: Bytes,
}

/// A place in a generation of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedGroup {
    /// The coordinator's name for this member; to be given back with every later call.
    pub member_id: String,
    /// The generation.
    pub generation: i32,
    /// This member is the leader and has to assign; then, and only then, `members` holds all of them.
    pub is_leader: bool,
    /// All members, with what they said of themselves.
    pub members: Vec<GroupMember>,
}

/// Two connections to the coordinator of a group: one for calls that it holds back (join, sync), one for heartbeats meanwhile.
#[derive(Debug, Clone)]
pub struct GroupSession {
    options: GroupOptions,
    joins: Connection,
    beats: Connection,
    request_timeout: Duration,
}

impl Cluster {
    /// Connects to the coordinator of a group.
    ///
    /// # Errors
    /// As [`Cluster::coordinator`] and [`Connection::connect`]. The next call asks for the coordinator again.
    pub async fn open_group(&self, options: GroupOptions) -> Result<GroupSession, Error> {
        let broker = self
            .coordinator(CoordinatorKind::Group, &options.group)
            .await?;
        // It may have moved by the time of the next try.
        self.forget_coordinator(CoordinatorKind::Group, &options.group);
        let (joins, beats) =
            tokio::try_join!(self.own_connection(broker), self.own_connection(broker))?;
        Ok(GroupSession {
            options,
            joins,
            beats,
            request_timeout: self.options().request_timeout,
        })
    }
}

impl GroupSession {
    /// Joins, or joins again. The answer comes when all members have, or the rebalance timeout has passed. `member_id` is empty the first time.
    ///
    /// # Errors
    /// [`Error::Server`] with UNKNOWN_MEMBER_ID (join with an empty id), GROUP_AUTHORIZATION_FAILED (the user needs READ on the group),
    /// INCONSISTENT_GROUP_PROTOCOL (the group's name is taken by another kind of group), NOT_COORDINATOR and its like (open again); or the call failed.
    pub async fn join(&self, member_id: &str, metadata: Bytes) -> Result<JoinedGroup, Error> {
        let answer = self.join_once(member_id, metadata.clone()).await?;
        let answer = match ResponseError::try_from_code(answer.error_code) {
            // KIP-394: a first join only gives the name, so that one that is given up leaves nobody behind.
            Some(ResponseError::MemberIdRequired) => {
                let named = answer.member_id.to_string();
                self.join_once(&named, metadata).await?
            }
            _ => answer,
        };
        self.check("JoinGroup", &self.joins, answer.error_code)?;
        let member_id = answer.member_id.to_string();
        let is_leader = answer.leader.as_str() == member_id;
        let members = answer.members.into_iter().map(|member| GroupMember {
            member_id: member.member_id.to_string(),
            metadata: member.metadata,
        });
        Ok(JoinedGroup {
            generation: answer.generation_id,
            is_leader,
            members: members.collect(),
            member_id,
        })
    }

    async fn join_once(
        &self,
        member_id: &str,
        metadata: Bytes,
    ) -> Result<JoinGroupResponse, Error> {
        let options = &self.options;
        let protocol = JoinGroupRequestProtocol::default()
            .with_name(StrBytes::from_static_str(options.protocol))
            .with_metadata(metadata);
        let version = self.joins.version_for::<JoinGroupRequest>()?;
        let mut request = JoinGroupRequest::default()
            .with_group_id(self.group())
            .with_session_timeout_ms(milliseconds(options.session_timeout))
            .with_member_id(text(member_id))
            .with_protocol_type(StrBytes::from_static_str(options.protocol_type))
            .with_protocols(vec![protocol]);
        if version >= 1 {
            request.rebalance_timeout_ms = milliseconds(options.rebalance_timeout);
        }
        let held = options.rebalance_timeout.max(options.session_timeout);
        self.joins
            .call_with(request, version, held + ANSWER_SLACK)
            .await
    }

    /// What the leader assigns to this member. The leader hands in everybody's, others nothing; the answer comes when the leader has.
    ///
    /// # Errors
    /// [`Error::Server`] with REBALANCE_IN_PROGRESS or ILLEGAL_GENERATION (join again), UNKNOWN_MEMBER_ID; otherwise as [`GroupSession::join`].
    pub async fn sync(
        &self,
        member_id: &str,
        generation: i32,
        assignments: Vec<GroupAssignment>,
    ) -> Result<Bytes, Error> {
        let version = self.joins.version_for::<SyncGroupRequest>()?;
        let assignments = assignments.into_iter().map(|one| {
            SyncGroupRequestAssignment::default()
                .with_member_id(text(&one.member_id))
                .with_assignment(one.assignment)
        });
        let mut request = SyncGroupRequest::default()
            .with_group_id(self.group())
            .with_generation_id(generation)
            .with_member_id(text(member_id))
            .with_assignments(assignments.collect());
        if version >= 5 {
            let of = StrBytes::from_static_str;
            request.protocol_type = Some(of(self.options.protocol_type));
            request.protocol_name = Some(of(self.options.protocol));
        }
        let wait = self.options.session_timeout + ANSWER_SLACK;
        let answer = self.joins.call_with(request, version, wait).await?;
        self.check("SyncGroup", &self.joins, answer.error_code)?;
        Ok(answer.assignment)
    }

    /// Says that this member lives. The coordinator counts its session from the moment at which this arrives.
    ///
    /// # Errors
    /// [`Error::Server`] with REBALANCE_IN_PROGRESS (join again; the member goes on living), UNKNOWN_MEMBER_ID or ILLEGAL_GENERATION (the group
    /// has gone on without it); otherwise as [`GroupSession::join`].
    pub async fn heartbeat(&self, member_id: &str, generation: i32) -> Result<(), Error> {
        let request = HeartbeatRequest::default()
            .with_group_id(self.group())
            .with_generation_id(generation)
            .with_member_id(text(member_id));
        let version = self.beats.version_for::<HeartbeatRequest>()?;
        let wait = self.request_timeout.min(self.options.session_timeout);
        let answer = self.beats.call_with(request, version, wait).await?;
        self.check("Heartbeat", &self.beats, answer.error_code)
    }

    /// Leaves the group, so that the others need not wait for the end of the session.
    ///
    /// # Errors
    /// As [`GroupSession::heartbeat`].
    pub async fn leave(&self, member_id: &str) -> Result<(), Error> {
        let version = self.beats.version_for::<LeaveGroupRequest>()?;
        let mut request = LeaveGroupRequest::default().with_group_id(self.group());
        if version >= 3 {
            request.members = vec![MemberIdentity::default().with_member_id(text(member_id))];
        } else {
            request.member_id = text(member_id);
        }
        let answer = self
            .beats
            .call_with(request, version, self.request_timeout)
            .await?;
        self.check("LeaveGroup", &self.beats, answer.error_code)
    }

    fn check(&self, api: &'static str, connection: &Connection, code: i16) -> Result<(), Error> {
        match ResponseError::try_from_code(code) {
            None => Ok(()),
            Some(code) => Err(Error::server(
                connection.broker(),
                api,
                Some(&self.options.group),
                code,
                None,
            )),
        }
    }

    fn group(&self) -> GroupId {
        GroupId(text(&self.options.group))
    }
}

/// What the leader gives to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupAssignment {
    /// The coordinator's name for the member.
    pub member_id: String,
    /// The leader's words.
    pub assignment: Bytes,
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
