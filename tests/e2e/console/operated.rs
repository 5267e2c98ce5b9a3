//! The list of services by the keyboard and by its filter.

use lab::{Browser, Claim, Ground, PATIENCE};

use super::fixture::{assert_no_complaint, take_turn, wait_live, wait_services};

/// Sets a field of the filter as a person does, and submits it.
fn set_field(browser: &Browser, name: &str, value: &str) {
    let field = format!("#filter [name={name}]");
    let is_text = browser.run(&format!("return document.querySelector('{field}').matches('input')")) == true;
    browser.focus(&field);
    if is_text {
        browser.run(&format!("document.querySelector('{field}').select()"));
        browser.type_text(value);
        browser.press("Enter");
    } else {
        browser.run(&format!(
            "const field = document.querySelector('{field}'); field.value = '{value}';\
             field.dispatchEvent(new Event('input', {{bubbles: true}}));\
             field.dispatchEvent(new Event('change', {{bubbles: true}}))"
        ));
    }
}

/// Three services, one of which has an upstream without a program, and one an upstream of the color green.
fn three_services() -> Ground {
    let build = Ground::build()
        .announced("blog", "blog.test", &["blog-1"], &[])
        .announced("pay", "pay.test", &["pay-1"], &["--color", "green", "--host-name", "web-7"])
        .http("shop", "shop.test", &["shop-1"]);
    // No program listens on the port of the discard service.
    build.set("http-services/blog/upstreams", &[("dead", "127.0.0.1:9")]).start()
}

#[test]
fn the_filter_narrows_by_text_color_host_and_fault() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let ground = three_services();
    let console = format!("http://{}/", ground.balancer.admin());
    let all = "http-blog http-pay http-shop";
    for (name, value, shown) in
        [("q", "sho", "http-shop"), ("color", "green", "http-pay"), ("host", "web-7", "http-pay")]
    {
        tab.open(&format!("{console}?sort=name"));
        wait_services(&tab, all);
        set_field(&tab, name, value);
        wait_services(&tab, shown);
    }
    tab.open(&format!("{console}?sort=name"));
    wait_services(&tab, all);
    tab.run("document.querySelector('#filter [name=wrong]').click()");
    wait_services(&tab, "http-blog");
    assert_no_complaint(&tab, "the filter");
}

#[test]
fn the_keyboard_finds_opens_and_goes_back() {
    let claim = Claim::new();
    let mut tab = claim.wait();
    let _turn = take_turn(&mut tab);
    let ground = three_services();
    tab.open(&format!("http://{}/?sort=name", ground.balancer.admin()));
    wait_live(&tab);
    wait_services(&tab, "http-blog http-pay http-shop");
    tab.type_text("/");
    tab.wait(PATIENCE, "document.activeElement?.name === 'q'");
    tab.type_text("shop");
    assert_eq!(tab.run("return document.activeElement.value"), "shop", "the key `/` itself is not typed");
    tab.press("Enter");
    wait_services(&tab, "http-shop");
    tab.press("Escape");
    tab.type_text("j");
    tab.press("Enter");
    tab.wait(PATIENCE, "location.pathname === '/services/http-shop'");
    tab.go_back();
    tab.wait(PATIENCE, "location.pathname === '/' && document.querySelector('#services')");
    tab.type_text("?");
    tab.wait(PATIENCE, "document.querySelector('dialog[open]')?.innerText.includes('Enter')");
    tab.press("Escape");
    tab.wait(PATIENCE, "!document.querySelector('dialog[open]')");
    assert_no_complaint(&tab, "the keyboard");
}
