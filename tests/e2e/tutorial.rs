//! `docs/tutorial.md`, word by word, in a Debian that has nothing yet.

mod howto;

use lab::{Machine, Network, Page, light};

/// After these the project's own programs are put there.
const FIRST: &str = "Programs";

#[test]
#[ignore = "needs Docker: make lab-test"]
fn it_leads_from_nothing_to_blue_green() {
    let _turn = light();
    let network = Network::new();
    let machine = Machine::bare(&network, "lb-1");
    let page = Page::read("docs/tutorial.md");
    let headings = page.headings();
    assert_eq!(headings.first(), Some(&FIRST));
    machine.make_install();
    machine.follow(&page.steps(&headings));
}
