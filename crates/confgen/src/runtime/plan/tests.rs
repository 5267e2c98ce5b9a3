use discovery::Kind;
use haproxy::runtime::{LIVENESS, ServersState, Token};
use proptest::prelude::*;

use super::*;
use crate::desired::tests::{settle, topology};
use crate::desired::{DesiredState, LastKnownGood, Policy};
use crate::render::restart_needed::ConfigFingerprint;

pub(super) fn settled(lines: &str) -> DesiredState {
    settle(&topology(lines), &LastKnownGood::default(), &Policy::default())
}

/// The claims of all these services, for a HAProxy that runs none of them.
fn claims(desired: &DesiredState, running: &ConfigFingerprint) -> PendingClaims {
    PendingClaims::from_services(desired.services().map(|(id, wanted)| (id, &**wanted)), running)
}

pub(super) fn maps() -> MapPaths {
    let map = |name: &str| format!("/m/{name}.map").parse().unwrap();
    MapPaths {
        hosts: map("hosts"),
        paths: map("paths"),
        passthrough: Some(map("passthrough")),
        checks: Some(map("checks")),
        urls: None,
    }
}

pub(super) fn id(name: &str) -> ServiceId {
    ServiceId { kind: Kind::Http, name: name.parse().unwrap() }
}

/// The steps from one store to another, in HAProxy's words.
fn steps(before: &str, after: &str, name: &str) -> Vec<String> {
    let id = id(name);
    let (before, after) = (settled(before), settled(after));
    let mut live = RuntimeState::default();
    let all: Vec<_> = before.services().map(|(id, wanted)| (id, Some(&**wanted))).collect();
    live.mark_applied(Scope::All, &all);
    let one = [(&id, after.service(&id).map(|wanted| &**wanted))];
    let Plan { changes, removals, .. } = live.plan_changes(Scope::These, &one, &maps());
    live.mark_applied(Scope::These, &one);
    for name in live.leaving_servers() {
        live.mark_removed(&name);
    }
    assert_eq!(live.plan_changes(Scope::These, &one, &maps()), Plan::default(), "made is made");
    changes.iter().map(ToString::to_string).chain(removals.iter().map(|name| format!("remove {name}"))).collect()
}

#[test]
fn servers_come_and_go() {
    let one = "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n";
    let two = format!("{one} http-services/a/upstreams/2 10.0.0.2:80\n");
    assert_eq!(
        steps(one, &two, "a"),
        [format!(
            "add server http-a/2 10.0.0.2:80 weight 100 check {LIVENESS};enable health http-a/2;enable server http-a/2"
        )]
    );
    assert_eq!(steps(&two, one, "a"), ["remove http-a/2"]);
    assert_eq!(
        steps(&two, "", "a"),
        ["del map /m/hosts.map a.com", "del map /m/paths.map a.com/", "remove http-a/1", "remove http-a/2"]
    );
    let sticky = format!("{two} http-services/a/sticky cookie");
    assert_eq!(
        steps(one, &sticky, "a"),
        [
            &format!("add server http-a/2 10.0.0.2:80 weight 100 check {LIVENESS};enable health http-a/2"),
            "enable dynamic-cookie backend http-a",
            "set server http-a/2 state ready"
        ],
        "it has its cookie before its first request"
    );
}

