//! One etcd, one address that answers, and announcers for it.

use std::{
    fmt::Display,
    net::{SocketAddr, TcpListener},
    process::Command,
    time::Duration,
};

use lab::{Etcd, Process, Scratch, until};

/// The key that every announcer here writes, unless it is told otherwise.
pub(crate) const KEY: &str = "http-services/shop/upstreams/a";

/// What the announcers here call their host.
pub(crate) const HOST: &str = "lab-1";

/// Long enough for anything that takes no time on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// Where a test takes place. The address answers because the test itself listens there, so that any shell script can
/// be the app.
pub(crate) struct Site {
    pub(crate) etcd: Etcd,
    pub(crate) folder: Scratch,
    listener: TcpListener,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self::with(Etcd::start())
    }

    /// The same with another etcd.
    pub(crate) fn with(etcd: Etcd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { etcd, folder: Scratch::new(), listener }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// An announcer of `shop/a` at the site's address.
    pub(crate) fn command(&self, flags: &[&str]) -> Command {
        let mut command = self.command_at(&self.address().to_string(), flags);
        command.args(["--service", "shop", "--id", "a"]);
        command
    }

    /// An announcer for any address; the flags name the rest.
    pub(crate) fn command_at(&self, upstream: &str, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_announcer"));
        command.args(flags).args(["--endpoints", &self.etcd.endpoints(), "--upstream", upstream]);
        command.args(["--host-name", HOST]);
        command.env("KEY", format!("{}{KEY}", lab_prefix())).env("ETCDCTL_API", "3").current_dir(&*self.folder);
        command
    }

    /// Announces beside an app.
    pub(crate) fn beside(&self, name: &str, flags: &[&str]) -> Process {
        Process::start(&self.folder, name, &mut self.command(flags))
    }

    /// Wraps a shell script, which finds `$KEY` and an `etcdctl` that knows its way in its environment.
    pub(crate) fn wrap(&self, flags: &[&str], script: &str) -> Process {
        let mut command = self.command(flags);
        command.env("ETCDCTL_ENDPOINTS", self.etcd.endpoints()).args(["--", "sh", "-c", script]);
        Process::start(&self.folder, "announcer", &mut command)
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(&self, command: &mut Command) -> (i32, String) {
        let mut process = Process::start(&self.folder, "one-shot", command);
        let status = process.wait(SOON * 2);
        (status.code().expect("an exit code"), process.log())
    }

    #[track_caller]
    pub(crate) fn until_value(&self, value: &str) {
        until(SOON, &format!("{KEY} = {value}"), || match self.etcd.get(KEY) {
            Some(stands) if stands == value => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// Waits for the record of the site's own address.
    #[track_caller]
    pub(crate) fn until_registered(&self) {
        self.until_value(&self.record());
    }

    /// Waits for a file that the app writes, with a line break at its end, and returns it without that.
    #[track_caller]
    pub(crate) fn until_file(&self, name: &str) -> String {
        until(SOON, name, || {
            let text = std::fs::read_to_string(self.folder.join(name)).ok()?;
            text.strip_suffix('\n').map(str::to_owned)
        })
    }

    /// All values that a key had, in order; an empty one is its absence after that.
    pub(crate) fn history(&self, key: &str) -> Vec<String> {
        let mut values: Vec<String> = Vec::new();
        for revision in 2..=self.etcd.revision() {
            let output = Command::new("etcdctl")
                .env("ETCDCTL_API", "3")
                .args(["--endpoints", &self.etcd.endpoints(), "get", "--print-value-only"])
                .args(["--rev", &revision.to_string(), &format!("{}{key}", lab_prefix())])
                .output()
                .expect("etcdctl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let value = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
            if *values.last().unwrap_or(&String::new()) != value {
                values.push(value);
            }
        }
        values
    }

    /// A balancer that says this, under a lease of its own, which is returned.
    pub(crate) fn balancer(&self, node: &str, value: &str) -> i64 {
        let lease = self.etcd.grant(600);
        self.etcd.put_leased(&format!("balancers/{node}"), value, lease);
        lease
    }

    /// What a balancer says that runs everything up to this revision, with `,"field":…` instead of empty lists.
    pub(crate) fn applied(&self, revision: i64, fields: &str) -> String {
        let answer = self.etcd.ask(|mut client| async move { client.get("x", None).await });
        let cluster = answer.header().expect("a header").cluster_id();
        let empty = [("pending", "[]"), ("held", "[]"), ("draining", "{}")];
        let empty = empty.iter().filter(|(name, _)| !fields.contains(&format!("\"{name}\"")));
        let lists: String = empty.map(|(name, list)| format!(r#","{name}":{list}"#)).collect();
        format!(r#"{{"cluster":"{cluster}","seen":{revision},"applied":{revision}{lists}{fields}}}"#)
    }

    /// The revision at which a key was last written.
    pub(crate) fn written_at(&self, key: &str) -> i64 {
        let key = format!("{}{key}", lab_prefix());
        let answer = self.etcd.ask(|mut client| async move { client.get(key, None).await });
        answer.kvs().first().expect("the key").mod_revision()
    }

    /// Has etcd ask for a user: `shop:word` may write upstreams and read services, but not `balancers/`. `root:secret`
    /// may everything.
    pub(crate) fn guard(&self) {
        for line in [
            "user add root:secret",
            "user grant-role root root",
            "role add shop",
            "role grant-permission shop read --prefix=true /haproxy-discover/http-services/",
            "role grant-permission shop readwrite --prefix=true /haproxy-discover/http-services/shop/upstreams/",
            "user add shop:word",
            "user grant-role shop shop",
            "auth enable",
        ] {
            self.etcdctl(line);
        }
    }

    /// etcdctl's answer.
    #[track_caller]
    pub(crate) fn etcdctl(&self, line: &str) -> String {
        let output = Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.etcd.endpoints()])
            .args(line.split_whitespace())
            .output()
            .expect("etcdctl");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The record's value while the app works.
    pub(crate) fn record(&self) -> String {
        record(self.address(), "")
    }

    /// The record's value in a state.
    pub(crate) fn value(&self, state: &str) -> String {
        record(self.address(), &format!(r#","state":"{state}""#))
    }
}

/// The value of an announcer's record here, with `,"field":…` between the address and the host.
pub(crate) fn record(address: impl Display, fields: &str) -> String {
    format!(r#"{{"address":"{address}"{fields},"host":"{HOST}"}}"#)
}

fn lab_prefix() -> &'static str {
    "/haproxy-discover/"
}

/// The number of leases that the store has.
pub(crate) fn leases(etcd: &Etcd) -> usize {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", &etcd.endpoints(), "lease", "list"])
        .output()
        .expect("etcdctl");
    // "found 2 leases", then one a line.
    String::from_utf8_lossy(&output.stdout).lines().count().saturating_sub(1)
}
