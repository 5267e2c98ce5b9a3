//! The pages that explain the causes of a verdict have every cause.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use discovery::Cause;

#[test]
fn the_pages_name_every_cause() {
    for page in ["discoverctl.md", "debug.md"] {
        let path = format!("{}/../../docs/{page}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).unwrap();
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
        for cause in Cause::ALL {
            let name = format!("`{}`", cause.name());
            let is_named = rows.iter().any(|row| row.split('|').nth(1).is_some_and(|cell| cell.contains(&name)));
            assert!(is_named, "docs/{page} has no row for {name}");
        }
    }
}
