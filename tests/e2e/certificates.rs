//! Certificates come, change and go while HAProxy runs, and it serves what lies there whatever happens to it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::fs::{metadata, read_to_string, remove_file};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use lab::http::Request;
use lab::load::Kind;
use lab::{App, Balancer, Certificate, Etcd, Ground, Setup, heavy, light, until, write};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SERVED: Duration = Duration::from_secs(30);

/// Files are looked at four times a second, and a check takes some 50 ms; the rest is for a busy machine.
const TAKEN_OVER: Duration = Duration::from_secs(30);

/// Handshakes a second: each costs the two ends about a millisecond, on two cores that do much else.
const HANDSHAKES: u32 = 200;

/// A balancer with nothing in its store, and the certificates' directory.
struct Place {
    balancer: Balancer,
    _etcd: Etcd,
}

impl Place {
    fn new(flags: &[&str], certificates: &[(&str, &Certificate)]) -> Self {
        let etcd = Etcd::start();
        let setup = Setup::new();
        for (name, certificate) in certificates {
            certificate.write(setup.folder().join("certs").join(name));
        }
        let balancer = setup.confgen(&etcd).flags(flags).start();
        // Until the one that confgen may have replaced is gone, either answers.
        balancer.wait_settled(SERVED);
        Self { balancer, _etcd: etcd }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.balancer.folder().join("certs").join(name)
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.balancer.folder().join("state/certs").join(name)
    }

    /// The certificate that a client is shown.
    fn shown(&self, request: &Request) -> Result<Vec<u8>, String> {
        let response = request.send(self.balancer.https()).map_err(|error| error.to_string())?;
        response.certificate.ok_or_else(|| "none".into())
    }

    #[track_caller]
    fn wait_shown(&self, host: &str, certificate: &Certificate) {
        self.wait_shown_to(&Request::get(host, "/").tls(host), host, certificate);
    }

    #[track_caller]
    fn wait_shown_to(&self, request: &Request, host: &str, certificate: &Certificate) {
        until(TAKEN_OVER, &format!("the right certificate for {host}"), || match self.shown(request) {
            Ok(shown) if shown == certificate.der => Ok(()),
            Ok(_) => Err("another one".to_owned()),
            Err(error) => Err(error),
        });
    }

    #[track_caller]
    fn wait_logged(&self, words: &str) {
        until(TAKEN_OVER, &format!("{words:?} in confgen's log"), || {
            let log = self.balancer.log("confgen");
            if log.contains(words) { Ok(()) } else { Err(log) }
        });
    }

    /// The process that answers; it is another one after each restart.
    fn worker(&self) -> Option<i32> {
        worker(&self.balancer)
    }
}

fn worker(balancer: &Balancer) -> Option<i32> {
    let info = balancer.try_ask("show info").ok()?;
    info.lines().find_map(|line| line.strip_prefix("Pid: "))?.parse().ok()
}

#[test]
fn a_swap_under_load_loses_no_handshake_and_needs_no_restart() {
    let _turn = heavy();
    let mut ground = Ground::new();
    ground.balancer.wait_settled(SERVED);
    let before = worker(&ground.balancer);
    let reports = ground.under_load(&[Kind::PerHandshake], HANDSHAKES, |ground| {
        let certs = ground.balancer.folder().join("certs");
        for round in 0..10 {
            let certificate = Certificate::of(&[Ground::HOST]);
            certificate.write(certs.join("shop.pem"));
            // Beside it, another one comes and goes.
            if round % 2 == 0 {
                Certificate::of(&["other.test"]).write(certs.join("a-other.pem"));
            } else {
                remove_file(certs.join("a-other.pem")).unwrap();
            }
            until(TAKEN_OVER, "the new certificate", || {
                let response = Request::get(Ground::HOST, "/").tls(Ground::HOST).send(ground.balancer.https());
                let shown = response.map_err(|error| error.to_string())?.certificate;
                if shown.as_ref() == Some(&certificate.der) { Ok(()) } else { Err("another one".to_owned()) }
            });
        }
    });
    for (_, report) in reports {
        report.assert_nothing_lost();
        assert!(report.connections == report.sent && report.sent > 200, "a handshake each:\n{report}");
    }
    assert_eq!(worker(&ground.balancer), before, "no restart");
}

