//! The whole thing on one machine: etcd, HAProxy with confgen under supervisord, three announced apps in two services.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(clippy::expect_used, reason = "it may die with the place and the cause")]

use std::io::{IsTerminal as _, stdout};

use lab::{App, Balancer, Etcd, PATIENCE, Setup};

fn main() {
    println!("starting etcd, HAProxy, confgen and three announced apps …");
    let etcd = Etcd::start();
    let balancer = Setup::new().confgen(&etcd).start();
    let shop = ["--service", "shop", "--domain", "shop.localhost"];
    let blog = ["--service", "blog", "--domain", "blog.localhost"];
    let mut apps = vec![
        App::announced("shop-1", &etcd, &shop),
        App::announced("shop-2", &etcd, &shop),
        App::announced("blog-1", &etcd, &blog),
    ];
    balancer.wait_servers(PATIENCE, "http-shop", 2);
    balancer.wait_servers(PATIENCE, "http-blog", 1);
    print!("{}", words(&etcd, &balancer, &mut apps));
    // Until Ctrl-C: whatever was started ends with this process.
    loop {
        std::thread::park();
    }
}

fn words(etcd: &Etcd, balancer: &Balancer, apps: &mut [App]) -> String {
    let (bold, plain) = if stdout().is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    let folder = balancer.folder().display();
    let (http, https, stats) = (balancer.http(), balancer.https(), balancer.stats());
    let admin = balancer.admin();
    let endpoints = etcd.endpoints();
    let password = std::fs::read_to_string(balancer.folder().join("state/stats-password")).unwrap_or_default();
    let password = password.trim();
    let shop_1 = apps.first_mut().map_or(0, |app| app.process().pid().as_raw());
    format!(
        "
{bold}Open{plain}
  http://shop.localhost:{port}/           two copies, in turns
  http://blog.localhost:{port}/           one copy
  http://{admin}/                how confgen is doing; /metrics, /api/v1/status and more beside it
  http://{stats}/admin?stats     user admin, password {password}

{bold}Try{plain}
  curl http://shop.localhost:{port}/
  curl -k https://shop.localhost:{tls}/
  etcdctl --endpoints {endpoints} get --prefix /haproxy-discover
  cat {folder}/haproxy.cfg

  # one more upstream of blog by hand, its own app under a second name; then take it out again
  etcdctl --endpoints {endpoints} put /haproxy-discover/http-services/blog/upstreams/by-hand {another}
  etcdctl --endpoints {endpoints} del /haproxy-discover/http-services/blog/upstreams/by-hand

  # a value that means nothing: the service keeps its last good one
  etcdctl --endpoints {endpoints} put /haproxy-discover/http-services/shop/domain 'what \"is\" this'
  tail -n 3 {folder}/confgen.log
  etcdctl --endpoints {endpoints} put /haproxy-discover/http-services/shop/domain shop.localhost

  # a polite stop of shop-1, by its announcer, and a restart of HAProxy: neither loses a request
  kill {shop_1}
  supervisorctl -c {folder}/supervisord.conf restart haproxy

{bold}Ctrl-C{plain} ends all of it and leaves nothing behind.
",
        port = http.port(),
        tls = https.port(),
        another = apps.last().map_or_else(String::new, |app| app.address.to_string()),
    )
}
