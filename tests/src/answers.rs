//! What a balancer answers: HAProxy to clients and in its tables, confgen on its admin port, both in their logs.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http::{Request, Response};
use crate::{Balancer, PATIENCE, until};

impl Balancer {
    /// HAProxy's answer over HTTP.
    #[track_caller]
    pub fn get(&self, host: &str, target: &str) -> Response {
        let answer = Request::get(host, target).send(self.http());
        answer.unwrap_or_else(|error| panic!("http://{host}{target}: {error}"))
    }

    /// HAProxy's answer over HTTPS, with the host as the name in TLS too.
    #[track_caller]
    pub fn get_tls(&self, host: &str, target: &str) -> Response {
        let answer = Request::get(host, target).tls(host).send(self.https());
        answer.unwrap_or_else(|error| panic!("https://{host}{target}: {error}"))
    }

    /// What confgen's API answers below `/api/v1/`.
    #[track_caller]
    pub fn api(&self, path: &str) -> Value {
        let answer = self.asked(&format!("/api/v1/{path}")).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", answer.body))
    }

    /// The keys that confgen's API names as quarantined, with the reasons.
    #[track_caller]
    pub fn quarantine(&self) -> Value {
        self.api("quarantine")["quarantine"].take()
    }

    /// The value of one of confgen's metrics, whose name is given with its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.asked("/metrics").unwrap_or_else(|error| panic!("/metrics: {error}")).body;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Waits until `/ready` has this status and these words, and returns all that it says.
    #[track_caller]
    pub fn wait_ready(&self, status: u16, words: &str) -> String {
        until(PATIENCE, &format!("/ready to answer {status} {words:?}"), || {
            let answer = self.asked("/ready").map_err(|error| error.to_string())?;
            let fits = answer.status == status && answer.body.contains(words);
            if fits { Ok(answer.body) } else { Err(format!("{}: {}", answer.status, answer.body)) }
        })
    }

    /// Waits until confgen has logged these words.
    #[track_caller]
    pub fn wait_logged(&self, words: &str) {
        until(PATIENCE, &format!("{words:?} in confgen's log"), || {
            let log = self.log("confgen");
            if log.contains(words) { Ok(()) } else { Err(log) }
        });
    }

    /// The columns of `show stat` by their names, for each server of a backend.
    #[track_caller]
    pub fn server_rows(&self, backend: &str) -> Vec<BTreeMap<String, String>> {
        let table = self.ask("show stat");
        let mut rows = table.lines().map(|line| line.trim_start_matches("# ").split(',').collect::<Vec<_>>());
        let names = rows.next().unwrap_or_default();
        // Type 2 is a server (HAProxy's management guide, 9.1).
        let servers = rows.filter(|row| row.len() > 32 && row[0] == backend && row[32] == "2");
        let named = |row: Vec<&str>| {
            names.iter().zip(row).map(|(name, value)| ((*name).to_owned(), value.to_owned())).collect()
        };
        servers.map(named).collect()
    }

    /// The columns of `show stat` by their names, for one server.
    #[track_caller]
    pub fn server_row(&self, backend: &str, server: &str) -> BTreeMap<String, String> {
        let found = self.server_rows(backend).into_iter().find(|row| row["svname"] == server);
        found.unwrap_or_else(|| panic!("no {backend}/{server} in\n{}", self.ask("show stat")))
    }

    /// The servers of a backend that have a request or a session now.
    #[track_caller]
    pub fn busy_servers(&self, backend: &str) -> Vec<String> {
        let busy = self.server_rows(backend).into_iter().filter(|row| row["scur"] != "0");
        busy.filter_map(|mut row| row.remove("svname")).collect()
    }
}
