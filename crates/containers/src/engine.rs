//! A client of the engine's API: Docker Engine, and Podman's service for Docker's clients. Every call has a deadline. It
//! creates and removes no container. `start` and `stop` are its only calls that change one.

mod convert;

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, ContainerSummary, EventMessage};
use bollard::query_parameters::{
    EventsOptions, InspectContainerOptions, ListContainersOptionsBuilder, StartContainerOptions, StopContainerOptions,
};
use futures_util::{Stream, StreamExt};
use tokio::time::timeout;

use crate::container::{Container, HealthStatus};

/// Limits a request that the engine answers from memory. One container that hangs must not look like a dead engine for
/// long.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// Limits a listing, which waits for the lock of each container.
const LIST_LIMIT: Duration = Duration::from_secs(10);

/// Limits a start. The engine mounts volumes and runs hooks before it answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A name that no container has.
const NO_CONTAINER: &str = "haproxy-discover.may-start";

/// Time beyond a stop's own, in which the engine kills the container and answers.
const STOP_RESERVE: Duration = Duration::from_secs(15);

/// The place of an engine's API: `unix:///run/docker.sock`, `tcp://127.0.0.1:2375`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineAddress(String);

/// A client of one engine.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
    address: EngineAddress,
}

/// The reason why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no connection.
    #[error("the engine at {address} can't be reached: {reason}")]
    Unreachable {
        /// The engine's place.
        address: EngineAddress,
        /// The innermost cause, in the words of its library.
        reason: String,
    },
    /// No answer came in time.
    #[error("the engine at {address} didn't answer within {} s", limit.as_secs())]
    Silent {
        /// The engine's place.
        address: EngineAddress,
        /// The time that the request had.
        limit: Duration,
    },
    /// The engine, or a proxy before it, refused the request.
    #[error("the engine at {address} answers {status}: {reason}")]
    Refused {
        /// The engine's place.
        address: EngineAddress,
        /// The status of its answer.
        status: u16,
        /// The reason in its words, cut and without control characters.
        reason: discovery::Excerpt,
    },
    /// The engine closed the stream of events.
    #[error("the engine at {address} ended the stream of events")]
    Ended {
        /// The engine's place.
        address: EngineAddress,
    },
}

impl EngineError {
    /// True if the engine answered that it knows no such container.
    pub fn is_unknown_container(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }
}

/// A container of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The engine's id.
    pub id: String,
    /// The engine's words for its names and its state. A change of the container changes them.
    pub fingerprint: String,
}

/// Something happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The engine's id of the container.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was created with a label that may limit a service's copies. Its engine doesn't start it by itself.
    Created,
    /// Its first process runs.
    Started,
    /// A signal was sent to it. `None` if the engine doesn't say which.
    Signalled(Option<i32>),
    /// Its first process ended.
    Died,
    /// A client of the engine has stopped it. It has ended before, or does so at once.
    Stopped,
    /// Its processes are frozen.
    Paused,
    /// Its processes run again.
    Unpaused,
    /// It has another name.
    Renamed,
    /// It was removed.
    Removed,
    /// The kernel killed one of its processes for lack of memory.
    OutOfMemory,
    /// Its HEALTHCHECK has another result.
    Health(HealthStatus),
    /// It joined or left a network, or its limits changed.
    Changed,
}

/// The events of an engine, from a moment on.
pub struct Events {
    stream: Pin<Box<dyn Stream<Item = Result<EventMessage, bollard::errors::Error>> + Send>>,
    address: EngineAddress,
}

impl FromStr for EngineAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_path = text.strip_prefix("unix://").is_some_and(|path| path.starts_with('/') && path.len() > 1);
        let is_host = text.strip_prefix("tcp://").is_some_and(|host| {
            let port = host.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            port.is_some_and(|(host, port)| !host.is_empty() && !host.contains(['/', '@', ' ']) && port > 0)
        });
        if (is_path || is_host) && !text.chars().any(char::is_control) {
            Ok(Self(text.to_owned()))
        } else {
            Err("an engine's place is written unix:///PATH or tcp://HOST:PORT".to_owned())
        }
    }
}

impl fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Engine {
    /// A client. It sends nothing, but a socket's path must exist.
    ///
    /// # Errors
    /// [`EngineError::Unreachable`] if there is no socket.
    pub fn connect(address: &EngineAddress) -> Result<Self, EngineError> {
        match Docker::connect_with_host(&address.0) {
            Ok(docker) => Ok(Self { docker, address: address.clone() }),
            Err(error) => Err(describe_failure(address, &error)),
        }
    }

    /// The engine's place.
    pub fn address(&self) -> &EngineAddress {
        &self.address
    }

