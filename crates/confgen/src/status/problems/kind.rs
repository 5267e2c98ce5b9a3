//! The kinds of problems. Pure.

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    HaproxyDown,
    OutOfSync,
    NoFigures,
    StoreAway,
    LimitChanged,
    ServiceRefused,
    NoUpstream,
    NoRequests,
    UpstreamsFail,
    NoRoute,
    RestartDue,
    CertificateExpired,
    CertificateExpires,
    CertificateRefused,
    ErrorPageRefused,
    Quarantined,
    Held,
    Remark,
    /// A process or a master of HAProxy beside the newest one doesn't answer.
    HaproxySilent,
    ConnectionsCut,
}

impl ProblemKind {
    /// The word in the API. Kinds that `discoverctl lint` finds too have its words.
    pub fn name(self) -> &'static str {
        match self {
            Self::HaproxyDown => "haproxy_down",
            Self::OutOfSync => "out_of_sync",
            Self::NoFigures => "no_figures",
            Self::StoreAway => "store_away",
            Self::LimitChanged => "limit_changed",
            Self::ServiceRefused => "service_refused",
            Self::NoUpstream => "no_upstream",
            Self::NoRequests => "no_requests",
            Self::UpstreamsFail => "upstreams_fail",
            Self::NoRoute => "no_route",
            Self::RestartDue => "restart_due",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateExpires => "certificate_expires",
            Self::CertificateRefused => "certificate_refused",
            Self::ErrorPageRefused => "error_page_refused",
            Self::Quarantined => "quarantined",
            Self::Held => "held",
            Self::Remark => "remark",
            Self::HaproxySilent => "haproxy_silent",
            Self::ConnectionsCut => "connections_cut",
        }
    }

    /// The fact of many like problems. `names` are the first ones. `None` for a kind that has no like ones.
    pub(super) fn describe_many(self, count: usize, names: &str) -> Option<String> {
        Some(match self {
            Self::ServiceRefused => {
                format!("HAProxy refuses {count} services, and their last accepted forms count: {names}")
            }
            Self::NoUpstream => format!("{count} services have no upstream: {names}"),
            Self::NoRequests => format!("{count} services have no upstream that gets requests: {names}"),
            Self::UpstreamsFail => format!("{count} services have upstreams that fail, and others that serve: {names}"),
            Self::NoRoute => format!("no request leads to {count} services: {names}"),
            Self::CertificateExpired => format!("{count} certificates have expired, those of {names}"),
            Self::CertificateExpires => format!("{count} certificates expire within 14 days, those of {names}"),
            Self::CertificateRefused => format!("{count} certificate files are refused: {names}"),
            Self::Quarantined => format!("{count} services have keys that are not followed: {names}"),
            Self::Remark => format!("{count} remarks on the operator's files"),
            Self::HaproxyDown
            | Self::OutOfSync
            | Self::NoFigures
            | Self::StoreAway
            | Self::LimitChanged
            | Self::RestartDue
            | Self::ErrorPageRefused
            | Self::Held
            | Self::HaproxySilent
            | Self::ConnectionsCut => return None,
        })
    }
}
