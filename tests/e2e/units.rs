//! What `make install` lays out: units that systemd understands and confines, settings that are all there, directories that
//! confgen's own user can work in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::Command;

use lab::{SOURCE, Scratch, bin, light, write};

/// Of other packages: for systemd it is enough that they are there.
const OTHERS: &[&str] = &["chown", "etcd", "etcdctl", "podman", "python3", "sleep", "supervisord", "systemd-tmpfiles"];

/// An empty root that everything was installed to.
pub(crate) struct Root(Scratch);

impl Root {
    pub(crate) fn installed() -> Self {
        let root = Self(Scratch::new());
        root.make("install");
        root
    }

    /// What it says.
    fn make(&self, target: &str) -> String {
        let built = bin("confgen").parent().unwrap().display().to_string();
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, target, &format!("BUILT={built}")]);
        make.arg(format!("DESTDIR={}", self.path("").display())).env_remove("MAKEFLAGS");
        let (ok, said) = run(&mut make);
        assert!(ok, "{said}");
        said
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        write(path, content);
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    /// All files, as paths below the root.
    fn files(&self) -> BTreeSet<String> {
        let find =
            Command::new("find").arg(self.path("")).args(["!", "-type", "d", "-printf", "%P\\n"]).output().unwrap();
        String::from_utf8(find.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// The units' names, as instances where they are templates.
    fn units(&self) -> Vec<String> {
        let folder = "usr/lib/systemd/system/";
        let names = self.files().into_iter().filter_map(|file| file.strip_prefix(folder).map(str::to_owned));
        names.map(|name| name.replace("@.", "@1.")).collect()
    }

    /// systemd's own units, and the programs that aren't ours.
    pub(crate) fn furnish(&self) {
        for program in OTHERS {
            write(self.path("usr/bin").join(program), "#!/bin/true\n");
            fs::set_permissions(self.path("usr/bin").join(program), Permissions::from_mode(0o755)).unwrap();
        }
        for entry in fs::read_dir("/lib/systemd/system").unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_file()
                && (name.ends_with(".target") || name.ends_with(".slice") || name.starts_with("systemd-tmp"))
            {
                fs::copy(&path, self.path("usr/lib/systemd/system").join(name)).unwrap();
            }
        }
    }

    pub(crate) fn analyze(&self, verb: &str, args: &[&str], units: &[String]) -> (bool, String) {
        let mut analyze = Command::new("systemd-analyze");
        run(analyze.arg(verb).args(args).arg(format!("--root={}", self.path("").display())).args(units))
    }
}

fn source(path: &str) -> String {
    fs::read_to_string(format!("{SOURCE}/units/{path}")).unwrap()
}

/// Whether it succeeded, and all it said.
pub(crate) fn run(command: &mut Command) -> (bool, String) {
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    (output.status.success(), said)
}

#[test]
fn systemd_understands_and_confines_them() {
    let _turn = light();
    let root = Root::installed();
    let units = root.units();
    assert!(units.contains(&"confgen.service".to_owned()) && units.len() > 8, "{units:?}");
    root.furnish();
    let verify = || root.analyze("verify", &["--man=no", "--generators=no"], &units);
    assert_eq!(verify(), (true, String::new()));
    for unit in units.iter().filter(|unit| unit.ends_with(".service")) {
        let (_, said) = root.analyze("security", &["--offline=true"], std::slice::from_ref(unit));
        let level = said.lines().find(|line| line.contains("Overall exposure level")).expect(&said);
        assert!([" OK ", " PERFECT ", " SAFE "].iter().any(|word| level.contains(word)), "{level}");
    }
    fs::remove_file(root.path("usr/bin/confgen")).unwrap();
    let (ok, said) = verify();
    assert!(!ok && said.contains("/usr/bin/confgen is not executable"), "it does look: {said}");
}

/// Each variable that `--help` names, with the default that stands beside it.
fn settings(program: &str) -> BTreeMap<String, String> {
    let mut words = program.split(' ');
    let mut command = Command::new(bin(words.next().unwrap()));
    let (ok, help) = run(command.args(words).arg("--help").env_clear());
    assert!(ok, "{help}");
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    let variables = help.split("[env: ").skip(1).map(|rest| {
        let (name, rest) = rest.split_once(']').unwrap();
        let default = rest.strip_prefix(" [default: ").map_or("", |rest| rest.split_once(']').unwrap().0);
        (name.trim_end_matches('=').to_owned(), default.trim_matches('"').to_owned())
    });
    variables.collect()
}

