//! One judge: everything that shows whether an upstream gets requests says the same, and why not.

use std::collections::BTreeMap;

use lab::{App, Balancer, Etcd, PATIENCE, Setup, free_port, light, until, write};
use serde_json::{Value, json};

use super::scene::{ctl, json};
use crate::fair_share::Shop;
use crate::rejected_config::PROFILE;

/// By upstream (`http-shop/a`): `ok`, or the cause why it gets no requests.
type Verdicts = BTreeMap<String, String>;

const NODE: &str = "lb1";

fn word(gets_requests: &Value, cause: &Value) -> String {
    match (gets_requests.as_bool(), cause.as_str()) {
        (Some(true), None) => "ok".into(),
        (Some(false), Some(cause)) => cause.to_owned(),
        (None, Some(cause)) => format!("{cause}?"),
        other => format!("{other:?} is no verdict"),
    }
}

fn name(it: &Value) -> String {
    format!("{}/{}", it["service"].as_str().unwrap(), it["id"].as_str().unwrap())
}

/// What the admin port's API says; two of its answers have to agree.
fn of_api(balancer: &Balancer) -> Verdicts {
    let get = |path: &str| -> Value { serde_json::from_str(&balancer.asked(path).unwrap().body).unwrap() };
    let all = get("/api/v1/upstreams");
    let verdict = |it: &Value| {
        let verdict = &it["verdict"];
        assert_eq!(it["balanced"], verdict["gets_requests"], "{it:#}");
        (name(it), word(&verdict["gets_requests"], &verdict["because"]["cause"]))
    };
    all["upstreams"].as_array().unwrap().iter().map(verdict).collect()
}

/// What the console says on the services' pages, row by row.
fn of_page(balancer: &Balancer) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let list = balancer.asked("/").unwrap().body;
    for service in attributes(&list, "data-service") {
        let page = balancer.asked(&format!("/services/{service}")).unwrap().body;
        for row in page.split("<tr data-upstream=").skip(1) {
            let row = format!("data-upstream={row}");
            let [id, requests] = ["data-upstream", "data-verdict"].map(|name| attributes(&row, name).remove(0));
            let requests = if requests == "yes" { "ok" } else { &requests };
            let is_unknown = attributes(&row, "class").first().is_some_and(|class| class == "unknown");
            verdicts.insert(format!("{service}/{id}"), format!("{requests}{}", if is_unknown { "?" } else { "" }));
        }
    }
    verdicts
}

/// The values of an attribute, in their order.
fn attributes(page: &str, name: &str) -> Vec<String> {
    let begin = format!("{name}=\"");
    page.split(&begin).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
}

/// What `check` and `verify` say, and `show` and `watch` of the same rows.
fn of_rows(rows: &[Value], field: &str) -> Verdicts {
    let verdict = |it: &Value| {
        let there = &it["balancers"][NODE];
        let gets = match there[field].as_str() {
            Some("balanced") => json!(true),
            Some("not_balanced") => json!(false),
            _ => there[field].clone(),
        };
        (name(it), word(&gets, &there["cause"]))
    };
    rows.iter().map(verdict).collect()
}

fn of_explain(etcd: &Etcd, service: &str) -> Verdicts {
    let answer = json(etcd, &["explain", service]);
    let verdict = |it: &Value| {
        let at = it["balancers"].as_array().unwrap().iter().find(|at| at["balancer"] == NODE).unwrap();
        let name = format!("{}/{}", answer["id"].as_str().unwrap(), it["id"].as_str().unwrap());
        (name, word(&at["gets_requests"], &at["because"]["cause"]))
    };
    answer["upstreams"].as_array().unwrap().iter().map(verdict).collect()
}

/// How many upstreams of each service get requests.
fn counts(verdicts: &Verdicts) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for (name, verdict) in verdicts {
        *counts.entry(name.split_once('/').unwrap().0.to_owned()).or_default() += usize::from(verdict == "ok");
    }
    counts
}

