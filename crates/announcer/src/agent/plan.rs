//! What a container's labels, ports and name make of it: upstreams with all that the agent needs, or the reasons why not.
//! Pure: no I/O, no clock.

use std::collections::BTreeMap;

use containers::{Container, CopyLimit, LabelCheck, LabelRules, LabelledService, Reach, RunState, find_address};
use discovery::{Excerpt, HostName, ServiceId, Setting, UpstreamAddress, UpstreamId};

use crate::config::address::AddressSource;
use crate::config::upstream::{Announcement, OverwriteRules, Upstream};
use crate::health::check::{Check, Checks, HttpOptions};

/// Options that select containers, and set their addresses and ids.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) rules: LabelRules,
    pub(crate) reach: Reach,
    pub(crate) host: HostName,
    pub(crate) update: bool,
}

/// What one container is to be registered as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// No two have the same key.
    pub(crate) upstreams: Vec<Upstream>,
    /// Labels that can't be read, and services without an address. Each is one line.
    pub(crate) faults: Vec<String>,
    /// The service of which at most some copies run. `None` if the engine's clients start the container as they like.
    pub(crate) copy: Option<PlannedCopy>,
}

/// A container as one of the copies of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlannedCopy {
    pub(crate) service: ServiceId,
    /// That of the container's record, or of the first one if it has several.
    pub(crate) id: UpstreamId,
    pub(crate) limit: CopyLimit,
}

impl Plan {
    /// True if the container has no labels that count.
    pub(crate) fn is_empty(&self) -> bool {
        self.upstreams.is_empty() && self.faults.is_empty() && self.copy.is_none()
    }

    /// Refuses the service whose copies are limited.
    pub(crate) fn refuse_copy(&mut self, reason: &str) {
        let Some(copy) = self.copy.take() else { return };
        self.upstreams.retain(|upstream| upstream.announcement.service != copy.service);
        self.faults.push(format!("{}: {reason}", copy.service));
    }
}

/// Plans a container. It need not run: its labels are read all the same.
pub(crate) fn plan_container(container: &Container, scope: &Scope) -> Plan {
    let reading = scope.rules.read(container);
    let mut plan = Plan { faults: reading.faults.iter().map(ToString::to_string).collect(), ..Plan::default() };
    let mut shares = BTreeMap::new();
    for labelled in &reading.services {
        *shares.entry(&labelled.service).or_insert(0) += 1;
    }
    let is_shared = |labelled: &LabelledService| shares.get(&labelled.service).is_some_and(|count| *count > 1);
    let mut refusal = None;
    match plan_copy(container, &reading.services, is_shared, scope) {
        Ok(copy) => plan.copy = copy,
        Err(reason) => refusal = Some(reason),
    }
    for labelled in &reading.services {
        // Other services of the container are none of it.
        if let (Some(reason), Some(_)) = (&refusal, labelled.limit) {
            plan.faults.push(format!("{}: {reason}", labelled.service));
            continue;
        }
        // A container that stands by has no address yet.
        if plan.copy.is_some() && matches!(container.state, RunState::Stopped(_)) {
            continue;
        }
        let is_shared = is_shared(labelled);
        match plan_service(container, labelled, is_shared, scope) {
            Ok(upstream) => plan.upstreams.push(upstream),
            Err(reason) => plan.faults.push(reason),
        }
    }
    plan
}

/// Plans the service whose copies are limited. A container starts and stops as a whole, so that it has at most one.
fn plan_copy(
    container: &Container,
    services: &[LabelledService],
    is_shared: impl Fn(&LabelledService) -> bool,
    scope: &Scope,
) -> Result<Option<PlannedCopy>, String> {
    let mut limited = services.iter().filter_map(|labelled| Some((labelled, labelled.limit?)));
    let Some((first, limit)) = limited.next() else { return Ok(None) };
    if let Some((other, _)) = limited.find(|(other, more)| other.service != first.service || *more != limit) {
        let (one, other) = (Excerpt::new(&first.folder), Excerpt::new(&other.folder));
        return Err(format!("{one} and {other} limit the copies of one container in two ways; give each a container"));
    }
    if let Some(own_life) = &container.own_life {
        return Err(own_life.to_string());
    }
    let id = make_id(&scope.host, container, is_shared(first).then_some(first.port).flatten().map(u16::from))?;
    Ok(Some(PlannedCopy { service: first.service.clone(), id, limit }))
}

