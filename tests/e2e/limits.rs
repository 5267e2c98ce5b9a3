//! What may be announced: hosts, ports and networks that the operator keeps for others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

use std::process::Command;

use lab::http::Request;
use lab::{Ground, PATIENCE, Process, Scratch, bin, free_port, light, until, write};

#[test]
fn reserved_hosts_and_ports_can_not_be_claimed() {
    let _turn = light();
    let build = Ground::build().http("shop", "shop.test", &["app"]);
    let build = build.file("domains", "shop  shop.test  # the shop\n*  *.apps.test\n");
    let file = build.setup.folder().join("domains");
    let flags = ["--domains-file", &file.display().to_string(), "--tcp-ports", "20000-20001"];
    let Ground { etcd, balancer, apps, .. } = build.flags(&flags).start();
    let app = &apps[0];
    let refused = |key: &str, reason: &str| {
        until(PATIENCE, &format!("{key} to be refused"), || {
            balancer.log("confgen").lines().any(|line| line.contains(&format!("key={key} ")) && line.contains(reason))
        });
    };

    // Hosts: one of another service, the rest of the world, a regular expression; and one that all may have.
    etcd.http_service("thief", "bank.test", &[app]);
    refused("http-services/thief/domain", "bank.test: --domains-file doesn't give it to thief");
    etcd.put("http-services/thief/url_reg", ".*");
    refused("http-services/thief/url_reg", "could match any host");
    etcd.http_service("default", "all.apps.test", &[app]);
    refused("http-services/default/", "could match any host");
    etcd.http_service("wiki", "wiki.apps.test", &[app]);
    balancer.wait_status(PATIENCE, "wiki.apps.test", "/", 200);
    for host in ["bank.test", "nobody.test", "all.apps.test"] {
        balancer.wait_status(PATIENCE, host, "/", 404);
    }

    // A host too many costs that host.
    etcd.put("http-services/shop/domain", "shop.test bank.test");
    refused("http-services/shop/domain", "bank.test: --domains-file doesn't give it to shop");
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);

    // Ports and networks.
    etcd.put("tcp-services/db/ports", "20002");
    refused("tcp-services/db/ports", "20002");
    let folder = Scratch::new();
    let announced = |id: &str, upstream: &str| {
        let mut command = Command::new(bin("announcer"));
        let admin = free_port();
        command.args(["--endpoints", &etcd.endpoints(), "--service", "wiki", "--id", id, "--upstream", upstream]);
        command.args(["--wait-balancers", "--admin", &format!("127.0.0.1:{admin}")]);
        (Process::start(&folder, id, &mut command), admin)
    };
    let is_ready = |(_, admin): &(Process, u16), status: u16, words: &str| {
        until(PATIENCE, words, || match Request::get("localhost", "/ready").send(([127, 0, 0, 1], *admin).into()) {
            Ok(answer) if answer.status == status && answer.body.contains(words) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    };
    let (good, bad) = (announced("good", &app.address.to_string()), announced("metadata", "169.254.169.254:80"));
    refused("http-services/wiki/upstreams/metadata", "--upstream-networks doesn't allow it");
    is_ready(&bad, 503, " refuses http-services/wiki/upstreams/metadata: ");
    is_ready(&good, 200, "announced as http-services/wiki/upstreams/good");

    // A file that can't be read changes nothing; one that can, is followed.
    write(file.clone(), "shop  what/ever\n");
    balancer.wait_logged("line 1: what/ever");
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    balancer.wait_status(PATIENCE, "bank.test", "/", 404);
    write(file, "shop  shop.test bank.test\n*  *.apps.test\n");
    balancer.wait_status(PATIENCE, "bank.test", "/", 200);
    balancer.wait_in_sync(PATIENCE);
}
