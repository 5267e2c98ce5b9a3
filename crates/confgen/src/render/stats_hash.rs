//! The hash of the stats page's password, as haproxy.cfg has it. Pure: it makes no password and no salt.

use sha_crypt::{PasswordVerifier, ShaCrypt};
use sha2::{Digest, Sha256};

/// A hash. Its text is safe in a line of haproxy.cfg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256 in upper-case hexadecimal digits, of a password that confgen made. 144 random bits need no costly hash.
    Sha256(String),
    /// crypt(3), of any other password. Each check takes HAProxy's event loop some milliseconds.
    Crypt(String),
}

/// The most bytes of a password that HAProxy hashes with crypt(3). SHA-512 takes blocks of 128 bytes, so that 128 bytes took 3.5 ms, and
/// 511 bytes, the most of libxcrypt, 10.6 ms.
pub const LONGEST: usize = 128;

impl Hash {
    /// `None` if the text is no hash.
    pub fn parse(text: &str) -> Option<Self> {
        let is_sha256 = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
        match text {
            _ if is_sha256 => Some(Self::Sha256(text.to_owned())),
            _ if is_crypt(text) => Some(Self::Crypt(text.to_owned())),
            _ => None,
        }
    }

    pub fn as_str(&self) -> &str {
        let (Self::Sha256(text) | Self::Crypt(text)) = self;
        text
    }

    pub fn is_hash_of(&self, password: &str) -> bool {
        match self {
            Self::Sha256(hash) => *hash == sha256_hex(password),
            Self::Crypt(hash) => ShaCrypt::default().verify_password(password.as_bytes(), hash.as_str()).is_ok(),
        }
    }
}

/// True if the text has only characters of crypt(3).
pub(crate) fn is_crypt(text: &str) -> bool {
    // The text is from a file, and a blank or a line feed in it would change haproxy.cfg.
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"$./=".contains(&b))
}

pub(crate) fn sha256_hex(password: &str) -> String {
    Sha256::digest(password).iter().map(|byte| format!("{byte:02X}")).collect()
}
