//! The role and the playbooks in `ansible/`, run by Ansible itself: hosts come up by them, an app is deployed under load, and
//! a deploy that fails leaves things as they were; once with a store without TLS, once with certificates and users.

use std::collections::BTreeSet;
use std::fs::{read_dir, read_to_string};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::http::Request;
use lab::load::{Kind, Plan, Running};
use lab::{Container, Etcd, Image, Machine, Network, PATIENCE, SOURCE, Scratch, bin, heavy, light, until, write};
use serde_json::Value;

/// For hosts and containers.
const DEADLINE: Duration = PATIENCE.saturating_mul(2);

/// Two hosts, each a balancer with an app, and a store on the first.
struct Site {
    hosts: [Machine; 2],
    folder: Scratch,
    _network: Network,
}

impl Site {
    fn new() -> Self {
        Self::with(|_| String::new())
    }

    /// With a store that asks for certificates.
    fn secured() -> Self {
        Self::with(|folder| {
            let authority = folder.join("authority");
            format!("    haproxy_discover_tls: true\n    haproxy_discover_authority: {}\n", authority.display())
        })
    }

    /// With more variables.
    fn with(variables: impl Fn(&Path) -> String) -> Self {
        let network = Network::new();
        let site = Self {
            hosts: ["node1", "node2"].map(|name| Machine::start(&network, name)),
            folder: Scratch::new(),
            _network: network,
        };
        site.lay_out();
        let line = |host: &Machine| {
            let (name, container, address) = (host.name(), host.container().name(), host.address());
            format!("    {name}: {{ansible_host: {container}, haproxy_discover_address: {address}}}\n")
        };
        let inventory = format!(
            "all:
  vars:
    ansible_connection: community.docker.docker
    ansible_become: false
    ansible_python_interpreter: /usr/bin/python3
    haproxy_discover_root: {}
    haproxy_discover_service: shop
    haproxy_discover_domain: shop.test
    haproxy_discover_command: >-
      /built/webapp --name shop-{{{{ version }}}}-%H --app-version {{{{ version }}}} --listen 0.0.0.0:${{PORT}}
    haproxy_discover_test_expects: \"version: {{{{ tested | default(version) }}}}\"
    haproxy_discover_steps: 50,100
    haproxy_discover_every: 3s
    haproxy_discover_start: 60
{}  hosts:
{}  children:
    store: {{hosts: {{node1: {{}}}}}}
    balancers: {{hosts: {{node1: {{}}, node2: {{}}}}}}
    apps: {{hosts: {{node1: {{}}, node2: {{}}}}}}
",
            site.folder.join("root").display(),
            variables(&site.folder),
            site.hosts.iter().map(line).collect::<String>(),
        );
        write(site.folder.join("hosts.yml"), inventory);
        site
    }