#[test]
fn certificates_come_and_go_and_a_broken_one_is_refused() {
    let _turn = light();
    let place = Place::new(&[], &[]);
    let before = place.worker();
    let self_signed = place.shown(&Request::get("a.test", "/").tls("a.test")).unwrap();

    let (a, b) = (Certificate::of(&["a.test"]), Certificate::of(&["*.b.test"]));
    b.write(place.file("b.pem"));
    place.wait_shown("one.b.test", &b);
    place.wait_shown("a.test", &b);
    a.write(place.file("a.pem"));
    place.wait_shown("a.test", &a);
    place.wait_shown("one.b.test", &b);
    place.wait_shown("unknown.test", &a);
    for copy in ["a.pem", "b.pem", "default.pem"] {
        assert_eq!(metadata(place.copy(copy)).unwrap().mode() & 0o007, 0, "{copy} isn't for everybody");
    }

    // One half written, one without its key, one with another's.
    let other = Certificate::of(&["a.test"]);
    let (public, _) = a.pem.split_at(a.pem.find("-----BEGIN PRIVATE").unwrap());
    let (_, key) = other.pem.split_at(other.pem.find("-----BEGIN PRIVATE").unwrap());
    for (broken, words) in [
        (public[..200].to_owned(), "a.pem: there is no CERTIFICATE"),
        (public.to_owned(), "a.pem: there has to be one PRIVATE KEY"),
        (format!("{public}{key}"), "inconsistencies"),
    ] {
        write(place.file("a.pem"), &broken);
        place.wait_logged(words);
        assert_eq!(place.shown(&Request::get("a.test", "/").tls("a.test")).unwrap(), a.der, "the old one is kept");
    }

    remove_file(place.file("b.pem")).unwrap();
    place.wait_shown("one.b.test", &a);
    assert!(!place.copy("b.pem").exists());
    remove_file(place.file("a.pem")).unwrap();
    until(TAKEN_OVER, "the self-signed one again", || {
        place.shown(&Request::get("a.test", "/").tls("a.test")).is_ok_and(|shown| shown == self_signed)
    });
    until(TAKEN_OVER, "HAProxy to forget what is gone", || {
        let files = place.balancer.ask("show ssl cert");
        if files.contains("a.pem") || files.contains("b.pem") { Err(files) } else { Ok(()) }
    });

    assert_eq!(place.worker(), before, "no restart");
    let log = place.balancer.log("confgen");
    let secret = |line: &&str| line.len() == 64 && !line.contains(' ');
    for line in [&a.pem, &b.pem, &other.pem].into_iter().flat_map(|pem| pem.lines()).filter(secret) {
        assert!(!log.contains(line), "a key or certificate is in the log");
    }
}

#[test]
fn what_a_hand_has_changed_is_mended() {
    let _turn = light();
    let (a, b) = (Certificate::of(&["a.test"]), Certificate::of(&["b.test"]));
    let place = Place::new(&["--resync", "1s"], &[("a.pem", &a), ("b.pem", &b)]);
    let before = place.worker();
    place.wait_shown("b.test", &b);
    let (copy, list) = (place.copy("b.pem").display().to_string(), place.copy("crt-list.txt").display().to_string());

    // confgen stands still while the hand is at work: a look between its two commands would undo the first.
    let by_hand = |commands: &[String]| {
        place.balancer.signal("confgen", Signal::SIGSTOP);
        let answers: Vec<String> = commands.iter().map(|command| place.balancer.ask(command)).collect();
        place.balancer.signal("confgen", Signal::SIGCONT);
        answers
    };
    let foreign = Certificate::of(&["b.test"]);
    let set = format!("set ssl cert {copy} <<\n{}", foreign.pem);
    let answers = by_hand(&[set.clone(), format!("commit ssl cert {copy}")]);
    assert!(answers[0].contains("Transaction created") && answers[1].contains("Success"), "{answers:?}");
    place.wait_shown("b.test", &b);

    by_hand(&[format!("del ssl crt-list {list} {copy}")]);
    place.wait_shown("b.test", &b);

    // A change that is begun and left: nothing of it is taken over by the next one.
    by_hand(&[set]);
    let renewed = Certificate::of(&["a.test"]);
    renewed.write(place.file("a.pem"));
    place.wait_shown("a.test", &renewed);
    place.wait_shown("b.test", &b);
    assert_eq!(place.worker(), before, "no restart");
}

