//! What HAProxy answers by itself: the stats page and its metrics, error pages, and where ACME's challenges go.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs::{create_dir, metadata, read_link, read_to_string, remove_file};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use lab::http::Request;
use lab::{App, Balancer, Ground, PATIENCE, light, until, write};
use nix::unistd::Group;

const STATS: &str = "stats.wide.test";

/// A balancer with every flag that this is about.
fn start() -> Ground {
    let build = Ground::build()
        .http("shop", "shop.test", &["shop"])
        .http("secure", "secure.test", &["secure"])
        .set("http-services/secure", &[("tls", "terminate")])
        .http("plain", "plain.test", &["shop"])
        .set("http-services/plain", &[("tls", "off")])
        .http("closed", "closed.test", &["shop"])
        .set("http-services/closed", &[("allow", "10.0.0.0/8")])
        .http("dead", "dead.test", &[])
        // Older than any claim that the balancer knows of.
        .http("thief", STATS, &[])
        // Neither the page's host nor a challenge is passed through.
        .http("wide", "*.wide.test", &["shop"])
        .set("http-services/wide", &[("tls", "passthrough")])
        .certificate(&[STATS, "*.test"]);
    let [pages, root] = ["pages", "empty"].map(|name| build.setup.folder().join(name));
    create_dir(&pages).unwrap();
    let (pages, root) = (pages.display().to_string(), root.display().to_string());
    let flags = ["--stats-domain", STATS, "--acme-service", "acme", "--error-pages", &pages, "--chroot", &root];
    build.flags(&flags).flags(&["--runtime-socket-group", "haproxy"]).start()
}

fn page(balancer: &Balancer, name: &str) -> PathBuf {
    balancer.folder().join("pages").join(name)
}

/// The header that the password makes.
fn password(balancer: &Balancer) -> String {
    let password = read_to_string(balancer.folder().join("state/stats-password")).unwrap();
    basic(&format!("admin:{}", password.trim()))
}

/// Waits for this answer, and until whatever was before it has gone: while two processes listen, either answers.
#[track_caller]
fn wait_settled(balancer: &Balancer, host: &str, target: &str, status: u16) {
    balancer.wait_status(PATIENCE, host, target, status);
    balancer.wait_in_sync(PATIENCE);
    balancer.wait_one_haproxy(PATIENCE);
}

#[track_caller]
fn wait_body(balancer: &Balancer, host: &str, status: u16, body: &str) {
    until(PATIENCE, &format!("{status} with {body:?} for {host}"), || {
        let response = balancer.get(host, "/");
        let fits = response.status == status && response.body.contains(body);
        if fits { Ok(()) } else { Err(format!("{response:?}")) }
    });
}

/// `Authorization` of RFC 7617: base64, by three bytes in four letters.
fn basic(user: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letters = user.as_bytes().chunks(3).flat_map(|chunk| {
        let bits = chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        let letter = move |place: usize| char::from(LETTERS[(bits >> (18 - 6 * place) & 63) as usize]);
        (0..4).map(move |place| if place <= chunk.len() { letter(place) } else { '=' })
    });
    format!("Basic {}", letters.collect::<String>())
}

#[test]
fn what_haproxy_answers_by_itself() {
    let _turn = light();
    let ground = start();
    let balancer = &ground.balancer;
    the_stats_page_wants_its_password_and_changes_nothing(balancer);
    the_stats_page_has_a_host_of_its_own(balancer);
    challenges_go_to_one_service(&ground);
    errors_are_plain_or_the_operators(balancer);
    all_of_it_shut_in(balancer);
}

/// Through all of the restarts above.
fn all_of_it_shut_in(balancer: &Balancer) {
    let folder = balancer.folder();
    // Without CAP_SYS_PTRACE, as in a container, root isn't shown it.
    match read_link(format!("/proc/{}/root", balancer.worker())) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        root => assert_eq!(root.unwrap(), folder.join("empty")),
    }
    let socket = metadata(folder.join("admin.sock")).unwrap();
    let group = Group::from_name("haproxy").unwrap().unwrap();
    assert_eq!((socket.gid(), socket.mode() & 0o777), (group.gid.as_raw(), 0o660));
}

fn the_stats_page_wants_its_password_and_changes_nothing(balancer: &Balancer) {
    let password = password(balancer);
    let ask = |target: &str, password: &str| {
        Request::get("any.test", target).header("Authorization", password).send(balancer.stats()).unwrap()
    };
    for (number, target) in ["/admin?stats", "/metrics", "/", "/admin"].into_iter().enumerate() {
        assert_eq!(Request::get("any.test", target).send(balancer.stats()).unwrap().status, 401, "{target}");
        // HAProxy looks at ten wrong passwords from an address.
        let from = format!("127.0.1.{number}");
        for wrong in ["admin:admin", "admin:", ":", "root:x"] {
            let request = Request::get("any.test", target).from(&from).header("Authorization", &basic(wrong));
            assert_eq!(request.send(balancer.stats()).unwrap().status, 401, "{target} with {wrong}");
        }
    }
    let page = ask("/admin?stats", &password);
    assert_eq!(page.status, 200);
    assert!(page.body.contains("http-shop"), "the page shows the services");
    assert!(!page.body.contains("name=\"action\"") && !page.body.contains("name=action"), "the page changes nothing");
    let metrics = ask("/metrics", &password);
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("haproxy_backend_http_requests_total{proxy=\"http-shop\""), "{}", metrics.body);
    for target in ["/", "/admin", "/elsewhere"] {
        assert_eq!(ask(target, &password).status, 404, "{target}");
    }
    // What the page's form sends where `stats admin` allows it.
    let form = "s=shop&action=maint&b=http-shop";
    let request = Request::get("any.test", "/admin?stats").method("POST").header("Authorization", &password);
    let request = request.header("Content-Type", "application/x-www-form-urlencoded");
    let answer = request.header("Content-Length", &form.len().to_string()).body(form).send(balancer.stats()).unwrap();
    assert_ne!(answer.status, 200, "{answer:?}");
    assert_eq!(balancer.servers_up("http-shop"), ["shop"]);
}

