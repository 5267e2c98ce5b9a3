//! The content of a file that may be a certificate or a key. Pure: no I/O, no clock. It doesn't decide which key belongs to
//! which file.

use std::cell::OnceCell;

use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo, X509Certificate};

/// The PEM blocks of a file.
#[derive(Default)]
pub(super) struct Content {
    /// In DER.
    pub(super) certificates: Vec<Vec<u8>>,
    pub(super) keys: Vec<Key>,
    /// All blocks but the keys, as PEM.
    pub(super) public: Vec<pem::Pem>,
    pub(super) is_request: bool,
    pub(super) is_binary: bool,
    pub(super) is_malformed: bool,
}

/// A private key as it is in a file.
pub(super) struct Key {
    pub(super) block: pem::Pem,
    /// Derived on the first use, since that takes up to a millisecond.
    public_key: OnceCell<Option<Vec<u8>>>,
}

impl Content {
    pub(super) fn parse(bytes: &[u8]) -> Self {
        // DER begins with a SEQUENCE.
        let is_binary = bytes.first() == Some(&0x30);
        // A file without any block is well formed: a README, or a file in DER.
        let Ok(blocks) = pem::parse_many(bytes) else { return Self { is_malformed: true, ..Self::default() } };
        let is_request = blocks.iter().any(|block| block.tag().ends_with("CERTIFICATE REQUEST"));
        let (keys, public): (Vec<_>, Vec<_>) = blocks.into_iter().partition(|it| it.tag().ends_with("PRIVATE KEY"));
        let certificates =
            public.iter().filter(|it| it.tag() == "CERTIFICATE").map(|it| it.contents().to_vec()).collect();
        let keys = keys.into_iter().map(Key::new).collect();
        Self { certificates, keys, public, is_request, is_binary, is_malformed: false }
    }
}

/// True if the key belongs to a certificate of the file.
pub(super) fn is_key_in(key: &Key, content: &Content) -> bool {
    content.public.iter().any(|block| key.is_key_of_block(block))
}

impl Key {
    /// True if the PEM block is the key's certificate. False for a key that can't be read here.
    pub(super) fn is_key_of_block(&self, block: &pem::Pem) -> bool {
        block.tag() == "CERTIFICATE"
            && self.public_key().is_some_and(|own| public_key_of(block.contents()).is_some_and(|key| key == own))
    }

    fn new(block: pem::Pem) -> Self {
        Self { block, public_key: OnceCell::new() }
    }

    /// `None` for an encrypted key, or a key of a kind that can't be read here. HAProxy then decides.
    pub(super) fn public_key(&self) -> Option<&[u8]> {
        self.public_key.get_or_init(|| self.derive_public_key()).as_deref()
    }

    fn derive_public_key(&self) -> Option<Vec<u8>> {
        let der = PrivateKeyDer::from_pem_slice(pem::encode(&self.block).as_bytes()).ok()?;
        key_bits(&any_supported_type(&der).ok()?.public_key()?)
    }
}

/// The bits of a certificate's public key.
pub(super) fn public_key_of(der: &[u8]) -> Option<Vec<u8>> {
    // Without the algorithm, which is not always written in the same way.
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(certificate.public_key().subject_public_key.data.to_vec())
}

fn key_bits(public_key: &[u8]) -> Option<Vec<u8>> {
    let (_, public_key) = SubjectPublicKeyInfo::from_der(public_key).ok()?;
    Some(public_key.subject_public_key.data.to_vec())
}

/// A certificate's subject and issuer, in DER.
pub(super) fn subject_and_issuer(der: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some((certificate.subject().as_raw().to_vec(), certificate.issuer().as_raw().to_vec()))
}

pub(super) fn is_ca(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| certificate.is_ca())
}
