//! The hash of the password of the stats page, as haproxy.cfg has it. Pure.

use sha_crypt::{PasswordVerifier, ShaCrypt};
use sha2::{Digest, Sha256};

/// A password as haproxy.cfg has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256 in upper-case hex digits, of a password that confgen made. 142 random bits need no costly hash.
    Sha256(String),
    /// crypt(3), of any other password. Each check takes HAProxy's event loop about a millisecond.
    Crypt(String),
}

impl Hash {
    /// The hash that stands in this text, if it is one.
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

/// Whatever was put into the file, only what crypt(3) makes may come near haproxy.cfg.
pub(crate) fn is_crypt(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"$./=".contains(&b))
}

pub(crate) fn sha256_hex(password: &str) -> String {
    Sha256::digest(password).iter().map(|byte| format!("{byte:02X}")).collect()
}