#[test]
fn a_haproxy_that_crashes_comes_back_with_the_certificates_of_now() {
    let _turn = light();
    let old = Certificate::of(&["a.test"]);
    let place = Place::new(&[], &[("a.pem", &old)]);
    place.wait_shown("a.test", &old);
    let new = Certificate::of(&["a.test"]);
    new.write(place.file("a.pem"));
    place.wait_shown("a.test", &new);
    let latest = Certificate::of(&["a.test"]);
    let crash = || {
        let pid = place.worker().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        until(SERVED, "another HAProxy", || place.worker().is_some_and(|now| now != pid));
    };
    crash();
    place.wait_shown("a.test", &new);
    latest.write(place.file("a.pem"));
    crash();
    place.wait_shown("a.test", &latest);
}

#[test]
fn clients_of_rsa_and_of_ecdsa_are_both_served() {
    let _turn = light();
    let place = Place::new(&[], &[]);
    let before = place.worker();
    let of = |key| Request::get("pair.test", "/").tls("pair.test").key(key);
    let ecdsa = Certificate::of(&["pair.test"]);
    // Named as HAProxy names a pair, then as two files of any name.
    for (one, two) in [("pair.pem.ecdsa", "pair.pem.rsa"), ("pair.pem", "rsa-pair.pem")] {
        let rsa = Certificate::rsa("pair.test");
        ecdsa.write(place.file(one));
        rsa.write(place.file(two));
        place.wait_shown_to(&of("ECDSA"), "pair.test, ECDSA", &ecdsa);
        place.wait_shown_to(&of("RSA"), "pair.test, RSA", &rsa);
        place.balancer.restart();
        place.wait_shown_to(&of("ECDSA"), "pair.test, ECDSA", &ecdsa);
        place.wait_shown_to(&of("RSA"), "pair.test, RSA", &rsa);
        remove_file(place.file(one)).unwrap();
        remove_file(place.file(two)).unwrap();
        until(TAKEN_OVER, "the copies to go", || {
            !place.copy("pair.pem").exists() && !place.copy("rsa-pair.pem").exists()
        });
    }
    assert_ne!(place.worker(), before, "the test's own restarts");
}

#[test]
fn a_chain_that_is_too_long_for_the_runtime_api_takes_one_restart() {
    let _turn = light();
    let place = Place::new(&[], &[("a.pem", &Certificate::of(&["a.test"]))]);
    let log = || place.balancer.log("confgen");
    let restarts = || log().matches("restart: ").count();
    let before = restarts();
    // With its key of 1.7 kB it is too long, without it isn't.
    let long = Certificate::rsa("a.test").with_chain(16_100);
    long.write(place.file("a.pem"));
    place.wait_shown("a.test", &long);
    assert_eq!(restarts(), before, "{}", log());

    let longest = Certificate::of(&["a.test"]).with_chain(20_000);
    longest.write(place.file("a.pem"));
    place.wait_shown("a.test", &longest);
    until(TAKEN_OVER, "the restart to be over", || {
        log().split_once("longer than the").is_some_and(|(_, since)| since.contains("HAProxy was restarted"))
    });
    let worker = place.worker();
    // What is served by now is left alone.
    let b = Certificate::of(&["b.test"]);
    b.write(place.file("b.pem"));
    place.wait_shown("b.test", &b);
    assert_eq!((restarts(), place.worker()), (before + 1, worker), "{}", log());
}

#[test]
fn an_acme_challenge_is_answered_for_a_host_that_redirects() {
    let etcd = Etcd::start();
    let apps = ["shop", "acme"].map(App::alone);
    etcd.http_service("shop", "shop.test", &[&apps[0]]);
    etcd.put("http-services/shop/tls", "terminate");
    etcd.http_service("acme", "shop.test", &[&apps[1]]);
    etcd.put("http-services/acme/path", "/.well-known/acme-challenge/");
    let balancer = Balancer::start(&etcd);
    let answer = balancer.wait_status(SERVED, "shop.test", "/.well-known/acme-challenge/token", 200);
    assert_eq!(answer.app(), "acme");
    balancer.wait_status(SERVED, "shop.test", "/.well-known/", 308);
}

#[test]
fn an_expiring_certificate_is_named_in_the_log() {
    // Half a day past a whole one, so that the number of days doesn't hang on when it is counted.
    let soon = Certificate::until("soon.test", Duration::from_secs(4 * 24 * 3600 + 12 * 3600));
    let place = Place::new(&[], &[("soon.pem", &soon), ("later.pem", &Certificate::of(&["later.test"]))]);
    place.wait_logged("certs/soon.pem for soon.test: expires in 4 days");
    assert!(!place.balancer.log("confgen").contains("later.test: expires"));
    assert!(read_to_string(place.copy("crt-list.txt")).unwrap().contains("soon.pem"), "it is served all the same");
}
