//! The console's tests share this: the browser, which they have one after the other, and questions about a page.

use lab::{Browser, PATIENCE, Tab, Turn, heavy};

/// Starts the tab. The order keeps a test from holding the machine while it waits for the browser. A browser that draws pages takes all
/// cores, and tests with deadlines failed beside it.
pub(super) fn take_turn(tab: &mut Tab<'_>) -> Turn {
    let turn = heavy();
    tab.start();
    turn
}

/// The services that the table shows, in its order.
pub(super) const SHOWN_SERVICES: &str = "[...document.querySelectorAll('#services tr[data-service]')]\
     .filter(row => row.checkVisibility()).map(row => row.dataset.service).join(' ')";

/// Waits until the table shows these services, in this order.
#[track_caller]
pub(super) fn wait_services(browser: &Browser, services: &str) {
    browser.wait(PATIENCE, &format!("{SHOWN_SERVICES} === '{services}'"));
}

/// Waits until the page says that it follows the balancer.
#[track_caller]
pub(super) fn wait_live(browser: &Browser) {
    browser.wait(PATIENCE, "document.querySelector('[data-live-state]').textContent.trim() === 'live'");
}

/// Asserts that the browser has nothing to complain of, such as an error of a script or a breach of the page's policy.
#[track_caller]
pub(super) fn assert_no_complaint(browser: &Browser, place: &str) {
    assert_eq!(browser.take_complaints(), Vec::<String>::new(), "{place}");
}