    /// `make install DESTDIR=…`, without what only a debugger reads: it is copied to every host.
    fn lay_out(&self) {
        let root = self.folder.join("root");
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, "install", &format!("DESTDIR={}", root.display())]);
        make.arg(format!("BUILT={}", bin("confgen").parent().unwrap().display())).env_remove("MAKEFLAGS");
        assert_done(&mut make);
        let programs = ["announcer", "confgen", "handover", "discoverctl"];
        assert_done(Command::new("strip").args(programs.map(|name| root.join("usr/bin").join(name))));
    }

    /// Whether a playbook succeeds, and what it says.
    fn play(&self, book: &str, arguments: &[&str]) -> (bool, String) {
        let mut play = ansible("ansible-playbook");
        run(play.arg("-i").arg(self.folder.join("hosts.yml")).arg(book).args(arguments))
    }

    #[track_caller]
    fn assert_played(&self, book: &str, arguments: &[&str]) -> String {
        let (ok, said) = self.play(book, arguments);
        assert!(ok, "{book} {arguments:?}\n{said}");
        said
    }

    /// What a playbook says that has to fail.
    #[track_caller]
    fn assert_refused(&self, book: &str, arguments: &[&str], why: &str) {
        let (ok, said) = self.play(book, arguments);
        let words: Vec<&str> = said.split_whitespace().collect();
        assert!(!ok && words.join(" ").contains(why), "{book} {arguments:?}\n{said}");
        assert!(changed(&said).iter().all(|count| *count == 0), "{said}");
    }

    /// A command of etcdctl's on the first host, by a certificate that is there; whether it succeeds, and what it says.
    fn etcdctl(&self, certificate: &str, command: &str) -> (bool, String) {
        let node1 = &self.hosts[0];
        let output = node1.run(&format!(
            "cd /etc/haproxy-discover/tls
             ETCDCTL_API=3 etcdctl --endpoints https://{}:2379 --cacert ca.pem --cert {certificate}.pem --key {certificate}.key \
                 {command} 2>&1",
            node1.address()
        ));
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The serial numbers of all certificates that a host was given, by their files.
    fn serials(&self, host: &Machine) -> Vec<String> {
        let said = host.sh("for file in /etc/etcd/*.pem /etc/haproxy-discover/tls/*.pem; do
                 case $file in */ca.pem | *'*'*) ;; *) echo \"$file $(openssl x509 -in $file -noout -serial)\" ;; esac
             done");
        said.lines().map(str::to_owned).collect()
    }

    /// The local fact of a host.
    fn fact(&self, host: &Machine) -> Vec<Value> {
        let mut setup = ansible("ansible");
        setup.env("ANSIBLE_LOAD_CALLBACK_PLUGINS", "1").env("ANSIBLE_STDOUT_CALLBACK", "ansible.posix.json");
        setup.arg("-i").arg(self.folder.join("hosts.yml"));
        let said = assert_done(setup.args([host.name(), "-m", "setup", "-a", "filter=ansible_local"]));
        let said: Value = serde_json::from_str(&said).expect(&said);
        let facts = &said["plays"][0]["tasks"][0]["hosts"][host.name()]["ansible_facts"];
        facts["ansible_local"]["balancing_containers"].as_array().unwrap_or_else(|| panic!("{said}")).clone()
    }

    fn web(&self) -> [SocketAddr; 2] {
        [0, 1].map(|index| SocketAddr::new(self.hosts[index].address().parse().unwrap(), 80))
    }

    /// A load on each balancer, of every connection anew and of kept ones.
    fn load(&self) -> Vec<Running> {
        let kinds = [Kind::PerRequest, Kind::KeepAlive];
        let each = self.web().into_iter().flat_map(|web| kinds.map(|kind| Plan::new(kind, web, "shop.test")));
        each.map(|plan| plan.from("shop-").rate(100).workers(10).start()).collect()
    }

    /// Which copies answer, at either balancer.
    fn answering(&self) -> BTreeSet<String> {
        let ask = || self.web().map(|web| Request::get("shop.test", "/").send(web).unwrap().app().to_owned());
        (0..8).flat_map(|_| ask()).collect()
    }

    /// The colors that have a unit or a file left.
    fn colors(&self, host: &Machine) -> String {
        host.sh("cd /etc && ls -d haproxy-discover/app-shop-* systemd/system/announced@shop-* | grep -oE 'blue|green' | sort -u
                 systemctl list-units --plain --no-legend 'announced@*' | grep -oE 'blue|green' | sort -u")
    }
}

fn ansible(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(Path::new(SOURCE).join("ansible")).env("ANSIBLE_NOCOLOR", "1").env("NO_COLOR", "1");
    command
}

/// Whether it succeeded, and all it said.
fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

/// Runs what has to succeed; returns its output alone.
#[track_caller]
fn assert_done(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat())
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// How many tasks have changed something, by host.
fn changed(said: &str) -> Vec<u32> {
    let counts = said.lines().filter_map(|line| line.split_once("changed=")?.1.split(' ').next()?.parse().ok());
    counts.collect()
}

