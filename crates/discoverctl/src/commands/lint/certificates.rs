//! Faults of certificates: rejected files, certificates that end soon, hosts without one. Pure.

use std::time::SystemTime;

use super::Finding;
use crate::balancer_api::{Answers, Certificates};
use crate::commands::certs::days_left;

/// Finds the faults of all balancers. Their keys are those of the balancers.
pub(super) fn lint_certificates(answers: &Answers<Certificates>, now: SystemTime, soon_days: i64) -> Vec<Finding> {
    let answers = answers.iter().filter_map(|(node, it)| Some((format!("balancers/{node}"), it.as_ref().ok()?)));
    answers.flat_map(|(key, answer)| lint_certificates_of(&key, answer, now, soon_days)).collect()
}

fn lint_certificates_of(key: &str, answer: &Certificates, now: SystemTime, soon_days: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (file, reason) in &answer.refused {
        let what = format!("{file}: {reason}");
        let todo = "mend or remove the file; its last good content serves meanwhile, if there was any";
        findings.push(Finding::new(key, "certificate_refused", what, todo));
    }
    // A certificate that serves no name may end.
    for it in answer.certificates.iter().filter(|it| it.default || !it.serves.is_empty()) {
        let days = days_left(it.not_after.as_deref(), now);
        let (kind, when) = match days {
            // The end of such a certificate is far away, so its date alone would look fine.
            _ if it.validity == "not valid yet" => ("certificate_not_valid_yet", "is not valid yet".to_owned()),
            Some(..0) => ("certificate_expired", "has expired".to_owned()),
            Some(days) if days < soon_days => ("certificate_expires", format!("expires in {days} days")),
            _ => continue,
        };
        let what = format!("{} for {} {when}, and no better one is there", it.file, it.names.join(", "));
        findings.push(Finding::new(key, kind, what, "see why it has not been renewed"));
    }
    // With tls `both` a host may be meant for plain HTTP.
    for host in answer.hosts.iter().filter(|host| host.default && host.tls != "both") {
        let what = format!("no certificate is for {} of {}: clients get the default one", host.host, host.service);
        let todo = "add a certificate, or take the host out of `domain`";
        findings.push(Finding::new(key, "no_certificate", what, todo));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_expires_or_is_missing_is_found() {
        let answer = r#"{"certificates": [
            {"file": "/c/a.pem", "names": ["a.test"], "serves": ["a.test"], "not_after": "2026-12-31T00:00:00Z",
             "validity": "valid"},
            {"file": "/c/b.pem", "names": ["b.test"], "default": true, "not_after": "2026-01-01T00:00:00Z",
             "validity": "expired"},
            {"file": "/c/c.pem", "names": ["c.test"], "serves": ["c.test"], "not_after": "2028-01-01T00:00:00Z",
             "validity": "not valid yet"},
            {"file": "/c/d.pem", "names": ["d.test"], "serves": ["d.test"], "not_after": "2027-12-31T00:00:00Z",
             "validity": "valid"},
            {"file": "/c/old.pem", "names": ["a.test"], "not_after": "2026-01-01T00:00:00Z", "validity": "expired"}],
          "refused": {"/c/x.pem": "it is a FIFO, not a regular file"},
          "hosts": [{"host": "e.test", "service": "http-e", "tls": "terminate", "default": true},
                    {"host": "f.test", "service": "http-f", "tls": "both", "default": true}]}"#;
        let answers = Answers::from([("lb1".parse().unwrap(), Ok(serde_json::from_str(answer).unwrap()))]);
        let now = humantime::parse_rfc3339("2026-12-21T12:00:00Z").unwrap();
        let line = |Finding { key, kind, what, .. }: &Finding| format!("{key} [{kind}] {what}");
        let lines: Vec<String> = lint_certificates(&answers, now, 14).iter().map(line).collect();
        assert_eq!(
            lines,
            [
                "balancers/lb1 [certificate_refused] /c/x.pem: it is a FIFO, not a regular file",
                "balancers/lb1 [certificate_expires] /c/a.pem for a.test expires in 9 days, and no better one is there",
                "balancers/lb1 [certificate_expired] /c/b.pem for b.test has expired, and no better one is there",
                "balancers/lb1 [certificate_not_valid_yet] /c/c.pem for c.test is not valid yet, and no better one is there",
                "balancers/lb1 [no_certificate] no certificate is for e.test of http-e: clients get the default one",
            ]
        );
    }
}
