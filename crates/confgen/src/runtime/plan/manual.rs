//! Plans to undo manual changes of facts that confgen itself never changes: a frontend's pause and limit, a server's limit, checks, TLS
//! and cookie. Pure: no I/O, no clock.

use std::collections::BTreeSet;
use std::net::IpAddr;

use discovery::{Balance, Kind, ServiceId, Sticky, Tls};
use haproxy::runtime::{Change, Facts, Operation, RowKind, ServerName, ServerState};

use super::RuntimeState;
use super::server::parse_server_name;
use crate::desired::{DesiredService, Server};
use crate::render::view::{STATS, STATS_MAXCONN, TLS, WEB};

/// The facts about a server that only a command over the Runtime API changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerFacts {
    /// The most connections at a time. 0 is no limit.
    pub(super) limit: u64,
    checks_disabled: bool,
    agent_disabled: bool,
    /// It isn't checked, and a command has it count as down. No check will ever find it up.
    marked_down: bool,
    uses_tls: bool,
    /// The port of its checks. 0 if it is that of its traffic.
    check_port: u16,
    /// The address of its checks. `None` if it is that of its traffic.
    check_address: Option<IpAddr>,
    lacks_cookie: bool,
}

impl ServerFacts {
    /// The facts that `show servers state` tells. The limit and the cookie are those of a server without either.
    pub(super) fn from_state(server: &ServerState) -> Self {
        let is_checked = server.checks.is_configured() || server.agent.is_configured();
        let is_down = matches!(server.operation, Operation::Stopped | Operation::Stopping);
        Self {
            limit: 0,
            checks_disabled: server.checks.is_disabled(),
            agent_disabled: server.agent.is_disabled(),
            marked_down: !is_checked && is_down && !server.admin.is_in_maintenance(),
            uses_tls: server.uses_tls,
            check_port: server.check_port,
            check_address: server.check_address,
            lacks_cookie: true,
        }
    }

    /// The facts of a server that HAProxy adds while it runs.
    pub(super) fn of_added(service: &DesiredService) -> Self {
        let settings = &service.settings;
        Self {
            limit: settings.maxconn.map_or(0, |most| u64::from(most.get())),
            checks_disabled: false,
            agent_disabled: false,
            marked_down: false,
            uses_tls: settings.tls == Tls::Reencrypt,
            check_port: 0,
            check_address: None,
            lacks_cookie: settings.sticky != Sticky::Cookie,
        }
    }

    /// The facts after all manual changes are undone.
    fn restored(self, server: &Server, service: &DesiredService) -> Self {
        let added = Self::of_added(service);
        // A `default-server` line of the operator's may set these. Only HAProxy knows its values.
        let is_known = !service.settings.fixed_servers;
        Self {
            limit: if is_known || service.settings.maxconn.is_some() { added.limit } else { self.limit },
            uses_tls: self.uses_tls || added.uses_tls,
            check_port: if is_known { 0 } else { self.check_port },
            // Once it is set, HAProxy can't be told to use that of the traffic again.
            check_address: self.check_address.map(|set| if is_known { server.address.socket_addr().ip() } else { set }),
            lacks_cookie: self.lacks_cookie && added.lacks_cookie,
            ..added
        }
    }

    /// Adds the changes that restore the facts.
    fn plan(self, name: &ServerName, restored: Self, changes: &mut Vec<Change>) {
        let changed_address = restored.check_address.filter(|_| self.check_address != restored.check_address);
        let planned = [
            (self.limit != restored.limit).then(|| Change::SetServerLimit(name.clone(), restored.limit)),
            (self.check_port != restored.check_port).then(|| Change::SetCheckPort(name.clone(), restored.check_port)),
            changed_address.map(|address| Change::SetCheckAddress(name.clone(), address)),
            (self.uses_tls != restored.uses_tls).then(|| Change::EnableTls(name.clone())),
            self.checks_disabled.then(|| Change::EnableChecks(name.clone())),
            self.agent_disabled.then(|| Change::EnableAgent(name.clone())),
            self.marked_down.then(|| Change::MarkUp(name.clone())),
        ];
        changes.extend(planned.into_iter().flatten());
    }
}

/// A frontend of confgen's as HAProxy runs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LiveFrontend {
    is_paused: bool,
    /// `shutdown frontend`. Only a restart undoes it.
    pub(super) is_shut_down: bool,
    /// The most connections at a time.
    limit: u64,
}

