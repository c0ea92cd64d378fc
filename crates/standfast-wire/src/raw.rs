//! A connection that is set up (TCP, TLS, ApiVersions, SASL) and not yet owned by an actor.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, ApiVersionsResponse, MetadataRequest, RequestHeader,
    SaslAuthenticateRequest, SaslHandshakeRequest,
};
use kafka_protocol::protocol::{
    Encodable, HeaderVersion, Message, Request, StrBytes, VersionRange,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::decode;
use crate::error::{Error, ResponseError};
use crate::frame::{FrameReader, FrameWriter, split_plain, split_tls};
use crate::options::{ClusterOptions, HostPort, SaslOptions};
use crate::sasl;
use crate::tls;

/// Share of a broker-granted session lifetime (KIP-368) after which a connection counts as closed; the broker cuts it at 100%.
const SESSION_LIFETIME_USED: f64 = 0.85;
/// Name and version in ApiVersions requests (KIP-511); brokers show them in metrics.
const SOFTWARE_NAME: &str = "standfast";

/// A connection before it is handed to an actor. The data plane owns it itself, one task per socket, to spare wake-ups.
#[derive(Debug)]
pub struct RawConnection {
    reader: FrameReader,
    writer: FrameWriter,
    versions: ApiVersionTable,
    client_id: Arc<str>,
    expires_at: Option<Instant>,
    next_correlation_id: i32,
}

impl RawConnection {
    /// Connects: TCP (no delay), TLS, ApiVersions, SASL, and, if `options` names one, the check of the cluster id; all
    /// within `options.connect_timeout`.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Timeout`], [`Error::Tls`], [`Error::Authentication`], [`Error::UnsupportedApi`],
    /// [`Error::WrongClusterId`], or that the peer does not speak Kafka ([`Error::Frame`], [`Error::Decode`]).
    pub async fn connect(address: &HostPort, options: &ClusterOptions) -> Result<Self, Error> {
        let broker: Arc<str> = address.to_string().into();
        let setup = Box::pin(Self::set_up(address, &broker, options));
        match timeout(options.connect_timeout, setup).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::Timeout {
                broker,
                what: "connect",
                after: options.connect_timeout,
            }),
        }
    }

    /// The two halves, to be used in place.
    pub fn into_split(self) -> (FrameReader, FrameWriter) {
        (self.reader, self.writer)
    }

    /// The receiving half.
    pub fn reader(&mut self) -> &mut FrameReader {
        &mut self.reader
    }

    /// The sending half.
    pub fn writer(&mut self) -> &mut FrameWriter {
        &mut self.writer
    }

    /// What the broker speaks.
    pub fn versions(&self) -> &ApiVersionTable {
        &self.versions
    }

    /// Address of the broker.
    pub fn broker(&self) -> &Arc<str> {
        self.reader.broker()
    }

    /// When the connection should be replaced because the broker will cut it (KIP-368 session lifetime), if ever.
    pub fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    /// Sends one request and waits for its answer, nothing else being in flight.
    ///
    /// # Errors
    /// As [`Connection::call`](crate::Connection::call). There is no timeout here, and no use of the connection after an error.
    pub async fn call<R: Request>(&mut self, request: R) -> Result<R::Response, Error> {
        let version = self.versions.negotiate::<R>()?;
        self.call_version(request, version).await
    }

    async fn set_up(
        address: &HostPort,
        broker: &Arc<str>,
        options: &ClusterOptions,
    ) -> Result<Self, Error> {
        let stream = TcpStream::connect((address.host.as_str(), address.port))
            .await
            .map_err(|error| Error::io(broker, "connect", error))?;
        stream
            .set_nodelay(true)
            .map_err(|error| Error::io(broker, "set TCP_NODELAY", error))?;
        let login = options.current_login();
        let (reader, writer) = match &login.tls {
            None => split_plain(stream, broker, options.max_frame_bytes),
            Some(tls) => {
                let stream = tls::handshake(stream, address, broker, tls).await?;
                split_tls(stream, broker, options.max_frame_bytes)
            }
        };
        let mut connection = Self {
            reader,
            writer,
            versions: ApiVersionTable::empty(broker),
            client_id: options.client_id.as_str().into(),
            expires_at: None,
            next_correlation_id: 0,
        };
        connection.ask_versions().await?;
        if let Some(sasl) = &login.sasl {
            connection.authenticate(sasl).await?;
        }
        if let Some(expected) = &options.expected_cluster_id {
            connection.check_cluster_id(expected).await?;
        }
        Ok(connection)
    }

    /// Asks in the newest version; a broker that does not know it answers in v0 with its own range (KIP-511).
    async fn ask_versions(&mut self) -> Result<(), Error> {
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str(SOFTWARE_NAME))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        let frame = self.exchange(&request, 3).await?;
        let unsupported =
            frame.get(4..6) == Some(&ResponseError::UnsupportedVersion.code().to_be_bytes());
        let response = if unsupported {
            self.call_version(ApiVersionsRequest::default(), 0).await?
        } else {
            self.decode::<ApiVersionsRequest>(frame, 3)?
        };
        if let Some(code) = ResponseError::try_from_code(response.error_code) {
            return Err(Error::server(
                self.broker(),
                "ApiVersions",
                None,
                code,
                None,
            ));
        }
        self.versions = ApiVersionTable::new(self.broker(), &response);
        Ok(())
    }

    async fn authenticate(&mut self, options: &SaslOptions) -> Result<(), Error> {
        let broker = Arc::clone(self.broker());
        let mechanism = options.mechanism.name();
        let failed = |reason: String| Error::Authentication {
            broker: Arc::clone(&broker),
            mechanism,
            reason,
        };
        let handshake =
            SaslHandshakeRequest::default().with_mechanism(StrBytes::from_static_str(mechanism));
        let offered = self.call_version(handshake, 1).await?;
        if let Some(code) = ResponseError::try_from_code(offered.error_code) {
            let names: Vec<&str> = offered
                .mechanisms
                .iter()
                .map(|name| name.as_str())
                .collect();
            return Err(failed(format!(
                "{code:?}; the broker offers {}",
                names.join(", ")
            )));
        }
        let mut exchange = sasl::Exchange::new(options).await.map_err(failed)?;
        let version = self.versions.negotiate::<SaslAuthenticateRequest>()?;
        let mut message = exchange.step(None).map_err(failed)?;
        for _ in 0..sasl::ROUNDS_MAX {
            let request = SaslAuthenticateRequest::default().with_auth_bytes(message.into());
            let response = self.call_version(request, version).await?;
            if let Some(code) = ResponseError::try_from_code(response.error_code) {
                let words = response.error_message.as_deref().unwrap_or_default();
                return Err(failed(format!("{code:?} {words}").trim_end().to_owned()));
            }
            self.expires_at =
                lifetime(response.session_lifetime_ms).map(|lifetime| Instant::now() + lifetime);
            if exchange.is_finished() {
                return Ok(());
            }
            message = exchange.step(Some(&response.auth_bytes)).map_err(failed)?;
            if exchange.is_finished() && message.is_empty() {
                return Ok(());
            }
        }
        Err(failed("the exchange does not come to an end".to_owned()))
    }

    async fn check_cluster_id(&mut self, expected: &str) -> Result<(), Error> {
        // No topics: in v0 an empty list means all of them, but v0 has no cluster id either.
        let request = MetadataRequest::default()
            .with_topics(Some(Vec::new()))
            .with_allow_auto_topic_creation(false);
        let version = self
            .versions
            .negotiate_within::<MetadataRequest>(2, i16::MAX)?;
        let response = self.call_version(request, version).await?;
        let found = response.cluster_id.as_deref().unwrap_or("(none)");
        if found == expected {
            return Ok(());
        }
        Err(Error::WrongClusterId {
            expected: expected.to_owned(),
            found: found.to_owned(),
            bootstrap: self.broker().to_string(),
        })
    }

    async fn call_version<R: Request>(
        &mut self,
        request: R,
        version: i16,
    ) -> Result<R::Response, Error> {
        let frame = self.exchange(&request, version).await?;
        self.decode::<R>(frame, version)
    }

    async fn exchange<R: Request>(&mut self, request: &R, version: i16) -> Result<Bytes, Error> {
        let correlation_id = self.next_correlation_id;
        self.next_correlation_id = correlation_id.wrapping_add(1);
        let frame =
            encode(request, version, correlation_id, &self.client_id).map_err(|reason| {
                Error::Encode {
                    broker: Arc::clone(self.broker()),
                    api: api_name::<R>(),
                    version,
                    reason,
                }
            })?;
        self.writer.write(&[frame]).await?;
        let answer = self.reader.read().await?;
        check_correlation(&answer, correlation_id, self.broker())?;
        Ok(answer)
    }

    fn decode<R: Request>(&self, frame: Bytes, version: i16) -> Result<R::Response, Error> {
        decode::response::<R>(frame, version).map_err(|reason| Error::Decode {
            broker: Arc::clone(self.broker()),
            api: api_name::<R>(),
            version,
            reason,
        })
    }
}

