//! A page that stays open shows what happens, without a reload.

use lab::{App, Claim, Ground, PATIENCE};

use super::fixture::{assert_no_complaint, take_turn, wait_live};

/// A reload forgets it.
const MARK: &str = "window.mark = 'still the same document'";
const IS_MARKED: &str = "window.mark === 'still the same document'";

#[test]
fn an_open_page_shows_a_new_upstream_a_crash_and_what_follows_confgens_restart() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let mut ground = Ground::build().announced("shop", "shop.test", &["shop-1", "shop-2"], &[]).start();
    let console = format!("http://{}", ground.balancer.admin());

    tab.open(&format!("{console}/services/http-shop"));
    wait_live(&tab);
    tab.run(MARK);
    let late = App::alone("late");
    ground.etcd.put("http-services/shop/upstreams/late", late.address.to_string());
    let row = "document.querySelector('#upstreams tr[data-upstream=late] td[data-verdict]')";
    tab.wait(PATIENCE, &format!("{row}?.dataset.verdict === 'yes'"));
    assert_eq!(tab.run(&format!("return {IS_MARKED}")), true, "the page was loaded again");

    tab.open(&format!("{console}/"));
    wait_live(&tab);
    tab.run(MARK);
    // Both at once, so that no announcer takes the record back. The lease ends after 10 s, and HAProxy's check fails before.
    ground.apps[0].kill();
    let named = "[...document.querySelectorAll('#problems li[data-problem]')]\
        .some(it => it.innerText.includes('discoverctl explain shop/shop-1'))";
    tab.wait(PATIENCE, named);
    assert_eq!(tab.run(&format!("return {IS_MARKED}")), true, "the page was loaded again");
    assert_no_complaint(&tab, "while confgen runs");

    // supervisord starts it again.
    ground.balancer.kill("confgen");
    ground.balancer.wait_settled(PATIENCE);
    ground.etcd.put("http-services/blog/upstreams/late", late.address.to_string());
    ground.etcd.put("http-services/blog/domain", "blog.test");
    tab.wait(PATIENCE, "document.querySelector('#services tr[data-service=http-blog]')");
    wait_live(&tab);
    assert_eq!(tab.run(&format!("return {IS_MARKED}")), true, "the page was loaded again");
}
