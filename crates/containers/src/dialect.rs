//! Labels of other programs, as far as they have a meaning here. Pure: no I/O, no clock.

mod registrator;
mod rule;
mod traefik;

use crate::container::Container;
use crate::draft::Drafts;

/// A program with labels that are read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Traefik's Docker provider, versions 2 and 3.
    Traefik,
    /// gliderlabs/registrator. It reads the environment too.
    Registrator,
}

/// Drafts of the services that the container's labels describe in this dialect.
pub(crate) fn read(dialect: Dialect, container: &Container) -> Drafts {
    match dialect {
        Dialect::Traefik => traefik::read_labels(&container.labels),
        Dialect::Registrator => registrator::read_container(container),
    }
}
