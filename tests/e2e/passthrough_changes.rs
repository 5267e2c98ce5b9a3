//! Pass-through comes and goes, and HAProxy with it: nobody loses a request, and nothing restarts that needn't.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs::{create_dir, metadata, read_dir, read_to_string};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use lab::http::{Request, Response, connect};
use lab::load::{Kind, Plan};
use lab::{App, Balancer, Certificate, Etcd, Front, Ground, Mirror, PATIENCE, Pid, Setup, light, medium, until, write};
use nix::sys::signal::{Signal, kill};

/// Requests a second of each kind: handshakes cost both ends about a millisecond, on two cores that do much else.
const RATE: u32 = 150;

const VAULT: &str = "vault.test";

fn pass_through(etcd: &Etcd, service: &str, domain: &str, address: SocketAddr) {
    let entry = |key: &str, value: &str| (format!("http-services/{service}/{key}"), value.as_bytes().to_vec());
    etcd.put_all([entry("domain", domain), entry("tls", "passthrough"), entry("upstreams/1", &address.to_string())]);
}

/// The certificate that is shown for a host.
fn shown(balancer: &Balancer, host: &str) -> Result<Vec<u8>, String> {
    let response = Request::get(host, "/").tls(host).send(balancer.https()).map_err(|error| error.to_string())?;
    response.certificate.ok_or_else(|| "none".to_owned())
}

#[track_caller]
fn wait_shown(balancer: &Balancer, host: &str, certificate: &[u8]) {
    until(PATIENCE, &format!("the right certificate for {host}"), || match shown(balancer, host) {
        Ok(shown) if shown == certificate => Ok(()),
        Ok(_) => Err("another one".to_owned()),
        Err(error) => Err(error),
    });
}

/// A client that connects, and then takes its time before it says anything.
fn slow_client(balancer: &Balancer) -> TcpStream {
    let stream = connect(balancer.https(), None).unwrap();
    // The kernel has it; HAProxy needs an instant to accept it.
    sleep(Duration::from_millis(200));
    stream
}

fn over(stream: TcpStream, host: &str) -> Response {
    Request::get(host, "/").tls(host).send_over(stream).unwrap()
}

/// A download that takes longer than a restart.
fn long(balancer: &Balancer, host: &str) -> JoinHandle<Response> {
    let (address, host) = (balancer.https(), host.to_owned());
    spawn(move || Request::get(&host, "/slow?ms=4000").tls(&host).send(address).unwrap())
}

#[test]
fn the_first_passthrough_service_comes_and_the_last_goes_under_load() {
    let _turn = medium();
    let vault = Front::new("vault", VAULT);
    let mut ground = Ground::new();
    let before = shown(&ground.balancer, Ground::HOST).unwrap();
    let kinds = [Kind::PerRequest, Kind::PerHandshake, Kind::Http2];
    let reports = ground.under_load(&kinds, RATE, |ground| {
        let Ground { balancer, etcd, .. } = &*ground;
        for round in 0..2 {
            let slow = slow_client(balancer);
            pass_through(etcd, "vault", VAULT, vault.address);
            wait_shown(balancer, VAULT, vault.der());
            assert_eq!(over(slow, Ground::HOST).status, 200, "{round}: who came before the hop was there");
            let slow = slow_client(balancer);
            let restarts = balancer.restarts();
            etcd.delete_all("http-services/vault/");
            until(PATIENCE, "the hop to go", || balancer.restarts() > restarts);
            balancer.wait_in_sync(PATIENCE);
            // The process before is the one that has accepted it.
            let seen = until(PATIENCE, "only one to listen", || {
                let seen: Vec<_> = (0..20).map(|_| shown(balancer, VAULT)).collect::<Result<_, _>>()?;
                if seen.iter().all(|shown| *shown == before) { Ok(seen.len()) } else { Err("the old one".to_owned()) }
            });
            let answer = over(slow, Ground::HOST);
            assert_eq!(answer.status, 200, "{round}, {seen}: who came before the hop was gone");
        }
    });
    for (kind, report) in reports {
        report.assert_nothing_lost();
        assert!(report.good > 100, "{kind:?}: {report}");
    }
    let file = || ground.balancer.file();
    until(PATIENCE, "the file to have nothing of the hop", || {
        if file().contains("discover-tls") { Err(file()) } else { Ok(()) }
    });
    ground.balancer.wait_in_sync(PATIENCE);
}

