//! The operator's own files: read before the generated one, filled where they ask for it, judged by themselves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::thread::{scope, sleep, spawn};
use std::time::{Duration, Instant};

use lab::http::{Request, Response};
use lab::load::{Kind, Plan};
use lab::{
    App, Balancer, Etcd, Ground, PATIENCE, Pid, Process, Scratch, Setup, bin, free_address, light, medium, until, write,
};

/// Restarts need not keep their distance here: each change of a filled section is one.
const AT_ONCE: [&str; 2] = ["--restart-interval", "100ms"];

/// A balancer with a file of the operator's that is filled with the upstreams of `shop`.
struct Scene {
    etcd: Etcd,
    balancer: Balancer,
    /// What the operator's directory has: a link.
    link: PathBuf,
    /// Where it leads.
    file: PathBuf,
    /// Where the operator's own frontend listens.
    port: SocketAddr,
}

/// What people wrote, around the comment that is the pattern.
fn text(port: SocketAddr) -> String {
    format!(
        "# Ours, not confgen's.
defaults slow
    mode http
    timeout client 5m
    timeout connect 2s
    timeout server 5m

defaults ours
    mode http
    option idle-close-on-response
    option redispatch 1
    timeout client 1m
    timeout connect 2s
    timeout http-keep-alive 4s
    timeout server 1m

frontend mine
    bind {port}
    default_backend mine

backend mine
    balance roundrobin
    retry-on conn-failure empty-response
\t# discover shop: server s-<id> <address> check inter 500
    # the last line
"
    )
}

const PATTERN: &str = "\t# discover shop: server s-<id> <address> check inter 500\n";