#[test]
fn an_upstream_that_returns_starts_as_down() {
    let store = |sticky: &str| {
        format!(
            "http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/sticky {sticky}"
        )
    };
    let record = discovery::Upstream::parse(b"10.0.0.2:80").unwrap();
    let returning = |is_unproven, sticky: &str| {
        let (id, mut settled) = (id("a"), settled(&store(sticky)));
        let mut live = RuntimeState::default();
        live.mark_applied(Scope::These, &[(&id, settled.service(&id).map(|wanted| &**wanted))]);
        let retained = crate::store::removal_guard::RetainedUpstream { record: record.clone(), is_unproven };
        settled.set_retained(&id, [("2".parse().unwrap(), retained)].into());
        let one = [(&id, settled.service(&id).map(|wanted| &**wanted))];
        let mut all = live.plan_changes(Scope::These, &one, &maps()).changes;
        live.mark_applied(Scope::These, &one);
        // It may still be on its way out.
        let gone = [(&id, None)];
        live.mark_applied(Scope::These, &gone);
        all.extend(live.plan_changes(Scope::These, &one, &maps()).changes);
        all.iter().map(ToString::to_string).filter(|it| it.contains("http-a/2")).collect::<Vec<_>>()
    };
    let down = "set server http-a/2 state drain;set server http-a/2 health down;set server http-a/2 state ready";
    let added = format!("add server http-a/2 10.0.0.2:80 weight 100 check {LIVENESS};enable health http-a/2");
    assert_eq!(returning(true, "off"), [&added, down, down]);
    assert_eq!(returning(true, "cookie"), [&added, down, down]);
    let ready = "set server http-a/2 state ready";
    assert_eq!(returning(false, "off"), [&format!("{added};enable server http-a/2"), ready]);
}

#[test]
fn a_backend_comes_before_its_servers_and_goes_after_them() {
    let a = id("a");
    let store = settled("http-services/a/domain a.com\n http-services/a/upstreams/1 10.0.0.1:80");
    let (one, none) = ([(&a, store.service(&a).map(|wanted| &**wanted))], [(&a, None)]);
    let mut live = RuntimeState::default().with_backends(Backends::new(BTreeSet::new(), BTreeSet::new()));
    live.expect_backend("http-a", "discover-http", false);
    let plan = |live: &RuntimeState, services: &[_]| -> Vec<String> {
        live.plan_changes(Scope::These, services, &maps()).changes.iter().map(ToString::to_string).collect()
    };
    let added = [
        "add backend http-a from discover-http",
        &format!(
            "add server http-a/1 10.0.0.1:80 weight 100 check {LIVENESS};enable health http-a/1;enable server http-a/1"
        ),
        "publish backend http-a",
        "add map /m/hosts.map a.com a.com",
        "add map /m/paths.map a.com/ http-a",
    ];
    assert_eq!(plan(&live, &one), added);
    live.mark_applied(Scope::These, &one);
    assert_eq!(plan(&live, &one), [""; 0], "made is made");
    live.mark_applied(Scope::These, &none);
    assert_eq!(live.deletable_backends(), [""; 0], "it has a server");
    live.mark_removed(&parse_server_name("http-a", "1").unwrap());
    assert_eq!(live.deletable_backends(), ["http-a"]);
    // A stream is open: the service that comes back finds the backend without requests.
    live.mark_unpublished("http-a", false);
    assert_eq!(plan(&live, &one)[1], "publish backend http-a");
    live.mark_applied(Scope::These, &one);
    assert!(live.leaving_backends().is_empty());
    live.mark_applied(Scope::These, &none);
    live.forget_backend("http-a");
    assert!(live.leaving_backends().is_empty() && live.deletable_backends().is_empty());
}

#[test]
fn a_backend_that_could_not_come_back_stays() {
    let (a, b) = (id("a"), id("b"));
    let store = settled("http-services/a/domain a.com\nhttp-services/b/domain b.com");
    let all: Vec<_> = [&a, &b].map(|id| (id, store.service(id).map(|wanted| &**wanted))).into();
    for (backends, leaving) in [
        (Backends::default(), &[][..]),
        (Backends::new(BTreeSet::new(), ["http-a".to_owned()].into()), &["http-b"][..]),
    ] {
        let mut live = RuntimeState::default().with_backends(backends);
        live.mark_applied(Scope::All, &all);
        live.mark_applied(Scope::These, &[(&a, None), (&b, None)]);
        assert_eq!(live.leaving_backends().iter().collect::<Vec<_>>(), leaving);
    }
}

