//! `certs`: the certificate that serves each host at each balancer, and rejected files.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;

use crate::balancer_api::{Answers, Certificates, ServedBy};
use crate::context::Context;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Table};
use crate::upstreams::{describe_unreachable, list_unreachable};

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl certs
  discoverctl certs shop.com
  discoverctl certs --output json | jq -r '.refused[].reason'

Exit code 1 if a host gets a certificate that is invalid or for another host, or if a file is rejected. A host of a service with
tls `both` doesn't count, because it may be meant for plain HTTP. Exit code 6 if a balancer's API can't be reached and the other
balancers are fine.";

/// Let's Encrypt's clients renew a month before the end. Two weeks before the end a renewal has failed for some time.
pub(super) const EXPIRES_SOON_DAYS: i64 = 14;

#[derive(Debug, Args)]
pub(crate) struct Certs {
    /// Show these hosts instead of all
    #[arg(value_name = "HOST")]
    hosts: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Listing {
    /// By host, then by balancer.
    hosts: Vec<Row>,
    /// The files that serve no name, by balancer.
    idle: Vec<File>,
    /// The rejected files, by balancer. If such a file was good before, its last good content is still used.
    refused: Vec<File>,
    /// The files that are valid and of no use as certificates, by balancer.
    unused: Vec<File>,
    /// The balancers without an answer, with the reason.
    unreachable: BTreeMap<String, String>,
}

/// A host at one balancer.
#[derive(Debug, Serialize)]
struct Row {
    /// Null for clients that ask for no name, or for a name that no certificate is for.
    host: Option<String>,
    balancer: String,
    /// The service that owns the host.
    service: Option<String>,
    /// The value of the service's setting `tls`.
    tls: Option<String>,
    /// No certificate is for the host. Clients get the default one.
    default: bool,
    /// The certificates that serve the host, one for each key type. The default certificate has only file, dates and
    /// names.
    certificates: Vec<Served>,
}

/// A certificate that serves a host.
#[derive(Debug, Serialize)]
struct Served {
    #[serde(flatten)]
    by: ServedBy,
    /// The names in the certificate.
    names: Vec<String>,
    /// Whole days until its end, negative after it; null if the date is unreadable.
    days_left: Option<i64>,
}

/// A file at one balancer.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct File {
    file: String,
    balancer: String,
    /// The reason why the file serves nothing.
    reason: String,
}

impl Certs {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        let store = context.read_store().await?;
        let answers: Answers<Certificates> = context.balancer_api(&store)?.ask_all("certificates").await;
        let listing = Listing::from_answers(&answers, &self.hosts, SystemTime::now());
        context.screen.show(&listing)?;
        // A fault that is certain counts more than a balancer that doesn't answer.
        if !listing.is_good() {
            return Ok(Outcome::No);
        }
        if listing.unreachable.is_empty() {
            return Ok(Outcome::Yes);
        }
        let silent: Vec<&str> = listing.unreachable.keys().map(String::as_str).collect();
        Err(Error::NoBalancer(format!(
            "the certificates of {} are unknown: the API can't be reached",
            silent.join(", ")
        )))
    }
}

impl Listing {
    fn from_answers(answers: &Answers<Certificates>, only: &[String], now: SystemTime) -> Self {
        let mut listing = Self {
            hosts: Vec::new(),
            idle: Vec::new(),
            refused: Vec::new(),
            unused: Vec::new(),
            unreachable: list_unreachable(answers),
        };
        for (node, answer) in answers.iter().filter_map(|(node, it)| Some((node.to_string(), it.as_ref().ok()?))) {
            let mut rows = list_rows(&node, answer, now);
            rows.retain(|row| only.is_empty() || row.host.as_ref().is_some_and(|host| only.contains(host)));
            listing.hosts.extend(rows);
            listing.refused.extend(answer.refused.iter().map(|(file, reason)| File::new(file, &node, reason)));
            listing.unused.extend(answer.unused.iter().map(|(file, reason)| File::new(file, &node, reason)));
            for it in answer.certificates.iter().filter(|it| it.serves.is_empty() && !it.default) {
                let reason = format!("others are better for {}", it.names.join(", "));
                listing.idle.push(File::new(&it.file, &node, &reason));
            }
        }
        listing.hosts.sort_by(|a, b| (&a.host, &a.balancer).cmp(&(&b.host, &b.balancer)));
        [&mut listing.idle, &mut listing.refused, &mut listing.unused].into_iter().for_each(|files| files.sort());
        listing
    }