/// Plans one service. `is_shared` is true if another port of the container belongs to the same service.
fn plan_service(
    container: &Container,
    labelled: &LabelledService,
    is_shared: bool,
    scope: &Scope,
) -> Result<Upstream, String> {
    let service = &labelled.service;
    let option = format!("the label {}", Excerpt::new(&format!("{}.port", labelled.folder)));
    let found = find_address(container, labelled.port.map(u16::from), &scope.reach, &option);
    let address = found.map_err(|refusal| format!("{service}: the container {refusal}"))?;
    let id = make_id(&scope.host, container, is_shared.then_some(labelled.port).flatten().map(u16::from));
    let id = id.map_err(|reason| format!("{service}: {reason}"))?;
    let check = make_check(labelled, address).map_err(|reason| format!("{service}: {reason}"))?;
    Ok(Upstream {
        announcement: Announcement {
            service: service.clone(),
            id,
            weight: labelled.weight,
            color: labelled.color.clone(),
            host: Some(scope.host.clone()),
            settings: labelled.settings.clone(),
        },
        address_source: AddressSource::Given(address),
        overwrite_rules: OverwriteRules { update: scope.update, takeover_on_host: true, ..OverwriteRules::default() },
        checks: Checks {
            all: vec![check],
            interval: Checks::INTERVAL,
            timeout: Checks::TIMEOUT,
            thresholds: Checks::THRESHOLDS,
            grace: Checks::GRACE,
        },
        listen_addresses: Vec::new(),
    })
}

/// The id: the host's and the container's name, so that a container which is created again has the same one. The port
/// tells two ports of one service apart.
fn make_id(host: &HostName, container: &Container, port: Option<u16>) -> Result<UpstreamId, String> {
    let port = port.map(|port| format!("-{port}")).unwrap_or_default();
    let id = format!("{host}-{}{port}", container.name);
    id.parse().map_err(|refusal: discovery::Refusal| format!("no id can be made of the names: {refusal}"))
}