    /// The containers that run or are paused, or all that the engine knows.
    ///
    /// # Errors
    /// If the engine can't be asked.
    pub async fn list(&self, with_stopped: bool) -> Result<Vec<Listed>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(with_stopped).build();
        let all = self.limit(LIST_LIMIT, self.docker.list_containers(Some(options))).await?;
        Ok(read_listing(all))
    }

    /// The containers that don't run and have a label for which `counts` is true.
    ///
    /// # Errors
    /// If the engine can't be asked.
    pub async fn list_stopped(&self, counts: impl Fn(&str) -> bool) -> Result<Vec<Listed>, EngineError> {
        let states = ["created", "exited"].map(str::to_owned).to_vec();
        let filters = HashMap::from([("status".to_owned(), states)]);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let mut all = self.limit(LIST_LIMIT, self.docker.list_containers(Some(options))).await?;
        all.retain(|summary| summary.labels.iter().flatten().any(|(label, _)| counts(label)));
        Ok(read_listing(all))
    }

    /// True if this client may start containers. A proxy before the engine may let only reads through.
    ///
    /// # Errors
    /// If the engine can't be asked.
    pub async fn may_start(&self) -> Result<bool, EngineError> {
        // A start of a container that doesn't exist changes nothing, and passes all that would refuse a start.
        match self.start(NO_CONTAINER).await {
            Ok(()) => Ok(true),
            Err(error) if error.is_unknown_container() => Ok(true),
            Err(EngineError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Starts a container, by its id. One that runs is left alone.
    ///
    /// # Errors
    /// If the engine refuses, or doesn't answer in time.
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        let docker = self.docker.clone().with_timeout(START_LIMIT);
        self.limit(START_LIMIT, docker.start_container(id, None::<StartContainerOptions>)).await
    }

    /// One container, by its id or name. `None` if the engine knows none.
    ///
    /// # Errors
    /// If the engine can't be asked.
    pub async fn inspect(&self, name: &str) -> Result<Option<Container>, EngineError> {
        // A name goes into the path of a URL.
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')) {
            return Ok(None);
        }
        let asked = self.docker.inspect_container(name, None::<InspectContainerOptions>);
        match self.limit(REQUEST_LIMIT, asked).await {
            Ok(found) => Ok(Some(convert::read_container(found))),
            Err(error) if error.is_unknown_container() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The events of containers since `since`. Those of the last minutes are sent again, so that none is lost between this
    /// and a listing.
    pub fn follow(&self, since: SystemTime) -> Events {
        let since = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let filters = HashMap::from([("type".to_owned(), vec!["container".to_owned()])]);
        let options = EventsOptions {
            since: Some(format!("{}.{:09}", since.as_secs(), since.subsec_nanos())),
            filters: Some(filters),
            ..EventsOptions::default()
        };
        // The library counts its limit of a request only up to the answer's headers.
        Events { stream: Box::pin(self.docker.events(Some(options))), address: self.address.clone() }
    }

    /// Stops a container: its stop signal, and SIGKILL after `time`, or after its own time. Returns when it has ended.
    ///
    /// # Errors
    /// If the engine refuses, or doesn't answer within the time and some seconds.
    pub async fn stop(&self, container: &Container, time: Option<Duration>) -> Result<(), EngineError> {
        let seconds = time.map(|time| i32::try_from(time.as_secs()).unwrap_or(i32::MAX));
        let options = StopContainerOptions { t: seconds, ..StopContainerOptions::default() };
        let limit = time.unwrap_or_else(|| container.stop_time()) + STOP_RESERVE;
        // The library has a limit of its own, which a long stop may exceed.
        let docker = self.docker.clone().with_timeout(limit);
        self.limit(limit, docker.stop_container(&container.id, Some(options))).await.map(drop)
    }

    async fn limit<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, EngineError> {
        match timeout(limit, call).await {
            Ok(answer) => answer.map_err(|error| match error {
                bollard::errors::Error::RequestTimeoutError => {
                    EngineError::Silent { address: self.address.clone(), limit }
                }
                error => describe_failure(&self.address, &error),
            }),
            Err(_) => Err(EngineError::Silent { address: self.address.clone(), limit }),
        }
    }
}

impl Events {
    /// The next event that means something here. Cancellation loses none.
    ///
    /// # Errors
    /// If the stream broke or ended. It gives nothing more then.
    pub async fn next(&mut self) -> Result<Event, EngineError> {
        loop {
            match self.stream.next().await {
                Some(Ok(message)) => {
                    if let Some(event) = convert::read_event(message) {
                        return Ok(event);
                    }
                }
                Some(Err(error)) => return Err(describe_failure(&self.address, &error)),
                None => return Err(EngineError::Ended { address: self.address.clone() }),
            }
        }
    }
}

fn read_listing(all: Vec<ContainerSummary>) -> Vec<Listed> {
    let listed = all.into_iter().filter_map(|summary| {
        let state = summary.state.map(|state| state.to_string()).unwrap_or_default();
        // `Up 3 minutes (unhealthy)`: the time would change the fingerprint all the time.
        let health = summary.status.as_deref().and_then(|status| status.split_once('(')).map(|(_, rest)| rest);
        let health = health.filter(|rest| !rest.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
        let names = summary.names.unwrap_or_default().join(" ");
        Some(Listed { id: summary.id?, fingerprint: format!("{names} {state} {health}") })
    });
    listed.collect()
}

fn describe_failure(address: &EngineAddress, error: &bollard::errors::Error) -> EngineError {
    let address = address.clone();
    match error {
        bollard::errors::Error::DockerResponseServerError { status_code, message } => {
            EngineError::Refused { address, status: *status_code, reason: discovery::Excerpt::new(message.trim()) }
        }
        error => {
            let mut cause: &dyn std::error::Error = error;
            // The outer errors only say that a request failed.
            while let Some(next) = cause.source() {
                cause = next;
            }
            EngineError::Unreachable { address, reason: cause.to_string() }
        }
    }
}

/// The parts of an answer that a stranger's daemon might leave out are empty then.
pub(crate) type Inspected = ContainerInspectResponse;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_socket_or_a_port() {
        for good in ["unix:///run/docker.sock", "tcp://127.0.0.1:2375", "tcp://proxy:80", "tcp://[::1]:2375"] {
            assert_eq!(good.parse::<EngineAddress>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "/run/docker.sock",
            "unix://run",
            "unix:///",
            "tcp://a",
            "tcp://:1",
            "tcp://a:0",
            "ssh://a",
            "tcp://a/b:1",
        ] {
            assert!(bad.parse::<EngineAddress>().is_err(), "{bad}");
        }
    }
}