impl RuntimeState {
    /// Takes in a row of `show stat`: one of confgen's frontends, among them the TCP services' sections, or the limit and the cookie of
    /// a server that is known.
    pub fn take_row(&mut self, row: &Facts, tcp_sections: &BTreeSet<String>) {
        match row.kind {
            RowKind::Frontend if [WEB, TLS, STATS].contains(&row.proxy) || tcp_sections.contains(row.proxy) => {
                let (is_paused, is_shut_down) = (row.status == "PAUSED", row.status == "STOP");
                let frontend = LiveFrontend { is_paused, is_shut_down, limit: row.limit.unwrap_or_default() };
                self.frontends.insert(row.proxy.to_owned(), frontend);
            }
            RowKind::Server => {
                let servers = self.servers.get_mut(row.proxy);
                if let Some(server) = servers.and_then(|servers| servers.get_mut(row.name)) {
                    server.facts.limit = row.limit.unwrap_or_default();
                    server.facts.lacks_cookie = !row.has_cookie;
                }
            }
            RowKind::Frontend | RowKind::Backend => {}
        }
    }

    /// Sets the limit of a frontend whose section sets none.
    #[must_use]
    pub fn with_default_limit(self, default_limit: u64) -> Self {
        Self { default_limit, ..self }
    }

    /// Sets the lines of the map of expressions.
    #[must_use]
    pub fn with_expressions(mut self, expressions: Vec<(String, String)>) -> Self {
        self.expressions = expressions;
        self
    }

    pub fn expressions(&self) -> &[(String, String)] {
        &self.expressions
    }

    /// The first frontend that was shut down over the Runtime API.
    pub fn find_shut_down(&self) -> Option<&str> {
        self.frontends.iter().find(|(_, frontend)| frontend.is_shut_down).map(|(name, _)| name.as_str())
    }

