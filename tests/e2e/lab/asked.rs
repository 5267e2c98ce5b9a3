//! discoverctl on three hosts that were set up by docs/deploy.md word by word: it needs no option, and it never takes one
//! balancer's answer for another's.

use std::net::SocketAddr;
use std::process::Output;
use std::time::Duration;

use lab::load::{Kind, Plan};
use lab::{Hosts, Machine, heavy, until};

const MENDS: Duration = Duration::from_secs(90);

/// A web server for each color on one host: green answers 500 to the balancer with this address, and to no other client.
const COLORS: &str = r#"import sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Color(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        fails = self.server.server_port == 8102 and self.client_address[0] == sys.argv[1]
        self.send_response(500 if fails else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
    def log_message(self, *_):
        pass

for port in [8101, 8102]:
    threading.Thread(target=ThreadingHTTPServer(("0.0.0.0", port), Color).serve_forever).start()
"#;

fn said(output: &Output) -> String {
    format!("{:?}: {}{}", output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// discoverctl, without any option, ends so and says this.
#[track_caller]
fn assert_ends(host: &Machine, command: &str, code: i32, words: &str) {
    let output = host.run(&format!("discoverctl {command}"));
    let said = said(&output);
    println!("{}: discoverctl {command}: {said}", host.name());
    assert!(output.status.code() == Some(code) && said.contains(words), "{}: {command}: {said}", host.name());
}

/// It comes to end so.
#[track_caller]
fn wait_ends(host: &Machine, command: &str, code: i32) {
    until(MENDS, &format!("discoverctl {command} to end with {code}"), || {
        let output = host.run(&format!("discoverctl {command}"));
        if output.status.code() == Some(code) { Ok(()) } else { Err(said(&output)) }
    });
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn a_balancer_that_can_not_be_asked_is_never_answered_for() {
    let _turn = heavy();
    let hosts = Hosts::up();
    let [first, second] = hosts.balancers() else { panic!("two balancers") };
    works_everywhere_without_options(&hosts);
    is_kept_from_others(&hosts);

    // The app can't be reached from the second balancer.
    second.sh("iptables -A OUTPUT -p tcp --dport 8000 -j REJECT");
    until(MENDS, "HAProxy to find every app down", || lab::servers_up(second).is_empty());
    for host in hosts.all() {
        wait_ends(host, "check shop", 1);
    }
    asks_nobody_else_on_loopback(&hosts);
    second.sh("iptables -D OUTPUT -p tcp --dport 8000 -j REJECT");

    serve_colors(&hosts);
    assert_ends(first, "switch web green --steps 50,100 --every 6s --max-errors 1%", 6, "host2 ");
    assert_ends(first, "switch web green", 6, "nothing was changed");
    assert_eq!(active(&hosts), "blue");

    for host in [first, second] {
        host.sh("mv /root/confgen.env /etc/haproxy-discover/confgen.env && systemctl restart confgen");
    }
    for host in hosts.all() {
        wait_ends(host, "check shop", 0);
    }
    goes_back_for_what_the_second_answers(&hosts);
}

/// Every host's discoverctl asks every balancer.
fn works_everywhere_without_options(hosts: &Hosts) {
    for host in hosts.all() {
        let list = hosts.type_block(host, "discoverctl list");
        assert!(list.contains("host1 3/3, host2 3/3"), "{}: {list}", host.name());
        assert_ends(host, "check shop", 0, "balanced");
        assert_ends(host, "verify shop", 0, "found");
        assert_ends(host, "config", 0, "/etc/haproxy-discover/discoverctl.toml");
    }
}

/// The port asks for the token, which only root and confgen read.
fn is_kept_from_others(hosts: &Hosts) {
    for host in hosts.all() {
        assert_eq!(host.sh("stat -c '%a %U %G' /etc/haproxy-discover/admin.token"), "640 root haproxy-discover");
        for balancer in hosts.balancers() {
            let status = "curl --silent --output /dev/null --write-out '%{http_code}'";
            let without = host.sh(&format!("{status} http://{}:9101/api/v1/status", balancer.address()));
            assert_eq!(without, "401", "{} asks {}", host.name(), balancer.name());
        }
        let nobody = host.run("setpriv --reuid nobody --regid nogroup --clear-groups env HOME=/tmp discoverctl list");
        let said = said(&nobody);
        assert!(
            nobody.status.code() == Some(2) && said.contains("admin.token can't be read: Permission denied"),
            "{said}"
        );
    }
}

/// Both admin ports on loopback, as they are without the page's section on the API.
fn asks_nobody_else_on_loopback(hosts: &Hosts) {
    let [first, second] = hosts.balancers() else { panic!("two balancers") };
    for host in [first, second] {
        host.sh("mv /etc/haproxy-discover/confgen.env /root/confgen.env && systemctl restart confgen");
    }
    wait_ends(second, "check shop", 6);
    until(MENDS, "the first to tell of loopback", || {
        let output = first.run("discoverctl check shop");
        let said = said(&output);
        if said.contains("host1 answers there, not host2") { Ok(()) } else { Err(said) }
    });
    assert_ends(first, "check shop", 6, "host2 can't be asked");
    assert_ends(first, "verify shop", 6, "host2 can't be asked");
    // No balancer is on the third host.
    assert_ends(&hosts.all()[2], "check shop", 6, "a loopback address is every host's own");
    assert_ends(first, "list", 0, "host2 can't be asked");
}

/// The service `web` with a color on each of two ports; blue is active.
fn serve_colors(hosts: &Hosts) {
    let [first, second] = hosts.balancers() else { panic!("two balancers") };
    let third = &hosts.all()[2];
    third.put("/root/colors.py", COLORS);
    third.sh(&format!("systemd-run --quiet --unit colors python3 /root/colors.py {}", second.address()));
    for (color, port) in [("blue", 8101), ("green", 8102)] {
        let record = format!(r#"{{"address":"{}:{port}","color":"{color}","permanent":true}}"#, third.address());
        let put = format!("put /haproxy-discover/http-services/web/upstreams/{color} '{record}'");
        hosts.etcdctl(first, &put).expect("the record");
    }
    first.sh("discoverctl set --create web active blue && discoverctl set web domain web.test");
    for balancer in hosts.balancers() {
        until(MENDS, "HAProxy to serve it", || {
            balancer.run("curl --silent --fail --header 'Host: web.test' http://127.0.0.1/").status.success()
        });
    }
}

fn active(hosts: &Hosts) -> String {
    let value = "get --print-value-only /haproxy-discover/http-services/web/active";
    hosts.etcdctl(&hosts.all()[0], value).unwrap()
}

/// Requests fail at the second balancer alone; discoverctl runs on the first.
fn goes_back_for_what_the_second_answers(hosts: &Hosts) {
    let web = |balancer| -> SocketAddr { hosts.web(balancer) };
    let start = |balancer| Plan::new(Kind::PerRequest, web(balancer), "web.test").rate(50).start();
    let loads: Vec<_> = hosts.balancers().iter().map(start).collect();
    let switch = "switch web green --steps 50,100 --every 6s --max-errors 1%";
    assert_ends(&hosts.all()[0], switch, 7, "went back: active is blue");
    assert_eq!(active(hosts), "blue");
    loads.into_iter().for_each(|load| println!("{}", load.stop()));
}
