//! The engine's answers as this crate has them. Pure: no I/O, no clock. Missing parts are empty.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bollard::models::{
    EndpointSettings, EventMessage, HealthStatusEnum, HostConfig, PortBinding, RestartPolicyNameEnum as Policy,
};

use crate::container::{Container, HealthStatus, OwnLife, RunState, parse_signal};
use crate::engine::{Event, EventKind, Inspected};

/// A container, from the answer to a request for it.
pub(super) fn read_container(found: Inspected) -> Container {
    let config = found.config.unwrap_or_default();
    let host_config = found.host_config.unwrap_or_default();
    let state = found.state.unwrap_or_default();
    let own_life = read_own_life(&host_config);
    let settings = found.network_settings.unwrap_or_default();
    // Both engines say `running` of a paused container too.
    let run_state = match (state.running, state.paused) {
        (Some(true), Some(true)) => RunState::Paused,
        (Some(true), _) => RunState::Running,
        _ => RunState::Stopped(state.status.map(|status| status.to_string()).unwrap_or_default()),
    };
    let published = settings.ports.into_iter().flatten().filter_map(|(port, bindings)| {
        let sockets: Vec<SocketAddr> = bindings.into_iter().flatten().filter_map(read_binding).collect();
        tcp_port(&port).filter(|_| !sockets.is_empty()).map(|port| (port, sockets))
    });
    let networks = settings.networks.into_iter().flatten().map(|(name, it)| (name, read_address(it)));
    Container {
        id: found.id.unwrap_or_default(),
        name: found.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        image: config.image.unwrap_or_default(),
        labels: config.labels.into_iter().flatten().collect(),
        environment: config.env.unwrap_or_default(),
        state: run_state,
        health: state.health.and_then(|health| health.status).and_then(read_health),
        started_at: state.started_at.unwrap_or_default(),
        network_mode: host_config.network_mode.unwrap_or_default(),
        networks: networks.collect(),
        // UDP ports are left out, because HAProxy's servers are reached by TCP.
        exposed: config.exposed_ports.into_iter().flatten().filter_map(|port| tcp_port(&port)).collect(),
        published: published.collect(),
        stop_signal: config.stop_signal.as_deref().and_then(parse_signal),
        stop_timeout: config.stop_timeout.and_then(|time| u64::try_from(time).ok()).map(Duration::from_secs),
        exit_status: state.exit_code.and_then(|code| u8::try_from(code).ok()).unwrap_or_default(),
        own_life,
    }
}

fn read_own_life(config: &HostConfig) -> Option<OwnLife> {
    let policy = config.restart_policy.as_ref().and_then(|policy| policy.name);
    match policy {
        Some(policy @ (Policy::ALWAYS | Policy::UNLESS_STOPPED | Policy::ON_FAILURE)) => {
            Some(OwnLife::Restarts(policy.to_string()))
        }
        Some(Policy::EMPTY | Policy::NO) | None => (config.auto_remove == Some(true)).then_some(OwnLife::RemovedAtEnd),
    }
}

fn read_health(status: HealthStatusEnum) -> Option<HealthStatus> {
    match status {
        HealthStatusEnum::HEALTHY => Some(HealthStatus::Healthy),
        HealthStatusEnum::UNHEALTHY => Some(HealthStatus::Unhealthy),
        HealthStatusEnum::STARTING => Some(HealthStatus::Starting),
        // Podman says an empty word without a HEALTHCHECK, Docker says `none`.
        HealthStatusEnum::EMPTY | HealthStatusEnum::NONE => None,
    }
}

fn read_binding(binding: PortBinding) -> Option<SocketAddr> {
    let (ip, port) = (binding.host_ip.unwrap_or_default(), binding.host_port.unwrap_or_default());
    // Docker before 20.10, and Podman, leave the address of a port on all IPv4 addresses empty.
    let ip = if ip.is_empty() { Ipv4Addr::UNSPECIFIED.into() } else { ip.parse().ok()? };
    Some(SocketAddr::new(ip, port.parse().ok().filter(|port| *port > 0)?))
}