/// The API versions that a broker speaks.
#[derive(Debug, Clone)]
pub struct ApiVersionTable {
    broker: Arc<str>,
    ranges: Arc<HashMap<i16, VersionRange>>,
    features: Arc<HashMap<String, i16>>,
}

impl ApiVersionTable {
    fn empty(broker: &Arc<str>) -> Self {
        Self {
            broker: Arc::clone(broker),
            ranges: Arc::default(),
            features: Arc::default(),
        }
    }

    fn new(broker: &Arc<str>, response: &ApiVersionsResponse) -> Self {
        let ranges = response
            .api_keys
            .iter()
            .map(|api| {
                let (min, max) = (api.min_version, api.max_version);
                (api.api_key, VersionRange { min, max })
            })
            .collect();
        let features = response
            .finalized_features
            .iter()
            .map(|feature| (feature.name.to_string(), feature.max_version_level))
            .collect();
        Self {
            broker: Arc::clone(broker),
            ranges: Arc::new(ranges),
            features: Arc::new(features),
        }
    }

    /// The level at which the cluster has a feature switched on, such as `transaction.version` (KIP-584); 0 if it has not.
    pub fn feature_level(&self, name: &str) -> i16 {
        self.features.get(name).copied().unwrap_or(0)
    }

    /// Versions of the API that the broker offers, as (lowest, highest).
    pub fn range(&self, api_key: i16) -> Option<(i16, i16)> {
        self.ranges
            .get(&api_key)
            .map(|range| (range.min, range.max))
    }

