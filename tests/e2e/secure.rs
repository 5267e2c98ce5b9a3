//! `docs/secure.md`, followed to the letter: every block of the page is run, against an etcd made by it.

mod renew;
mod roles;
mod site;

use lab::Page;

/// The heading above the block that all others need before them.
const FIRST: &str = "Secure the store";

fn page() -> Page {
    Page::read("docs/secure.md")
}
