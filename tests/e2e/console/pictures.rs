//! Pictures of the console: the README's, and others to look at.

use std::collections::BTreeMap;
use std::env::var_os;
use std::path::PathBuf;

use lab::demo::Demo;
use lab::{App, Browser, Claim, Ground, Look, PATIENCE};

use super::fixture::{take_turn, wait_live};

/// The numbers of services.
const SIZES: [usize; 3] = [3, 100, 1_000];

fn folder() -> PathBuf {
    PathBuf::from(var_os("SCREENSHOTS").expect("SCREENSHOTS=folder"))
}

fn save(browser: &Browser, name: &str, look: Look) {
    browser.look(look);
    browser.save_picture(&folder().join(format!("{name}.png")));
}

#[test]
#[ignore = "make screenshots"]
fn readme_shows_the_demo() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let demo = Demo::start();
    tab.look(Look::WIDE);
    tab.open(&demo.console());
    wait_live(&tab);
    tab.wait(PATIENCE, "document.querySelector('#problems')?.innerText.includes('blog-2')");
    // The demo has been asked for a while, so that the plots have points.
    tab.wait(PATIENCE, "document.querySelector('tr[data-service=http-shop] svg.requests path')");
    save(&tab, "console-light", Look::WIDE);
    save(&tab, "console-dark", Look::WIDE.dark());
}

/// As many services, on three apps.
fn services(count: usize, apps: &[App]) -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..count).flat_map(|number| {
        let below = format!("http-services/service-{number:04}");
        let domain = (format!("{below}/domain"), format!("service-{number:04}.example.com").into_bytes());
        let upstreams =
            apps.iter().map(|app| (format!("{below}/upstreams/{}", app.name), app.address.to_string().into_bytes()));
        upstreams.chain([domain]).collect::<BTreeMap<_, _>>()
    })
}

#[test]
#[ignore = "SCREENSHOTS=folder cargo test … --ignored console::pictures"]
fn every_page_is_shown_with_few_and_many_services() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    for count in SIZES {
        let mut apps: Vec<App> = ["web-1", "web-2", "web-3"].map(App::alone).into();
        let build = Ground::build().certificate(&["*.example.com"]).certificate(&["example.com", "www.example.com"]);
        let ground = build.flags(&["--node", "lb-1"]).start();
        ground.etcd.put_all(services(count, &apps));
        ground.balancer.wait_applied(PATIENCE * 2, ground.etcd.revision());
        let console = format!("http://{}", ground.balancer.admin());
        for (name, path) in [
            ("list", "/"),
            ("service", "/services/http-service-0001"),
            ("certificates", "/certificates"),
            ("store", "/store"),
            ("haproxy", "/haproxy"),
        ] {
            tab.open(&format!("{console}{path}"));
            wait_live(&tab);
            save_all_looks(&tab, &format!("{name}-{count}"));
        }
        // A host goes with one of three upstreams of each service.
        apps.truncate(2);
        tab.open(&console);
        tab.wait(PATIENCE, "document.querySelector('#problems')?.innerText.includes('fail')");
        save_all_looks(&tab, &format!("problems-{count}"));
    }
}

fn save_all_looks(tab: &Browser, name: &str) {
    for (screen, look) in [("wide", Look::WIDE), ("phone", Look::PHONE)] {
        save(tab, &format!("{name}-{screen}-light"), look);
        save(tab, &format!("{name}-{screen}-dark"), look.dark());
    }
}
