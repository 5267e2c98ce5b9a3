//! `/api/v1/certificates`: the files, and the certificates of each host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The answer to `/api/v1/certificates`: files and hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Certificates {
    /// The accepted certificates. Some of them may serve no name.
    pub certificates: Vec<Certificate>,
    /// The reason by rejected file. If the file was good before, its last good content is still used.
    pub refused: BTreeMap<String, String>,
    /// The reason by file that is valid and of no use as a certificate.
    pub unused: BTreeMap<String, String>,
    /// The hosts of all services that HAProxy ends TLS for, by service and name. A confgen of before this field lists none.
    pub hosts: Vec<Host>,
}

/// One certificate with its key, as a file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Certificate {
    /// The path of its file on the balancer.
    pub file: String,
    /// The hosts and addresses that the certificate is for.
    pub names: Vec<String>,
    /// The names that it serves. Another certificate is better for its other names.
    pub serves: Vec<String>,
    /// It serves clients that ask for no name, or for a name that no certificate is for.
    pub default: bool,
    /// The kind of its key: `ECDSA`, `RSA` or `other`.
    pub key_type: String,
    /// The beginning of its validity, RFC 3339; None if the certificate's date is unreadable.
    pub not_before: Option<String>,
    /// The end of its validity, RFC 3339; None if the certificate's date is unreadable.
    pub not_after: Option<String>,
    /// `valid`, `not valid yet` or `expired`, by the balancer's clock.
    pub validity: String,
    /// SHA-1 in hexadecimal capitals, as `openssl x509 -fingerprint` has it.
    pub fingerprint: String,
}

/// A host that HAProxy ends TLS for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Host {
    /// The host's name, or `*.` and the domain below which it stands for every host.
    pub host: String,
    /// The service that owns the host: `http-shop`.
    pub service: String,
    /// The value of the service's setting `tls`.
    pub tls: String,
    /// No certificate is for the host. Its clients get the default certificate, and most of them reject it.
    pub default: bool,
    /// The certificates that serve the host, one for each key type.
    pub certificates: Vec<ServedBy>,
}

/// A certificate that serves a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ServedBy {
    /// The path of its file on the balancer.
    pub file: String,
    /// The kind of its key: `ECDSA`, `RSA` or `other`.
    pub key_type: String,
    /// The end of its validity, RFC 3339; None if the certificate's date is unreadable.
    pub not_after: Option<String>,
    /// `valid`, `not valid yet` or `expired`, by the balancer's clock.
    pub validity: String,
    /// The reason why this one serves the host, and no other one of the same key type.
    pub why: String,
}
