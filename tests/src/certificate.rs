//! Certificates for a test's own domains.

use std::path::Path;

use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::write;

/// A self-signed certificate with its key.
pub struct Certificate {
    /// What a TLS client is shown.
    pub der: Vec<u8>,
    /// Certificate and key in one PEM file, as HAProxy takes them.
    pub pem: String,
}

impl Certificate {
    /// A certificate for these names, wildcards allowed.
    pub fn of(names: &[&str]) -> Self {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("a certificate");
        Self { der: cert.der().to_vec(), pem: cert.pem() + &signing_key.serialize_pem() }
    }

    /// Puts the PEM file in place by a rename.
    pub fn write(&self, path: impl AsRef<Path>) {
        write(path, &self.pem);
    }
}
