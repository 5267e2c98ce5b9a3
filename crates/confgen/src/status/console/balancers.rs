//! The balancers of the store, as their records say. Pure.

use discovery::{BalancerRecord, Entry, Key};

use crate::status::Status;

/// The longest reason of a record that can't be parsed.
const LONGEST_REASON: usize = 200;

/// One balancer's record. The error is the reason why it can't be parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balancer {
    pub node: String,
    pub record: Result<BalancerRecord, String>,
}

/// The balancers with these keys, by name. Other keys are left out.
pub fn list_balancers(entries: &[Entry]) -> Vec<Balancer> {
    entries.iter().filter_map(parse_balancer).collect()
}

fn parse_balancer(entry: &Entry) -> Option<Balancer> {
    let Ok(Key::Balancer(node)) = entry.key.parse() else { return None };
    let record = BalancerRecord::parse(&entry.value);
    let record = record.map_err(|error| super::format::cut_text(&error.to_string(), LONGEST_REASON));
    Some(Balancer { node: node.to_string(), record })
}

/// Whether a balancer runs what this one runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// It is this balancer.
    Own,
    Agrees,
    /// It has applied an older revision.
    Behind(i64),
    /// It follows another cluster, so its revisions can't be compared.
    OtherStore,
    Unreadable(String),
}

impl Agreement {
    pub fn of(balancer: &Balancer, status: &Status) -> Self {
        let record = match &balancer.record {
            Err(reason) => return Self::Unreadable(reason.clone()),
            Ok(record) => record,
        };
        if balancer.node == status.identity.node {
            return Self::Own;
        }
        if record.cluster != status.seen.cluster {
            return Self::OtherStore;
        }
        let applied = status.reconcile.applied.map_or(0, |applied| applied.revision);
        // A balancer that is ahead agrees too, because this one is then about to follow.
        let behind = applied - record.applied;
        if behind > 0 { Self::Behind(behind) } else { Self::Agrees }
    }

    pub fn words(&self) -> String {
        match self {
            Self::Own => "this balancer".to_owned(),
            Self::Agrees => "agrees".to_owned(),
            Self::Behind(revisions) => format!("behind by {revisions} revisions"),
            Self::OtherStore => "follows another store".to_owned(),
            Self::Unreadable(reason) => format!("its record can't be read: {reason}"),
        }
    }

    /// The style, as the sheet names it.
    pub fn style(&self) -> &'static str {
        match self {
            Self::Own | Self::Agrees => "serving",
            Self::Behind(_) => "standby",
            Self::OtherStore | Self::Unreadable(_) => "failing",
        }
    }
}

/// A balancer's URL, if it is one that a browser may follow. The store's writers choose the text.
pub fn safe_url(url: Option<&str>) -> Option<String> {
    let url = url?;
    let is_web = url.starts_with("http://") || url.starts_with("https://");
    let is_plain =
        url.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'<' | b'>' | b'`'));
    (is_web && is_plain && url.len() < 300).then(|| url.trim_end_matches('/').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::ReconcileStatus;
    use crate::store::StoreRevision;

    #[test]
    fn only_a_web_address_is_followed() {
        assert_eq!(safe_url(Some("http://10.0.0.1:9101/")).as_deref(), Some("http://10.0.0.1:9101"));
        for bad in ["javascript:alert(1)", "http://a\"onclick=x", "http://a b", "//a", "data:text/html,x"] {
            assert_eq!(safe_url(Some(bad)), None, "{bad}");
        }
        assert_eq!(safe_url(None), None);
    }

    #[test]
    fn balancers_agree_if_they_applied_as_much_of_one_store() {
        let revision = StoreRevision { cluster: 7, raft_term: 1, revision: 20 };
        let reconcile = ReconcileStatus { applied: Some(revision), ..ReconcileStatus::default() };
        let mut status = Status { seen: revision, reconcile: reconcile.into(), ..Status::default() };
        status.identity = crate::status::Identity { node: "lb1".into(), ..Default::default() }.into();
        let of = |node: &str, cluster, applied| {
            let record = Ok(BalancerRecord { cluster, applied, ..BalancerRecord::default() });
            Agreement::of(&Balancer { node: node.into(), record }, &status)
        };
        assert_eq!(of("lb1", 7, 3), Agreement::Own);
        assert_eq!(of("lb2", 7, 20), Agreement::Agrees);
        assert_eq!(of("lb2", 7, 25), Agreement::Agrees);
        assert_eq!(of("lb2", 7, 18), Agreement::Behind(2));
        assert_eq!(of("lb2", 8, 20), Agreement::OtherStore);
        let broken = Balancer { node: "lb3".into(), record: Err("no JSON".into()) };
        assert!(matches!(Agreement::of(&broken, &status), Agreement::Unreadable(_)));
    }
}
