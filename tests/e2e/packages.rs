//! What is handed out: the Debian package, on a host with systemd, and the static announcer, in images of all sorts.

use std::collections::BTreeSet;
use std::fs::{self, read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use lab::load::{Kind, Plan};
use lab::{Container, Image, Machine, Network, PATIENCE, SOURCE, Scratch, bin, heavy, light, until};

/// For two busy cores.
const DEADLINE: Duration = PATIENCE.saturating_mul(2);

/// A package, and one that is newer.
static DEBS: LazyLock<[Deb; 2]> = LazyLock::new(|| ["1.0.0", "1.0.1"].map(Deb::build));

struct Deb(Scratch);

impl Deb {
    /// Of the binaries that the tests run.
    fn build(version: &str) -> Self {
        let folder = Scratch::new();
        let built = bin("confgen").parent().unwrap().display().to_string();
        make(&["deb", &format!("BUILT={built}"), &format!("VERSION={version}"), "DEB_FLAGS=--fast"], &folder);
        Self(folder)
    }

    fn path(&self) -> PathBuf {
        only(&self.0)
    }
}

/// Into a folder of its own.
fn make(args: &[&str], folder: &Path) -> String {
    let mut make = Command::new("make");
    make.args(["--silent", "-C", SOURCE]).args(args).arg(format!("DIST={}", folder.display()));
    run(make.env_remove("MAKEFLAGS"))
}

/// What it says; it has to succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// The one file in a folder.
fn only(folder: &Path) -> PathBuf {
    let all: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn the_package_is_what_make_install_lays_out() {
    let _turn = light();
    let [deb, _] = &*DEBS;
    run(Command::new("lintian").args(["--allow-root", "--fail-on", "error,warning"]).arg(deb.path()));

    let again = Deb::build("1.0.0");
    assert!(read(deb.path()).unwrap() == read(again.path()).unwrap(), "the same source, other bytes");

    let [packed, laid_out] = [Scratch::new(), Scratch::new()];
    run(Command::new("dpkg-deb").arg("--extract").arg(deb.path()).arg(&*packed));
    let built = bin("confgen").parent().unwrap().display().to_string();
    make(&["install", &format!("BUILT={built}"), &format!("DESTDIR={}", laid_out.display())], Path::new(""));
    let [packed, laid_out] = [files(&packed), files(&laid_out)];
    let doc = "usr/share/doc/haproxy-discover/";
    let more =
        [format!("{doc}changelog"), format!("{doc}copyright"), "usr/share/lintian/overrides/haproxy-discover".into()];
    assert_eq!(packed.difference(&laid_out).cloned().collect::<BTreeSet<_>>(), BTreeSet::from(more));
    assert_eq!(laid_out.difference(&packed).cloned().collect::<Vec<_>>(), [format!("{doc}LICENSE")]);
}

/// All files, as paths below the folder, by their names before they were packed.
fn files(folder: &Path) -> BTreeSet<String> {
    let found = run(Command::new("find").arg(folder).args(["!", "-type", "d", "-printf", "%P\\n"]));
    found.lines().map(|it| it.trim_end_matches(".gz").to_owned()).collect()
}

/// A balancer, a store and two copies of an app, on one host.
struct OneHost(Machine);

impl OneHost {
    const UNITS: &str = "etcd@node1 haproxy-supervisord confgen app@a app@b announcer@a announcer@b";

    /// What doesn't go on when its package is upgraded, but for the app: main processes of units, and HAProxy.
    const PIDS: &str = "systemctl show --property=MainPID --value etcd@node1 haproxy-supervisord confgen announcer@a \
                        announcer@b; ps -C haproxy -o pid=";

    /// What the package needs is there: no mirror is asked.
    fn apt(&self, command: &str) -> String {
        self.0.sh(&format!("DEBIAN_FRONTEND=noninteractive apt-get {command} --yes 2>&1"))
    }

    fn install(&self, deb: &Deb) -> String {
        let name = deb.path().file_name().unwrap().display().to_string();
        self.0.copy(&deb.path().display().to_string(), &format!("/root/{name}"));
        self.apt(&format!("install /root/{name}"))
    }

    /// As docs/deploy.md says. What people have put into the package's own files, and beside them.
    fn set_up(&self) {
        let address = self.0.address();
        self.0.put("/etc/environment", &format!("COREOS_PRIVATE_IPV4={address}\n"));
        self.0.put("/etc/haproxy-discover/etcd.env", "ETCDCTL_ENDPOINTS=http://127.0.0.1:2379\n");
        let app = "[Service]\nExecStart=\nExecStart=/built/webapp --listen 0.0.0.0:${PORT} --name %i\n";
        self.0.put("/etc/systemd/system/app@.service.d/app.conf", app);
        for (app, port) in [("a", 8001), ("b", 8002)] {
            let settings = format!(
                "PORT={port}\nANNOUNCER_DOMAIN=shop.test\nANNOUNCER_ID={app}\nANNOUNCER_PORT={port}\n\
                 ANNOUNCER_CHECK=tcp\nANNOUNCER_WAIT_BALANCERS=1\n"
            );
            self.0.put(&format!("/etc/haproxy-discover/app-{app}.env"), &settings);
        }
        self.0.sh("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=shop.test -keyout /root/key -out /root/cert \
                   2>&1 && cat /root/cert /root/key >/etc/haproxy/certs/shop.pem && chmod 640 /etc/haproxy/certs/*");
        self.0.sh(&format!("systemctl daemon-reload && systemctl enable --now {} 2>&1", Self::UNITS));
    }

    /// Of the units' processes, those whose program is no more.
    fn outdated(&self) -> String {
        self.0.sh(
            "for pid in $(ps -C announcer,confgen,handover -o pid=); do readlink /proc/$pid/exe; done | grep deleted || true",
        )
    }

    fn active(&self) -> String {
        self.0.sh("systemctl list-units --plain --no-legend --state=active '*@*' 'confgen*' 'haproxy*' | grep -E \
                   '^(etcd|app|announce|registered|confgen|haproxy)' | cut -d' ' -f1 || true")
    }

    fn enabled(&self) -> String {
        self.0.sh("find /etc/systemd/system -type l -lname '*/systemd/system/*' -printf '%f\\n' | grep -E \
                   '^(etcd@|app|announce|registered|confgen|haproxy-)' || true")
    }
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn the_package_comes_is_replaced_under_load_and_goes() {
    let _turn = heavy();
    let network = Network::new();
    let host = OneHost(Machine::start(&network, "node1"));
    let [old, new] = &*DEBS;

    host.install(old);
    assert_eq!(
        (host.active(), host.enabled()),
        (String::new(), String::new()),
        "started or enabled by its installation"
    );
    assert_eq!(host.0.sh("stat -c %U /etc/haproxy /var/lib/confgen"), "haproxy-discover\nhaproxy-discover");
    assert_eq!(host.0.sh("dpkg --verify haproxy-discover"), "");
    host.set_up();

    let web = SocketAddr::new(host.0.address().parse().unwrap(), 80);
    let load = |kind| Plan::new(kind, web, "shop.test").rate(200).start();
    let loads = [Kind::PerRequest, Kind::KeepAlive].map(load);
    let answered = |apps: &[&str]| {
        until(DEADLINE, &format!("answers of {apps:?}"), || {
            let seen: Vec<_> = loads.iter().map(|load| load.report().upstreams).collect();
            let all = seen.iter().all(|seen| apps.iter().all(|app| seen.contains_key(*app)));
            if all { Ok(()) } else { Err(format!("{seen:?}")) }
        });
    };
    answered(&["a", "b"]);
    let pids = host.0.sh(OneHost::PIDS);
    let said = host.install(new);
    assert!(said.contains("Upgrade in place"), "{said}");
    assert_eq!(host.0.sh("dpkg-query --show --showformat '${Version}' haproxy-discover"), "1.0.1");
    assert_eq!(host.0.sh(OneHost::PIDS), pids, "an upgrade has restarted something");
    assert_eq!(host.0.sh("cat /etc/haproxy-discover/etcd.env"), "ETCDCTL_ENDPOINTS=http://127.0.0.1:2379");
    assert!(host.outdated().contains("/usr/bin/confgen (deleted)"), "{}", host.outdated());

    // "Upgrade in place".
    host.0.sh("systemctl restart confgen");
    host.0.sh("supervisorctl -c /etc/haproxy-discover/supervisord.conf restart haproxy");
    host.0.sh("systemctl restart announcer@a && systemctl restart announcer@b");
    until(DEADLINE, "the old programs to end", || match host.outdated().as_str() {
        "" => Ok(()),
        left => Err(left.to_owned()),
    });
    for load in loads {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
        assert!(report.good > 1_000, "{report}");
    }

    host.apt("remove haproxy-discover");
    assert_eq!((host.active(), host.enabled()), (String::new(), String::new()));
    for unit in ["announcer@a", "announcer@b"] {
        let said = host.0.journal(unit);
        let drained = said.matches("every balancer has acknowledged the drain").count();
        assert_eq!(drained, 2, "at its restart, and at the removal, with store and balancer on the same host: {said}");
    }
    until(DEADLINE, "what the units ran to end", || {
        let left = host.0.sh("ps -C announcer,confgen,handover,haproxy,webapp,etcd -o comm= || true");
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let left =
        "cd /etc && ls -d haproxy-discover/* haproxy/certs/* /var/lib/confgen /usr/bin/confgen 2>/dev/null || true";
    let settings = "confgen.env discoverctl.toml etcd.env haproxy.env supervisor.d supervisord.conf";
    let ours = |names: &str| {
        let names = format!("app-a.env app-b.env {names}");
        let mut all: Vec<_> = names.split_whitespace().map(|it| format!("haproxy-discover/{it}")).collect();
        all.push("haproxy/certs/shop.pem".to_owned());
        all.into_iter().collect::<BTreeSet<_>>()
    };
    let found = || host.0.sh(left).lines().map(str::to_owned).collect::<BTreeSet<_>>();
    let state = "/var/lib/confgen".to_owned();
    assert_eq!(found(), &ours(settings) | &BTreeSet::from([state]), "a removal leaves settings and state");
    host.apt("purge haproxy-discover");
    assert_eq!(found(), ours(""), "a purge leaves what is people's");
    assert_eq!(host.0.sh("stat -c %U /etc/haproxy /etc/haproxy/haproxy.cfg"), "root\nroot");
}

/// A busybox that is linked statically, from Debian's package: the app in an image that has nothing.
fn busybox() -> Scratch {
    let folder = Scratch::new();
    run(Command::new("sh").current_dir(&*folder).args([
        "-ec",
        "apt-get download -qq busybox-static && dpkg-deb --fsys-tarfile *.deb | tar -xO ./bin/busybox >busybox \
         && chmod 755 busybox . && rm *.deb",
    ]));
    folder
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn the_static_announcer_runs_in_any_image() {
    let _turn = light();
    let dist = Scratch::new();
    make(&["static"], &dist);
    let announcer = only(&dist);
    make(&["sums"], &dist);
    run(Command::new("sha256sum").args(["--check", "SHA256SUMS"]).current_dir(&*dist));

    let busybox = busybox();
    let app = busybox.join("busybox");

    let network = Network::new();
    let etcd = Image::of([Path::new("/usr/bin/etcd")]);
    let etcd = etcd.run(
        &network,
        &["/etcd", "--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls", "http://store:2379"],
    );
    let volumes = [format!("{}:/announcer:ro", announcer.display()), format!("{}:/busybox:ro", app.display())];
    let known = format!("store:{}", etcd.address());
    let flags = ["--volume", &volumes[0], "--volume", &volumes[1], "--add-host", &known];
    let images = [
        ("nothing", Image::of([])),
        ("busybox", Image::of([&*app])),
        ("bullseye", Image::debian("bullseye")),
        ("bookworm", Image::debian("bookworm")),
        ("trixie", Image::debian("trixie")),
    ];
    for (id, image) in &images {
        // As /etc/hosts has it, and as Docker's name server does.
        for store in ["store", etcd.name()] {
            let endpoint = format!("http://{store}:2379");
            let command =
                ["/announcer", "--endpoints", &endpoint, "--service", "shop", "--domain", "shop.test", "--id", id];
            let command = [&command[..], &["--port", "8000", "--", "/busybox", "httpd", "-f", "-p", "8000"]].concat();
            let container = image.run_with(&network, &flags, &command);
            wait_record(&etcd, id, &format!("{}:8000", container.address()));
            container.stop();
            assert_eq!(container.exit_code(), "143", "the app's own status in {id}");
            wait_record(&etcd, id, "");
        }
    }
}

#[track_caller]
fn wait_record(etcd: &Container, id: &str, record: &str) {
    until(DEADLINE, &format!("the record of {id}: {record:?}"), || {
        let key = format!("/haproxy-discover/http-services/shop/upstreams/{id}");
        let mut get = Command::new("etcdctl");
        get.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://{}:2379", etcd.address()));
        let found = run(get.args(["get", "--print-value-only", &key]));
        if found.trim() == record { Ok(()) } else { Err(found) }
    });
}
