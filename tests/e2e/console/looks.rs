//! Every page on a notebook and on a phone, light and dark, with long names: nothing is cut off, all of it can be read, and a screen
//! reader knows what everything is.

use lab::{Browser, Claim, Ground, Look};

use super::fixture::{assert_no_complaint, take_turn, wait_live};

/// As long as a name in DNS may be.
fn long_host() -> String {
    let label = "a-label-of-sixty-three-characters-".repeat(2)[..63].to_owned();
    [&label, &label, &label, "test"].join(".")
}

/// A service whose name, upstream, hosts, paths, keys and reasons are long.
fn long_names() -> Ground {
    let long = "a-service-with-a-long-name-".repeat(8);
    let long = long.trim_end_matches('-');
    let upstream = "an_upstream_with_a_long_name_without_a_place_to_break_it_".repeat(3);
    let build =
        Ground::build().certificate(&[&long_host()]).http("shop", "shop.test", &["shop-1"]).tcp("db", &["shop-1"]);
    let address = build.app("shop-1").address.to_string();
    let path = format!("/{}", "path".repeat(40));
    build
        .set(
            &format!("http-services/{long}"),
            &[
                ("domain", &long_host()),
                ("path", &path),
                (&format!("upstreams/{upstream}"), &address),
                ("upstreams/dead", "127.0.0.1:9"),
                ("balance", &"quickly".repeat(30)),
                (&format!("overrides/{upstream}"), r#"{"state":"drain"}"#),
            ],
        )
        .set("http-services/shop", &[("active", "blue"), (&"unknown".repeat(30), "x")])
        .start()
}

/// Lists the page's faults, as `looks.js` finds them.
fn find_faults(browser: &Browser, width: u32) -> Vec<String> {
    let found = browser.run(&format!("const WIDTH = {width};\n{}", include_str!("looks.js")));
    found.as_array().expect("a list").iter().map(ToString::to_string).collect()
}

/// Lists the elements without a name for a screen reader.
fn find_nameless(browser: &Browser) -> Vec<String> {
    const NAMED: [&str; 9] =
        ["link", "button", "textbox", "searchbox", "combobox", "checkbox", "table", "image", "dialog"];
    let nodes = browser.accessibility_tree();
    assert!(nodes.iter().any(|node| node.role == "main"), "no landmark: {nodes:?}");
    let nameless = nodes.into_iter().filter(|node| NAMED.contains(&node.role.as_str()) && node.name.is_empty());
    nameless.map(|node| format!("a {} without a name", node.role)).collect()
}

/// Goes through the page with the key Tab, and lists the elements that don't show the focus.
fn find_unseen_focus(browser: &Browser) -> Vec<String> {
    // The first elements are on every page. More of them are rows of tables, which are alike.
    let stops = (0..15).map(|_| {
        browser.press("Tab");
        browser.run(include_str!("focus.js"))
    });
    stops.filter(|fault| !fault.is_null()).map(|fault| fault.to_string()).collect()
}

#[test]
fn every_page_fits_and_reads_well_in_light_and_dark_on_wide_and_narrow_screens() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let ground = long_names();
    let console = format!("http://{}", ground.balancer.admin());
    let long = format!("/services/http-{}", "a-service-with-a-long-name-".repeat(8).trim_end_matches('-'));
    let mut faults = Vec::new();
    for path in ["/", "/services/http-shop", "/services/tcp-db", &long, "/certificates", "/store", "/haproxy"] {
        tab.look(Look::WIDE);
        tab.open(&format!("{console}{path}"));
        wait_live(&tab);
        for look in [Look::WIDE, Look::WIDE.dark(), Look::PHONE, Look::PHONE.dark()] {
            tab.look(look);
            let found = find_faults(&tab, look.width);
            faults.extend(found.into_iter().map(|fault| format!("{path}, {look:?}: {fault}")));
        }
        tab.look(Look::WIDE);
        let found = find_nameless(&tab).into_iter().chain(find_unseen_focus(&tab));
        faults.extend(found.map(|fault| format!("{path}: {fault}")));
        assert_no_complaint(&tab, path);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_scripts_that_judge_a_page_find_faults() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let page = "<!doctype html><title>x</title><h1>a</h1><h3>b</h3><p style='color:%23999'>pale</p>\
                <div style='width:2000px'>wide</div><table><tr><th>x</table><input><a href=/ style='outline:none'>y</a>";
    tab.open(&format!("data:text/html,{page}"));
    let faults = find_faults(&tab, 1280).join("\n");
    for fault in ["lang", "wider", "contrast 2.85", "0 of main", "skips", "scope", "caption", "no label"] {
        assert!(faults.contains(fault), "{fault}: {faults}");
    }
    let unseen = find_unseen_focus(&tab);
    assert!(!unseen.is_empty() && unseen.iter().all(|fault| fault.contains("<a href")), "not the field: {unseen:?}");
}
