//! One certificate: its names, its validity, and its form in HAProxy's output. Pure: no I/O, no clock.

use std::collections::BTreeMap;
use std::path::PathBuf;

use haproxy::runtime::{NotPem, Pem, ShownCertificate, Token};
use sha1::{Digest, Sha1};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

/// A certificate that was taken over. `Debug` shows no byte of its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The operator's file, or the self-signed one in the state directory.
    pub file: PathBuf,
    /// The path of the copy that HAProxy reads. HAProxy uses it as the certificate's name.
    pub copy: Token,
    pub pem: Pem,
    /// The hosts and addresses that the certificate is for. Without any, its common names.
    pub names: Vec<String>,
    /// The names, in lower case, for which HAProxy serves it without a filter: its DNS names and its common names. A common name
    /// that is no DNS name has `Coverage::CommonName`.
    pub servable: BTreeMap<String, Coverage>,
    /// HAProxy prefers ECDSA, then RSA, among the kinds that the client can use.
    pub key_type: KeyType,
    /// The start of its validity in Unix seconds. `None` if it can't be read.
    pub not_before: Option<i64>,
    /// The last second of its validity in Unix seconds. `None` if it can't be read, though HAProxy may accept the file.
    pub not_after: Option<i64>,
    /// SHA-1 in hexadecimal capitals, as in `show ssl cert` and `openssl x509 -fingerprint`.
    pub fingerprint: String,
    /// The subjects of the chain behind it. `None` for a certificate that can't be read.
    pub chain: Vec<Option<Subject>>,
}

/// The part of a certificate that has a name. The better one is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// The name is one of its DNS names.
    Exact,
    /// One of its DNS names is a wildcard that matches.
    Wildcard,
    /// Only its common name is this name, and it has other DNS names. Most clients don't accept it.
    CommonName,
}

/// The kinds of keys that HAProxy tells apart, in the order in which it prefers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    Ecdsa,
    Rsa,
    /// Such as Ed25519.
    Other,
}

impl KeyType {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ecdsa => "ECDSA",
            Self::Rsa => "RSA",
            Self::Other => "other",
        }
    }

    /// The type of a certificate's key, by the algorithm's object identifier (RFC 3279).
    fn from_certificate(certificate: &X509Certificate) -> Self {
        match certificate.public_key().algorithm.algorithm.to_id_string().as_str() {
            "1.2.840.10045.2.1" => Self::Ecdsa,
            "1.2.840.113549.1.1.1" => Self::Rsa,
            _ => Self::Other,
        }
    }
}

/// The values of a distinguished name in their order, without the attributes' types.
pub type Subject = Vec<String>;

impl Certificate {
    /// Parses the content of `file`, of which HAProxy reads `copy`.
    pub fn parse(file: PathBuf, copy: Token, content: &[u8]) -> Result<Self, NotPem> {
        let pem = Pem::parse(content)?;
        let own = pem.certificates().next().unwrap_or_default();
        let fingerprint = Sha1::digest(own).iter().map(|byte| format!("{byte:02X}")).collect();
        let read = x509_parser::parse_x509_certificate(own).ok().map(|(_, certificate)| certificate);
        let names = read.as_ref().map(names_of).unwrap_or_default();
        let servable = read.as_ref().map(servable_names).unwrap_or_default();
        let key_type = read.as_ref().map_or(KeyType::Other, KeyType::from_certificate);
        let validity = read.map(|certificate| certificate.validity().clone());
        let not_before = validity.as_ref().map(|validity| validity.not_before.timestamp());
        let not_after = validity.map(|validity| validity.not_after.timestamp());
        let chain = pem.certificates().skip(1).map(parse_subject).collect();
        Ok(Self { file, copy, names, servable, key_type, not_before, not_after, fingerprint, chain, pem })
    }

    /// The number of certificates behind it.
    pub fn chain_length(&self) -> usize {
        self.chain.len()
    }

    /// True if HAProxy shows this certificate with this chain. HAProxy shows only the names of a chain.
    pub fn is_shown_as(&self, shown: &ShownCertificate) -> bool {
        let mut chain = self.chain.iter().zip(&shown.chain);
        self.fingerprint.eq_ignore_ascii_case(&shown.fingerprint)
            // Without a chain of its own, HAProxy may find one (`issuers-chain-path`).
            && (self.chain.is_empty()
                || self.chain.len() == shown.chain.len()
                    && chain.all(|(own, shown)| own.as_ref().is_none_or(|own| is_shown_subject(own, shown))))
    }
}