    /// Every host that needs a certificate has a valid one, and no file is rejected.
    fn is_good(&self) -> bool {
        self.refused.is_empty() && self.hosts.iter().all(Row::is_good)
    }
}

/// Lists the rows of one balancer: first that of clients without a known name, then its hosts.
fn list_rows(node: &str, answer: &Certificates, now: SystemTime) -> Vec<Row> {
    let default: Vec<ServedBy> = answer
        .certificates
        .iter()
        .filter(|it| it.default)
        .map(|it| ServedBy {
            file: it.file.clone(),
            not_after: it.not_after.clone(),
            validity: it.validity.clone(),
            why: "the default".to_owned(),
            ..ServedBy::default()
        })
        .collect();
    // Clients without a known name come to every balancer, so each one has this row.
    let mut rows = vec![Row {
        host: None,
        balancer: node.to_owned(),
        service: None,
        tls: None,
        default: true,
        certificates: default.iter().map(|by| Served::new(by, answer, now)).collect(),
    }];
    for host in &answer.hosts {
        let by = if host.default { &default } else { &host.certificates };
        rows.push(Row {
            host: Some(host.host.clone()),
            balancer: node.to_owned(),
            service: Some(host.service.clone()),
            tls: Some(host.tls.clone()),
            default: host.default,
            certificates: by.iter().map(|by| Served::new(by, answer, now)).collect(),
        });
    }
    rows
}

/// Whole days until a time in RFC 3339, negative after it; None if the time is unreadable.
pub(super) fn days_left(end: Option<&str>, now: SystemTime) -> Option<i64> {
    let end = humantime::parse_rfc3339(end?).ok()?;
    Some(end.duration_since(now).map_or_else(|error| -whole_days(error.duration()) - 1, whole_days))
}

fn whole_days(span: Duration) -> i64 {
    i64::try_from(span.as_secs() / (24 * 60 * 60)).unwrap_or(i64::MAX)
}

impl Row {
    fn is_good(&self) -> bool {
        // Clients without a name accept any certificate or none. A host with tls `both` may be meant for plain HTTP.
        let is_needed = self.tls.as_ref().is_some_and(|tls| tls != "both");
        !is_needed || !self.default && self.certificates.iter().all(|it| it.by.validity == "valid")
    }
}

impl File {
    fn new(file: &str, balancer: &str, reason: &str) -> Self {
        Self { file: file.to_owned(), balancer: balancer.to_owned(), reason: reason.to_owned() }
    }
}

impl Served {
    /// `answer` has the names in the certificate.
    fn new(by: &ServedBy, answer: &Certificates, now: SystemTime) -> Self {
        let certificate = answer.certificates.iter().find(|it| it.file == by.file);
        let names = certificate.map(|it| it.names.clone()).unwrap_or_default();
        Self { names, days_left: days_left(by.not_after.as_deref(), now), by: by.clone() }
    }

    fn days_left_cell(&self) -> Cell {
        match self.days_left {
            None => Cell::or_dash(None::<i64>),
            Some(days) if days < 0 => Cell::bad(format!("expired {} days ago", -days)),
            Some(_) if self.by.validity == "not valid yet" => Cell::bad("not valid yet"),
            Some(days) if days < EXPIRES_SOON_DAYS => Cell::odd(format!("{days} days")),
            Some(days) => format!("{days} days").into(),
        }
    }
}

