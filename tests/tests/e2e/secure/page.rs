//! A page's blocks, as a person would paste them.

use std::collections::BTreeMap;
use std::fs::read_to_string;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/");

/// The heading above the block that all others need before them.
pub(super) const FIRST: &str = "Secure the store";

/// The blocks of `docs/secure.md`.
pub(super) fn blocks() -> BTreeMap<String, Vec<String>> {
    blocks_of("secure.md")
}

/// The blocks of a page below each heading, in their order.
pub(crate) fn blocks_of(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let (mut heading, mut open) = (String::new(), false);
    for line in read_to_string(format!("{DOCS}{page}")).unwrap().lines() {
        if let Some(code) = line.strip_prefix("    ") {
            let blocks = found.entry(heading.clone()).or_default();
            if !open {
                blocks.push(String::new());
            }
            *blocks.last_mut().unwrap() += &format!("{code}\n");
            open = true;
        } else if !line.is_empty() {
            // An empty line may be a block's own.
            open = false;
            if line.starts_with('#') {
                heading = line.trim_start_matches('#').trim().to_owned();
            }
        }
    }
    found
}

/// The blocks below one heading.
pub(super) fn below(heading: &str) -> Vec<String> {
    blocks().remove(heading).unwrap_or_else(|| panic!("docs/secure.md has no block below {heading:?}"))
}