fn servable_names(certificate: &X509Certificate) -> BTreeMap<String, Coverage> {
    let hosts = alternative_names(certificate).iter().filter_map(|name| match name {
        GeneralName::DNSName(host) => Some(host.to_ascii_lowercase()),
        _ => None,
    });
    let mut servable: BTreeMap<String, Coverage> = hosts.map(|host| (host, Coverage::Exact)).collect();
    // Without any alternative name, only clients that accept common names can use the certificate.
    let coverage = if alternative_names(certificate).is_empty() { Coverage::Exact } else { Coverage::CommonName };
    for name in common_names(certificate) {
        servable.entry(name.to_ascii_lowercase()).or_insert(coverage);
    }
    servable
}

fn alternative_names<'a>(certificate: &'a X509Certificate) -> &'a [GeneralName<'a>] {
    let found = certificate.subject_alternative_name().ok().flatten();
    found.map(|found| found.value.general_names.as_slice()).unwrap_or_default()
}

fn common_names(certificate: &X509Certificate) -> Vec<String> {
    certificate.subject().iter_common_name().filter_map(|name| Some(name.as_str().ok()?.to_owned())).collect()
}

fn names_of(certificate: &X509Certificate) -> Vec<String> {
    let named: Vec<String> = alternative_names(certificate)
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(host) => Some((*host).to_owned()),
            GeneralName::IPAddress(bytes) => parse_address(bytes),
            _ => None,
        })
        .collect();
    if named.is_empty() { common_names(certificate) } else { named }
}

fn parse_address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).ok().map(|octets| std::net::Ipv4Addr::from(octets).to_string());
    let v6 = <[u8; 16]>::try_from(bytes).ok().map(|octets| std::net::Ipv6Addr::from(octets).to_string());
    v4.or(v6)
}

fn parse_subject(der: &[u8]) -> Option<Subject> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).ok()?;
    let values = certificate.subject().iter_attributes();
    Some(values.map(|it| String::from_utf8_lossy(it.attr_value().data).into_owned()).collect())
}

/// True if HAProxy's `/C=DE/O=a/b/CN=c` has these values.
fn is_shown_subject(values: &[String], shown: &str) -> bool {
    // OpenSSL chooses the short names before `=`, so they don't count.
    let mut rest = shown;
    for value in values {
        let after = rest.strip_prefix('/').and_then(|rest| rest.split_once('=')).map(|(_, rest)| rest);
        let Some(after) = after.and_then(|rest| rest.strip_prefix(value.as_str())) else { return false };
        rest = after;
    }
    rest.is_empty()
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

    use super::*;

    /// A certificate with its key, in PEM.
    pub(crate) fn pem(host: &str) -> String {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        made.cert.pem() + &made.signing_key.serialize_pem()
    }

    pub(crate) fn certificate(host: &str, copy: &str) -> Certificate {
        Certificate::parse(format!("/certs/{host}.pem").into(), copy.parse().unwrap(), pem(host).as_bytes()).unwrap()
    }

    fn chained(issuer: &str) -> Certificate {
        let mut ca = CertificateParams::new([]).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        ca.distinguished_name.push(DnType::OrganizationName, "A/B=C");
        ca.distinguished_name.push(DnType::CommonName, issuer);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["a.com".to_owned(), "10.0.0.5".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        let own = params.signed_by(&key, &ca).unwrap();
        let text = own.pem() + &ca.pem() + &key.serialize_pem();
        Certificate::parse("/certs/a.pem".into(), "/state/a.pem".parse().unwrap(), text.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_has_its_names_and_its_end() {
        let certificate = chained("Root");
        assert_eq!(certificate.names, ["a.com", "10.0.0.5"]);
        assert_eq!(certificate.not_after, Some(1_893_456_000));
        assert_eq!(certificate.fingerprint.len(), 40);
    }

    #[test]
    fn a_certificate_is_compared_with_haproxys_by_fingerprint_and_chain() {
        let certificate = chained("Root");
        let shown = |fingerprint: &str, chain: &[&str]| {
            let chain = chain.iter().map(|name| (*name).to_owned()).collect();
            ShownCertificate { fingerprint: fingerprint.to_owned(), chain }
        };
        let own = certificate.fingerprint.clone();
        let order = |chain: &[&str]| certificate.is_shown_as(&shown(&own, chain));
        let (o, cn) = ("/O=A/B=C", "/CN=Root");
        let name = if order(&[&format!("{o}{cn}")]) { format!("{o}{cn}") } else { format!("{cn}{o}") };
        assert!(order(&[&name]));
        for chain in [&[][..], &["/CN=Root"], &[&name, &name], &[&format!("{name}x")]] {
            assert!(!order(chain), "{chain:?}");
        }
        assert!(!certificate.is_shown_as(&shown(&"0".repeat(40), &[&name])));
        assert!(chained("Root") != certificate);
    }
}