#[test]
fn restarts_lose_nothing_that_is_passed_through_or_on_the_inner_hop() {
    let _turn = medium();
    let vault = Front::new("vault", VAULT);
    let mut ground = Ground::new();
    pass_through(&ground.etcd, "vault", VAULT, vault.address);
    wait_shown(&ground.balancer, VAULT, vault.der());
    ground.balancer.wait_settled(PATIENCE);
    let passed = Plan::new(Kind::PerHandshake, ground.balancer.https(), VAULT).rate(RATE).from("vault").start();
    let downloads = [VAULT, Ground::HOST].map(|host| long(&ground.balancer, host));
    let reports = ground.under_load(&[Kind::PerHandshake, Kind::Http2], RATE, |ground| {
        for _ in 0..2 {
            let slow = slow_client(&ground.balancer);
            ground.balancer.restart();
            assert_eq!(over(slow, Ground::HOST).status, 200);
        }
        for download in downloads {
            let answer = download.join().unwrap();
            assert_eq!((answer.status, answer.line("url")), (200, Some("/slow?ms=4000")));
        }
    });
    let passed = passed.stop();
    println!("passed through: {passed}");
    for report in reports.iter().map(|(_, report)| report).chain([&passed]) {
        report.assert_nothing_lost();
        assert!(report.good > 100, "{report}");
    }
    ground.wait_one_haproxy(PATIENCE);
}