#[test]
fn a_color_that_goes_takes_its_backend_along() {
    let store = settled(PREVIEWED);
    let a = id("a");
    let mut live = RuntimeState::default().with_backends(Backends::new(BTreeSet::new(), BTreeSet::new()));
    live.expect_backend("http-a", "discover-http", false);
    for color in ["blue", "green"] {
        live.expect_backend(&format!("http-a:preview-{color}"), "discover-http-preview.10.0.0.0_8", true);
    }
    live.mark_applied(Scope::All, &[(&a, store.service(&a).map(|wanted| &**wanted))]);
    let blue_alone = settled(&PREVIEWED.lines().filter(|line| !line.contains("green")).collect::<Vec<_>>().join("\n"));
    live.mark_applied(Scope::These, &[(&a, blue_alone.service(&a).map(|wanted| &**wanted))]);
    assert_eq!(live.leaving_backends().iter().collect::<Vec<_>>(), ["http-a:preview-green"]);
}

/// What it isn't known to have loaded, HAProxy can't check a certificate against; what a profile says of servers, one that
/// is added doesn't have.
#[test]
fn a_server_that_would_be_spoken_to_wrongly_comes_by_restart() {
    let store = |setting: &str, more: &str| {
        format!("http-services/a/{setting}\n http-services/a/upstreams/1 10.0.0.1:80\n{more}")
    };
    let two = "http-services/a/upstreams/2 10.0.0.2:80";
    let limits = |authorities| Policy {
        profiles: vec!["slow".parse().unwrap()],
        server_profiles: ["slow".parse().unwrap()].into(),
        ca_files: authorities,
        ..Policy::default()
    };
    for (setting, loaded, comes) in [
        ("tls reencrypt", "", false),
        ("tls reencrypt", "@system-ca", true),
        ("tls reencrypt\n http-services/a/verify off", "", true),
        ("tls both", "", true),
        ("profile slow", "", false),
    ] {
        let settled = |lines: &str| settle(&topology(lines), &LastKnownGood::default(), &limits(Default::default()));
        let (before, after) = (settled(&store(setting, "")), settled(&store(setting, two)));
        let a = id("a");
        let mut live = RuntimeState::default().with_authorities([loaded.to_owned()].into_iter());
        let seen = LiveServer::after_plan(None, &before.service(&a).unwrap().servers[0], before.service(&a).unwrap());
        live.servers.entry(a.to_string()).or_default().insert("1".into(), seen);
        live.mark_applied(Scope::All, &[(&a, before.service(&a).map(|wanted| &**wanted))]);
        assert!(live.not_addable().is_empty(), "{setting}: what is there is there");
        let wanted = [(&a, after.service(&a).map(|wanted| &**wanted))];
        let changes = live.plan_changes(Scope::These, &wanted, &maps()).changes;
        live.mark_applied(Scope::These, &wanted);
        assert_eq!((changes.len(), live.not_addable().len()), if comes { (1, 0) } else { (0, 1) }, "{setting}");
        // The one that didn't come needn't go.
        assert_eq!(live.plan_changes(Scope::These, &wanted, &maps()), Plan::default(), "{setting}");
    }
}

/// The servers that are queued again on the way from one store to another.
fn turns(before: &str, after: &str) -> Vec<String> {
    let (a, before, after) = (id("a"), settled(before), settled(after));
    let mut live = RuntimeState::default();
    live.mark_applied(Scope::All, &[(&a, before.service(&a).map(|wanted| &**wanted))]);
    let turns = live.plan_changes(Scope::These, &[(&a, after.service(&a).map(|wanted| &**wanted))], &maps()).requeues;
    turns.iter().map(|turn| turn.to_string().split_once(';').unwrap().1.to_owned()).collect()
}

