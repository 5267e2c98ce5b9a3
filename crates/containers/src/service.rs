//! A service that a container offers, with all values read. Pure: no I/O, no clock.

use std::num::NonZeroU16;

use discovery::{Color, ServiceId, Setting, Weight};

/// A service that a container offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelledService {
    /// Begin of its labels' names, for messages.
    pub folder: String,
    /// The service's kind and name.
    pub service: ServiceId,
    /// The port inside the container. `None` takes the only one that there is.
    pub port: Option<NonZeroU16>,
    /// The share among the upstreams of its color.
    pub weight: Weight,
    /// The deployment that it belongs to.
    pub color: Option<Color>,
    /// At most one value for each name.
    pub settings: Vec<Setting>,
    /// The check of the app. `None` checks that the port accepts connections.
    pub check: Option<LabelCheck>,
    /// The limit on the service's copies. `None` without one.
    pub limit: Option<CopyLimit>,
}

/// A limit on the copies of a service, on all hosts together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyLimit {
    /// The number of copies that may run.
    pub replicas: NonZeroU16,
    /// Rank of this copy among those on hosts without one. The highest comes first.
    pub prefer: u16,
}

/// A check that a label asks for. All of them go to the announced address, so that no label can make the agent ask
/// another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LabelCheck {
    /// The port accepts connections.
    Tcp,
    /// A GET of this path answers with a status from 200 to 399.
    Http(String),
    /// The same over TLS, with any certificate.
    Https(String),
}

impl LabelledService {
    /// True if the two differ at most in the labels that describe them.
    pub(crate) fn says_the_same_as(&self, other: &Self) -> bool {
        Self { folder: String::new(), ..self.clone() } == Self { folder: String::new(), ..other.clone() }
    }
}