/// The check of the announced address. Without a label it is a connection.
fn make_check(labelled: &LabelledService, address: UpstreamAddress) -> Result<Check, String> {
    let (scheme, path) = match &labelled.check {
        None | Some(LabelCheck::Tcp) => return Ok(Check::Tcp),
        Some(LabelCheck::Http(path)) => ("http", path),
        Some(LabelCheck::Https(path)) => ("https", path),
    };
    let domains = labelled.settings.iter().find_map(|setting| match setting {
        Setting::Domain(domains) => Some(domains.iter().map(ToString::to_string)),
        _ => None,
    });
    // Many apps answer only for their own name. A wildcard names none.
    let host = domains.and_then(|mut domains| domains.find(|domain| !domain.starts_with('*')));
    let options = HttpOptions { host, insecure: true, ..HttpOptions::default() };
    Check::parse(&format!("{scheme}://{address}{path}"), &options).map_err(|error| error.to_string())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use containers::{HostAddresses, OwnLife};

    use super::*;

    pub(crate) fn scope() -> Scope {
        Scope {
            rules: LabelRules { prefix: "haproxy-discover".to_owned(), dialects: Vec::new() },
            reach: Reach::Host(HostAddresses { v4: Some(Ipv4Addr::new(10, 0, 0, 5)), ..HostAddresses::default() }),
            host: "web1".parse().unwrap(),
            update: false,
        }
    }

    pub(crate) fn container(name: &str, labels: &[(&str, &str)], ports: &[(u16, u16)]) -> Container {
        let publish = |(inside, outside): &(u16, u16)| (*inside, vec![(Ipv4Addr::UNSPECIFIED, *outside).into()]);
        Container {
            id: format!("id-of-{name}"),
            name: name.to_owned(),
            labels: labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect(),
            published: ports.iter().map(publish).collect(),
            state: RunState::Running,
            ..Container::default()
        }
    }

    fn lines(plan: &Plan) -> Vec<String> {
        let address = |upstream: &Upstream| match upstream.address_source {
            AddressSource::Given(address) => address.to_string(),
            AddressSource::Find { .. } => "?".to_owned(),
        };
        plan.upstreams.iter().map(|upstream| format!("{upstream} at {}", address(upstream))).collect()
    }

    #[test]
    fn a_label_and_a_published_port_are_enough() {
        let plan =
            plan_container(&container("shop", &[("haproxy-discover.domain", "a.com")], &[(8000, 32768)]), &scope());
        assert_eq!(lines(&plan), ["http-services/a.com/upstreams/web1-shop port 32768, tcp at 10.0.0.5:32768"]);
        assert!(plan_container(&container("shop", &[], &[(8000, 1)]), &scope()).is_empty());
    }

    #[test]
    fn a_path_is_asked_for_with_the_services_name() {
        let labels = [
            ("haproxy-discover.domain", "*.a.com b.com"),
            ("haproxy-discover.service", "x"),
            ("haproxy-discover.check", "/h"),
        ];
        let plan = plan_container(&container("shop", &labels, &[(8000, 32768)]), &scope());
        let Check::Http(check) = &plan.upstreams[0].checks.all[0] else { panic!("{plan:?}") };
        assert_eq!(
            (check.uri.to_string().as_str(), check.host_header.to_str().unwrap()),
            ("http://10.0.0.5:32768/h", "b.com")
        );
    }

    #[test]
    fn two_ports_of_one_service_have_ids_of_their_own() {
        let labels = [
            ("haproxy-discover.a.service", "shop"),
            ("haproxy-discover.a.port", "80"),
            ("haproxy-discover.b.service", "shop"),
            ("haproxy-discover.b.port", "81"),
            ("haproxy-discover.c.service", "other"),
            ("haproxy-discover.c.port", "80"),
        ];
        let plan = plan_container(&container("shop", &labels, &[(80, 1), (81, 2)]), &scope());
        let ids: Vec<_> = plan.upstreams.iter().map(|it| it.announcement.id.as_str()).collect();
        assert_eq!(ids, ["web1-shop-80", "web1-shop-81", "web1-shop"]);
    }

    #[test]
    fn a_container_is_a_copy_of_one_service() {
        let labels = [
            ("haproxy-discover.a.domain", "a.com"),
            ("haproxy-discover.a.port", "80"),
            ("haproxy-discover.a.replicas", "2"),
            ("haproxy-discover.b.domain", "b.com"),
            ("haproxy-discover.b.port", "81"),
        ];
        let running = container("shop", &labels, &[(80, 1), (81, 2)]);
        let plan = plan_container(&running, &scope());
        let copy = plan.copy.unwrap();
        assert_eq!((copy.service.to_string().as_str(), copy.id.as_str()), ("http-a.com", "web1-shop"));
        assert_eq!((copy.limit.replicas.get(), plan.upstreams.len(), plan.faults.len()), (2, 2, 0));
        // The engine publishes no port of a container that doesn't run.
        let created =
            Container { state: RunState::Stopped("created".to_owned()), published: BTreeMap::new(), ..running.clone() };
        let plan = plan_container(&created, &scope());
        assert!(plan.copy.is_some() && plan.upstreams.is_empty() && plan.faults.is_empty(), "{plan:?}");
        let two = [&labels[..], &[("haproxy-discover.b.replicas", "1")]].concat();
        let plan = plan_container(&container("shop", &two, &[(80, 1), (81, 2)]), &scope());
        let words = "http-a.com: `haproxy-discover.a` and `haproxy-discover.b` limit the copies";
        assert!(plan.copy.is_none() && plan.upstreams.is_empty() && plan.faults.len() == 2, "{plan:?}");
        assert!(plan.faults[0].starts_with(words), "{plan:?}");
    }

    #[test]
    fn a_container_that_the_engine_starts_itself_is_no_copy() {
        let labels = [("haproxy-discover.domain", "a.com"), ("haproxy-discover.replicas", "2")];
        let plain = container("shop", &labels, &[(80, 1)]);
        for (own_life, words) in [
            (OwnLife::Restarts("always".to_owned()), "restart policy always): create it with --restart no"),
            (OwnLife::RemovedAtEnd, "create it without --rm"),
        ] {
            let plan = plan_container(&Container { own_life: Some(own_life), ..plain.clone() }, &scope());
            assert!(plan.copy.is_none() && plan.upstreams.is_empty() && plan.faults[0].ends_with(words), "{plan:?}");
        }
        let mut plan = plan_container(&plain, &scope());
        plan.refuse_copy("why");
        assert_eq!((plan.upstreams.len(), plan.faults.as_slice()), (0, &["http-a.com: why".to_owned()][..]));
    }

    #[test]
    fn what_can_not_be_reached_is_said_and_costs_no_other_service() {
        let labels = [
            ("haproxy-discover.a.domain", "a.com"),
            ("haproxy-discover.b.domain", "b.com"),
            ("haproxy-discover.b.port", "80"),
        ];
        let plan = plan_container(&container("shop", &labels, &[(80, 1), (81, 2)]), &scope());
        assert_eq!(lines(&plan).len(), 1);
        let fault = &plan.faults[0];
        let words = "publishes the ports 80, 81; say which with the label `haproxy-discover.a.port`";
        assert!(fault.starts_with("http-a.com: the container ") && fault.ends_with(words), "{fault}");
        let long = plan_container(&container(&"x".repeat(250), &labels[1..], &[(80, 1)]), &scope());
        assert!(long.upstreams.is_empty() && long.faults[0].contains("at most 253"), "{long:?}");
    }
}
