//! Certificates come, change and go while HAProxy runs, and it serves what lies there whatever happens to it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a file that is written in place is part of what is tested")]

use std::fs::{create_dir, metadata, read_to_string, remove_file, rename};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use lab::http::Request;
use lab::load::Kind;
use lab::{Balancer, Certificate, Etcd, Ground, PATIENCE, Scratch, bin, light, medium, until, write};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::Value;

/// Handshakes a second: each costs the two ends about a millisecond, on two cores that do much else.
const HANDSHAKES: u32 = 200;

/// A balancer with nothing in its store, and the certificates' directory.
struct Place {
    balancer: Balancer,
    etcd: Etcd,
}

impl Place {
    fn new(flags: &[&str], certificates: &[(&str, &Certificate)]) -> Self {
        let build = Ground::build().flags(flags);
        for (name, certificate) in certificates {
            certificate.write(build.setup.folder().join("certs").join(name));
        }
        // Until the process that confgen may have replaced is gone, either answers.
        let Ground { balancer, etcd, .. } = build.start();
        Self { balancer, etcd }
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
        until(PATIENCE, &format!("the right certificate for {host}"), || match self.shown(request) {
            Ok(shown) if shown == certificate.der => Ok(()),
            Ok(_) => Err("another one".to_owned()),
            Err(error) => Err(error),
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
    let _turn = medium();
    let mut ground = Ground::new();
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
            until(PATIENCE, "the new certificate", || {
                let shown = ground.balancer.get_tls(Ground::HOST, "/").certificate;
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
        (public[..200].to_owned(), "a.pem reason=there is no CERTIFICATE"),
        (public.to_owned(), "a.pem reason=there has to be one PRIVATE KEY"),
        (format!("{public}{key}"), "inconsistencies"),
    ] {
        write(place.file("a.pem"), &broken);
        place.balancer.wait_logged(words);
        assert_eq!(place.shown(&Request::get("a.test", "/").tls("a.test")).unwrap(), a.der, "the old one is kept");
    }

    remove_file(place.file("b.pem")).unwrap();
    place.wait_shown("one.b.test", &a);
    assert!(!place.copy("b.pem").exists());
    remove_file(place.file("a.pem")).unwrap();
    until(PATIENCE, "the self-signed one again", || {
        place.shown(&Request::get("a.test", "/").tls("a.test")).is_ok_and(|shown| shown == self_signed)
    });
    until(PATIENCE, "HAProxy to forget what is gone", || {
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
fn a_manual_change_of_certificates_is_repaired() {
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
        until(PATIENCE, "another HAProxy", || place.worker().is_some_and(|now| now != pid));
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
        until(PATIENCE, "the copies to go", || {
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
    let restarts = || log().matches(" restarting HAProxy ").count();
    let before = restarts();
    // With its key of 1.7 kB it is too long, without it isn't.
    let long = Certificate::rsa("a.test").with_chain(16_100);
    long.write(place.file("a.pem"));
    place.wait_shown("a.test", &long);
    assert_eq!(restarts(), before, "{}", log());

    let longest = Certificate::of(&["a.test"]).with_chain(20_000);
    longest.write(place.file("a.pem"));
    place.wait_shown("a.test", &longest);
    until(PATIENCE, "the restart to be over", || {
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
    let build = Ground::build().http("shop", "shop.test", &["shop"]).http("acme", "shop.test", &["acme"]);
    let build = build.set("http-services/shop", &[("tls", "terminate")]);
    let ground = build.set("http-services/acme", &[("path", "/.well-known/acme-challenge/")]).start();
    let balancer = &ground.balancer;
    let answer = balancer.wait_status(PATIENCE, "shop.test", "/.well-known/acme-challenge/token", 200);
    assert_eq!(answer.app(), "acme");
    balancer.wait_status(PATIENCE, "shop.test", "/.well-known/", 308);
}

#[test]
fn an_expiring_certificate_is_named_in_the_log() {
    // Half a day past a whole one, so that the number of days doesn't hang on when it is counted.
    let soon = Certificate::until("soon.test", Duration::from_secs(4 * 24 * 3600 + 12 * 3600));
    let place = Place::new(&[], &[("soon.pem", &soon), ("later.pem", &Certificate::of(&["later.test"]))]);
    place.balancer.wait_logged("certs/soon.pem for soon.test: expires in 4 days");
    assert!(!place.balancer.log("confgen").contains("later.test: expires"));
    assert!(read_to_string(place.copy("crt-list.txt")).unwrap().contains("soon.pem"), "it is served all the same");
}

const DAY: Duration = Duration::from_secs(24 * 3600);

fn expired(name: &str) -> Certificate {
    let now = SystemTime::now();
    Certificate::between(name, now - 30 * DAY, now - DAY)
}

#[test]
fn the_valid_certificate_serves_whatever_its_file_is_called() {
    let _turn = light();
    let (old, new) = (expired("shop.test"), Certificate::until("shop.test", 30 * DAY));
    let place = Place::new(&[], &[("shop-2025.pem", &old), ("shop-2026.pem", &new)]);
    let before = place.worker();
    place.wait_shown("shop.test", &new);
    place.wait_shown("unknown.test", &new);
    // A renewal over the Runtime API puts a certificate behind all others.
    let newer = Certificate::until("shop.test", 60 * DAY);
    newer.write(place.file("shop-2026.pem"));
    place.wait_shown("shop.test", &newer);
    let newest = Certificate::until("shop.test", 90 * DAY);
    newest.write(place.file("a.pem"));
    place.wait_shown("shop.test", &newest);
    remove_file(place.file("a.pem")).unwrap();
    place.wait_shown("shop.test", &newer);
    remove_file(place.file("shop-2026.pem")).unwrap();
    place.wait_shown("shop.test", &old);
    newest.write(place.file("z.pem"));
    place.wait_shown("shop.test", &newest);
    place.wait_shown("unknown.test", &newest);
    assert_eq!(place.worker(), before, "no restart");
    // The list that HAProxy starts with says the same.
    place.balancer.restart();
    place.wait_shown("shop.test", &newest);
}

#[test]
fn a_certificate_serves_from_the_moment_when_it_is_the_best() {
    let _turn = light();
    let place = Place::new(&[], &[]);
    let before = place.worker();
    let now = SystemTime::now();
    let seconds = Duration::from_secs;
    // An exact name is better than a wildcard, for as long as it is valid.
    let ends = Certificate::between("a.turn.test", now - DAY, now + seconds(30));
    let wild = Certificate::until("*.turn.test", 30 * DAY);
    let begins = Certificate::between("a.turn.test", now + seconds(60), now + 30 * DAY);
    for (name, certificate) in [("wild.pem", &wild), ("begins.pem", &begins), ("ends.pem", &ends)] {
        certificate.write(place.file(name));
    }
    place.wait_shown("b.turn.test", &wild);
    let request = Request::get("a.turn.test", "/").tls("a.turn.test");
    let mut seen = Vec::new();
    until(seconds(150), "the certificate whose validity begins last", || {
        let shown = place.shown(&request)?;
        let known = [("ends", &ends), ("wild", &wild), ("begins", &begins)];
        let name = known.iter().find(|(_, it)| it.der == shown).map_or("self-signed", |(name, _)| name);
        if seen.last() != Some(&name) {
            seen.push(name);
        }
        if name == "begins" { Ok(()) } else { Err(name.to_owned()) }
    });
    seen.retain(|name| *name != "self-signed");
    assert_eq!(seen[seen.len() - 2..], ["wild", "begins"], "{seen:?}");
    assert!(seen.len() == 2 || seen == ["ends", "wild", "begins"], "{seen:?}");
    assert_eq!(place.worker(), before, "no restart");
}

#[test]
fn an_exact_name_is_served_before_a_wildcard_with_another_kind_of_key() {
    let _turn = light();
    let (exact, wild) = (Certificate::rsa("a.kind.test"), Certificate::of(&["*.kind.test"]));
    let place = Place::new(&[], &[("exact.pem", &exact)]);
    let before = place.worker();
    place.wait_shown("a.kind.test", &exact);
    wild.write(place.file("wild.pem"));
    place.wait_shown("b.kind.test", &wild);
    place.wait_shown("a.kind.test", &exact);
    remove_file(place.file("exact.pem")).unwrap();
    place.wait_shown("a.kind.test", &wild);
    assert_eq!(place.worker(), before, "no restart");
}

#[test]
fn a_certificate_for_two_names_gives_one_of_them_up_to_a_better_one() {
    let _turn = light();
    let both = Certificate::of(&["one.both.test", "two.both.test"]);
    let place = Place::new(&[], &[]);
    let before = place.worker();
    let better = Certificate::of(&["two.both.test"]);
    let worse = Certificate::until("one.both.test", 30 * DAY);
    for (name, certificate) in [("a-worse.pem", &worse), ("both.pem", &both)] {
        certificate.write(place.file(name));
    }
    place.wait_shown("one.both.test", &both);
    place.wait_shown("two.both.test", &both);
    // Both end in the year 4096; the first file's name decides.
    better.write(place.file("a-better.pem"));
    place.wait_shown("two.both.test", &better);
    place.wait_shown("one.both.test", &both);
    assert_eq!(place.worker(), before, "no restart");
}

#[test]
fn what_common_tools_write_is_served() {
    let _turn = light();
    let place = Place::new(&[], &[]);
    let before = place.worker();
    let mut written = Vec::new();
    let mut write_whole = |name: &str, host: &str| {
        let certificate = Certificate::of(&[host]);
        certificate.write(place.file(name));
        written.push((host.replace('*', "any"), certificate));
    };
    write_whole("_.lego.test.pem", "*.lego.test");
    write_whole("_wildcard.mkcert.test.pem", "*.mkcert.test");
    write_whole("SHOP.PEM", "upper.test");
    write_whole("a name (2).pem", "blank.test");
    write_whole("default.pem", "default.test");
    create_dir(place.file("certbot.test")).unwrap();
    for (certificate_file, key_file, host) in [
        ("shop.crt", "shop.key", "pair.test"),
        ("_.acme.test.cer", "_.acme.test.key", "*.acme.test"),
        ("multi.test+1.pem", "multi.test+1-key.pem", "multi.test"),
        ("certbot.test/fullchain.pem", "certbot.test/privkey.pem", "certbot.test"),
        ("odd.crt", "no-name-in-common.key", "odd.test"),
    ] {
        let certificate = Certificate::of(&[host]);
        let (own, key) = certificate.parts();
        write(place.file(certificate_file), own);
        write(place.file(key_file), key);
        written.push((host.replace('*', "any"), certificate));
    }
    for (host, certificate) in &written {
        place.wait_shown(host, certificate);
    }
    until(PATIENCE, "nothing to be refused", || {
        let refused = place.balancer.api("certificates")["refused"].clone();
        if refused == serde_json::json!({}) { Ok(()) } else { Err(refused.to_string()) }
    });
    assert_eq!(place.worker(), before, "no restart");
}

#[test]
fn a_file_that_changes_in_any_way_is_read_again() {
    let _turn = light();
    let place = Place::new(&[], &[]);
    let before = place.worker();
    // A link to one file, then to another of the same length and time.
    let [one, two] = ["one", "two"].map(|_| Certificate::of(&["link.test"]));
    let time = SystemTime::now() - DAY;
    create_dir(place.balancer.folder().join("archive")).unwrap();
    for (name, certificate) in [("one", &one), ("two", &two)] {
        let path = place.balancer.folder().join("archive").join(name);
        write(&path, format!("{:3000}\n", certificate.pem));
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
    let link = |name: &str| {
        symlink(place.balancer.folder().join("archive").join(name), place.file(".new")).unwrap();
        rename(place.file(".new"), place.file("link.pem")).unwrap();
    };
    link("one");
    place.wait_shown("link.test", &one);
    link("two");
    place.wait_shown("link.test", &two);
    // Written in place, at once, with the same length.
    for _ in 0..5 {
        let certificate = Certificate::of(&["place.test"]);
        std::fs::write(place.file("place.pem"), format!("{:3000}\n", one.pem)).unwrap();
        std::fs::write(place.file("place.pem"), format!("{:3000}\n", certificate.pem)).unwrap();
        place.wait_shown("place.test", &certificate);
    }
    assert_eq!(place.worker(), before, "no restart");
}

#[test]
fn a_fifo_is_refused_and_nothing_hangs() {
    let _turn = light();
    let shop = expired("fifo.test");
    let place = Place::new(&[], &[("shop.pem", &shop)]);
    for dir in ["certs", "ca"] {
        let dir = place.balancer.folder().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        mkfifo(&dir.join("x.pem"), Mode::S_IRWXU).unwrap();
    }
    symlink("/dev/zero", place.file("zero.pem")).unwrap();
    place.balancer.wait_logged("x.pem reason=it is a FIFO, not a regular file");
    place.balancer.wait_logged("zero.pem reason=it is a character device");
    let later = Certificate::of(&["later.test"]);
    later.write(place.file("later.pem"));
    place.wait_shown("later.test", &later);
    let ready = place.balancer.asked("/ready").unwrap();
    assert_eq!(ready.status, 200, "{}", ready.body);

    place.etcd.put("http-services/shop/domain", "fifo.test");
    place.etcd.put("http-services/shop/tls", "terminate");
    let certs = |arguments: &[&str]| {
        let mut command = Command::new(bin("discoverctl"));
        command.args(arguments).args(["--endpoints", &place.etcd.endpoints()]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    until(PATIENCE, "the host in discoverctl's answer", || {
        let (code, said) = certs(&["certs", "fifo.test", "--output", "json"]);
        let said: Value = serde_json::from_str(&said).map_err(|error| error.to_string())?;
        let is_there = said["hosts"][0]["certificates"][0]["validity"] == "expired" && code == Some(1);
        let is_refused = said["refused"].as_array().is_some_and(|files| files.len() == 2);
        if is_there && is_refused { Ok(()) } else { Err(said.to_string()) }
    });
    let (code, linted) = certs(&["lint"]);
    assert_eq!(code, Some(1));
    for words in ["certificate_refused", "it is a FIFO", "certificate_expired"] {
        assert!(linted.contains(words), "{words}: {linted}");
    }
    let (_, table) = certs(&["certs"]);
    assert!(table.contains("REFUSED") && table.contains("later.pem"), "{table}");
}

#[test]
fn no_program_waits_for_a_special_file_that_it_is_given() {
    let folder = Scratch::new();
    let fifo = folder.join("fifo");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let fifo = fifo.display().to_string();
    let state = folder.join("state").display().to_string();
    let cfg = folder.join("haproxy.cfg").display().to_string();
    let https = ["--endpoints", "https://127.0.0.1:1", "--cacert", &fifo];
    let confgen = ["once", "--state-dir", &state, "--haproxy-cfg", &cfg];
    let admin = ["--admin", "127.0.0.1:0", "--admin-token-file", &fifo];
    let cases: [(&str, Vec<&str>); 6] = [
        ("announcer", vec!["check-config", &fifo]),
        ("discoverctl", vec!["import", &fifo, "--dry-run"]),
        ("discoverctl", [&["list"][..], &https].concat()),
        ("confgen", [&confgen[..], &https].concat()),
        ("confgen", [&["--state-dir", &state, "--haproxy-cfg", &cfg][..], &admin].concat()),
        ("announcer", [&["--domain", "a.test", "--upstream", "127.0.0.1:1"][..], &admin].concat()),
    ];
    for (program, arguments) in cases {
        // `timeout` answers 124 for a program that hangs.
        let output = Command::new("timeout").arg("60").arg(bin(program)).args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!matches!(output.status.code(), Some(0 | 124) | None), "{program} {arguments:?}: {said}");
        assert!(said.contains("FIFO"), "{program} {arguments:?}: {said}");
    }
}
