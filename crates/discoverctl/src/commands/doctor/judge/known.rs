//! The faults that `lint` finds, with their weight and their reason. Pure.

use super::super::facts::Facts;
use super::problems::is_told;
use super::{Area, Finding, Severity};
use crate::commands::lint;

pub(super) fn judge_lint(facts: &Facts) -> Vec<Finding> {
    // The balancer's own words have the reason and the command.
    let others = facts.lint.iter().filter(|it| !is_told(facts, &it.key, it.kind, it.cause.as_ref()));
    others.map(weigh).collect()
}

fn weigh(fault: &lint::Finding) -> Finding {
    let (area, severity, why) = describe_kind(fault.kind);
    // A port that can't be bound is quarantined under the service's `ports`.
    let is_of_ports = fault.key.ends_with("/ports") || fault.what.starts_with("port ");
    let area = if is_of_ports && matches!(area, Area::Keys | Area::Balancers) { Area::Ports } else { area };
    let subject = fault.key.strip_prefix("balancers/").filter(|node| !node.is_empty()).unwrap_or(&fault.key);
    Finding {
        severity,
        area,
        subject: subject.to_owned(),
        what: fault.what.clone(),
        why: why.to_owned(),
        todo: fault.todo.clone(),
    }
}

/// The area, the weight and the reason of each kind that `lint` knows.
fn describe_kind(kind: &str) -> (Area, Severity, &'static str) {
    use Area::{Api, Balancers, Certificates, Keys};
    use Severity::{Error, Warning};
    match kind {
        "balancer_garbled" => (Balancers, Error, "everything that waits for balancers waits for this one"),
        "other_store" => (Balancers, Error, "it doesn't follow this store"),
        "out_of_sync" => (Balancers, Error, "HAProxy doesn't run what the store asks for"),
        "haproxy_silent" => (Balancers, Warning, "a drain can't ask them for their sessions"),
        "connections_cut" => (Balancers, Warning, "clients lost their connections"),
        "no_url" => (Api, Error, "check, explain, certs and drain can't tell what it serves, and refuse to guess"),
        "quarantined" => (Keys, Error, "the key isn't applied; its last good value serves, if there was one"),
        "disagreement" => (Balancers, Error, "clients get another service at another balancer"),
        "certificate_refused" => (Certificates, Error, "HAProxy can't use the file"),
        "certificate_not_valid_yet" | "certificate_expired" => (Certificates, Error, "browsers refuse it"),
        "certificate_expires" => (Certificates, Warning, "browsers refuse it afterwards"),
        "no_certificate" => (Certificates, Error, "browsers refuse a certificate for another name"),
        "rival_claim" => (Keys, Error, "only the first claimant gets the requests"),
        "unreadable" | "unfollowed_key" => (Keys, Error, "no balancer applies it"),
        "no_domain" | "no_upstream" | "no_requests" | "color_without_upstream" => {
            (Keys, Error, "its clients get no answer of an app")
        }
        "copies_missing" => (Keys, Error, "fewer copies run than are wanted"),
        "held" => (Keys, Warning, "its announcer is gone, and it serves until a check fails or you decide"),
        "double_address" => (Keys, Warning, "the app gets two shares of the requests"),
        "no_lease" => (Keys, Warning, "it stays when the app is gone"),
        "host_name" => (Keys, Warning, "drain --host takes the upstreams of all these hosts out"),
        // The others are keys that nothing reads. Their words say all.
        _ => (Keys, Warning, ""),
    }
}
