use discovery::Kind;
use proptest::prelude::*;

use super::*;
use crate::settle::tests::{settle, topology};
use crate::settle::{Limits, Memory, Settled};

fn settled(lines: &str) -> Settled {
    settle(&topology(lines), &Memory::default(), &Limits::default())
}

fn maps() -> MapPaths {
    MapPaths { hosts: "/m/hosts.map".parse().unwrap(), paths: "/m/paths.map".parse().unwrap() }
}

fn id(name: &str) -> ServiceId {
    ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
}

/// The steps from one store to another, in HAProxy's words.
fn steps(before: &str, after: &str, name: &str) -> Vec<String> {
    let id = id(name);
    let (before, after) = (settled(before), settled(after));
    let mut live = Live::default();
    let all: Vec<_> = before.services().map(|(id, wanted)| (id, Some(&**wanted))).collect();
    live.made(Scope::All, &all);
    let one = [(&id, after.service(&id).map(|wanted| &**wanted))];
    let Steps { changes, removals } = live.steps(Scope::These, &one, &maps());
    live.made(Scope::These, &one);
    for name in live.leaving() {
        live.removed(&name);
    }
    assert_eq!(live.steps(Scope::These, &one, &maps()), Steps::default(), "made is made");
    changes.iter().map(ToString::to_string).chain(removals.iter().map(|name| format!("remove {name}"))).collect()
}

#[test]
fn servers_come_and_go() {
    let one = "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n";
    let two = format!("{one} http-services/a/upstreams/2 10.0.0.2:80\n");
    assert_eq!(
        steps(one, &two, "a"),
        ["add server http-a/2 10.0.0.2:80 weight 100 check;enable health http-a/2;enable server http-a/2"]
    );
    assert_eq!(steps(&two, one, "a"), ["remove http-a/2"]);
    assert_eq!(
        steps(&two, "", "a"),
        ["del map /m/hosts.map a.com", "del map /m/paths.map a.com/", "remove http-a/1", "remove http-a/2"]
    );
    let sticky = format!("{two} http-services/a/sticky cookie");
    assert_eq!(steps(one, &sticky, "a").len(), 2, "the cookie is given out too");
}

#[test]
fn servers_change() {
    let store = |record: &str, more: &str| format!("http-services/a/upstreams/1 {record}\n {more}");
    let plain = store("10.0.0.1:80", "");
    let to = |after: &str| steps(&plain, after, "a");
    assert_eq!(to(&store("10.0.0.9:81", "")), ["set server http-a/1 addr 10.0.0.9 port 81"]);
    assert_eq!(to(&store(r#"{"address":"10.0.0.1:80","weight":7}"#, "")), ["set server http-a/1 weight 7"]);
    let drained = store("10.0.0.1:80", "http-services/a/overrides/1 {\"state\":\"drain\"}");
    assert_eq!(to(&drained), ["set server http-a/1 state drain"]);
    assert_eq!(steps(&drained, &plain, "a"), ["set server http-a/1 state ready"]);
    assert_eq!(
        to(&store(r#"{"address":"10.0.0.1:80","state":"drain"}"#, "")),
        ["set server http-a/1 state maint"],
        "it is about to go: sticky clients too"
    );
}

#[test]
fn a_drain_that_the_file_has_is_undone_by_its_weight() {
    let state = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
        srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
        bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr \
        srv_agent_addr srv_agent_port\n3 http-a 1 1 10.0.0.1 2 0 0 0 9 1 0 2 0 0 0 0 - 80 - 0 0 - - 0\n";
    let state: ServersState = state.parse().unwrap();
    let mut live = Live::observed(&state, Vec::new(), Vec::new());
    let id = id("a");
    let drained =
        settled("http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/overrides/1 {\"state\":\"drain\"}");
    let services = [(&id, drained.service(&id).map(|wanted| &**wanted))];
    assert_eq!(live.steps(Scope::All, &services, &maps()), Steps::default(), "weight 0 is HAProxy's drain");
    live.made(Scope::All, &services);
    let ready = settled("http-services/a/upstreams/1 10.0.0.1:80");
    let services = [(&id, ready.service(&id).map(|wanted| &**wanted))];
    let changes: Vec<_> =
        live.steps(Scope::These, &services, &maps()).changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["set server http-a/1 weight 100", "set server http-a/1 state ready"]);
}

#[test]
fn hosts_stay_while_a_service_has_them() {
    let a = "http-services/a/domain x.com\n http-services/a/path /a\n";
    let b = "http-services/b/domain x.com y.com\n";
    assert_eq!(steps(&format!("{a}{b}"), b, "a"), ["del map /m/paths.map x.com/a/"]);
    assert_eq!(steps(b, &format!("{b}{a}"), "a"), ["add map /m/paths.map x.com/a/ http-a"]);
    assert_eq!(
        steps(b, "", "b"),
        [
            "del map /m/hosts.map x.com",
            "del map /m/hosts.map y.com",
            "del map /m/paths.map x.com/",
            "del map /m/paths.map y.com/"
        ]
    );
}

#[test]
fn what_nobody_wants_goes_when_everything_is_looked_at() {
    let entries = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let state = "1\n# \n".parse().unwrap();
    let live = Live::observed(&state, entries(&[("old.com", "old.com")]), entries(&[("old.com/", "http-old")]));
    let wanted = settled("http-services/a/domain a.com");
    let services: Vec<_> = wanted.services().map(|(id, wanted)| (id, Some(&**wanted))).collect();
    let steps = live.steps(Scope::All, &services, &maps());
    let changes: Vec<_> = steps.changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        changes,
        [
            "add map /m/hosts.map a.com a.com",
            "add map /m/paths.map a.com/ http-a",
            "del map /m/hosts.map old.com",
            "del map /m/paths.map old.com/"
        ]
    );
}

proptest! {
    /// Service by service or all at once: the maps come to the same.
    #[test]
    fn entries_by_service_come_to_the_same_as_at_once(
        steps in prop::collection::vec(prop::collection::vec((0..3_usize, 0..4_usize, 0..3_usize), 0..4), 1..12),
    ) {
        let domains = ["", "a.com", "b.com", "a.com b.com"];
        let paths = ["", "/x", "/x /y"];
        let ids: Vec<ServiceId> = (0..3).map(|n| id(&format!("s{n}"))).collect();
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut live = Live::default();
        for step in steps {
            for (service, domain, path) in step {
                for (key, value) in [("domain", domains[domain]), ("path", paths[path])] {
                    let key = format!("http-services/s{service}/{key}");
                    if value.is_empty() { lines.remove(&key); } else { lines.insert(key, value.to_owned()); }
                }
            }
            let text: String = lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
            let wanted = settled(&text);
            let services: Vec<_> = ids.iter().map(|id| (id, wanted.service(id).map(|w| &**w))).collect();
            live.made(Scope::These, &services);
            let mut whole = Live::default();
            whole.made(Scope::All, &services);
            prop_assert_eq!(&live.hosts, &whole.hosts);
            prop_assert_eq!(&live.paths, &whole.paths);
            prop_assert_eq!(&live.uses, &whole.uses);
        }
    }
}
