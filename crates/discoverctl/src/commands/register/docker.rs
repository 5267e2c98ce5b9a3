//! `--container`: the address of a container, from the engine's API. `containers` decides which address that is.

use std::num::NonZeroU16;
use std::str::FromStr;

use containers::{Engine, EngineAddress, Reach, RunState, find_address};
use discovery::{UpstreamAddress, UpstreamId};

use crate::error::Error;

/// `ID[:PORT]` as it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerArg {
    /// The container's name or id, or the beginning of its id.
    name: UpstreamId,
    /// The port inside the container; None if it wasn't typed.
    port: Option<u16>,
}

impl ContainerArg {
    /// Adds the port of --port.
    ///
    /// # Errors
    /// [`Error::Usage`] if --container has a port too.
    pub(crate) fn with_port(mut self, port: Option<NonZeroU16>) -> Result<Self, Error> {
        if let Some(port) = port {
            if self.port.is_some() {
                return Err(Error::Usage(format!("the port twice: --container {} and --port {port}", self.name)));
            }
            self.port = Some(port.get());
        }
        Ok(self)
    }
}

impl FromStr for ContainerArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, port) = match text.split_once(':') {
            None => (text, None),
            Some((name, port)) => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (name, Some(port.ok_or_else(|| format!("{text:?}: the port is a number from 1 to 65535"))?))
            }
        };
        // A container's name follows the same rule as an upstream's. So it can't change the path of the URL.
        let name = name.parse().map_err(|refusal: discovery::Refusal| refusal.to_string())?;
        Ok(Self { name, port })
    }
}

/// A container's name and address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// The container's name as an upstream's id.
    pub(crate) id: UpstreamId,
    /// The address at which balancers reach it.
    pub(crate) address: UpstreamAddress,
}

/// Finds the address at which balancers reach the container.
///
/// # Errors
/// [`Error::Refused`] if there is no such container or no such address, or if the engine can't be asked.
pub(crate) async fn find_listener(
    engine: &EngineAddress,
    container: &ContainerArg,
    reach: &Reach,
) -> Result<Listener, Error> {
    let asked = async { Engine::connect(engine)?.inspect(container.name.as_str()).await };
    let found = asked.await.map_err(|error| Error::Refused(error.to_string()))?;
    let name = &container.name;
    let found = found.ok_or_else(|| Error::Refused(format!("Docker knows no container {name}")))?;
    let refuse = |words: String| Error::Refused(format!("container {name}: {words}"));
    if let RunState::Stopped(_) = found.state {
        return Err(refuse(format!("is {}, not running", found.state)));
    }
    let address =
        find_address(&found, container.port, reach, "--port").map_err(|refusal| refuse(refusal.to_string()))?;
    let id = found.name.parse().map_err(|refusal: discovery::Refusal| refuse(refusal.to_string()))?;
    Ok(Listener { id, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_said_once() {
        let (port, container) = (NonZeroU16::new(80), "web-1".parse::<ContainerArg>().unwrap());
        assert_eq!(container.clone().with_port(port).unwrap(), "web-1:80".parse().unwrap());
        assert_eq!(container.clone().with_port(None).unwrap(), container);
        assert!("web-1:80".parse::<ContainerArg>().unwrap().with_port(port).is_err());
    }

    #[test]
    fn nothing_that_is_typed_leads_to_another_request() {
        assert!("web-1:0".parse::<ContainerArg>().is_err() && "web-1:x".parse::<ContainerArg>().is_err());
        assert!("../info".parse::<ContainerArg>().is_err() && "a/b".parse::<ContainerArg>().is_err());
    }
}
