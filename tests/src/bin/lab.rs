//! Three hosts with systemd, in containers: etcd and an app on each, a balancer on two. Until Ctrl-C.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]

use std::time::Instant;

use lab::Hosts;

fn main() {
    println!("starting three hosts with etcd, two balancers and three announced apps …");
    let begun = Instant::now();
    let hosts = Hosts::up();
    println!("up after {:.0?}", begun.elapsed());
    print!("{}", words(&hosts));
    // Until Ctrl-C: whatever was started ends with this process.
    loop {
        std::thread::park();
    }
}

fn words(hosts: &Hosts) -> String {
    let mut words = "\nOpen\n".to_owned();
    for balancer in hosts.balancers() {
        let password = balancer.sh("cat /var/lib/confgen/stats-password");
        let (name, address) = (balancer.name(), balancer.address());
        words += &format!("  http://{address}:1936/admin?stats    {name}: user admin, password {password}\n");
    }
    words += "\nTry\n";
    for balancer in hosts.balancers() {
        words += &format!("  curl -H 'Host: {}' http://{}/\n", Hosts::DOMAIN, balancer.address());
    }
    for host in hosts.all() {
        words +=
            &format!("  docker exec -it {} bash    # {}, {}\n", host.container().name(), host.name(), host.address());
    }
    words += "  discoverctl list    # on any of them

docs/lab.md says how to hurt them. Ctrl-C ends all of it and leaves nothing behind.
";
    words
}