#[test]
fn a_service_whose_weights_grow_queues_all_its_servers_again() {
    let store = |upstreams: &[(&str, &str)]| {
        let line = |(id, rest): &(&str, &str)| {
            format!("http-services/a/upstreams/{id} {{\"address\":\"10.0.0.{id}:80\"{rest}}}\n")
        };
        upstreams.iter().map(line).collect::<String>()
    };
    let two = store(&[("1", ""), ("2", "")]);
    let queued = ["set server http-a/1 weight 100", "set server http-a/2 weight 100"];
    assert_eq!(turns(&store(&[("1", "")]), &two), queued, "one comes");
    assert_eq!(turns(&store(&[("1", ""), ("2", ",\"weight\":7")]), &two), queued, "one gets more weight");
    assert_eq!(turns(&store(&[("1", ""), ("2", ",\"state\":\"down\"")]), &two), queued, "one is ready again");
    let none: [&str; 0] = [];
    assert_eq!(turns(&two, &two), none, "nothing changes");
    assert_eq!(turns(&two, &store(&[("1", ""), ("2", ",\"weight\":7")])), none, "less weight sets nobody aside");
    assert_eq!(turns(&two, &store(&[("1", "")])), none, "one goes");
    assert_eq!(turns("", &store(&[("1", "")])), none, "one alone has all turns");
    let by_connections = |store: String| format!("{store}http-services/a/balance leastconn\n");
    assert_eq!(turns(&by_connections(store(&[("1", "")])), &by_connections(two)), none, "there are no turns");
}

#[test]
fn turns_are_given_to_servers_that_take_requests() {
    let store = settled(
        "http-services/a/upstreams/1 10.0.0.1:80\nhttp-services/a/upstreams/2 {\"address\":\"10.0.0.2:80\",\"weight\":7}\n\
         http-services/a/upstreams/3 {\"address\":\"10.0.0.3:80\",\"state\":\"drain\"}\nhttp-services/b/upstreams/1 10.0.0.1:80",
    );
    let mut live = RuntimeState::default();
    for id in ["a", "b"].map(id) {
        live.mark_applied(Scope::These, &[(&id, store.service(&id).map(|wanted| &**wanted))]);
    }
    let turns = |section| -> Vec<String> { live.plan_requeue(section).iter().map(ToString::to_string).collect() };
    let requeue =
        |id, other, weight| format!("set server http-a/{id} weight {other};set server http-a/{id} weight {weight}");
    assert_eq!(turns("http-a"), [requeue(1, 99, 100), requeue(2, 6, 7)]);
    let none: [&str; 0] = [];
    assert_eq!(turns("http-b"), none, "one alone has all turns");
    assert_eq!(turns("http-gone"), none);
}