    /// The highest version of `R` that both sides speak.
    ///
    /// # Errors
    /// [`Error::UnsupportedApi`] if there is none.
    pub fn negotiate<R: Request>(&self) -> Result<i16, Error> {
        self.negotiate_within::<R>(i16::MIN, i16::MAX)
    }

    /// The highest version of `R` between `lowest` and `highest` that both sides speak.
    ///
    /// # Errors
    /// [`Error::UnsupportedApi`] if there is none.
    pub fn negotiate_within<R: Request>(&self, lowest: i16, highest: i16) -> Result<i16, Error> {
        let ours = <R as Message>::VERSIONS.intersect(&<R::Response as Message>::VERSIONS);
        let ours = ours.intersect(&VersionRange {
            min: lowest,
            max: highest,
        });
        let offered = self.ranges.get(&R::KEY);
        match offered.map(|offered| ours.intersect(offered)) {
            Some(common) if !common.is_empty() => Ok(common.max),
            _ => Err(Error::UnsupportedApi {
                broker: Arc::clone(&self.broker),
                api: api_name::<R>(),
                supported: ours.to_string(),
                offered: offered.map_or_else(|| "none".to_owned(), ToString::to_string),
            }),
        }
    }
}

/// Encodes a request with its header; the frame's length prefix is added by the writer.
pub(crate) fn encode<R: Request>(
    request: &R,
    version: i16,
    correlation_id: i32,
    client_id: &str,
) -> Result<Bytes, String> {
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_string(client_id.to_owned())));
    let header_version = <R as HeaderVersion>::header_version(version);
    let sizes = header
        .compute_size(header_version)
        .and_then(|head| Ok(head + request.compute_size(version)?));
    let mut frame = BytesMut::with_capacity(sizes.map_err(|error| error.to_string())?);
    header
        .encode(&mut frame, header_version)
        .and_then(|()| request.encode(&mut frame, version))
        .map_err(|error| error.to_string())?;
    Ok(frame.freeze())
}

/// Checks that `answer` belongs to the request with `expected`.
pub(crate) fn check_correlation(
    answer: &[u8],
    expected: i32,
    broker: &Arc<str>,
) -> Result<(), Error> {
    match answer.first_chunk::<4>().map(|id| i32::from_be_bytes(*id)) {
        Some(found) if found == expected => Ok(()),
        found => Err(Error::Frame {
            broker: Arc::clone(broker),
            reason: format!(
                "an answer with correlation id {found:?} came where {expected} was due"
            ),
        }),
    }
}

/// Name of the API of `R` for messages, such as "Metadata".
pub(crate) fn api_name<R: Request>() -> &'static str {
    let name = std::any::type_name::<R>();
    let name = name.rsplit("::").next().unwrap_or(name);
    name.strip_suffix("Request").unwrap_or(name)
}

fn lifetime(milliseconds: i64) -> Option<Duration> {
    let milliseconds = u64::try_from(milliseconds).ok().filter(|ms| *ms > 0)?;
    // A lifetime beyond a day needs no precision and must not overflow the clock.
    let bounded = Duration::from_millis(milliseconds.min(86_400_000));
    Some(bounded.mul_f64(SESSION_LIFETIME_USED))
}