/// Everything that shows a verdict says this one of each upstream.
fn all_say(etcd: &Etcd, balancer: &Balancer, wanted: &Verdicts) -> Result<(), String> {
    let same = |consumer: &str, said: Verdicts| {
        let differs = |(name, it): (&String, &String)| (said.get(name) != Some(it)).then(|| format!("{name}: {it}"));
        let missing: Vec<String> = wanted.iter().filter_map(differs).collect();
        if said == *wanted { Ok(()) } else { Err(format!("{consumer} doesn't say {missing:#?}, but {said:#?}")) }
    };
    same("the API", of_api(balancer))?;
    same("the page", of_page(balancer))?;
    let parse = |arguments: &[&str]| ctl(etcd, &[arguments, &["--output", "json"]].concat()).json();
    let check = parse(&["check"]);
    same("check", of_rows(check["upstreams"].as_array().unwrap(), "status"))?;
    // verify answers another question; the verdict stands beside it.
    let verify = parse(&["verify"]);
    for it in verify["upstreams"].as_array().unwrap() {
        let (name, there) = (name(it), &it["balancers"][NODE]);
        let cause = there["cause"].as_str().unwrap_or("ok");
        if cause != wanted[&name].trim_end_matches('?') {
            return Err(format!("verify says {cause} of {name}"));
        }
        if cause == "check" && there["status"] != "not_found" {
            return Err(format!("verify says {there} of {name}, whose check fails"));
        }
    }
    let services: Vec<String> = counts(wanted).into_keys().collect();
    let (mut show, mut explain) = (Verdicts::new(), Verdicts::new());
    for service in &services {
        show.extend(of_rows(json(etcd, &["show", service])["upstreams"].as_array().unwrap(), "balanced"));
        explain.extend(of_explain(etcd, service));
    }
    same("show", show)?;
    same("explain", explain)?;
    let watch = ctl(etcd, &["watch", "--for", "1s", "--output", "json"]);
    let mut last: BTreeMap<String, Value> = BTreeMap::new();
    for line in watch.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        last.insert(name(&line), line);
    }
    same("watch", of_rows(&last.into_values().collect::<Vec<_>>(), "balanced"))?;
    let counted = counts(wanted);
    let is_known = wanted.values().all(|it| !it.ends_with('?'));
    let list = json(etcd, &["list"]);
    for it in list["services"].as_array().unwrap() {
        let (id, balanced) = (it["id"].as_str().unwrap(), it["balanced"][NODE].as_u64());
        let count = is_known.then(|| counted.get(id).copied().unwrap_or_default() as u64);
        if balanced != count {
            return Err(format!("list says {balanced:?} of {id}, not {count:?}"));
        }
    }
    lint_says(&parse(&["lint"]), wanted)?;
    metrics_say(balancer, wanted)
}

/// What lint leaves to `check` and `verify`: checks that fail, and what somebody asked for.
const NOT_LINTED: [&str; 6] = ["check", "announcer", "override", "inactive_color", "weight", "backup"];

/// lint names the cause of each service of which no upstream gets requests, and of no other.
fn lint_says(lint: &Value, wanted: &Verdicts) -> Result<(), String> {
    let unserved: BTreeMap<String, &str> = counts(wanted)
        .into_iter()
        .filter(|(_, count)| *count == 0)
        .filter_map(|(id, _)| {
            let mut verdicts = wanted.iter().filter(|(name, _)| name.starts_with(&format!("{id}/")));
            let (_, cause) = verdicts.next()?;
            let is_linted = !cause.ends_with('?') && !NOT_LINTED.contains(&cause.as_str());
            is_linted.then_some((id.replacen('-', "-services/", 1), cause.as_str()))
        })
        .collect();
    let findings = lint["findings"].as_array().unwrap().iter().filter(|it| it["kind"] == "no_requests");
    let said: BTreeMap<String, &str> = findings
        .map(|it| (it["key"].as_str().unwrap().trim_end_matches('/').to_owned(), it["cause"].as_str().unwrap()))
        .collect();
    if said == unserved { Ok(()) } else { Err(format!("lint says {said:#?}, not {unserved:#?}")) }
}

fn metrics_say(balancer: &Balancer, wanted: &Verdicts) -> Result<(), String> {
    let text = balancer.asked("/metrics").unwrap().body;
    let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    let mut causes: BTreeMap<&str, usize> = BTreeMap::new();
    wanted.values().for_each(|it| *causes.entry(it.trim_end_matches('?')).or_default() += 1);
    let ok = causes.remove("ok").unwrap_or_default();
    if value("confgen_balanced_upstreams") != Some(ok) {
        return Err(format!("the metrics say {:?}, not {ok}", value("confgen_balanced_upstreams")));
    }
    for (cause, count) in causes {
        let name = format!("confgen_unbalanced_upstreams{{cause=\"{cause}\"}}");
        if value(&name) != Some(count) {
            return Err(format!("the metrics say {:?} of {cause}, not {count}", value(&name)));
        }
    }
    Ok(())
}

