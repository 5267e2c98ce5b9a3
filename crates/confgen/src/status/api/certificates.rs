//! Builds the answer about certificates: each file with its names, and each host with its certificates.
//!
//! Pure: the caller gives the time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use discovery::balancer_api::{self, Host, ServedBy};
use discovery::{ServiceId, Tls};

use super::format_unix_time;
use crate::desired::DesiredService;
use crate::local_files::certificate::Certificate;
use crate::local_files::certificates::{Certificates, Claimant, Validity};
use crate::status::Status;

/// The answer to `/api/v1/certificates`. `now` is in Unix seconds.
pub fn show_certificates(report: &Status, now: i64) -> balancer_api::Certificates {
    let all = &*report.reconcile.certificates;
    let mut served = all.choice.names_by_certificate();
    let files = all.files.iter().enumerate().map(|(index, it)| {
        let serves = served.remove(&index).unwrap_or_default().into_iter().map(str::to_owned).collect();
        show_certificate(it, serves, all.choice.default == Some(index), now)
    });
    // confgen's self-signed certificate serves only if the operator has none.
    let own = all.default_certificate().filter(|_| all.files.is_empty());
    let own = own.map(|it| show_certificate(it, Vec::new(), true, now));
    balancer_api::Certificates {
        certificates: files.chain(own).collect(),
        refused: show_reasons(&all.rejected),
        unused: show_reasons(&all.unused),
        hosts: report.reconcile.desired.services().flat_map(|(id, wanted)| show_hosts(all, id, wanted, now)).collect(),
    }
}

fn show_reasons(files: &BTreeMap<PathBuf, String>) -> BTreeMap<String, String> {
    files.iter().map(|(file, reason)| (file.display().to_string(), reason.clone())).collect()
}

fn show_certificate(it: &Certificate, serves: Vec<String>, default: bool, now: i64) -> balancer_api::Certificate {
    balancer_api::Certificate {
        file: it.file.display().to_string(),
        names: it.names.clone(),
        serves,
        default,
        key_type: it.key_type.name().to_owned(),
        not_before: it.not_before.and_then(format_unix_time),
        not_after: it.not_after.and_then(format_unix_time),
        validity: Validity::at(it, now).name().to_owned(),
        fingerprint: it.fingerprint.clone(),
    }
}

/// The hosts of one service, previews included. A TCP service has none: its clients come by port, with any name.
fn show_hosts(all: &Certificates, id: &ServiceId, wanted: &DesiredService, now: i64) -> Vec<Host> {
    let tls = wanted.settings.tls;
    if !matches!(tls, Tls::Both | Tls::Terminate | Tls::Reencrypt) {
        return Vec::new();
    }
    let previews = wanted.previews.iter().flat_map(|preview| &preview.routes);
    let routes = wanted.routes.iter().chain(previews);
    let hosts: BTreeSet<String> = routes.map(|route| route.domain.to_string()).collect();
    hosts.into_iter().map(|host| show_host(all, id, tls, host, now)).collect()
}

fn show_host(all: &Certificates, id: &ServiceId, tls: Tls, host: String, now: i64) -> Host {
    let chosen: Vec<&Claimant> = all.choice.claimants(&host).iter().filter(|it| it.is_chosen).collect();
    Host {
        service: id.to_string(),
        tls: tls.to_string(),
        default: chosen.is_empty(),
        certificates: chosen.into_iter().filter_map(|it| show_served(all, &host, it, now)).collect(),
        host,
    }
}

fn show_served(all: &Certificates, host: &str, claimant: &Claimant, now: i64) -> Option<ServedBy> {
    let it = all.files.get(claimant.index)?;
    let (advantage, other) = all.choice.advantage_of(host, claimant);
    let over = other.and_then(|index| all.files.get(index)).map(|other| all.relative_name(&other.file));
    Some(ServedBy {
        file: it.file.display().to_string(),
        key_type: it.key_type.name().to_owned(),
        not_after: it.not_after.and_then(format_unix_time),
        validity: Validity::at(it, now).name().to_owned(),
        why: over.map_or_else(|| advantage.to_string(), |over| format!("{advantage} (over {over})")),
    })
}
