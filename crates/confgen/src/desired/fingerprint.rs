//! The digest by which confgen tells generations, files and services apart. Pure.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// Hashes the parts into sixteen hexadecimal digits. They tell the generations of one balancer apart, and can be read out.
pub(crate) fn hash_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        // With the lengths, "ab" + "c" and "a" + "bc" differ.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().take(8).fold(String::new(), |mut text, byte| {
        // Writing to a string can't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