fn the_stats_page_has_a_host_of_its_own(balancer: &Balancer) {
    let redirect = balancer.get(STATS, "/admin?stats");
    let to = format!("https://{STATS}/admin?stats");
    assert_eq!((redirect.status, redirect.header("location")), (308, Some(&*to)), "no password crosses in clear");
    let ask = |target: &str, host: &str| {
        let request = Request::get(host, target).tls(STATS).header("Authorization", &password(balancer));
        request.send(balancer.https()).unwrap()
    };
    assert_eq!(balancer.get_tls(STATS, "/admin?stats").status, 401);
    assert!(ask("/admin?stats", "Stats.Wide.Test.:8443").body.contains("http-shop"));
    assert!(ask("/metrics", STATS).body.contains("haproxy_process_"));
    assert_eq!(ask("/elsewhere", STATS).status, 404);
    // Neither is it on other hosts, nor is its own anybody's, not even by a wildcard.
    assert_eq!(ask("/admin?stats", "unknown.example").status, 404);
    let quarantine = balancer.quarantine().to_string();
    assert!(quarantine.contains("stats.wide.test is reserved: --stats-domain has it"), "{quarantine}");
}

fn challenges_go_to_one_service(ground: &Ground) {
    let Ground { etcd, balancer, .. } = ground;
    let acme = App::alone("acme");
    const TOKEN: &str = "/.well-known/acme-challenge/token";
    assert_eq!(balancer.get("secure.test", TOKEN).status, 308, "there is no such service yet");
    etcd.put("http-services/acme/upstreams/acme", acme.address.to_string());
    wait_settled(balancer, "secure.test", TOKEN, 200);
    for host in ["secure.test", "shop.test", "closed.test", "dead.test", "unknown.example", "a.wide.test", STATS] {
        assert_eq!(balancer.get(host, TOKEN).app(), "acme", "{host}");
    }
    assert_eq!(balancer.get_tls("secure.test", TOKEN).app(), "secure");
    assert_eq!(balancer.get("a.wide.test", "/").status, 308);
    assert_eq!(balancer.get("shop.test", "/.well-known/acme-challengers").app(), "shop");
    etcd.delete("http-services/acme/upstreams/acme");
    wait_settled(balancer, "secure.test", TOKEN, 308);
}

fn errors_are_plain_or_the_operators(balancer: &Balancer) {
    for (host, status) in [("unknown.example", 404), ("closed.test", 403), ("dead.test", 503)] {
        let response = balancer.get(host, "/");
        assert_eq!((response.status, response.header("content-type")), (status, Some("text/plain")), "{response:?}");
        assert!(response.body.starts_with(&status.to_string()), "{response:?}");
    }
    assert_eq!(balancer.get("dead.test", "/").header("retry-after"), Some("5"));

    let before = balancer.restarts();
    for (name, content) in [("404.html", "<p>nothing here"), ("503.html", "<p>soon"), ("403.json", "{\"no\":1}")] {
        write(page(balancer, name), content);
    }
    // They may have been seen one after another.
    for (host, status, body) in
        [("unknown.example", 404, "<p>nothing here"), ("dead.test", 503, "<p>soon"), ("closed.test", 403, "{\"no\":1}")]
    {
        wait_body(balancer, host, status, body);
    }
    wait_settled(balancer, "unknown.example", "/", 404);
    let types = ["unknown.example", "closed.test"]
        .map(|host| balancer.get(host, "/").header("content-type").map(str::to_owned));
    assert_eq!(types, [Some("text/html; charset=utf-8".to_owned()), Some("application/json".to_owned())]);
    assert_eq!(balancer.get("dead.test", "/").header("retry-after"), Some("5"));
    assert!(balancer.get_tls("plain.test", "/").body.contains("<p>nothing here"), "where HTTPS isn't served");
    let restarts = balancer.restarts();
    assert!((before + 1..=before + 3).contains(&restarts), "{before}, then {restarts}");

    for (broken, words) in
        [(String::new(), "404.html reason=it is empty"), ("x".repeat(20_000), "longer than 15000 bytes")]
    {
        write(page(balancer, "404.html"), broken);
        balancer.wait_logged(words);
        balancer.restart();
        balancer.wait_one_haproxy(PATIENCE);
        assert!(balancer.get("unknown.example", "/").body.contains("<p>nothing here"), "the last good one stays");
    }
    until(PATIENCE, "the metric", || balancer.metric("confgen_refused_error_pages") == Some(1.0));
    remove_file(page(balancer, "404.html")).unwrap();
    wait_body(balancer, "unknown.example", 404, "404 Not Found");
    wait_settled(balancer, "unknown.example", "/", 404);
    assert_eq!(balancer.restarts(), restarts + 1, "a broken page is no reason for a restart");
    assert!(balancer.get("dead.test", "/").body.contains("<p>soon"));
}
