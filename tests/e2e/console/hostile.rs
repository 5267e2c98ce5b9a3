//! The console shows hostile keys and values as text.

use lab::{Claim, Etcd, Ground, Look, PATIENCE};

use super::fixture::{assert_no_complaint, take_turn};

/// A tag whose handler runs as soon as it is an element, quotes that end an attribute, and a sign that turns the order of a line.
const TAG: &str = r#"<img src=x onerror="window.hacked=1">'"><u><script>window.hacked=1</script>"#;
const BIDI: &str = "\u{202e}detrever";

/// Writes it wherever the store takes it.
fn write_hostile(etcd: &Etcd, app: &str) {
    let value = format!("{TAG}{BIDI}");
    for key in ["domain", "tls", "upstreams/b", "overrides/a", TAG, "upstreams/<script>window.hacked=1<"] {
        etcd.put(&format!("http-services/evil/{key}"), value.clone());
    }
    etcd.put("http-services/evil/upstreams/a", app);
    etcd.put(&format!("http-services/{TAG}/domain"), value.clone());
    etcd.put(&format!("balancers/{TAG}"), value.clone());
    let record = r#"{"cluster":"1","seen":1,"applied":1,"url":"javascript:window.hacked=1","instance":"<u>","haproxy":"<img src=x>","pending":["<u>"]}"#;
    etcd.put("balancers/evil", record);
    let text = serde_json::json!(value);
    let entry = format!(
        r#"{{"time":"2026-11-30T10:13:06.123Z","user":{text},"host":{text},"command":{text},"reason":{text},"keys":["http-services/shop/balance"]}}"#
    );
    etcd.exchange(
        &[],
        &[("http-services/shop/balance", "leastconn"), ("log/20261130T101306.123Z-1f9c03ab", entry.as_str())],
    );
    etcd.put("http-services/shop/check", value);
}

#[test]
fn hostile_values_run_no_script_and_add_no_element() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let ground = Ground::build().http("shop", "shop.test", &["shop-1"]).start();
    write_hostile(&ground.etcd, &ground.app("shop-1").address.to_string());
    let revision = ground.etcd.revision();
    ground.balancer.wait_applied(PATIENCE, revision);
    let console = format!("http://{}", ground.balancer.admin());
    let pages = ["/", "/services/http-shop", "/services/http-evil", "/certificates", "/store", "/haproxy"];
    let mut shown = 0;
    tab.look(Look::WIDE);
    let query = "/?q=%3Cimg%20src%3Dx%20onerror%3D%22window.hacked%3D1%22%3E&host=%22%3E%3Cu%3E&color=%3Cscript%3E";
    let wrong = "/services/%3Cimg%20src%3Dx%20onerror%3Dwindow.hacked%3D1%3E";
    for path in pages.into_iter().chain([query]) {
        tab.open(&format!("{console}{path}"));
        let found = tab.run(include_str!("hostile.js"));
        assert_eq!(found["injected"], serde_json::json!([]), "{path}");
        shown += usize::from(found["shown"] == true);
        assert_no_complaint(&tab, path);
    }
    assert!(shown >= 4, "the text is shown as it is on {shown} pages only");
    tab.open(&format!("{console}{wrong}"));
    assert_eq!(tab.run(include_str!("hostile.js"))["injected"], serde_json::json!([]), "{wrong}");
}
