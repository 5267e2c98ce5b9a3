//! The answers to questions, in HAProxy's words.

use std::fmt::Write as _;

use super::config::DEFAULT_LIMIT;
use super::{Haproxy, Process, Server};

/// A name of each column, as HAProxy 2.6 writes them.
const COLUMNS: &str = "# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight \
    srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id \
    srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port";

impl Haproxy {
    /// Answers a question. `None` if the line is none.
    pub(super) fn answer_question(&self, line: &str) -> Option<String> {
        let process = self.running.as_ref()?;
        let mut text = match line {
            "show info" => self.show_info(process),
            "show env CONFGEN_GEN" => format!("CONFGEN_GEN={}\n", process.generation),
            "show map" => show_maps(process),
            "show servers state" => show_states(process, |_| true),
            "show stat -1 7 -1" => show_stat(process),
            _ => match line.strip_prefix("show map ") {
                Some(path) => show_map(process, path),
                None => {
                    let backend = line.strip_prefix("show servers state ")?;
                    match process.backends.contains_key(backend) {
                        true => show_states(process, |name| name == backend),
                        false => "Can't find backend.\n".to_owned(),
                    }
                }
            },
        };
        text.push('\n');
        Some(text)
    }

    fn show_info(&self, process: &Process) -> String {
        let version = if self.adds_backends { "3.4.1" } else { "2.6.12" };
        let (pid, uptime) = (process.pid, (self.now - process.started) / 1_000);
        let (started, connections) = (process.started / 1_000 + u64::from(pid), process.connections.len());
        format!(
            "Version: {version}\nPid: {pid}\nUptime_sec: {uptime}\nStart_time_sec: {started}\nMaxconn: {DEFAULT_LIMIT}\n\
             Hard_maxconn: {DEFAULT_LIMIT}\nCurrConns: {connections}\nUnstoppable Jobs: 0\nListeners: 6\nStopping: 0\n"
        )
    }
}

fn show_maps(process: &Process) -> String {
    let mut text = String::from("# id (file) description\n");
    for (id, name) in process.maps.keys().enumerate() {
        let path = format!("/state/{}/{name}.map", process.generation);
        let _ = writeln!(text, "{id} ({path}) pattern loaded from file '{path}'");
    }
    text
}

fn show_map(process: &Process, path: &str) -> String {
    match process.find_map(path) {
        Some(entries) => entries.iter().fold(String::new(), |mut text, (key, value)| {
            let _ = writeln!(text, "0x1 {key} {value}");
            text
        }),
        None => "Unknown map identifier. Please use #<id> or <file>.\n".to_owned(),
    }
}

impl Process {
    fn find_map(&self, path: &str) -> Option<&Vec<(String, String)>> {
        let (folder, name) = path.strip_prefix("/state/")?.strip_suffix(".map")?.split_once('/')?;
        self.maps.get(name).filter(|_| folder == self.generation)
    }
}

fn show_states(process: &Process, is_wanted: impl Fn(&str) -> bool) -> String {
    let mut text = format!("1\n{COLUMNS}\n");
    for (number, (name, backend)) in process.backends.iter().enumerate() {
        for (server_name, server) in backend.servers.iter().filter(|_| is_wanted(name)) {
            let Server { id, ip, port, weight, initial_weight, .. } = server;
            let operation = if server.up && !server.maint { 2 } else { 0 };
            let admin = match (server.maint, server.is_disabled_by_file, server.drain) {
                (true, true, _) => 5,
                (true, false, _) => 1,
                (false, _, true) => 8,
                _ => 0,
            };
            let checks = if server.checks_off { 2 } else { 6 };
            let _ = writeln!(
                text,
                "{number} {name} {id} {server_name} {ip} {operation} {admin} {weight} {initial_weight} 1 8 2 0 {checks} 0 0 0 - \
                 {port} - 0 0 - - 0"
            );
        }
    }
    text
}

fn show_stat(process: &Process) -> String {
    let mut text = String::from("# pxname,svname,status,slim,type,cookie\n");
    for (name, frontend) in &process.frontends {
        let status = match (frontend.is_shut_down, frontend.is_paused) {
            (true, _) => "STOP",
            (false, true) => "PAUSED",
            (false, false) => "OPEN",
        };
        let _ = writeln!(text, "{name},FRONTEND,{status},{},0,", frontend.limit);
    }
    for (name, backend) in &process.backends {
        for (server_name, server) in &backend.servers {
            let limit = if server.limit == 0 { String::new() } else { server.limit.to_string() };
            let cookie = if server.has_cookie { "c" } else { "" };
            let _ = writeln!(text, "{name},{server_name},UP,{limit},2,{cookie}");
        }
        let status = if backend.is_unpublished { "UP (UNPUB)" } else { "UP" };
        let _ = writeln!(text, "{name},BACKEND,{status},50,1,");
    }
    text
}