fn read_address(network: EndpointSettings) -> Option<IpAddr> {
    let parse = |address: Option<String>| address.and_then(|address| address.parse().ok());
    parse(network.ip_address).or_else(|| parse(network.global_ipv6_address))
}

/// The number in `8000/tcp`. `None` for another protocol.
fn tcp_port(text: &str) -> Option<u16> {
    text.strip_suffix("/tcp")?.parse().ok()
}

/// The event. `None` if it means nothing here.
pub(super) fn read_event(message: EventMessage) -> Option<Event> {
    let actor = message.actor.unwrap_or_default();
    let attribute = |name: &str| actor.attributes.as_ref().and_then(|all| all.get(name));
    let action = message.action.unwrap_or_default();
    let kind = match action.as_str() {
        // Both engines tell the labels. Most containers are started right after this.
        "create" if actor.attributes.iter().flatten().any(|(name, _)| name.ends_with(".replicas")) => {
            EventKind::Created
        }
        "start" | "restart" => EventKind::Started,
        "stop" => EventKind::Stopped,
        "kill" => EventKind::Signalled(attribute("signal").and_then(|signal| parse_signal(signal))),
        "die" | "died" => EventKind::Died,
        "pause" => EventKind::Paused,
        "unpause" => EventKind::Unpaused,
        "rename" => EventKind::Renamed,
        "destroy" | "remove" => EventKind::Removed,
        "oom" => EventKind::OutOfMemory,
        "update" | "connect" | "disconnect" => EventKind::Changed,
        // Podman has the result in an attribute.
        health => match health.strip_prefix("health_status")?.trim_start_matches([':', ' ']) {
            "" => EventKind::Health(read_health_word(attribute("health_status")?)?),
            word => EventKind::Health(read_health_word(word)?),
        },
    };
    Some(Event { id: actor.id.filter(|id| !id.is_empty())?, kind })
}

fn read_health_word(word: &str) -> Option<HealthStatus> {
    match word {
        "healthy" => Some(HealthStatus::Healthy),
        "unhealthy" => Some(HealthStatus::Unhealthy),
        "starting" => Some(HealthStatus::Starting),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bollard::models::EventActor;

    use super::*;

    fn event(action: &str, attributes: &[(&str, &str)]) -> Option<EventKind> {
        let attributes: HashMap<_, _> =
            attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let actor = EventActor { id: Some("abc".to_owned()), attributes: Some(attributes) };
        let message = EventMessage { action: Some(action.to_owned()), actor: Some(actor), ..EventMessage::default() };
        read_event(message).map(|event| event.kind)
    }

    #[test]
    fn the_words_of_both_engines_are_read() {
        assert_eq!(event("kill", &[("signal", "15")]), Some(EventKind::Signalled(Some(15))));
        assert_eq!(event("kill", &[]), Some(EventKind::Signalled(None)));
        assert_eq!(event("die", &[("exitCode", "0")]), Some(EventKind::Died));
        assert_eq!(event("died", &[]), Some(EventKind::Died));
        assert_eq!(event("health_status: unhealthy", &[]), Some(EventKind::Health(HealthStatus::Unhealthy)));
        let podman = event("health_status", &[("health_status", "healthy")]);
        assert_eq!(podman, Some(EventKind::Health(HealthStatus::Healthy)));
        assert_eq!(event("create", &[("x.web.replicas", "2")]), Some(EventKind::Created));
        assert_eq!(event("stop", &[]), Some(EventKind::Stopped));
        for nothing in ["create", "exec_create: /check", "exec_die", "attach", "top", "", "health_status: odd"] {
            assert_eq!(event(nothing, &[]), None, "{nothing}");
        }
    }

    #[test]
    fn an_empty_answer_is_a_container_that_does_not_run() {
        let container = read_container(Inspected::default());
        assert_eq!(container.state, RunState::Stopped(String::new()));
        assert!(container.published.is_empty() && container.health.is_none());
    }
}