/// What the commented lines of a file set.
fn commented(text: &str) -> BTreeMap<String, String> {
    let name = |name: &str| !name.is_empty() && name.chars().all(|it| it.is_ascii_uppercase() || it == '_');
    let lines = text.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    lines.filter(|it| name(it.0)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn every_setting_stands_in_its_file_with_its_default() {
    let _turn = light();
    let file = |name: &str| {
        let text = source(&format!("env/{name}"));
        assert!(text.lines().all(|line| line.is_empty() || line.starts_with('#')), "{name} sets something");
        commented(&text)
    };
    let etcd = file("etcd.env");
    for (program, name, with_etcd) in [
        ("announcer", "app.env", true),
        ("announcer containers", "containers.env", true),
        ("confgen", "confgen.env", true),
        ("handover", "haproxy.env", false),
    ] {
        let mut there = file(name);
        there.remove("PORT");
        if with_etcd {
            there.extend(etcd.clone());
        }
        assert_eq!(there, settings(program), "{name}");
    }

    let sample = source("env/discoverctl.toml");
    assert!(sample.lines().all(|line| line.is_empty() || line.starts_with('#')), "discoverctl.toml sets something");
    let keys: BTreeSet<String> = sample
        .lines()
        .filter_map(|line| line.strip_prefix('#')?.split_once(" = "))
        .map(|(key, _)| key.to_owned())
        .collect();
    let folder = Scratch::new();
    let lines = sample.lines().filter_map(|line| line.strip_prefix('#')).filter(|line| line.contains(" = "));
    write(folder.join("discoverctl.toml"), lines.map(|line| format!("{line}\n")).collect::<String>());
    let mut config = Command::new(bin("discoverctl"));
    config.args(["config", "--output", "json"]).env_clear().env("DISCOVERCTL_CONFIG", folder.join("discoverctl.toml"));
    let (ok, said) = run(&mut config);
    assert!(ok, "{said}");
    let shown: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(shown["options"].as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>(), keys);

    let (_, help) = run(Command::new("etcd").arg("--help"));
    for name in file("etcd-member.env").into_keys() {
        if let Some(name) = name.strip_prefix("ETCD_") {
            let flag = format!("--{} ", name.to_ascii_lowercase().replace('_', "-"));
            assert!(help.lines().any(|line| format!("{} ", line.trim()).starts_with(&flag)), "etcd has no {flag}");
        }
    }
}

#[test]
fn what_people_changed_stays() {
    let _turn = light();
    let root = Root::installed();
    let before = root.files();
    for file in ["usr/share/man/man1/confgen.1", "usr/share/zsh/vendor-completions/_announcer", "usr/bin/handover"] {
        assert!(before.contains(file), "{file}: {before:?}");
    }
    root.put("etc/haproxy-discover/etcd.env", "ETCDCTL_ENDPOINTS=http://10.0.0.1:2379\n");
    let said = root.make("install");
    assert!(said.contains("kept as it is: ") && said.contains("/etc/haproxy-discover/etcd.env"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(root.files(), before);
    root.make("uninstall");
    let left = root.files();
    assert!(left.contains("etc/haproxy-discover/etcd.env"));
    assert!(left.iter().all(|file| file.starts_with("etc/haproxy-discover/")), "{left:?}");
    assert_eq!(root.read("etc/haproxy-discover/etcd.env"), "ETCDCTL_ENDPOINTS=http://10.0.0.1:2379\n");
}

#[test]
fn directories_have_their_owners() {
    let _turn = light();
    let root = Root(Scratch::new());
    for kind in ["sysusers", "tmpfiles"] {
        root.put(&format!("usr/lib/{kind}.d/haproxy-discover.conf"), &source(&format!("{kind}.conf")));
    }
    root.put("etc/passwd", "root:x:0:0::/root:/bin/sh\n");
    root.put("etc/group", "root:x:0:\n");
    let tool = |name: &str, args: &[&str]| {
        run(Command::new(name).args(args).arg(format!("--root={}", root.path("").display())))
    };
    let (ok, said) = tool("systemd-sysusers", &[]);
    assert!(ok, "{said}");
    let number = |file: &str, name: &str| -> u32 {
        let text = root.read(file);
        let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).expect(name);
        line.split(':').nth(2).unwrap().parse().unwrap()
    };
    let user = |name: &str| number("etc/passwd", name);
    let group = |name: &str| number("etc/group", name);
    assert!(root.read("etc/group").lines().any(|it| it.starts_with("haproxy:") && it.ends_with(":haproxy-discover")));
    // A package's own file, and a directory that its owner has taken for --fill.
    root.put("etc/haproxy/haproxy.cfg", "\n");
    fs::create_dir_all(root.path("etc/haproxy/conf.d")).unwrap();
    std::os::unix::fs::chown(root.path("etc/haproxy/conf.d"), Some(7), None).unwrap();
    for _start in 0..2 {
        assert_eq!(tool("systemd-tmpfiles", &["--create"]), (true, String::new()));
    }
    let ours = (user("haproxy-discover"), group("haproxy-discover"));
    for (path, mode, (uid, gid)) in [
        ("etc/haproxy", 0o755, ours),
        ("etc/haproxy/certs", 0o2750, (0, ours.1)),
        ("etc/haproxy/ca", 0o755, (0, 0)),
        ("etc/haproxy/conf.d", 0o755, (7, 0)),
        ("var/lib/confgen", 0o750, ours),
        ("run/haproxy", 0o2775, (user("haproxy"), group("haproxy"))),
        ("run/haproxy-handover", 0o750, (0, group("haproxy"))),
        ("run/haproxy-discover", 0o755, (0, 0)),
    ] {
        let it = fs::metadata(root.path(path)).unwrap();
        assert_eq!((it.mode() & 0o7777, it.uid(), it.gid()), (mode, uid, gid), "{path}");
    }
}
