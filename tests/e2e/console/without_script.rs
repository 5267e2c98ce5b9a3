//! The console without script: links and forms do it.

use lab::{Claim, Ground, PATIENCE, until};

use super::fixture::{SHOWN_SERVICES, take_turn};

#[test]
fn every_page_and_the_search_work_without_script() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let ground = Ground::build().http("shop", "shop.test", &["shop-1"]).http("blog", "blog.test", &["shop-1"]).start();
    let console = format!("http://{}", ground.balancer.admin());
    // The page's own scripts do not run later: they are skipped as the page is read.
    let ask = |path: &str, question: &str| {
        tab.set_script(false);
        tab.open(&format!("{console}{path}"));
        tab.set_script(true);
        tab.run(&format!("return Boolean({question})"))
    };
    for (path, question) in [
        ("/", "document.querySelector('#services tr[data-service=http-shop]')"),
        ("/services/http-shop", "document.querySelector('#upstreams tr[data-upstream=shop-1] td[data-verdict]')"),
        ("/services/http-shop", "document.querySelector('#keys').innerText.includes('shop.test')"),
        ("/services/http-shop", "document.querySelector('#section').innerText.includes('server shop-1')"),
        ("/certificates", "document.querySelector('#certificates')"),
        ("/store", "document.querySelector('#balancers')"),
        ("/haproxy", "document.querySelector('#processes') && document.querySelector('#acts')"),
    ] {
        assert_eq!(ask(path, question), true, "{path}: {question}");
    }

    let is_paused = "document.querySelector('[data-live-state]').textContent.trim() === 'paused'";
    assert_eq!(ask("/", is_paused), true, "a script ran");
    tab.set_script(false);
    tab.open(&format!("{console}/"));
    tab.focus("#filter [name=q]");
    tab.type_text("blog");
    tab.press("Enter");
    until(PATIENCE, "the form to be sent", || if tab.url().contains("q=blog") { Ok(()) } else { Err(tab.url()) });
    tab.set_script(true);
    assert_eq!(tab.run(&format!("return {SHOWN_SERVICES}")), "http-blog");
    tab.set_script(false);
    tab.focus("#services tr[data-service=http-blog] a");
    tab.press("Enter");
    until(PATIENCE, "the link to be followed", || tab.url().ends_with("/services/http-blog"));
}
