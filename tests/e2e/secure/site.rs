//! The page's hosts, all in one folder: an etcd, a balancer and two announced apps, as its blocks set them up.

use std::collections::BTreeMap;
use std::fs::{create_dir, read_to_string};
use std::path::PathBuf;
use std::process::{Command, Output};

use lab::{App, Balancer, PATIENCE, Process, Scratch, Setup, Signal, bin, free_port, until};

use super::{FIRST, page};

/// What sets the site up, before etcd runs and after.
pub(super) const BEFORE_ETCD: [&str; 2] = ["The authority and its certificates", "etcd"];
pub(super) const WITH_ETCD: [&str; 4] = ["Users and roles", "confgen", "announcer", "With a password instead"];

/// Another address than the one that etcd listens on anyway.
const ADDRESS: &str = "127.0.0.2";

/// What the page's authority, etcd and files are, and the processes that use them. Fields end in this order.
pub(super) struct Site {
    pub(super) balancer: Option<Balancer>,
    pub(super) announcers: Vec<Process>,
    pub(super) apps: Vec<App>,
    etcd: Option<Process>,
    ports: [u16; 2],
    folder: Scratch,
}

impl Site {
    /// An etcd with certificates, users and roles; nothing else runs yet.
    pub(super) fn secured() -> Self {
        let (folder, ports) = (Scratch::new(), [free_port(), free_port()]);
        create_dir(folder.join("units")).unwrap();
        let mut site = Self { balancer: None, announcers: Vec::new(), apps: Vec::new(), etcd: None, ports, folder };
        BEFORE_ETCD.iter().for_each(|heading| site.follow(heading));
        site.start_etcd();
        WITH_ETCD.iter().for_each(|heading| site.follow(heading));
        site
    }

    /// The same with a balancer, and with `shop.test` and `blog.test` served by an app each.
    pub(super) fn serving() -> Self {
        let mut site = Self::secured();
        // Its announcer may not write it.
        site.assert_done("login operator put /haproxy-discover/http-services/blog/domain blog.test");
        site.serve("shop", &["--domain", "shop.test"]);
        site.serve("blog", &[]);
        let balancer = Setup::new().confgen_with(&site.variables(&["etcd.env", "confgen.env"])).start();
        for host in ["shop.test", "blog.test"] {
            balancer.wait_status(PATIENCE, host, "/", 200);
        }
        balancer.wait_settled(PATIENCE);
        site.balancer = Some(balancer);
        site
    }

    /// Starts an app, and its announcer beside it.
    fn serve(&mut self, name: &str, flags: &[&str]) {
        let app = App::alone(name);
        self.announce(&app, flags);
        self.apps.push(app);
    }

    /// Starts an app's announcer as `announcer@NAME` would.
    pub(super) fn announce(&mut self, app: &App, flags: &[&str]) {
        let name = &app.name;
        let mut command = Command::new(bin("announcer"));
        command.envs(self.variables(&["etcd.env", &format!("app-{name}.env")]));
        command.args(["--service", name, "--id", "node-1", "--upstream", &app.address.to_string()]).args(flags);
        // A lease that is longer than a busy machine needs to start etcd.
        command.args(["--ttl", "30s"]);
        self.announcers.push(Process::start(&self.folder, &format!("announcer-{name}"), &mut command));
    }

    /// What the units' files set, the later file before the earlier one.
    pub(super) fn variables(&self, files: &[&str]) -> BTreeMap<String, String> {
        let text: String = files.iter().map(|file| read_to_string(self.etc().join(file)).unwrap()).collect();
        let lines = text.lines().map(|line| line.split_once('=').expect(line));
        lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// The page's `$CA`.
    pub(super) fn authority(&self) -> PathBuf {
        self.folder.join("authority")
    }

    /// The page's `$UNITS`.
    pub(super) fn units(&self) -> PathBuf {
        self.folder.join("units")
    }

    fn etc(&self) -> PathBuf {
        self.folder.join("etc")
    }

    /// Where clients reach etcd, and where members do.
    pub(super) fn urls(&self) -> [String; 2] {
        self.ports.map(|port| format!("https://{ADDRESS}:{port}"))
    }

    /// As `etcd@node1` does.
    fn start_etcd(&mut self) {
        let mut command = Command::new("etcd");
        command.envs(self.variables(&["etcd-node1.env"]));
        command.env("ETCD_NAME", "node1").env("ETCD_DATA_DIR", self.folder.join("data"));
        command.args(["--logger", "zap", "--log-level", "warn"]);
        self.etcd = Some(Process::start(&self.folder, "etcd", &mut command));
        until(PATIENCE, "etcd", || {
            let output = self.run("as host endpoint health");
            if output.status.success() { Ok(()) } else { Err(said(&output)) }
        });
    }

    /// `systemctl restart etcd@node1`.
    pub(super) fn restart_etcd(&mut self) {
        let mut etcd = self.etcd.take().unwrap();
        etcd.signal(Signal::SIGTERM);
        etcd.wait(PATIENCE);
        self.start_etcd();
    }

    /// How many connections etcd has not let in.
    pub(super) fn rejected(&self) -> usize {
        self.etcd.as_ref().unwrap().log().matches("rejected connection").count()
    }

    /// Runs all blocks below a heading.
    #[track_caller]
    pub(super) fn follow(&self, heading: &str) {
        self.assert_done(&page().below(heading).concat());
    }

    /// Runs a script after the page's first block, and returns what it says. It has to succeed.
    #[track_caller]
    pub(super) fn assert_done(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(output.status.success(), "{script}\n{}", said(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs a script after the page's first block.
    pub(super) fn run(&self, script: &str) -> Output {
        let path = std::env::var("PATH").unwrap();
        let [port, peer_port] = self.ports.map(|port| port.to_string());
        let me = ["-un", "-gn"].map(|flag| Command::new("id").arg(flag).output().unwrap().stdout);
        let me = me.map(|name| String::from_utf8(name).unwrap().trim().to_owned()).join(":");
        Command::new("sh")
            .args(["-euc", &(page().below(FIRST).concat() + script)])
            .env("PATH", format!("{}:{path}", bin("discoverctl").parent().unwrap().display()))
            .env("CA", self.authority())
            .env("ETCD", self.folder.join("etcd"))
            .env("ETC", self.etc())
            .env("UNITS", self.units())
            .envs([("ADDRESS", ADDRESS), ("PORT", &port), ("PEER_PORT", &peer_port)])
            .envs([("FOR_ETCD", &me), ("FOR_CONFGEN", &me), ("FOR_ANNOUNCERS", &me)])
            .output()
            .unwrap()
    }

    /// Stops the announcers as systemd does; they have to end well, and to leave nothing behind.
    pub(super) fn withdraw(&mut self) {
        for mut announcer in self.announcers.drain(..) {
            announcer.signal(Signal::SIGTERM);
            assert!(announcer.wait(PATIENCE).success(), "{}", announcer.log());
        }
        for service in ["shop", "blog"] {
            let below = format!("/haproxy-discover/http-services/{service}/upstreams/");
            assert_eq!(self.assert_done(&format!("login viewer get --prefix {below}")), "");
        }
    }
}

/// All that a command has said.
pub(super) fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned()).concat()
}