#[test]
fn a_server_whose_id_another_one_has_waits_for_a_restart() {
    let store = |upstreams: &str| settled(&format!("http-services/a/balance uri\n{upstreams}"));
    let one = "http-services/a/upstreams/1 10.0.0.1:80\n";
    let (before, after) = (store(one), store(&format!("{one}http-services/a/upstreams/2 10.0.0.2:80\n")));
    let a = id("a");
    let mut live = RuntimeState::default();
    live.mark_applied(Scope::All, &[(&a, before.service(&a).map(|wanted| &**wanted))]);
    let wanted = [(&a, after.service(&a).map(|wanted| &**wanted))];
    let id = after.service(&a).unwrap().servers[1].hash_id.unwrap();
    let added = live.plan_changes(Scope::These, &wanted, &maps()).changes[0].to_string();
    assert!(added.contains(&format!(" id {id};")), "{added}");
    live.servers.get_mut("http-a").unwrap().get_mut("1").unwrap().id = id.get();
    assert_eq!(live.plan_changes(Scope::These, &wanted, &maps()).changes, []);
    live.mark_applied(Scope::These, &wanted);
    assert_eq!(live.not_addable().iter().collect::<Vec<_>>(), [&a]);
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
fn who_takes_over_comes_before_those_who_let_go() {
    let store = |active: &str| {
        let upstream = |id: &str, color: &str| {
            format!("http-services/a/upstreams/{id} {{\"address\":\"10.0.0.{id}:80\",\"color\":\"{color}\"}}\n")
        };
        let upstreams = [upstream("1", "blue"), upstream("2", "blue"), upstream("3", "green")].concat();
        format!("http-services/a/domain a.com\n http-services/a/active {active}\n {upstreams}")
    };
    let states = |before: &str, after: &str| {
        let steps = steps(&store(before), &store(after), "a");
        let states = steps.iter().filter_map(|step| step.strip_prefix("set server http-a/"));
        states.filter(|step| step.contains("state")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(states("blue", "green"), ["3 state ready", "1 state drain", "2 state drain"]);
    assert_eq!(states("green", "blue"), ["1 state ready", "2 state ready", "3 state drain"]);
}

#[test]
fn a_drain_that_the_file_has_is_undone_by_its_weight() {
    let state = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
        srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state \
        bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr \
        srv_agent_addr srv_agent_port\n3 http-a 1 1 10.0.0.1 2 0 0 0 9 1 0 2 0 0 0 0 - 80 - 0 0 - - 0\n";
    let state: ServersState = state.parse().unwrap();
    let mut live = RuntimeState::from_answers(&state, ListedMaps::default());
    let id = id("a");
    let drained =
        settled("http-services/a/upstreams/1 10.0.0.1:80\n http-services/a/overrides/1 {\"state\":\"drain\"}");
    let services = [(&id, drained.service(&id).map(|wanted| &**wanted))];
    assert_eq!(live.plan_changes(Scope::All, &services, &maps()), Plan::default(), "weight 0 is HAProxy's drain");
    live.mark_applied(Scope::All, &services);
    let ready = settled("http-services/a/upstreams/1 10.0.0.1:80");
    let services = [(&id, ready.service(&id).map(|wanted| &**wanted))];
    let changes: Vec<_> =
        live.plan_changes(Scope::These, &services, &maps()).changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["set server http-a/1 weight 100"], "HAProxy shows no drain");
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
fn a_route_stays_where_it_is_until_its_new_service_can_answer() {
    let (before, after) = (settled("http-services/a/domain x.com y.com"), settled("http-services/b/domain x.com"));
    let a = id("a");
    let mut live = RuntimeState::default();
    live.mark_applied(Scope::All, &[(&a, before.service(&a).map(|wanted| &**wanted))]);
    let running = ConfigFingerprint::default();
    live.set_pending_claims(claims(&after, &running));
    assert!(live.is_needed_until_restart(&a, "http-a", None, &[]));
    assert_eq!(live.sections_until_restart(), ["http-a"].into());
    for scope in [Scope::These, Scope::All] {
        let changes = live.plan_changes(scope, &[(&a, None)], &maps()).changes;
        let changes: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["del map /m/hosts.map y.com", "del map /m/paths.map y.com/"]);
    }
    // One whose section is there takes it over at once.
    let c = settled("http-services/c/domain x.com");
    let c = [(&id("c"), c.service(&id("c")).map(|wanted| &**wanted))];
    let changes: Vec<_> =
        live.plan_changes(Scope::These, &c, &maps()).changes.iter().map(ToString::to_string).collect();
    assert_eq!(changes, ["set map /m/paths.map x.com/ http-c"]);
}

#[test]
fn what_is_passed_through_stands_in_a_map_of_its_own() {
    let tls = "http-services/a/tls passthrough\n http-services/a/domain ";
    let (one, two) = (format!("{tls} x.com"), format!("{tls} x.com *.y.com"));
    assert_eq!(
        steps(&one, &two, "a"),
        [
            "add map /m/passthrough.map *.y.com http-a",
            "add map /m/hosts.map *.y.com *.y.com",
            "add map /m/paths.map *.y.com/ discover-passthrough",
        ]
    );
    assert_eq!(
        steps(&two, &one, "a"),
        ["del map /m/passthrough.map *.y.com", "del map /m/hosts.map *.y.com", "del map /m/paths.map *.y.com/"]
    );
}

#[test]
fn a_host_goes_over_from_one_that_terminates_to_one_that_passes_through_and_back() {
    let through = "http-services/a/tls passthrough\n";
    let store = |a: &str, b: &str| {
        settled(&format!("{through} http-services/a/domain a.com {a}\n http-services/b/domain b.com {b}"))
    };
    let (terminated, passed) = (store("", "x.com"), store("x.com", ""));
    let (a, b) = (id("a"), id("b"));
    let both = |settled: &'static DesiredState| [(&a, settled.service(&a)), (&b, settled.service(&b))];
    let (terminated, passed): (&'static _, &'static _) = (Box::leak(Box::new(terminated)), Box::leak(Box::new(passed)));
    let words = |live: &RuntimeState, to: &'static DesiredState| -> Vec<String> {
        let targets = both(to).map(|(id, wanted)| (id, wanted.map(|wanted| &**wanted)));
        live.plan_changes(Scope::These, &targets, &maps()).changes.iter().map(ToString::to_string).collect()
    };
    let mut live = RuntimeState::default();
    live.mark_applied(Scope::All, &both(terminated).map(|(id, wanted)| (id, wanted.map(|wanted| &**wanted))));
    let there = ["add map /m/passthrough.map x.com http-a", "set map /m/paths.map x.com/ discover-passthrough"];
    assert_eq!(words(&live, passed), there);
    live.mark_applied(Scope::These, &both(passed).map(|(id, wanted)| (id, wanted.map(|wanted| &**wanted))));
    assert_eq!(words(&live, terminated), ["set map /m/paths.map x.com/ http-b", "del map /m/passthrough.map x.com"]);
    // One that has to wait for its section leaves the host where it is.
    let only_b = settled("http-services/b/domain b.com x.com");
    live.set_pending_claims(claims(&only_b, &ConfigFingerprint::default()));
    assert!(live.is_needed_until_restart(&a, "http-a", None, &[]));
    let only_a = [(&a, terminated.service(&a).map(|wanted| &**wanted))];
    assert_eq!(live.plan_changes(Scope::These, &only_a, &maps()), Plan::default());
}

#[test]
fn what_nobody_wants_goes_when_everything_is_looked_at() {
    let entries = |entries: &[(&str, &str)]| entries.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    let state = "1\n# \n".parse().unwrap();
    let (hosts, paths) = (entries(&[("old.com", "old.com")]), entries(&[("old.com/", "http-old")]));
    let live = RuntimeState::from_answers(
        &state,
        ListedMaps { hosts, paths, passthrough: entries(&[("old.com", "http-old")]), checks: Vec::new() },
    );
    let wanted = settled("http-services/a/domain a.com");
    let services: Vec<_> = wanted.services().map(|(id, wanted)| (id, Some(&**wanted))).collect();
    let steps = live.plan_changes(Scope::All, &services, &maps());
    let changes: Vec<_> = steps.changes.iter().map(ToString::to_string).collect();
    assert_eq!(
        changes,
        [
            "add map /m/hosts.map a.com a.com",
            "add map /m/paths.map a.com/ http-a",
            "del map /m/passthrough.map old.com",
            "del map /m/hosts.map old.com",
            "del map /m/paths.map old.com/"
        ]
    );
}

const PREVIEWED: &str = "\
http-services/a/domain a.com
http-services/a/active blue
http-services/a/preview 10.0.0.0/8
http-services/a/upstreams/b {\"address\":\"10.0.0.1:80\",\"color\":\"blue\"}
http-services/a/upstreams/g {\"address\":\"10.0.0.2:80\",\"color\":\"green\",\"weight\":7}
";

/// A HAProxy that runs this, and has sections for previews of these colors.
fn previewing(store: &str, colors: &[&str]) -> RuntimeState {
    let sections: Vec<String> = colors.iter().map(|color| format!("http-a:preview-{color}")).collect();
    let mut live = RuntimeState::default().with_preview_sections(sections.iter());
    let settled = settled(store);
    let all: Vec<_> = settled.services().map(|(id, wanted)| (id, Some(&**wanted))).collect();
    live.mark_applied(Scope::All, &all);
    live
}

fn from(live: &RuntimeState, store: &str) -> Vec<String> {
    let (id, settled) = (id("a"), settled(store));
    let one = [(&id, settled.service(&id).map(|wanted| &**wanted))];
    let Plan { changes, removals, .. } = live.plan_changes(Scope::These, &one, &maps());
    let mut after = live.clone();
    after.mark_applied(Scope::These, &one);
    assert_eq!(after.plan_changes(Scope::These, &one, &maps()), Plan::default(), "made is made");
    changes.iter().map(ToString::to_string).chain(removals.iter().map(|name| format!("remove {name}"))).collect()
}

#[test]
fn a_switch_of_colors_leaves_their_previews_alone() {
    let live = previewing(PREVIEWED, &["blue", "green"]);
    let switched = PREVIEWED.replace("active blue", "active green");
    assert_eq!(
        from(&live, &switched),
        ["set server http-a/g state ready", "set server http-a/b state drain"],
        "who takes requests comes before who no longer does"
    );
    let imposed = |what: &str| from(&live, &format!("{PREVIEWED}http-services/a/overrides/g {what}"));
    assert_eq!(imposed("{\"weight\":9}"), ["set server http-a:preview-green/g weight 9"]);
    assert_eq!(imposed("{\"state\":\"drain\"}"), ["set server http-a:preview-green/g state drain"]);
    let maint = ["set server http-a/g state maint", "set server http-a:preview-green/g state maint"];
    assert_eq!(imposed("{\"state\":\"maint\"}"), maint);
    let gone: String =
        PREVIEWED.lines().filter(|line| !line.contains("upstreams/g")).map(|it| format!("{it}\n")).collect();
    let (paths, hosts) = ("del map /m/paths.map green.a.com/", "del map /m/hosts.map green.a.com");
    assert_eq!(from(&live, &gone), [hosts, paths, "remove http-a/g", "remove http-a:preview-green/g"]);
    let nothing = from(&live, "");
    assert!(nothing.contains(&"remove http-a:preview-green/g".to_owned()), "{nothing:?}");
}

#[test]
fn a_preview_whose_section_comes_with_a_restart_gets_nothing_until_then() {
    let live = previewing(PREVIEWED, &["green"]);
    assert!(!live.maps.hosts.contains_key("blue.a.com") && live.maps.hosts.contains_key("green.a.com"));
    let switched = PREVIEWED.replace("active blue", "active green");
    let steps = from(&live, &switched);
    assert!(steps.iter().all(|step| !step.contains("preview-blue")), "{steps:?}");
    assert!(steps.contains(&"set server http-a/g state ready".to_owned()), "the rest is followed");
}

#[test]
fn an_operators_maps_are_none_of_ours() {
    let paths = ["/etc/haproxy/hosts.map", "/s/0123456789abcdef/hosts.map", "/s/0123456789abcdef/paths.map"];
    let paths: Vec<Token> = paths.iter().map(|path| path.parse().unwrap()).collect();
    let maps = MapPaths::find_generation(&paths, "0123456789abcdef").unwrap();
    assert_eq!(maps.hosts.to_string(), "/s/0123456789abcdef/hosts.map");
    assert_eq!(MapPaths::find_generation(&paths, "fedcba9876543210"), None);
}

proptest! {
    /// Service by service or all at once: the maps come to the same.
    #[test]
    fn entries_by_service_come_to_the_same_as_at_once(
        steps in prop::collection::vec(
            prop::collection::vec((0..3_usize, 0..4_usize, 0..3_usize, any::<bool>()), 0..4), 1..12
        ),
    ) {
        let domains = ["", "a.com", "b.com", "a.com b.com"];
        let paths = ["", "/x", "/x /y"];
        let ids: Vec<ServiceId> = (0..3).map(|n| id(&format!("s{n}"))).collect();
        let mut lines: BTreeMap<String, String> = BTreeMap::new();
        let mut live = RuntimeState::default();
        for step in steps {
            for (service, domain, path, through) in step {
                let tls = if through { "passthrough" } else { "" };
                for (key, value) in [("domain", domains[domain]), ("path", paths[path]), ("tls", tls)] {
                    let key = format!("http-services/s{service}/{key}");
                    if value.is_empty() { lines.remove(&key); } else { lines.insert(key, value.to_owned()); }
                }
            }
            let text: String = lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect();
            let wanted = settled(&text);
            let services: Vec<_> = ids.iter().map(|id| (id, wanted.service(id).map(|w| &**w))).collect();
            live.mark_applied(Scope::These, &services);
            let mut whole = RuntimeState::default();
            whole.mark_applied(Scope::All, &services);
            prop_assert_eq!(&live.maps, &whole.maps);
            prop_assert_eq!(&live.host_uses, &whole.host_uses);
        }
    }
}