fn names(version: u32) -> BTreeSet<String> {
    [1, 2].map(|node| format!("shop-{version}-node{node}")).into()
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn hosts_come_up_and_apps_are_deployed_without_a_loss() {
    let _turn = heavy();
    let site = Site::new();
    site.assert_played("site.yml", &["--check"]);
    site.hosts[0].sh("! test -e /usr/bin/confgen && ! test -e /etc/haproxy-discover");
    site.assert_played("site.yml", &[]);
    let again = site.assert_played("site.yml", &[]);
    assert_eq!(changed(&again), [0, 0], "{again}");

    site.assert_played("deploy.yml", &["-e", "version=1"]);
    until(DEADLINE, "the first version", || site.answering() == names(1));
    all_are_asked_from_each(&site);

    let load = site.load();
    site.assert_played("deploy.yml", &["-e", "version=2"]);
    assert_eq!(site.answering(), names(2));
    for host in &site.hosts {
        assert_eq!(site.colors(host), "green\ngreen", "the old color is removed");
        let [copy] = &site.fact(host)[..] else { panic!("{:?}", site.fact(host)) };
        let value = |name: &str| copy[name].as_str().unwrap_or_default();
        assert_eq!(value("id"), format!("{}-8002", host.name()), "{copy}");
        assert_eq!(value("ip"), host.address(), "{copy}");
        assert_eq!([value("name"), value("state"), value("status")], ["http-shop", "ready", "balanced"], "{copy}");
    }

    // It answers, but not what it should; then it doesn't start at all.
    for (arguments, why) in [
        (["-e", "version=3 tested=4"], "Test each copy by itself"),
        (
            ["-e", "version=3 haproxy_discover_command=/bin/false haproxy_discover_start=5"],
            "Wait until it is announced",
        ),
    ] {
        let (ok, said) = site.play("deploy.yml", &arguments);
        assert!(!ok, "{said}");
        assert!(said.contains("blue is undone; green serves as before.") && said.contains(why), "{said}");
        assert_eq!(site.answering(), names(2));
        for host in &site.hosts {
            assert_eq!(site.colors(host), "green\ngreen", "the new color is removed");
        }
    }

    // New programs: each balancer and each announcer starts anew, one host after the other.
    site.lay_out();
    let said = site.assert_played("site.yml", &[]);
    for handler in ["Restart confgen", "Restart HAProxy", "Restart announcers"] {
        let handled = said.split(&format!("[haproxy_discover : {handler}]")).nth(1).expect(&said);
        assert!(handled.lines().nth(1).is_some_and(|line| line.starts_with("changed: ")), "{handler}: {said}");
    }

    let authority = site.folder.join("authority").display().to_string();
    let tls = ["-e", "haproxy_discover_tls=true", "-e", &format!("haproxy_discover_authority={authority}")];
    site.assert_refused("site.yml", &tls, "listens with http, and haproxy_discover_tls is True");
    assert!(!Path::new(&authority).exists());

    for load in load {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
        assert!(report.upstreams.keys().any(|name| name.starts_with("shop-1")), "{report}");
        assert!(!report.upstreams.keys().any(|name| name.starts_with("shop-3")), "nobody saw it: {report}");
    }
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn a_store_with_certificates_and_users_is_set_up_deployed_to_and_renewed() {
    let _turn = heavy();
    let site = Site::secured();
    site.assert_played("site.yml", &["--check"]);
    site.hosts[0].sh("! test -e /usr/bin/confgen && ! test -e /etc/haproxy-discover && ! test -e /etc/etcd");
    assert!(!site.folder.join("authority").exists(), "a check makes nothing");
    let mut said = site.assert_played("site.yml", &["--diff", "-vvv"]);
    said += &site.assert_played("deploy.yml", &["-e", "version=1", "--diff", "-vvv"]);
    until(DEADLINE, "the first version", || site.answering() == names(1));
    let again = site.assert_played("site.yml", &["--diff"]);
    assert_eq!(changed(&again), [0, 0], "{again}");
    everybody_is_asked_who_comes(&site);

    let load = site.load();
    said += &site.assert_played("deploy.yml", &["-e", "version=2", "--diff", "-vvv"]);
    assert_eq!(site.answering(), names(2));
    for host in &site.hosts {
        let [copy] = &site.fact(host)[..] else { panic!("{:?}", site.fact(host)) };
        assert_eq!([&copy["color"], &copy["status"]], ["green", "balanced"], "{copy}");
    }

    // Every certificate anew, nothing restarted; then all connect anew.
    let serials = || site.hosts.each_ref().map(|host| site.serials(host));
    let before = serials();
    assert_eq!(before.each_ref().map(Vec::len), [4, 3], "{before:?}");
    said += &site.assert_played("site.yml", &["-e", "haproxy_discover_renew=400", "--diff", "-vvv"]);
    let after = serials();
    assert!(before.concat().iter().all(|serial| !after.concat().contains(serial)), "{before:?} {after:?}");
    let again = site.assert_played("site.yml", &["--check"]);
    assert_eq!(changed(&again), [0, 0], "{again}");
    site.hosts[0].sh("systemctl restart etcd@node1 && systemctl start etcd-defrag@node1");
    let followed = site.hosts[0].sh("discoverctl set shop balance leastconn");
    assert!(followed.contains("followed by"), "{followed}");
    assert_eq!(site.answering(), names(2));

    for load in load {
        let report = load.stop();
        println!("{report}");
        report.assert_nothing_lost();
    }
    assert_no_secret(&site, &said);
    site.assert_refused(
        "site.yml",
        &["-e", "haproxy_discover_tls=false"],
        "listens with https, and haproxy_discover_tls is False",
    );
    let other = format!("haproxy_discover_authority={}", site.folder.join("other").display());
    site.assert_refused("site.yml", &["-e", &other], "believes an authority that isn't in");
    assert!(!site.folder.join("other").exists());
}

/// One token for all, for root and confgen to read; with it, each host's discoverctl asks both balancers without an option.
fn all_are_asked_from_each(site: &Site) {
    let token =
        |host: &Machine| host.sh("cd /etc/haproxy-discover && stat -c '%a %U %G' admin.token && cat admin.token");
    let [one, other] = site.hosts.each_ref().map(token);
    assert_eq!(one, other);
    assert!(one.starts_with("640 root haproxy-discover\n") && one.len() > 64, "{one}");
    for host in &site.hosts {
        let checked = host.sh("discoverctl check shop --output plain");
        assert!(checked.contains("\tnode1\tbalanced") && checked.contains("\tnode2\tbalanced"), "{checked}");
    }
}

/// Nobody without a certificate, and with one, each its own.
fn everybody_is_asked_who_comes(site: &Site) {
    let node1 = &site.hosts[0];
    let curl = |url: &str, flags: &str| {
        let tls = "--cacert /etc/haproxy-discover/tls/ca.pem";
        node1.run(&format!("curl -sS --http1.1 --max-time 20 {tls} {flags} {url}://{}:2379/version", node1.address()))
    };
    let host = "--cert /etc/haproxy-discover/tls/host.pem --key /etc/haproxy-discover/tls/host.key";
    assert!(curl("https", host).status.success());
    for (url, flags) in [("https", ""), ("http", host)] {
        let output = curl(url, flags);
        assert!(!output.status.success(), "{url} {flags}: {output:?}");
    }
    let below = "/haproxy-discover/http-services";
    for (certificate, command) in [
        ("announcer-shop", format!("put {below}/blog/upstreams/node1 10.0.0.9:80")),
        ("announcer-shop", format!("put {below}/blog/domain blog.test")),
        ("announcer-shop", format!("put {below}/shop/active green")),
        ("confgen-node1", format!("put {below}/shop/active green")),
        ("confgen-node1", "put /haproxy-discover/balancers/node2 {}".to_owned()),
        ("host", format!("get --prefix {below}/")),
    ] {
        let (ok, said) = site.etcdctl(certificate, &command);
        assert!(!ok && said.contains("etcdserver: permission denied"), "{certificate}: {command}: {said}");
    }
    let (ok, said) = site.etcdctl("announcer-shop", &format!("get --keys-only --prefix {below}/shop/upstreams/"));
    assert!(ok && said.contains("node1-8001") && said.contains("node2-8001"), "{said}");
}

/// No password and no key in what Ansible says.
#[track_caller]
fn assert_no_secret(site: &Site, said: &str) {
    let files = read_dir(site.folder.join("authority")).unwrap().map(|file| file.unwrap().path());
    let secret: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end != "pem")).collect();
    // The authority's, the host's, the service's, two members' at most; three people's.
    assert!(secret.len() >= 8, "{secret:?}");
    for file in secret {
        let text = read_to_string(&file).unwrap();
        let line = text.lines().find(|line| !line.starts_with("-----")).unwrap();
        assert!(line.len() >= 48 && !said.contains(line), "{}", file.display());
    }
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn the_fact_names_containers() {
    let _turn = light();
    let (network, etcd) = (Network::new(), Etcd::start());
    let container: Container = Image::of([&*bin("webapp")]).run(&network, &["/webapp", "--listen", "0.0.0.0:8000"]);
    let etc = Scratch::new();
    write(etc.join("etcd.env"), format!("# Where etcd is\nETCDCTL_ENDPOINTS={}\n", etcd.endpoints()));
    let programs = bin("discoverctl").parent().unwrap().display().to_string();
    let with = |command: &mut Command| {
        command.env("PATH", format!("{programs}:{}", std::env::var("PATH").unwrap()));
        command.env("HAPROXY_DISCOVER_SETTINGS", &*etc).env("ETCDCTL_ENDPOINTS", etcd.endpoints());
        assert_done(command)
    };
    let fact = || -> Value {
        let script = Path::new(SOURCE).join("ansible/roles/haproxy_discover/files/balancing_containers.fact");
        serde_json::from_str(&with(&mut Command::new(script))).unwrap()
    };
    assert_eq!(fact(), serde_json::json!([]));
    let id = container.name();
    with(Command::new("discoverctl").args(["set", "--create", "--no-wait", "shop", "domain", "shop.test"]));
    with(Command::new("discoverctl").args([
        "register",
        "--no-wait",
        "shop",
        "--container",
        &format!("{id}:8000"),
        "--container-network",
        network.name(),
    ]));
    with(Command::new("discoverctl").args(["register", "--no-wait", "shop", "elsewhere", "10.99.99.99:8000"]));
    let found = fact();
    assert_eq!(found.as_array().unwrap().len(), 1, "what runs elsewhere isn't here: {found}");
    assert_eq!([&found[0]["name"], &found[0]["ip"]], [id, &container.address()].map(|it| it), "{found}");
    assert_eq!([&found[0]["state"], &found[0]["status"]], [&Value::from("ready"), &Value::Null], "{found}");
    assert_eq!(found[0]["id"].as_str().unwrap().len(), 64, "{found}");
}

#[test]
#[ignore = "needs Ansible: make lab-test"]
fn ansible_lint_has_nothing_to_say() {
    let _turn = light();
    let (ok, said) = run(ansible("ansible-lint").args(["--offline", "--profile", "production", "--strict", "-p"]));
    assert!(ok, "{said}");
}