impl Printable for Listing {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["HOST", "BALANCER", "FILE", "NAMES", "NOT AFTER", "LEFT", "WHY"]);
        // Services that share a host share its certificate. The rows are sorted by host and balancer.
        let mut shown = None;
        for row in &self.hosts {
            if shown.replace((&row.host, &row.balancer)) == Some((&row.host, &row.balancer)) {
                continue;
            }
            let host = row.host.as_deref().unwrap_or("(no or unknown name)");
            for served in &row.certificates {
                let no_match = "no certificate is for it";
                let why =
                    if row.default && row.host.is_some() { Cell::odd(no_match) } else { served.by.why.as_str().into() };
                let file = served.by.file.as_str();
                let (names, end) = (served.names.join(" "), Cell::or_dash(served.by.not_after.as_ref()));
                table.add_row([
                    host.into(),
                    row.balancer.as_str().into(),
                    file.into(),
                    names.into(),
                    end,
                    served.days_left_cell(),
                    why,
                ]);
            }
        }
        let mut blocks = vec![Block::Table(table)];
        for (title, files) in [("REFUSED", &self.refused), ("SERVES NOTHING", &self.idle), ("NOT USED", &self.unused)] {
            if files.is_empty() {
                continue;
            }
            let mut table = Table::new([title, "BALANCER", "WHY"]);
            for File { file, balancer, reason } in files {
                table.add_row([file.as_str().into(), balancer.as_str().into(), reason.as_str().into()]);
            }
            blocks.push(Block::Table(table));
        }
        if self.hosts.is_empty() {
            blocks.push(Block::Text("no balancer serves such a host over TLS".to_owned()));
        }
        blocks.extend(Block::from_lines(describe_unreachable(&self.unreachable)));
        blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"certificates": [
        {"file": "/c/a.pem", "names": ["a.test"], "serves": ["a.test"], "default": true, "not_after": "2026-12-31T00:00:00Z",
         "validity": "valid"},
        {"file": "/c/old.pem", "names": ["a.test"], "serves": [], "not_after": "2025-12-31T00:00:00Z",
         "validity": "expired"}],
      "refused": {"/c/x.pem": "it is a FIFO, not a regular file"},
      "unused": {"/c/chain.pem": "the authority of a certificate beside it"},
      "hosts": [
        {"host": "a.test", "service": "http-a", "tls": "terminate", "certificates": [
          {"file": "/c/a.pem", "key_type": "RSA", "not_after": "2026-12-31T00:00:00Z", "validity": "valid",
           "why": "the other one has expired (over old.pem)"}]},
        {"host": "b.test", "service": "http-b", "tls": "TLS", "default": true}]}"#;

    fn listing(answer: &str, only: &[String]) -> Listing {
        let answers = Answers::from([
            ("lb1".parse().unwrap(), Ok(serde_json::from_str(answer).unwrap())),
            ("lb2".parse().unwrap(), Err("refused".into())),
        ]);
        Listing::from_answers(&answers, only, humantime::parse_rfc3339("2026-12-21T12:00:00Z").unwrap())
    }

    fn tables(listing: &Listing) -> Vec<Vec<String>> {
        let tables = listing.to_blocks().into_iter().filter_map(|block| match block {
            Block::Table(table) => Some(table),
            _ => None,
        });
        let cells = |row: Vec<Cell>| row.iter().map(Cell::text).collect::<Vec<_>>().join(" | ");
        tables.map(|table| table.rows.into_iter().map(cells).collect()).collect()
    }

    #[test]
    fn each_host_is_shown_with_what_serves_it_and_each_file_with_why_it_does_not() {
        let tables = tables(&listing(ANSWER, &[]));
        assert_eq!(
            tables,
            [
                vec![
                    "(no or unknown name) | lb1 | /c/a.pem | a.test | 2026-12-31T00:00:00Z | 9 days | the default",
                    "a.test | lb1 | /c/a.pem | a.test | 2026-12-31T00:00:00Z | 9 days | the other one has expired (over old.pem)",
                    "b.test | lb1 | /c/a.pem | a.test | 2026-12-31T00:00:00Z | 9 days | no certificate is for it",
                ],
                vec!["/c/x.pem | lb1 | it is a FIFO, not a regular file"],
                vec!["/c/old.pem | lb1 | others are better for a.test"],
                vec!["/c/chain.pem | lb1 | the authority of a certificate beside it"],
            ]
        );
    }

    #[test]
    fn a_refused_file_or_a_host_without_a_valid_certificate_is_no_good() {
        assert!(!listing(ANSWER, &[]).is_good());
        let good =
            ANSWER.replace(r#""/c/x.pem": "it is a FIFO, not a regular file""#, "").replace("\"TLS\"", "\"both\"");
        assert!(listing(&good, &[]).is_good());
        assert!(!listing(&good.replace("both", "terminate"), &[]).is_good());
        assert!(listing(&good.replace("both", "terminate"), &["a.test".to_owned()]).is_good());
        let expired = good.replace(
            r#""validity": "valid",
           "why""#,
            r#""validity": "expired", "why""#,
        );
        assert!(!listing(&expired, &[]).is_good());
        assert!(listing(r#"{"certificates": []}"#, &[]).is_good(), "an older confgen tells no hosts");
    }

    #[test]
    fn days_are_counted_down_and_below_zero() {
        let now = humantime::parse_rfc3339("2026-12-21T12:00:00Z").unwrap();
        let left = |end: &str| days_left(Some(end), now);
        assert_eq!(left("2026-12-22T12:00:00Z"), Some(1));
        assert_eq!(left("2026-12-22T11:59:59Z"), Some(0));
        assert_eq!(left("2026-12-21T11:59:59Z"), Some(-1));
        assert_eq!(days_left(None, now), None);
    }
}
