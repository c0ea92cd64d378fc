//! Requests to the broker that is responsible, with bounded retries.

use kafka_protocol::protocol::Request;

use super::{Cluster, CoordinatorKind};
use crate::connection::Connection;
use crate::error::{Error, ResponseError};
use crate::metadata::{BrokerId, TopicPartition};
use crate::raw::api_name;

impl Cluster {
    /// Sends a request to the leader of a partition. `error_of` finds the error code in the answer; on a retriable one the
    /// leader is looked up again and the request repeated, within bounds.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call_leader<R: Request + Clone>(
        &self,
        topic: &str,
        partition: i32,
        request: R,
        error_of: impl Fn(&R::Response) -> Option<ResponseError>,
    ) -> Result<R::Response, Error> {
        let subject = TopicPartition::new(self.prefix().own_name(topic), partition).to_string();
        let mut retry = self.retry();
        loop {
            let attempt = match self.leader(topic, partition).await {
                Ok(leader) => {
                    self.call_broker(leader, request.clone(), Some(&subject), &error_of)
                        .await
                }
                Err(error) => Err(error),
            };
            match attempt {
                Ok(response) => return Ok(response),
                Err(error) => {
                    if error.is_stale_metadata() {
                        self.invalidate_leader(topic, partition);
                    }
                    retry.after(error).await?;
                }
            }
        }
    }

    /// Sends a request to the broker that takes requests for the controller, as [`Cluster::call_leader`] does.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call_controller<R: Request + Clone>(
        &self,
        request: R,
        error_of: impl Fn(&R::Response) -> Option<ResponseError>,
    ) -> Result<R::Response, Error> {
        let mut retry = self.retry();
        loop {
            // With KRaft any broker forwards to the controller, and the answer may name none for a moment.
            let controller = self.metadata().controller;
            let attempt = match controller {
                Some(broker) => {
                    self.call_broker(broker, request.clone(), None, &error_of)
                        .await
                }
                None => self.call_some_broker(request.clone(), &error_of).await,
            };
            match attempt {
                Ok(response) => return Ok(response),
                Err(error) => {
                    let stale = error.is_stale_metadata();
                    retry.after(error).await?;
                    if stale {
                        self.refresh_metadata().await?;
                    }
                }
            }
        }
    }

    /// Sends a request to any broker, as [`Cluster::call_leader`] does; another one is taken when one fails.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call_any<R: Request + Clone>(
        &self,
        request: R,
        error_of: impl Fn(&R::Response) -> Option<ResponseError>,
    ) -> Result<R::Response, Error> {
        let mut retry = self.retry();
        loop {
            match self.call_some_broker(request.clone(), &error_of).await {
                Ok(response) => return Ok(response),
                Err(error) => {
                    let stale = error.is_stale_metadata();
                    retry.after(error).await?;
                    if stale {
                        self.refresh_metadata().await?;
                    }
                }
            }
        }
    }

    /// Sends a request to the coordinator of a group or transactional id, as [`Cluster::call_leader`] does.
    ///
    /// # Errors
    /// The last attempt's.
    pub async fn call_coordinator<R: Request + Clone>(
        &self,
        kind: CoordinatorKind,
        key: &str,
        request: R,
        error_of: impl Fn(&R::Response) -> Option<ResponseError>,
    ) -> Result<R::Response, Error> {
        let mut retry = self.retry();
        loop {
            let attempt = match self.coordinator(kind, key).await {
                Ok(broker) => {
                    self.call_broker(broker, request.clone(), Some(key), &error_of)
                        .await
                }
                Err(error) => Err(error),
            };
            match attempt {
                Ok(response) => return Ok(response),
                Err(error) => {
                    self.forget_coordinator(kind, key);
                    retry.after(error).await?;
                }
            }
        }
    }

    async fn call_some_broker<R: Request>(
        &self,
        request: R,
        error_of: &impl Fn(&R::Response) -> Option<ResponseError>,
    ) -> Result<R::Response, Error> {
        let connection = self.some_connection().await?;
        let response = connection.call(request).await?;
        checked::<R>(&connection, response, None, error_of)
    }

    async fn call_broker<R: Request>(
        &self,
        broker: BrokerId,
        request: R,
        subject: Option<&str>,
        error_of: &impl Fn(&R::Response) -> Option<ResponseError>,
    ) -> Result<R::Response, Error> {
        let connection = self.connection(broker).await?;
        let response = connection.call(request).await?;
        checked::<R>(&connection, response, subject, error_of)
    }
}

fn checked<R: Request>(
    connection: &Connection,
    response: R::Response,
    subject: Option<&str>,
    error_of: &impl Fn(&R::Response) -> Option<ResponseError>,
) -> Result<R::Response, Error> {
    match error_of(&response) {
        None => Ok(response),
        Some(code) => Err(Error::server(
            connection.broker(),
            api_name::<R>(),
            subject,
            code,
            None,
        )),
    }
}