impl Scene {
    /// `around` is what else has to be there before the first start.
    fn start(around: impl FnOnce(&Etcd, &Setup)) -> Self {
        let (build, port) = (Ground::build(), free_address());
        let setup = &build.setup;
        let (kept, link) = (setup.folder().join("kept"), setup.folder().join("conf.d/20-mine.cfg"));
        fs::create_dir(&kept).unwrap();
        let file = kept.join("mine.cfg");
        write(&file, text(port));
        // daemon, on every Debian.
        chown(&file, Some(1), Some(1)).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        symlink("../kept/mine.cfg", &link).unwrap();
        around(&build.etcd, setup);
        let flags = [&AT_ONCE[..], &["--fill", link.to_str().unwrap()]].concat();
        let Ground { etcd, balancer, .. } = build.flags(&flags).launch();
        Self { etcd, balancer, link, file, port }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    /// What people wrote is there to the byte, with these lines of confgen's, for this pattern.
    fn says(&self, people: &str, pattern: &str, lines: &[String]) -> Result<(), String> {
        let lines: String = lines.iter().map(|line| format!("\t{line}\n")).collect();
        let expected = people.replace(pattern, &format!("{pattern}{lines}"));
        if self.text() == expected { Ok(()) } else { Err(self.text()) }
    }

    #[track_caller]
    fn wait_lines(&self, lines: &[String]) {
        until(PATIENCE, &format!("{lines:?} in the operator's file"), || self.says(&text(self.port), PATTERN, lines));
        self.balancer.wait_in_sync(PATIENCE);
    }

    fn ask(&self) -> Option<Response> {
        Request::get("any.test", "/").send(self.port).ok().filter(|response| response.status == 200)
    }

    /// Waits until the operator's own frontend leads to these apps and to no other.
    #[track_caller]
    fn wait_apps(&self, names: &[&str]) {
        until(PATIENCE, &format!("{names:?} to answer at the operator's frontend"), || {
            let mut seen: Vec<String> =
                (0..6).filter_map(|_| self.ask()).map(|response| response.app().to_owned()).collect();
            seen.sort();
            seen.dedup();
            if seen == names { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    }

    /// Waits until HAProxy runs all that is wanted, and old ones have ended; says which one it is, and how often it was
    /// restarted.
    #[track_caller]
    fn settled(&self) -> (Pid, usize) {
        until(PATIENCE, "nothing to wait for a restart", || {
            let body = self.balancer.asked("/ready").map_err(|error| error.to_string())?.body;
            if body.starts_with("in sync") && !body.contains("wait for a restart") { Ok(()) } else { Err(body) }
        });
        self.balancer.wait_settled(PATIENCE);
        (self.balancer.worker(), self.balancer.restarts())
    }
}

fn line(app: &App, more: &str) -> String {
    format!("server s-{} {} check inter 500{more}", app.name, app.address)
}

#[test]
fn a_section_that_people_keep_is_filled_and_every_other_byte_stays() {
    let _turn = light();
    let (one, two) = (App::alone("shop-1"), App::alone("shop-2"));
    let scene = Scene::start(|etcd, _| etcd.http_service("shop", "shop.test", &[&one]));
    let Scene { etcd, balancer, .. } = &scene;
    scene.wait_lines(&[line(&one, "")]);
    scene.wait_apps(&["shop-1"]);

    // What is open there in an old process counts: an announcer would wait for it.
    let (_, restarts) = scene.settled();
    let long = {
        let port = scene.port;
        spawn(move || (Request::get("any.test", "/slow?ms=7000").send(port).map(|it| it.status), Instant::now()))
    };
    until(PATIENCE, "the request to be under way", || {
        // By its name, the frontend would be asked.
        let table = balancer.ask("show stat -1 4 -1");
        if table.contains("mine,s-shop-1,0,0,1,") { Ok(()) } else { Err(table) }
    });
    etcd.put("http-services/shop/overrides/shop-1", r#"{"state":"drain"}"#);
    let open = || balancer.api("balancer")["draining"]["http-shop/shop-1"].as_i64();
    until(PATIENCE, "the drain", || open().is_some());
    until(PATIENCE, "the end of the drain", || if let Some(count) = open() { Err(count) } else { Ok(()) });
    let over = Instant::now();
    let (status, ended) = long.join().unwrap();
    assert_eq!(status.unwrap(), 200);
    assert!(ended <= over, "the drain was over {:?} before the request", ended - over);
    assert!(
        balancer.restarts() > restarts,
        "a filled section changes by a restart: the request was in the old process"
    );
    etcd.delete("http-services/shop/overrides/shop-1");

    etcd.http_service("shop", "shop.test", &[&one, &two]);
    scene.wait_lines(&[line(&one, ""), line(&two, "")]);
    scene.wait_apps(&["shop-1", "shop-2"]);
    assert_eq!(fs::read_link(&scene.link).unwrap(), PathBuf::from("../kept/mine.cfg"), "a link stays one");
    let metadata = fs::metadata(&scene.file).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o640, 1, 1), "mode and owner stay");
    assert_eq!(fs::read_dir(scene.file.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");

    etcd.put("http-services/shop/overrides/shop-1", r#"{"state":"drain"}"#);
    scene.wait_lines(&[line(&one, " weight 0"), line(&two, "")]);
    scene.wait_apps(&["shop-2"]);
    etcd.put("http-services/shop/overrides/shop-1", r#"{"state":"maint"}"#);
    scene.wait_lines(&[line(&one, " disabled"), line(&two, "")]);
    etcd.delete("http-services/shop/overrides/shop-1");
    scene.wait_lines(&[line(&one, ""), line(&two, "")]);
    scene.wait_apps(&["shop-1", "shop-2"]);

    // confgen's own writing is no reason for anything; nor is what doesn't concern the section.
    let before = scene.settled();
    etcd.put("http-services/shop/domain", "shop.test other.test");
    balancer.wait_status(PATIENCE, "other.test", "/", 200);
    until(PATIENCE, "the generated file", || balancer.file().contains("other.test"));
    assert_eq!((balancer.worker(), balancer.restarts()), before);
    assert!(!balancer.log("confgen").contains("overwrote an edit"), "its own lines are nobody's hand");

    // Somebody at work on confgen's lines: put right, and said.
    let by_hand = "server s-mine 127.0.0.1:9 check";
    write(&scene.file, scene.text().replace(&line(&one, ""), by_hand));
    scene.wait_lines(&[line(&one, ""), line(&two, "")]);
    let words = format!("below this comment file={} line=24", scene.link.display());
    until(PATIENCE, "confgen to say so", || {
        let log = balancer.log("confgen");
        if log.contains(&words) { Ok(()) } else { Err(log) }
    });
    scene.wait_apps(&["shop-1", "shop-2"]);

    etcd.delete("http-services/shop/upstreams/shop-1");
    etcd.delete("http-services/shop/upstreams/shop-2");
    scene.wait_lines(&[]);
    until(PATIENCE, "nobody to answer", || scene.ask().is_none());
}

/// The hand's lines stand for half a second: an editor's pause, and a check. A restart takes about as long.
#[test]
fn lines_that_are_written_by_hand_end_with_the_next_restart() {
    let _turn = light();
    let (one, other) = (App::alone("shop-1"), App::alone("other"));
    let scene = Scene::start(|etcd, _| etcd.http_service("shop", "shop.test", &[&one]));
    scene.wait_lines(&[line(&one, "")]);
    scene.wait_apps(&["shop-1"]);
    for round in 0..3 {
        scene.settled();
        let by_hand = format!("server s-other-{round} {}", other.address);
        write(&scene.file, scene.text().replace(&line(&one, ""), &by_hand));
        // confgen may see the need for another one at this very moment, and supervisorctl then say that its own failed.
        scene.balancer.ctl(&["restart", "haproxy"]);
        scene.wait_lines(&[line(&one, "")]);
        scene.wait_apps(&["shop-1"]);
    }
}

#[test]
fn an_edit_is_applied_or_refused_and_holds_nothing_else_up() {
    let _turn = light();
    let (one, two) = (App::alone("shop-1"), App::alone("shop-2"));
    let direct = free_address();
    let scene = Scene::start(|etcd, setup| {
        etcd.http_service("shop", "shop.test", &[&one]);
        // A section of theirs may lead to one of confgen's, which isn't there yet at the first start; and HAProxy's warnings
        // of theirs are theirs.
        let own =
            format!("defaults\n    mode http\nfrontend direct\n    bind {direct}\n    default_backend http-shop\n");
        write(setup.folder().join("conf.d/10-direct.cfg"), own);
        etcd.put("http-services/shop/profile", "slow");
    });
    let Scene { etcd, balancer, link, .. } = &scene;
    scene.wait_apps(&["shop-1"]);
    until(PATIENCE, "the way to the service's own section", || {
        Request::get("any.test", "/").send(direct).is_ok_and(|response| response.app() == "shop-1")
    });

    // What people change is followed: the pattern, and what else they write.
    let people = text(scene.port).replace("check inter 500", "check inter 700 weight <weight>");
    let people = people
        .replace("    default_backend mine\n", "    default_backend mine\n    http-response set-header X-Mine 1\n");
    let pattern = PATTERN.replace("check inter 500", "check inter 700 weight <weight>");
    write(&scene.file, &people);
    let lines = [format!("server s-shop-1 {} check inter 700 weight 100", one.address)];
    until(PATIENCE, "the new pattern", || scene.says(&people, &pattern, &lines));
    until(PATIENCE, "the new header", || scene.ask().is_some_and(|response| response.header("x-mine") == Some("1")));
    balancer.wait_in_sync(PATIENCE);
    scene.balancer.wait_ready(200, "in sync");

    // A pattern that HAProxy doesn't read: the old lines stay, and everything else goes on, restarts too.
    write(&scene.file, scene.text().replace("inter 700 weight <weight>\n", "inter 700 wieght <weight>\n"));
    scene.balancer.wait_ready(503, "unknown keyword 'wieght'");
    etcd.http_service("blog", "blog.test", &[&two]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    assert!(scene.text().contains(&format!("\t{}\n", lines[0])), "{}", scene.text());
    write(&scene.file, scene.text().replace("wieght", "weight"));

    // What HAProxy would not start with: no restart is tried, nobody is quarantined, servers come and go.
    let before = scene.settled();
    let good = scene.text();
    // Half of what the file had is gone, and a service relies on it.
    let broken = good.replace("defaults slow", "defaults quick").replace("balance roundrobin", "balance by mood");
    write(&scene.file, broken);
    scene.balancer.wait_ready(503, "balance only supports");
    etcd.http_service("shop", "shop.test", &[&one, &two]);
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    etcd.http_service("new", "new.test", &[&two]);
    until(PATIENCE, "the new service to be pending", || {
        balancer.asked("/api/v1/status").is_ok_and(|answer| answer.body.contains("http-new"))
    });
    scene.balancer.wait_ready(503, "balance only supports");
    assert_eq!((balancer.worker(), balancer.restarts()), before);
    // A name that a served service has, and a directory that isn't there, are no better.
    write(&scene.file, format!("{good}backend http-shop\n"));
    scene.balancer.wait_ready(
        503,
        "20-mine.cfg:28: `backend http-shop`: the section of http-services/shop, which is served, has",
    );
    let (dir, aside) = (link.parent().unwrap(), balancer.folder().join("aside"));
    fs::rename(dir, &aside).unwrap();
    scene.balancer.wait_ready(503, "No such file or directory");
    fs::rename(&aside, dir).unwrap();
    assert_eq!((balancer.worker(), balancer.restarts()), before);
    let log = balancer.log("confgen");
    assert!(!log.contains("quarantine"), "{log}");

    // Mended: all of it is served.
    write(&scene.file, &good);
    scene.balancer.wait_ready(200, "in sync");
    balancer.wait_status(PATIENCE, "new.test", "/", 200);
    scene.wait_apps(&["shop-1", "shop-2"]);
    let log = balancer.log("confgen");
    assert!(
        log.contains("HAProxy warns about the operator's files warning=missing timeouts for frontend 'direct'"),
        "{log}"
    );
    assert!(!log.contains("HAProxy warns about the generated file"), "{log}");

    // Ports that they bind are theirs.
    etcd.put("tcp-services/db/ports", scene.port.port().to_string());
    until(PATIENCE, "the port to be refused", || {
        let line = format!("20-mine.cfg:18 (`bind {}` in `frontend mine`) binds it", scene.port);
        balancer.log("confgen").contains(&line)
    });
}

#[test]
fn an_edit_while_confgen_writes_is_not_lost() {
    let _turn = light();
    let (one, two) = (App::alone("shop-1"), App::alone("shop-2"));
    let scene = Scene::start(|etcd, _| etcd.http_service("shop", "shop.test", &[&one]));
    scene.wait_lines(&[line(&one, "")]);
    // Twelve edits and twelve changes of the store, side by side; the store's without a distance to the edits' own rhythm.
    let edits = 12;
    let writer = scope(|scope| {
        let store = scope.spawn(|| {
            for number in 0..edits {
                let state = if number % 2 == 0 { "drain" } else { "ready" };
                scene.etcd.put("http-services/shop/overrides/shop-1", format!(r#"{{"state":"{state}"}}"#));
                sleep(Duration::from_millis(130));
            }
        });
        for number in 0..edits {
            write(&scene.file, format!("{}# edit {number}\n", scene.text()));
            sleep(Duration::from_millis(170));
        }
        store.join()
    });
    writer.unwrap();
    scene.etcd.http_service("shop", "shop.test", &[&two]);
    scene.etcd.put_all([("http-services/shop/overrides/shop-1".to_owned(), br#"{"state":"maint"}"#.to_vec())]);
    let edited: String = (0..edits).map(|number| format!("# edit {number}\n")).collect();
    let people = format!("{}{edited}", text(scene.port));
    let lines = [line(&one, " disabled"), line(&two, "")];
    until(PATIENCE, "every edit, and the right lines", || scene.says(&people, PATTERN, &lines));
    scene.balancer.wait_in_sync(PATIENCE);
    scene.balancer.wait_ready(200, "in sync");
    scene.wait_apps(&["shop-2"]);
}

#[test]
fn no_request_is_lost_while_a_filled_sections_upstreams_come_and_go() {
    const RATE: u32 = 300;
    let _turn = medium();
    let mut apps = Vec::new();
    let scene = Scene::start(|etcd, _| apps.extend((1..=2).map(|number| announced(etcd, number))));
    scene.wait_apps(&["shop-1", "shop-2"]);
    let before = scene.balancer.restarts();
    let load = |kind| Plan::new(kind, scene.port, "any.test").rate(RATE).workers(10).from("shop-").start();
    let loads = [Kind::PerRequest, Kind::KeepAlive].map(load);
    let late = announced(&scene.etcd, 3);
    scene.wait_apps(&["shop-1", "shop-2", "shop-3"]);
    // Its stop waits until no HAProxy, old ones included, sends anything there: from the filled section neither.
    assert!(apps.remove(0).stop().success());
    scene.wait_apps(&["shop-2", "shop-3"]);
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
    }
    assert!(scene.balancer.restarts() >= before + 2, "each change was a restart");
    drop(late);
}

fn announced(etcd: &Etcd, number: usize) -> App {
    App::announced(&format!("shop-{number}"), etcd, &["--service", "shop", "--domain", "shop.test"])
}

#[test]
fn a_command_line_with_other_files_is_out_of_sync() {
    let _turn = light();
    let ground = Ground::build().start();
    let balancer = &ground.balancer;
    balancer.wait_ready(200, "in sync");
    // Somebody starts it by hand, and forgets the operator's directory.
    let (socket, state, cfg) =
        (balancer.folder().join("admin.sock"), balancer.folder().join("servers.state"), balancer.haproxy_cfg());
    assert!(balancer.ctl(&["stop", "haproxy"]).status.success());
    let mut command = Command::new(bin("handover"));
    command.arg("--socket").arg(&socket).arg("--state-file").arg(&state).args(["--", "haproxy", "-f"]).arg(&cfg);
    let folder = Scratch::new();
    let mut by_hand = Process::start(&folder, "by-hand", &mut command);
    balancer.wait_ready(503, &format!("HAProxy was started with -f {}, and confgen checks -f ", cfg.display()));
    assert!(balancer.ctl(&["start", "haproxy"]).status.success());
    balancer.wait_ready(200, "in sync");
    by_hand.kill();
}

#[test]
fn a_file_that_haproxy_does_not_read_can_not_be_filled() {
    let folder = Scratch::new();
    let (dir, elsewhere) = (folder.join("conf.d"), folder.join("mine.cfg"));
    write(&elsewhere, "# discover shop: server <id> <address>\n");
    let confgen = |file: PathBuf| {
        let mut command = Command::new(bin("confgen"));
        command.arg("--haproxy-cfg").arg(folder.join("haproxy.cfg")).arg("--include").arg(&dir);
        command.arg("--state-dir").arg(folder.join("state")).args(["--admin", "off"]).env("CONFGEN_FILL", file);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, words) = confgen(elsewhere);
    assert!(code == Some(1) && words.contains("HAProxy doesn't read it: it has to be a *.cfg in --include"), "{words}");
    let (code, words) = confgen(dir.join("none.cfg"));
    assert!(code == Some(1) && words.contains("none.cfg: No such file or directory"), "{words}");
}