/// Profiles that let no request through.
const CLOSED: &str = "defaults open
    mode http
    timeout client 1s
    timeout connect 1s
    timeout server 1s
defaults shut from open
    http-request deny
defaults off from open
    disabled
";

/// Services that each have their own reason to get no requests, but for `ok`.
fn scene(etcd: &Etcd, app: &App) -> Verdicts {
    let address = app.address.to_string();
    let nobody = format!("127.0.0.1:{}", free_port());
    let mut verdicts = Verdicts::new();
    let mut service = |name: &str, settings: &[(&str, &str)], upstreams: &[(&str, Value, &str)]| {
        if !settings.iter().any(|(key, _)| ["domain", ""].contains(key)) {
            etcd.put(&format!("http-services/{name}/domain"), format!("{name}.test"));
        }
        for (key, value) in settings.iter().filter(|(key, _)| !key.is_empty()) {
            etcd.put(&format!("http-services/{name}/{key}"), *value);
        }
        for (id, record, verdict) in upstreams {
            let mut value = json!({"address": address, "permanent": true});
            match record {
                Value::String(text) => value = json!(text),
                more => value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone()),
            }
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            etcd.put(&format!("http-services/{name}/upstreams/{id}"), value);
            verdicts.insert(format!("http-{name}/{id}"), (*verdict).to_owned());
        }
    };
    let dead = || json!({ "address": nobody });
    service("ok", &[], &[("a", json!({}), "ok")]);
    service("check", &[], &[("a", dead(), "check")]);
    // HAProxy's own rows about a backend bear these names.
    service("names", &[], &[("BACKEND", dead(), "check"), ("FRONTEND", json!({}), "ok")]);
    let spare = json!({"backup": true});
    service("backup", &[], &[("a", json!({}), "ok"), ("b", spare.clone(), "backup")]);
    service("backups", &[], &[("a", dead(), "check"), ("b", spare.clone(), "ok"), ("c", spare, "backup")]);
    service("override", &[("overrides/a", r#"{"state":"drain"}"#)], &[("a", json!({}), "override")]);
    service("announcer", &[], &[("a", json!({"state": "drain"}), "announcer")]);
    service("color", &[("active", "blue")], &[("a", json!({"color": "green"}), "inactive_color")]);
    service("weight", &[], &[("a", json!({"weight": 0}), "weight")]);
    service("record", &[], &[("a", json!("not an address"), "record_quarantined")]);
    service("nameless", &[("", "")], &[("a", json!({}), "no_domain")]);
    service("rival", &[("domain", "ok.test")], &[("a", json!({}), "claim_held")]);
    service("expression", &[("domain", "word\"")], &[("a", json!({}), "domain_quarantined")]);
    service("gated", &[("tls", "maybe")], &[("a", json!({}), "service_quarantined")]);
    service("refused", &[("profile", "mine")], &[("a", json!({}), "service_refused")]);
    service("shut", &[("profile", "shut")], &[("a", json!({}), "profile")]);
    service("off", &[("profile", "off")], &[("a", json!({}), "profile")]);
    service("older", &[("", ""), ("url_reg", "^/zz")], &[("a", json!({}), "ok")]);
    service("younger", &[("", ""), ("url_reg", "^/zz/y")], &[("a", json!({}), "claim_held")]);
    verdicts
}

#[test]
fn every_command_gives_the_same_verdict() {
    let _turn = light();
    let etcd = Etcd::start();
    let app = App::alone("shop-1");
    let crowd = ["c1", "c2"].map(App::alone);
    let mut wanted = scene(&etcd, &app);
    let lease = etcd.grant(600);
    etcd.put("http-services/crowd/domain", "crowd.test");
    for app in &crowd {
        etcd.put_leased(&format!("http-services/crowd/upstreams/{}", app.name), app.address.to_string(), lease);
        wanted.insert(format!("http-crowd/{}", app.name), "ok".into());
    }
    let setup = Setup::new().confgen(&etcd).flags(&["--node", NODE]);
    write(setup.folder().join("conf.d/mine.cfg"), format!("{PROFILE}{CLOSED}"));
    let balancer = setup.start();
    balancer.wait_settled(PATIENCE);
    let wait = |what: &str, wanted: &Verdicts| until(3 * PATIENCE, what, || all_say(&etcd, &balancer, wanted));
    wait("everybody to say the same", &wanted);
    ctl(&etcd, &["check", "nameless"]).assert(1);
    ctl(&etcd, &["check", "names/BACKEND"]).assert(1);
    ctl(&etcd, &["check", "names/FRONTEND"]).assert(0);

    // The removal guard retains what nobody asked to go. lint says so, and since when, and not that clients get 503.
    etcd.revoke(lease);
    until(PATIENCE, "lint to name what is retained", || {
        let lint = ctl(&etcd, &["lint", "--output", "json"]).json();
        let of = |key: &str| -> Vec<Value> {
            let findings = lint["findings"].as_array().unwrap().iter();
            findings.filter(|it| it["key"] == key).cloned().collect()
        };
        let retained = of("http-services/crowd/upstreams/c1");
        let what = retained.first().map(|it| it["what"].as_str().unwrap().to_owned()).unwrap_or_default();
        let service = of("http-services/crowd/");
        let is_told = service.len() == 1 && service[0]["what"].as_str().unwrap().contains("lb1 retains upstreams");
        let is_safe = !service.iter().any(|it| it.to_string().contains("503") || it.to_string().contains("delete"));
        let has_time = what.contains("retained by lb1 since 20");
        if is_told && is_safe && has_time { Ok(()) } else { Err(format!("{lint:#}")) }
    });
    wait("what is retained to be balanced", &wanted);
    ctl(&etcd, &["check", "crowd"]).assert(0);

    // No restart is tried while HAProxy would refuse the operator's own files.
    write(balancer.folder().join("conf.d/mine.cfg"), "frontend mine\n    bind *:not-a-port\n");
    etcd.http_service("new", "new.test", &[&app]);
    // Its section is there and its server up, and HAProxy reads expressions at its start only.
    etcd.put("http-services/nameless/url_reg", "^/nameless");
    let waiting = ["http-new/shop-1", "http-nameless/a"];
    until(PATIENCE, "the new service and the expression to wait", || {
        let said = of_api(&balancer);
        if waiting.iter().all(|name| said.get(*name).is_some_and(|it| it == "out_of_sync")) {
            Ok(())
        } else {
            Err(format!("{said:#?}"))
        }
    });
    // A manual change that only a restart undoes.
    balancer.ask("shutdown frontend discover-web");
    let closed = wanted.keys().cloned().chain(waiting.map(str::to_owned));
    let closed = closed.map(|name| (name, "frontend_closed".to_owned())).collect();
    wait("a closed frontend to be named", &closed);
    write(balancer.folder().join("conf.d/mine.cfg"), format!("{PROFILE}{CLOSED}"));
    wanted.extend(waiting.map(|name| (name.to_owned(), "ok".to_owned())));
    wait("the new service to be served", &wanted);

    assert!(balancer.ctl(&["stop", "haproxy"]).status.success());
    let silent = |it: &str| match it {
        "ok" | "check" | "backup" => "haproxy_silent?".to_owned(),
        other => format!("{other}?"),
    };
    let silent = wanted.iter().map(|(name, it)| (name.clone(), silent(it))).collect();
    wait("HAProxy to be gone", &silent);
}

/// HAProxy passes over servers that it has up. That lasts until the service's next requests.
#[test]
fn every_command_names_a_starved_upstream() {
    let _turn = light();
    let etcd = Etcd::start();
    let balancer = Setup::new().confgen(&etcd).flags(&["--node", NODE]).start();
    let shop = Shop::in_long_windows(etcd, balancer);
    let starved = shop.starve();
    let verdict = |name: &str| if starved.contains(name) { "starved" } else { "ok" };
    let of = |verdict: &dyn Fn(&str) -> &'static str| -> Verdicts {
        let names = shop.apps.iter().map(|app| app.name.as_str());
        names.map(|name| (format!("http-shop/{name}"), verdict(name).to_owned())).collect()
    };
    let (etcd, balancer) = (&shop.etcd, &shop.balancer);
    until(3 * PATIENCE, "everybody to name it", || all_say(etcd, balancer, &of(&verdict)));
    ctl(etcd, &["check", "shop"]).assert(1);
    shop.ask(100);
    until(3 * PATIENCE, "everybody to see it served", || all_say(etcd, balancer, &of(&|_| "ok")));
    ctl(etcd, &["check", "shop"]).assert(0);
}
