//! Certificates: what each file serves, and which ones each host is served with. Pure: it is told the time.

use std::collections::{BTreeMap, BTreeSet};

use discovery::{ServiceId, Tls};
use serde::Serialize;

use super::format_unix_time;
use crate::desired::DesiredService;
use crate::local_files::certificate::Certificate;
use crate::local_files::certificates::{Certificates, Claimant, Validity};
use crate::status::Status;

/// `/api/v1/certificates`.
#[derive(Debug, Serialize)]
pub struct CertificatesShown {
    /// Those that were taken, whether they serve a name or not.
    pub certificates: Vec<CertificateShown>,
    /// By file: why it is not taken over. If the file was good before, its last good content is still used.
    pub refused: BTreeMap<String, String>,
    /// By file: why it is of no use as a certificate, without being wrong.
    pub unused: BTreeMap<String, String>,
    /// The hosts of all services that HAProxy ends TLS for, by name.
    pub hosts: Vec<HostShown>,
}

/// One certificate.
#[derive(Debug, Serialize)]
pub struct CertificateShown {
    /// Its file.
    pub file: String,
    /// The hosts and addresses that it is for.
    pub names: Vec<String>,
    /// The names that it serves. Another certificate is better for the others.
    pub serves: Vec<String>,
    /// It serves clients that ask for no name, or for one that no certificate is for.
    pub default: bool,
    /// `ECDSA`, `RSA` or `other`.
    pub key_type: &'static str,
    /// The beginning of its validity; null where it can't be read.
    pub not_before: Option<String>,
    /// The end of its validity; null where it can't be read.
    pub not_after: Option<String>,
    /// `valid`, `not valid yet` or `expired`, by the balancer's clock.
    pub validity: &'static str,
    /// SHA-1 in hexadecimal capitals, as `openssl x509 -fingerprint` has it.
    pub fingerprint: String,
}

/// What a host is served with.
#[derive(Debug, Serialize)]
pub struct HostShown {
    /// The host, or `*.` and what it is below of.
    pub host: String,
    /// The service that has it: `http-shop`.
    pub service: String,
    /// The service's `tls`.
    pub tls: String,
    /// No certificate is for the host: clients get the default one, and most of them refuse it.
    pub default: bool,
    /// The certificates, one for each kind of key.
    pub certificates: Vec<ServedShown>,
}

/// A certificate that serves a host.
#[derive(Debug, Serialize)]
pub struct ServedShown {
    /// Its file.
    pub file: String,
    /// `ECDSA`, `RSA` or `other`.
    pub key_type: &'static str,
    /// The end of its validity; null where it can't be read.
    pub not_after: Option<String>,
    /// `valid`, `not valid yet` or `expired`, by the balancer's clock.
    pub validity: &'static str,
    /// Why it serves the host, and not another one with the same kind of key.
    pub why: String,
}

/// The certificates of now, in Unix seconds.
pub fn show_certificates(report: &Status, now: i64) -> CertificatesShown {
    let all = &*report.reconcile.certificates;
    let words = |files: &BTreeMap<std::path::PathBuf, String>| {
        files.iter().map(|(file, reason)| (file.display().to_string(), reason.clone())).collect()
    };
    let mut served = all.choice.names_by_certificate();
    let files = all.files.iter().enumerate().map(|(index, it)| {
        let serves = served.remove(&index).unwrap_or_default().into_iter().map(str::to_owned).collect();
        show_certificate(it, serves, all.choice.default == Some(index), now)
    });
    // The self-signed one serves where there is no other.
    let own = all.default_certificate().filter(|_| all.files.is_empty());
    let own = own.map(|it| show_certificate(it, Vec::new(), true, now));
    CertificatesShown {
        certificates: files.chain(own).collect(),
        refused: words(&all.rejected),
        unused: words(&all.unused),
        hosts: report.reconcile.desired.services().flat_map(|(id, wanted)| show_hosts(all, id, wanted, now)).collect(),
    }
}

fn show_certificate(it: &Certificate, serves: Vec<String>, default: bool, now: i64) -> CertificateShown {
    CertificateShown {
        file: it.file.display().to_string(),
        names: it.names.clone(),
        serves,
        default,
        key_type: it.key_type.name(),
        not_before: it.not_before.and_then(format_unix_time),
        not_after: it.not_after.and_then(format_unix_time),
        validity: Validity::at(it, now).name(),
        fingerprint: it.fingerprint.clone(),
    }
}

/// The hosts of one service. None for a TCP service, which clients reach by its port, whatever name they ask for.
fn show_hosts(all: &Certificates, id: &ServiceId, wanted: &DesiredService, now: i64) -> Vec<HostShown> {
    let tls = wanted.settings.tls;
    if !matches!(tls, Tls::Both | Tls::Terminate | Tls::Reencrypt) {
        return Vec::new();
    }
    let previews = wanted.previews.iter().flat_map(|preview| &preview.routes);
    let routes = wanted.routes.iter().chain(previews);
    let hosts: BTreeSet<String> = routes.map(|route| route.domain.to_string()).collect();
    let host = |host: String| {
        let chosen: Vec<&Claimant> = all.choice.claimants(&host).iter().filter(|it| it.is_chosen).collect();
        HostShown {
            service: id.to_string(),
            tls: tls.to_string(),
            default: chosen.is_empty(),
            certificates: chosen.into_iter().filter_map(|it| show_served(all, &host, it, now)).collect(),
            host,
        }
    };
    hosts.into_iter().map(host).collect()
}

fn show_served(all: &Certificates, host: &str, claimant: &Claimant, now: i64) -> Option<ServedShown> {
    let it = all.files.get(claimant.index)?;
    let (advantage, other) = all.choice.advantage_of(host, claimant);
    let over = other.and_then(|index| all.files.get(index)).map(|other| all.relative_name(&other.file));
    Some(ServedShown {
        file: it.file.display().to_string(),
        key_type: it.key_type.name(),
        not_after: it.not_after.and_then(format_unix_time),
        validity: Validity::at(it, now).name(),
        why: over.map_or_else(|| advantage.to_string(), |over| format!("{advantage} (over {over})")),
    })
}
