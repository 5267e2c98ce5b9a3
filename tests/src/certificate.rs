//! Certificates for a test's own domains.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, CertifiedKey, DnType, IsCa, KeyPair, date_time_ymd,
    generate_simple_self_signed,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::{Scratch, write};

/// An authority, which issues certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// One of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::new([]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("an authority"))
    }

    /// A certificate for these names.
    pub fn issue(&self, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let key = KeyPair::generate().expect("a key");
        let cert = CertificateParams::new(names).expect("names").signed_by(&key, &self.0).expect("a certificate");
        Certificate { der: cert.der().to_vec(), pem: cert.pem() + &key.serialize_pem() }
    }

    /// Its own certificate, as those have it who believe it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }
}

/// A certificate with its key.
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

    /// One that expires after so long.
    pub fn until(name: &str, left: Duration) -> Self {
        Self::between(name, SystemTime::UNIX_EPOCH, SystemTime::now() + left)
    }

    /// One that is valid between these times, which are cut to whole seconds.
    pub fn between(name: &str, start: SystemTime, end: SystemTime) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
        let time = |time: SystemTime| {
            date_time_ymd(1970, 1, 1) + time.duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970")
        };
        (params.not_before, params.not_after) = (time(start), time(end));
        let cert = params.self_signed(&key).expect("a certificate");
        Self { der: cert.der().to_vec(), pem: cert.pem() + &key.serialize_pem() }
    }

    /// A certificate with an RSA key, which OpenSSL makes: ring can't.
    pub fn rsa(name: &str) -> Self {
        let folder = Scratch::new();
        let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", &format!("/CN={name}")])
            .args(["-addext", &format!("subjectAltName=DNS:{name}")])
            .args([Path::new("-keyout"), &key, Path::new("-out"), &certificate])
            .output()
            .expect("openssl");
        assert!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let read = |path| std::fs::read_to_string(path).expect("what openssl has written");
        let text = read(certificate);
        let der = CertificateDer::from_pem_slice(text.as_bytes()).expect("a certificate").to_vec();
        Self { der, pem: text + &read(key) }
    }

    /// The same certificate with others behind it, so that the file has at least so many bytes.
    #[must_use]
    pub fn with_chain(mut self, bytes: usize) -> Self {
        let other = Self::of(&["chain.test"]).pem;
        let (certificate, _) = other.split_at(other.find("-----BEGIN PRIVATE").expect("a key"));
        while self.pem.len() < bytes {
            self.pem += certificate;
        }
        self
    }

    /// The certificate and its key, each in PEM.
    pub fn parts(&self) -> (&str, &str) {
        self.pem.split_at(self.pem.find("-----BEGIN PRIVATE").expect("a key"))
    }

    /// Puts the PEM file in place by a rename.
    pub fn write(&self, path: impl AsRef<Path>) {
        write(path, &self.pem);
    }
}
