//! The console's script and style sheet, compiled in. Pure.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

/// A file that the pages load.
pub struct Asset {
    pub kind: &'static str,
    pub text: &'static str,
}

pub const SCRIPT: Asset =
    Asset { kind: "text/javascript; charset=utf-8", text: include_str!("../../../../../templates/console/console.js") };
pub const STYLE: Asset =
    Asset { kind: "text/css; charset=utf-8", text: include_str!("../../../../../templates/console/console.css") };

impl Asset {
    /// The entity tag: it changes with the text.
    pub fn tag(&self) -> String {
        // The tag protects nothing, so the standard library's hash will do.
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        format!("\"{:016x}\"", hasher.finish())
    }
}
