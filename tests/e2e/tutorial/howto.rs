//! The how-to pages, word by word, each on a host of its own that docs/deploy.md has set up.

use lab::{Machine, Network, PATIENCE, Page, Step, light, until};

/// A host with a store and a balancer.
fn balancer(network: &Network) -> Machine {
    let machine = Machine::start(network, "lb-1");
    machine.install();
    machine.follow(&alone(Page::read("docs/deploy.md").steps(&["The store", "A balancer"])));
    machine
}

/// The page's steps for a store of one member, which the page describes beside the one of three.
fn alone(steps: Vec<Step>) -> Vec<Step> {
    const THREE: &str = "STORE=http://10.0.0.1:2379,http://10.0.0.2:2379,http://10.0.0.3:2379\n";
    // Lines for `systemctl edit` are no commands.
    let is_command = |step: &Step| !step.command.starts_with("[Service]");
    let steps = steps.into_iter().filter(is_command).filter(|step| !step.command.contains("ETCD_INITIAL_CLUSTER="));
    let steps = steps.map(|Step { command, shown }| Step {
        command: command.replace(THREE, "STORE=http://127.0.0.1:2379\n"),
        shown,
    });
    steps.collect()
}

fn follow(machine: &Machine, page: &str) {
    let page = Page::read(page);
    machine.follow(&page.steps(&page.headings()));
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn every_cause_is_shown_and_mended() {
    let _turn = light();
    let network = Network::new();
    follow(&balancer(&network), "docs/debug.md");
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn one_app_reaches_another() {
    let _turn = light();
    let network = Network::new();
    follow(&balancer(&network), "docs/app-to-app.md");
}

#[test]
#[ignore = "needs Docker: make lab-test"]
fn balancers_have_names() {
    let _turn = light();
    let network = Network::new();
    follow(&balancer(&network), "docs/dns.md");
}

/// What newcomers have already: an address of the host, keepalived, a certificate of certbot's, and a way to their balancers.
const NEWCOMER: &str = r#"
    echo "COREOS_PRIVATE_IPV4=$(hostname -I | cut -d ' ' -f 1)" >>/etc/environment
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends keepalived >/dev/null
    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=shop.example.com -addext subjectAltName=DNS:shop.example.com \
        -keyout privkey.pem -out fullchain.pem 2>/dev/null
    printf '#!/bin/sh\nshift\nexec sh -c "$*"\n' >/usr/local/bin/ssh
    chmod 755 /usr/local/bin/ssh
"#;

/// A service of after the snapshot.
const LATE: &str = "
    discoverctl register late late-1 $(hostname -I | cut -d ' ' -f 1):8002
    discoverctl set late domain late.localhost
    until curl -fs http://late.localhost/ >/dev/null; do sleep 1; done
";

#[test]
#[ignore = "needs Docker: make lab-test"]
fn newcomers_questions_are_answered() {
    let _turn = light();
    let network = Network::new();
    let machine = balancer(&network);
    machine.sh(&format!("cd /root{NEWCOMER}"));
    let page = Page::read("docs/deploy.md");
    let status = |url: &str| machine.sh(&format!("curl -sk --max-time 5 -o /dev/null -w '%{{http_code}}' {url}"));

    machine.follow(&page.steps(&["Green beside blue"]));
    let active = "etcdctl get --print-value-only /haproxy-discover/http-services/shop/active";
    assert_eq!(machine.sh(active), "green");
    assert_eq!(status("http://shop.localhost/"), "200");

    machine.follow(&page.steps(&["Two balancers"]));
    until(PATIENCE, "the address that moves to answer", || match status("http://10.0.0.100/").as_str() {
        "404" => Ok(()),
        other => Err(other.to_owned()),
    });

    machine.sh("discoverctl set shop domain shop.localhost,shop.example.com");
    machine.follow(&page.steps(&["Renew and copy certificates"]));
    let certificate = "openssl x509 -noout -serial";
    let own = machine.sh(&format!("{certificate} -in /root/fullchain.pem"));
    until(PATIENCE, "the copied certificate to be served", || {
        let ask = "openssl s_client -connect 127.0.0.1:443 -servername shop.example.com </dev/null 2>/dev/null";
        let served = machine.sh(&format!("{ask} | {certificate}"));
        if served == own { Ok(()) } else { Err(served) }
    });

    let [save, restore, accept] = &page.steps(&["Back up and restore the store"])[..] else { panic!("three blocks") };
    machine.follow(std::slice::from_ref(save));
    machine.sh(LATE);
    machine.follow(std::slice::from_ref(restore));
    until(PATIENCE, "etcd to answer", || {
        if machine.run("etcdctl endpoint health").status.success() { Ok(()) } else { Err(String::new()) }
    });
    assert_eq!(machine.sh("etcdctl get --prefix --keys-only /haproxy-discover/http-services/late/"), "");
    for url in ["http://shop.localhost/", "http://late.localhost/"] {
        assert_eq!(status(url), "200", "{url} is served: the snapshot has it, or it is retained");
    }
    until(PATIENCE, "the balancer to say what it retains", || {
        let record = machine.sh("etcdctl get --prefix --print-value-only /haproxy-discover/balancers/");
        if record.contains("late-1") { Ok(()) } else { Err(record) }
    });
    machine.follow(std::slice::from_ref(accept));
    until(PATIENCE, "what the snapshot lacks to end", || match status("http://late.localhost/").as_str() {
        "404" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(status("http://shop.localhost/"), "200");
}

/// What confd's hosts have: an etcd with the second version's keys, in the old layout.
const OLD: &str = r#"
    URL=http://127.0.0.1:4001 PEER=http://127.0.0.1:4002
    systemd-run --quiet --unit etcd-old etcd --name old --enable-v2 --data-dir /var/lib/etcd-old \
        --listen-client-urls $URL --advertise-client-urls $URL --listen-peer-urls $PEER \
        --initial-advertise-peer-urls $PEER --initial-cluster old=$PEER
    old() { ETCDCTL_API=2 etcdctl --endpoints $URL "$@"; }
    until old cluster-health; do sleep 1; done
    address=$(hostname -I | cut -d ' ' -f 1)
    while read -r key value; do old set "/haproxy-discover/$key" "$value"; done <<END
    http-services/shop/domain shop.localhost
    http-services/shop/upstreams/node-1 $address:8001
    http-services/bank/domain bank.localhost
    http-services/bank/sslpass 1
    http-services/bank/upstreams/node-1 $address:8003
    http-services/files/url_reg ^/files/
    http-services/files/upstreams/node-1 $address:8003
    http-services/files/upstreams/node-2:files:8003 $address:8004
    services/blog/domain blog.localhost
    services/blog/upstreams/node-1 $address:8003
    tcp-services/db/ports 3306
    tcp-services/db/upstreams/node-1 $address:8003
END
"#;

#[test]
#[ignore = "needs Docker: make lab-test"]
fn the_old_layout_and_a_file_by_hand_are_left_behind() {
    let _turn = light();
    let network = Network::new();
    let machine = balancer(&network);
    machine.sh(OLD);
    follow(&machine, "docs/migrate.md");
    let left = machine.sh("etcdctl get --prefix --keys-only /haproxy-discover/services/");
    assert_eq!(left, "", "all of the old layout's folder has moved");
    let renamed =
        machine.sh("etcdctl get --print-value-only /haproxy-discover/http-services/files/upstreams/node-2-files-8003");
    assert!(renamed.trim().ends_with(":8004"), "registrator's id has another name: {renamed}");
    let lease = machine.sh("etcdctl get /haproxy-discover/http-services/shop/upstreams/node-1 -w json");
    assert!(lease.contains(r#""lease":"#), "its announcer has it: {lease}");
}

/// The addresses that README names are this host's; what it calls `node` and `./server` serves files.
const README_HOST: &str = r"
    ip address add 10.0.0.1/32 dev lo
    ip address add 172.17.8.101/32 dev lo
    for program in /usr/local/bin/node /root/server; do
        printf '#!/bin/sh\nexec python3 -m http.server 8000\n' >$program
        chmod 755 $program
    done
    cat >/etc/announcer.toml <<END
[[announce]]
domain = ['shop.example.com']
port = 8000
END
    sed -i 's/^ETCD_LISTEN_CLIENT_URLS=.*//' /etc/haproxy-discover/etcd-node1.env
    echo ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379 >>/etc/haproxy-discover/etcd-node1.env
    echo ETCD_ADVERTISE_CLIENT_URLS=http://10.0.0.1:2379 >>/etc/haproxy-discover/etcd-node1.env
    systemctl restart etcd@node1
    systemd-run --quiet python3 -m http.server 8001
    address=$(hostname -I | cut -d ' ' -f 1)
    discoverctl register shop node-1 $address:8001 --color blue
    discoverctl register shop node-2 $address:8001 --color green
    discoverctl set shop domain www.example.com
    discoverctl register blog node-1 $address:8001 --host-name web-1
    discoverctl register blog node-2 $address:8001 --host-name web-2
    discoverctl color shop blue --force
";

#[test]
#[ignore = "needs Docker: make lab-test"]
fn the_readme_announces_and_operates() {
    let _turn = light();
    let network = Network::new();
    let machine = balancer(&network);
    machine.sh(README_HOST);
    let readme = Page::read("README.md");
    for words in ["-- node server.js", "--upstream 172.17.8.101:8000", "--config /etc/announcer.toml"] {
        let announce = readme.block(words);
        let beside = if words.starts_with("--upstream") { "python3 -m http.server 8000 &\n" } else { "" };
        let command = format!(
            "{beside}{} >/tmp/announcer.log 2>&1 & announcer=$!\n\
             until curl -fs -H 'Host: shop.example.com' http://127.0.0.1/ >/dev/null; do sleep 1; done\n\
             kill $announcer\nwait $announcer || test $? = 143\n{}",
            announce.trim_end(),
            if beside.is_empty() { "" } else { "kill %1\n" },
        );
        machine.follow(&[Step { command, shown: None }]);
    }
    machine.follow(&readme.steps(&["Operate"]));
    assert_eq!(machine.sh("etcdctl get --print-value-only /haproxy-discover/http-services/shop/active"), "green");
}