    /// Plans to undo manual changes, and notes them as undone. `services` are those whose sections are as the file has them.
    pub fn undo_manual_changes(&mut self, services: &[(&ServiceId, &DesiredService)]) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, service) in services {
            for (section, servers) in self.desired_sections(id, Some(service)) {
                self.undo_changes_of_servers(&section, servers, service, &mut changes);
            }
        }
        self.undo_changes_of_frontends(services, &mut changes);
        changes
    }

    fn undo_changes_of_servers(
        &mut self,
        section: &str,
        servers: &[Server],
        service: &DesiredService,
        changes: &mut Vec<Change>,
    ) {
        let (mut lacks_cookie, mut grows) = (false, false);
        let Some(live) = self.servers.get_mut(section) else { return };
        for server in servers {
            let Some(name) = parse_server_name(section, server.id.as_str()) else { continue };
            let Some(live) = live.get_mut(server.id.as_str()) else { continue };
            let restored = live.facts.restored(server, service);
            live.facts.plan(&name, restored, changes);
            lacks_cookie |= live.facts.lacks_cookie != restored.lacks_cookie;
            grows |= live.facts.marked_down;
            live.facts = restored;
        }
        changes.extend(section.parse().ok().filter(|_| lacks_cookie).map(Change::RefreshCookies));
        if grows && service.settings.balance == Balance::RoundRobin {
            changes.extend(self.plan_requeue(section));
        }
    }

    fn undo_changes_of_frontends(&mut self, services: &[(&ServiceId, &DesiredService)], changes: &mut Vec<Change>) {
        // A profile may set the `maxconn` of its services' sections. Only HAProxy knows it.
        let plain = services.iter().filter(|(id, it)| id.kind == Kind::Tcp && it.settings.profile.is_none());
        let plain: BTreeSet<String> = plain.map(|(id, _)| id.to_string()).collect();
        for (name, live) in &mut self.frontends {
            let Ok(word) = name.parse() else { continue };
            let limit = match name.as_str() {
                STATS => STATS_MAXCONN,
                WEB | TLS => self.default_limit,
                section if plain.contains(section) => self.default_limit,
                _ => live.limit,
            };
            if live.limit != limit {
                changes.push(Change::SetFrontendLimit(word, limit));
            }
            let Ok(word) = name.parse() else { continue };
            if live.is_paused {
                changes.push(Change::EnableFrontend(word));
            }
            (live.is_paused, live.limit) = (false, limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use haproxy::runtime::ServersState;

    use super::*;
    use crate::runtime::plan::tests::{id, settled};
    use crate::runtime::plan::{ListedMaps, Scope};

    const STORE: &str = "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n";

    fn observed(line: &str) -> RuntimeState {
        let state: ServersState = format!("1\n# be_id …\n{line}\n").parse().unwrap();
        RuntimeState::from_answers(&state, ListedMaps::default())
    }

    impl RuntimeState {
        fn with_rows(mut self, rows: &[Facts], tcp_sections: &BTreeSet<String>, default_limit: u64) -> Self {
            rows.iter().for_each(|row| self.take_row(row, tcp_sections));
            self.with_default_limit(default_limit)
        }
    }

    fn server_row(limit: Option<u64>, cookie: Option<&str>) -> Facts<'static> {
        Facts { proxy: "http-a", name: "1", limit, has_cookie: cookie.is_some(), ..Facts::default() }
    }

    fn undone(live: &mut RuntimeState, store: &str) -> Vec<String> {
        let (a, store) = (id("a"), settled(store));
        let services = [(&a, &**store.service(&a).unwrap())];
        let changes: Vec<String> = live.undo_manual_changes(&services).iter().map(ToString::to_string).collect();
        assert_eq!(live.undo_manual_changes(&services), [], "undone is undone");
        changes
    }

    #[test]
    fn a_server_gets_back_its_checks_and_its_limit() {
        let line = "5 http-a 1 1 10.0.0.1 2 0 100 100 16 8 2 0 2 18 0 0 - 80 - 0 99 10.0.0.9 - 0";
        let mut live = observed(line).with_rows(&[server_row(Some(3), None)], &BTreeSet::new(), 500);
        assert_eq!(
            undone(&mut live, STORE),
            [
                "set maxconn server http-a/1 0",
                "set server http-a/1 check-port 0",
                "set server http-a/1 check-addr 10.0.0.1",
                "enable health http-a/1",
                "enable agent http-a/1"
            ]
        );
    }

    #[test]
    fn a_server_gets_back_tls_and_its_cookie() {
        let line = "5 http-a 1 1 10.0.0.1 0 0 100 100 16 8 2 0 0 0 0 0 - 80 - 0 0 - - 0";
        let store = format!(
            "{STORE} http-services/a/tls reencrypt\n http-services/a/verify off\n http-services/a/sticky cookie\n \
             http-services/a/maxconn 7\n http-services/a/check off"
        );
        let mut live = observed(line).with_rows(&[server_row(Some(7), None)], &BTreeSet::new(), 500);
        assert_eq!(
            undone(&mut live, &store),
            ["set server http-a/1 ssl on", "set server http-a/1 health up", "enable dynamic-cookie backend http-a"]
        );
        let mut live = observed(line).with_rows(&[server_row(Some(7), Some("c"))], &BTreeSet::new(), 500);
        assert_eq!(undone(&mut live, STORE), ["set maxconn server http-a/1 0", "set server http-a/1 health up"]);
    }

    #[test]
    fn an_added_server_has_the_facts_that_are_expected_of_it() {
        let (a, store) = (id("a"), settled(&format!("{STORE} http-services/a/maxconn 7")));
        let mut live = RuntimeState::default();
        live.mark_applied(Scope::All, &[(&a, store.service(&a).map(|wanted| &**wanted))]);
        let line = "5 http-a 1 1 10.0.0.1 2 0 100 100 16 8 2 0 6 0 0 0 - 80 - 0 0 - - 0";
        let seen = observed(line).with_rows(&[server_row(Some(7), None)], &BTreeSet::new(), 500);
        assert_eq!(live.servers["http-a"]["1"].facts, seen.servers["http-a"]["1"].facts);
    }

    #[test]
    fn confgens_own_frontends_are_opened_again_and_no_others() {
        let row = |proxy, status, limit| Facts {
            kind: RowKind::Frontend,
            proxy,
            status,
            limit: Some(limit),
            ..Facts::default()
        };
        let rows = [
            row("discover-stats", "OPEN", 1),
            row("discover-web", "PAUSED", 3),
            row("mine", "PAUSED", 3),
            row("tcp-a", "FULL", 2),
            row("tcp-b", "STOP", 500),
        ];
        let tcp = ["tcp-a".to_owned(), "tcp-b".to_owned()].into();
        let mut live = RuntimeState::default().with_rows(&rows, &tcp, 500);
        assert_eq!(live.find_shut_down(), Some("tcp-b"));
        let (a, store) = (ServiceId { kind: Kind::Tcp, ..id("a") }, settled("tcp-services/a/ports 3306"));
        let changes = live.undo_manual_changes(&[(&a, &**store.service(&a).unwrap())]);
        assert_eq!(
            changes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "set maxconn frontend discover-stats 2000",
                "set maxconn frontend discover-web 500",
                "enable frontend discover-web",
                "set maxconn frontend tcp-a 500"
            ]
        );
    }
}