#[test]
fn hosts_and_servers_come_and_go_without_a_restart() {
    let _turn = light();
    let etcd = Etcd::start();
    let (one, two) = (Front::new("one", VAULT), Front::new("two", VAULT));
    pass_through(&etcd, "vault", VAULT, one.address);
    let balancer = Setup::new().confgen(&etcd).flags(&["--node", "lab"]).start();
    wait_shown(&balancer, VAULT, one.der());
    balancer.wait_settled(PATIENCE);
    let worker = balancer.worker();
    let own = shown(&balancer, "unknown.test").unwrap();

    for host in ["more.test", "x.more.test"] {
        wait_shown(&balancer, host, &own);
    }
    etcd.put("http-services/vault/domain", "vault.test more.test *.more.test");
    for host in ["more.test", "x.more.test"] {
        wait_shown(&balancer, host, one.der());
        balancer.wait_status(PATIENCE, host, "/", 308);
    }
    until(PATIENCE, "the file to follow", || Mirror::agree(&balancer, &etcd));
    etcd.put("http-services/vault/domain", VAULT);
    for host in ["more.test", "x.more.test"] {
        wait_shown(&balancer, host, &own);
        balancer.wait_status(PATIENCE, host, "/", 404);
    }

    // What is open on an upstream that is about to go is waited for.
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-no_ign_eof", "-servername", VAULT, "-connect"]);
    command.arg(balancer.https().to_string()).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut client = command.spawn().unwrap();
    until(PATIENCE, "its session", || {
        let stat = balancer.ask("show stat");
        // Column 4 is scur (management guide, 9.1).
        let row =
            stat.lines().find(|line| line.starts_with("http-vault,1,")).map(|row| row.split(',').nth(4) == Some("1"));
        row.unwrap_or_default()
    });
    etcd.put("http-services/vault/upstreams/2", two.address.to_string());
    balancer.wait_servers(PATIENCE, "http-vault", 2);
    let leaves = format!(r#"{{"address":"{}","state":"drain"}}"#, one.address);
    let revision = etcd.put("http-services/vault/upstreams/1", leaves);
    let said = || -> serde_json::Value {
        etcd.get("balancers/lab").map_or_else(Default::default, |value| serde_json::from_str(&value).unwrap())
    };
    until(PATIENCE, "the drain to be applied, and not over", || {
        let said = said();
        let applied = said["applied"].as_i64().is_some_and(|applied| applied >= revision);
        if applied && said["draining"]["http-vault/1"] == 1 { Ok(()) } else { Err(said.to_string()) }
    });
    for _ in 0..6 {
        assert_eq!(shown(&balancer, VAULT).unwrap(), two.der(), "nobody new gets there");
    }
    drop(client.stdin.take());
    client.wait().unwrap();
    until(PATIENCE, "the drain to be over", || {
        let said = said();
        if said["draining"].get("http-vault/1").is_none() { Ok(()) } else { Err(said.to_string()) }
    });
    etcd.delete("http-services/vault/upstreams/1");
    balancer.wait_servers(PATIENCE, "http-vault", 1);
    wait_shown(&balancer, VAULT, two.der());
    until(PATIENCE, "the file to follow", || Mirror::agree(&balancer, &etcd));
    assert_eq!(balancer.worker(), worker, "{}", balancer.log("confgen"));
}

/// TLS of one service ends at HAProxy, then at its upstreams, then at HAProxy again, each in one transaction with the
/// upstream's new address: until HAProxy has been restarted, the old address is asked in the old way.
#[test]
fn a_service_changes_over_without_a_loss() {
    let _turn = medium();
    let etcd = Etcd::start();
    let (plain, secure) = (App::alone("move-plain"), Front::new("move-secure", "move.test"));
    let change = |tls: &str, address: SocketAddr| {
        let entry = |key: &str, value: String| (format!("http-services/move/{key}"), value.into_bytes());
        let domain = entry("domain", "move.test".to_owned());
        etcd.put_all([domain, entry("tls", tls.to_owned()), entry("upstreams/1", address.to_string())]);
    };
    change("terminate", plain.address);
    let setup = Setup::new();
    let own = Certificate::of(&["move.test"]);
    own.write(setup.folder().join("certs/own.pem"));
    let balancer = setup.confgen(&etcd).start();
    wait_shown(&balancer, "move.test", &own.der);
    balancer.wait_servers(PATIENCE, "http-move", 1);
    balancer.wait_settled(PATIENCE);
    let load = Plan::new(Kind::PerHandshake, balancer.https(), "move.test").rate(RATE).from("move-").start();
    // Until the process before is gone, either answers.
    change("passthrough", secure.address);
    wait_shown(&balancer, "move.test", secure.der());
    balancer.wait_settled(PATIENCE);
    change("terminate", plain.address);
    wait_shown(&balancer, "move.test", &own.der);
    balancer.wait_settled(PATIENCE);
    let report = load.stop();
    println!("{report}");
    report.assert_nothing_lost();
    assert_eq!(report.upstreams.len(), 2, "both have answered: {report}");
}

#[test]
fn the_inner_hop_outlives_a_crash_and_a_start_that_fails() {
    let _turn = medium();
    let vault = Front::new("vault", VAULT);
    let ground = Ground::new();
    let Ground { balancer, etcd, .. } = &ground;
    pass_through(etcd, "vault", VAULT, vault.address);
    wait_shown(balancer, VAULT, vault.der());
    let own = shown(balancer, Ground::HOST).unwrap();
    kill(balancer.worker(), Signal::SIGKILL).unwrap();
    wait_shown(balancer, VAULT, vault.der());
    wait_shown(balancer, Ground::HOST, &own);
    balancer.wait_running("haproxy");
    ground.wait_served(3);

    // Somebody else has the port: what has been bound by then is given up again.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let load = ground.load(Kind::PerHandshake, RATE);
    let passed = Plan::new(Kind::PerHandshake, balancer.https(), VAULT).rate(RATE).from("vault").start();
    etcd.put("tcp-services/clash/ports", taken.local_addr().unwrap().to_string());
    until(PATIENCE, "HAProxy not to start", || balancer.log("haproxy").contains("before it answered"));
    until(PATIENCE, "the culprit to be left out", || {
        balancer.log("confgen").contains("key quarantined key=tcp-services/clash")
    });
    balancer.wait_in_sync(PATIENCE);
    balancer.wait_running("haproxy");
    for report in [load, passed].map(lab::load::Running::stop) {
        println!("{report}");
        report.assert_nothing_lost();
    }
}

/// Debian's user of that name.
const NOBODY: u32 = 65534;

/// The user that a process runs as.
fn owner(process: Pid) -> u32 {
    let status = read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let user = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
    user.unwrap_or_default()
}

/// HAProxy gives its rights up, and sees no more than a folder of its own.
#[test]
fn haproxys_own_user_reaches_the_inner_hop() {
    let _turn = light();
    let etcd = Etcd::start();
    let vault = Front::new("vault", VAULT);
    pass_through(&etcd, "vault", VAULT, vault.address);
    let setup = Setup::new();
    let jail = setup.folder().join("jail");
    create_dir(&jail).unwrap();
    let own = Certificate::of(&["shop.test"]);
    own.write(setup.folder().join("certs/own.pem"));
    let balancer = setup.confgen(&etcd).start();
    wait_shown(&balancer, VAULT, vault.der());
    wait_shown(&balancer, "shop.test", &own.der);
    let socket = |folder: &std::path::Path| {
        let entries = read_dir(folder).unwrap().flatten();
        let found = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("discover-tls"));
        found.map(|entry| metadata(entry.path()).unwrap()).map(|it| (it.uid(), it.mode() & 0o777)).collect::<Vec<_>>()
    };
    assert_eq!(socket(balancer.folder()), [(owner(balancer.worker()), 0o600)]);
    for (chroot, folder) in [("", balancer.folder()), (&format!("    chroot {}\n", jail.display()), &*jail)] {
        write(balancer.folder().join("conf.d/user.cfg"), format!("global\n    user nobody\n{chroot}"));
        until(PATIENCE, "HAProxy to be nobody", || {
            let (bound, worker) = (folder.join("discover-tls-nobody.sock"), balancer.worker());
            owner(worker) == NOBODY && balancer.file().contains(&format!("bind unix@{} ", bound.display()))
        });
        balancer.wait_in_sync(PATIENCE);
        balancer.wait_one_haproxy(PATIENCE);
        wait_shown(&balancer, VAULT, vault.der());
        wait_shown(&balancer, "shop.test", &own.der);
        assert!(socket(folder).contains(&(NOBODY, 0o600)), "{:?}", socket(folder));
    }
}
