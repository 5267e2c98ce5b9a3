//! An empty variable is an unset one, in every option of every program; and etcd's options mean what etcdctl's do.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use lab::{Etcd, Scratch, bin, light};

/// Every variable of a program, from the page of its options, which is held against the code.
fn variables(program: &str) -> BTreeSet<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../docs/flags-{program}.md"));
    let page = std::fs::read_to_string(page).unwrap();
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").nth(1));
    let names = cells.map(|cell| cell.trim_matches(|c| c == ' ' || c == '|' || c == '`').to_owned());
    names
        .filter(|name| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
        })
        .collect()
}

/// How a program ends at once, because of what is wrong with its command line or, if that is right, with this host.
fn outcome(line: &str, folder: &Scratch, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut words = line.split(' ').map(|word| word.replace("FOLDER", &folder.display().to_string()));
    let mut command = Command::new(bin(&words.next().unwrap()));
    command.args(words).envs(variables.iter().copied()).env_remove("SUPERVISOR_SERVER_URL");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // Without the time.
    let said = said.split_once(" ERROR ").map_or(said.clone(), |(_, words)| words.to_owned());
    (output.status.code(), said)
}

/// For each program forms that end soon, each by another reason: so the option of each variable counts in one of them.
const FORMS: [(&str, &[&str]); 4] = [
    (
        "announcer",
        &[
            "announcer --domain a.test --upstream 10.0.0.1:80 --endpoints ftp://x",
            "announcer --service a --port 80 --prefix x",
            "announcer register --domain a.test --upstream 10.0.0.1:80 --endpoints ftp://x",
            "announcer",
        ],
    ),
    ("confgen", &["confgen --endpoints ftp://x", "confgen render --prefix x", "confgen once --endpoints ftp://x"]),
    (
        "discoverctl",
        &[
            "discoverctl list --endpoints ftp://x",
            "discoverctl check shop --prefix x",
            "discoverctl register shop --container none --prefix x",
        ],
    ),
    (
        "handover",
        &[
            "handover --socket FOLDER/a --group no-such-group -- haproxy",
            "handover --socket / -- haproxy",
            "handover stop --socket /",
        ],
    ),
];

#[test]
fn an_empty_variable_changes_nothing_in_any_option_of_any_program() {
    let _turn = light();
    let folder = Scratch::new();
    let mut count = 0;
    for (program, forms) in FORMS {
        let names = variables(program);
        assert!(names.len() >= 5, "{program}: {names:?}");
        count += names.len();
        for form in forms {
            let without = outcome(form, &folder, &[]);
            for empty in ["", " "] {
                let all: Vec<_> = names.iter().map(|name| (name.as_str(), empty)).collect();
                assert_eq!(outcome(form, &folder, &all), without, "{form}, with all of them {empty:?}");
            }
            for name in &names {
                assert_eq!(outcome(form, &folder, &[(name, "")]), without, "{name}= {form}");
            }
        }
    }
    assert!(count > 80, "{count}");
}

#[test]
fn an_empty_value_of_an_option_is_none() {
    let folder = Scratch::new();
    for (form, given) in [
        ("announcer --endpoints ftp://x --domain a.test --upstream 10.0.0.1:80", "--color= --tls= --check="),
        ("confgen render --prefix x", "--node= --stats-domain= --domains-file="),
        ("discoverctl list --prefix x", "--output= --api-cacert="),
        ("handover --socket / -- haproxy", ""),
    ] {
        let without = outcome(form, &folder, &[]);
        let (head, tail) = form.split_once(" -- ").map_or((form, String::new()), |(a, b)| (a, format!(" -- {b}")));
        let with = if given.is_empty() { format!("{head} --group={tail}") } else { format!("{head} {given}{tail}") };
        assert_eq!(outcome(&with, &folder, &[]), without, "{with}");
    }
    let mut command = Command::new(bin("announcer"));
    command.args(["--color", "", "--endpoints", "ftp://x", "--domain", "a.test", "--upstream", "10.0.0.1:80"]);
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(said.contains("--endpoints: \"ftp://x\""), "{said}");
}

#[test]
fn an_invalid_prefix_is_refused_alike_by_all_programs() {
    for (given, right) in
        [("haproxy-discover", "/haproxy-discover"), ("/a//b", "/a/b"), ("/", "/haproxy-discover"), ("/a\tb", "/ab")]
    {
        for words in [
            &["announcer", "--service", "a", "--upstream", "10.0.0.1:80"][..],
            &["confgen"],
            &["confgen", "render"],
            &["discoverctl", "list"],
        ] {
            let output = Command::new(bin(words[0])).args(&words[1..]).args(["--prefix", given]).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
            assert!(said.contains(&format!("--prefix {given:?}: ")), "{words:?}: {said}");
            assert!(said.trim_end().ends_with(&format!("; write {right}")), "{words:?}: {said}");
        }
    }
}

#[test]
fn a_user_and_a_password_are_taken_from_etcdctls_variables() {
    let _turn = light();
    let etcd = Etcd::start();
    let etcdctl = |line: &str, variables: &[(&str, &str)]| {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &etcd.endpoints()]).args(line.split(' '));
        let output = command.envs(variables.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for line in [
        "user add root:secret",
        "user grant-role root root",
        "role add app",
        "role grant-permission app readwrite --prefix=true /haproxy-discover/",
        "user add app:wo:rd",
        "user grant-role app app",
        "auth enable",
    ] {
        let (is_done, said) = etcdctl(line, &[]);
        assert!(is_done, "{line}: {said}");
    }
    let ctl = |variables: &[(&str, &str)]| {
        let mut command = Command::new(bin("discoverctl"));
        command.args(["list", "--endpoints", &etcd.endpoints()]).envs(variables.iter().copied());
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // As etcdctl has it, each.
    for variables in [
        &[("ETCDCTL_USER", "app"), ("ETCDCTL_PASSWORD", "wo:rd")][..],
        &[("ETCDCTL_USER", "app:wo:rd")],
        &[("ETCDCTL_USER", "app:wo:rd"), ("ETCDCTL_PASSWORD", "")],
    ] {
        let (is_done, said) = etcdctl("get --prefix /haproxy-discover/", variables);
        assert!(is_done, "etcdctl, {variables:?}: {said}");
        let (code, said) = ctl(variables);
        assert_eq!(code, Some(0), "{variables:?}: {said}");
    }
    let (code, said) = ctl(&[("ETCDCTL_PASSWORD", "wo:rd")]);
    assert!(code == Some(3) && said.contains("a client without a user"), "no user, no login: {code:?} {said}");
    let (code, said) = ctl(&[("ETCDCTL_USER", "app")]);
    assert!(code == Some(2) && said.contains("ETCDCTL_PASSWORD"), "{code:?} {said}");
}
