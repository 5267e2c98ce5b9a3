//! An announcer of the units against an etcd that asks for certificates, as docs/secure.md and docs/deploy.md give them.

use std::time::Duration;

use lab::{Machine, Network, Page, heavy, until};

const MENDS: Duration = Duration::from_secs(60);

const SETTINGS: &str = "PORT=8000
ANNOUNCER_SERVICE=shop
ANNOUNCER_DOMAIN=shop.test
ANNOUNCER_PORT=8000
";

#[test]
#[ignore = "needs Docker: make lab-test"]
fn an_announcer_is_given_its_key_by_group_or_by_credential() {
    let _turn = heavy();
    let network = Network::new();
    let host = Machine::start(&network, "node1");
    host.put("/etc/environment", &format!("COREOS_PRIVATE_IPV4={}\n", host.address()));
    host.install();
    let secure = Page::read("docs/secure.md");
    let mut script = format!("ADDRESS={}\ngroupadd --system etcd-clients\n", host.address());
    script += &secure.below("Secure the store")[0];
    script += &secure.below("The authority and its certificates")[0];
    script += &secure.below("etcd")[0];
    script += "systemctl restart etcd@node1\nexport ETCDCTL_ENDPOINTS\n";
    script += &secure.below("Users and roles").concat();
    script += &secure.below("confgen")[0];
    script += &format!("cat >\"$ETC/app-shop.env\" <<'END'\n{SETTINGS}END\n");
    script += &secure.below("announcer")[0];
    host.put("/root/secure", &script);
    host.sh("sh -e /root/secure");
    host.sh("systemctl daemon-reload && systemctl enable --now haproxy-supervisord confgen app@shop announcer@shop");
    host.sh("systemctl start etcd-defrag@node1");
    is_announced(&host);
    let groups = host.sh("grep Groups /proc/$(systemctl show --value --property MainPID announcer@shop)/status");
    assert!(groups.contains(&host.sh("getent group etcd-clients | cut -d: -f3")), "{groups}");

    // Now by credentials: the files are root's alone.
    let drop_in = Page::read("docs/deploy.md").below("An app")[1].clone();
    host.put("/etc/systemd/system/announcer@.service.d/override.conf", &drop_in);
    host.sh("rm -r /etc/systemd/system/announcer@shop.service.d
cd /etc/haproxy-discover
for end in pem key; do install -m 600 /root/discover-ca/announcer-shop.$end etcd.$end; done
rm tls/announcer-shop.*
sed -i /ETCDCTL_/d app-shop.env
systemctl daemon-reload
systemctl restart announcer@shop");
    is_announced(&host);
    let pid = host.sh("systemctl show --value --property MainPID announcer@shop");
    assert!(host.sh(&format!("tr '\\0' '\\n' </proc/{pid}/environ")).contains("ETCDCTL_KEY=/run/credentials/"));
}

#[track_caller]
fn is_announced(host: &Machine) {
    until(MENDS, "the record, and HAProxy to have it", || {
        let said =
            host.run("grep -q 'server node1-8000' /etc/haproxy/haproxy.cfg && systemctl is-active announcer@shop");
        if said.status.success() { Ok(()) } else { Err(host.journal("announcer@shop")) }
    });
}
