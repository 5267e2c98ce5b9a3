//! Facts about this host that defaults are made from. It reads the hostname and one variable.

use discovery::HostName;
use nix::unistd::gethostname;

#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) hostname: String,
    /// `COREOS_PRIVATE_IPV4`, which coreos-metadata and fleet's environment files set.
    pub private_ipv4: Option<String>,
}

impl Host {
    /// Reads the facts. An unknown hostname is empty, and then `--id` is required.
    pub(crate) fn from_system() -> Self {
        Self {
            hostname: gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
            private_ipv4: program::variable::read_text("COREOS_PRIVATE_IPV4"),
        }
    }

    /// The name that records have. `None` if the hostname can't stand in a record, as one with a `_` at its start.
    pub(crate) fn name(&self) -> Option<HostName> {
        self.hostname.parse().ok()
    }
}
