//! Checks that an answer comes from the balancer that was asked. Pure.
//!
//! A URL may lead to another confgen than the one that wrote it. 127.0.0.1 is every host's own address, an address may
//! be given to another host, and two clusters may share hosts. So the answer itself has to name its balancer and its
//! store.

use std::net::IpAddr;

use discovery::balancer_api::Identity;
use discovery::{BalancerRecord, Node};
use reqwest::Url;
use serde::Deserialize;

/// A balancer as its key below `balancers/` describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AskedBalancer {
    pub(super) node: Node,
    /// The cluster id of the store from which the key was read.
    pub(super) cluster: u64,
    /// The prefix below which the key was read.
    pub(super) prefix: String,
    /// The URL of its API, or the reason why there is none.
    pub(super) url: Result<String, &'static str>,
    /// The confgen process that wrote the key; None from a confgen that doesn't say.
    pub(super) instance: Option<String>,
}

/// The part of every answer that names its origin; None from an older confgen.
#[derive(Deserialize)]
struct Identified {
    identity: Option<Identity>,
}

impl AskedBalancer {
    /// Describes the balancer of a key. `said` is None if its value is invalid.
    pub(super) fn from_key(node: &Node, record: Option<&BalancerRecord>, cluster: u64, prefix: &str) -> Self {
        let url = match record {
            None => Err("its key says nothing that makes sense"),
            Some(record) => {
                record.url.clone().ok_or("it doesn't say where its API is: --admin and --admin-host of its confgen")
            }
        };
        let instance = record.and_then(|record| record.instance.clone());
        Self { node: node.clone(), cluster, prefix: prefix.to_owned(), url, instance }
    }

    /// Accepts an answer only if this balancer gave it, about this store.
    ///
    /// # Errors
    /// The origin of the answer, and what to do.
    pub(super) fn check_origin(&self, answer: &[u8]) -> Result<(), String> {
        let Self { node, cluster, prefix, instance, .. } = self;
        let identified = serde_json::from_slice::<Identified>(answer).ok();
        let Some(by) = identified.and_then(|it| it.identity) else {
            return Err(
                "the answer doesn't say which balancer gave it; is that a confgen older than this discoverctl?".into(),
            );
        };
        if by.node != node.as_str() {
            return Err(format!("{} answers there, not {node}", escape_name(&by.node)));
        }
        if by.prefix != *prefix {
            return Err(format!("a confgen answers there that follows {}, not {prefix}", escape_name(&by.prefix)));
        }
        let Some(followed) = by.cluster else {
            return Err("its confgen has just started and doesn't know the store yet; try again".into());
        };
        if followed != cluster.to_string() {
            return Err(format!(
                "a confgen answers there that follows the cluster {}, and this is {cluster}",
                escape_name(&followed)
            ));
        }
        // Two balancers may have one name by mistake. Only the instance tells them apart.
        match instance {
            Some(instance) if *instance != by.instance => Err(format!(
                "another confgen called {node} answers there than the one that writes balancers/{node}: was it restarted just \
                 now? Else give each balancer a --node of its own"
            )),
            _ => Ok(()),
        }
    }
}

/// Escapes a name from an answer, so that no terminal obeys it.
fn escape_name(word: &str) -> String {
    word.escape_debug().take(300).collect()
}

/// True if the URL leads to the host on which it is used.
pub(crate) fn is_loopback(url: &str) -> bool {
    let Some(host) = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)) else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // `localhost` and the names below it are loopback, too (RFC 6761), and so is ::ffff:127.0.0.1.
    address.map_or(host == "localhost" || host.ends_with(".localhost"), |ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked() -> AskedBalancer {
        let record = BalancerRecord {
            url: Some("http://127.0.0.1:9101".into()),
            instance: Some("a1".into()),
            ..BalancerRecord::default()
        };
        AskedBalancer::from_key(&"lb1".parse().unwrap(), Some(&record), 7, "/haproxy-discover")
    }

    fn answer(node: &str, cluster: &str, prefix: &str, instance: &str) -> String {
        format!(
            r#"{{"identity":{{"node":"{node}","cluster":{cluster},"prefix":"{prefix}","instance":"{instance}"}},"upstreams":[]}}"#
        )
    }

    #[test]
    fn an_answer_of_another_balancer_store_prefix_or_process_is_not_believed() {
        let ours = "/haproxy-discover";
        let refused = |answer: &str| asked().check_origin(answer.as_bytes()).err().unwrap_or_default();
        assert_eq!(refused(&answer("lb1", "\"7\"", ours, "a1")), "");
        for (answer, why) in [
            (answer("lb2", "\"7\"", ours, "a1"), "lb2 answers there, not lb1"),
            (answer("lb1", "\"8\"", ours, "a1"), "follows the cluster 8, and this is 7"),
            (answer("lb1", "\"7\"", "/other", "a1"), "follows /other, not /haproxy-discover"),
            (answer("lb1", "\"7\"", ours, "b2"), "another confgen called lb1"),
            (answer("lb1", "null", ours, "a1"), "doesn't know the store yet"),
            (answer("lb1\\u001b[2J", "\"7\"", ours, "a1"), "lb1\\u{1b}[2J answers there"),
            (r#"{"upstreams":[]}"#.into(), "doesn't say which balancer gave it"),
            (r#"{"identity":{}}"#.into(), " answers there, not lb1"),
            (r#"{"identity":[1]}"#.into(), "doesn't say which balancer gave it"),
            ("404 page not found".into(), "doesn't say which balancer gave it"),
            (String::new(), "doesn't say which balancer gave it"),
        ] {
            assert!(refused(&answer).contains(why), "{answer}: {}", refused(&answer));
        }
        let by_hand = AskedBalancer { instance: None, ..asked() };
        assert_eq!(by_hand.check_origin(answer("lb1", "\"7\"", ours, "b2").as_bytes()), Ok(()));
    }

    #[test]
    fn a_key_without_a_url_says_why_it_can_not_be_asked() {
        let url = |record: Option<&BalancerRecord>| {
            AskedBalancer::from_key(&"lb1".parse().unwrap(), record, 7, "/p").url.unwrap_err()
        };
        assert!(url(None).contains("makes sense"));
        assert!(url(Some(&BalancerRecord::default())).contains("--admin"));
    }

    #[test]
    fn loopback_is_every_hosts_own() {
        for url in [
            "http://127.0.0.1:9101",
            "https://[::1]:9101",
            "http://localhost:1",
            "http://127.9.9.9:1",
            "http://[::ffff:127.0.0.1]:1",
        ] {
            assert!(is_loopback(url), "{url}");
        }
        for url in ["http://10.0.0.1:9101", "http://lb1:9101", "https://[fd00::1]:9101", "nonsense", ""] {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
