//! Manual changes over the Runtime API.

use super::Haproxy;
use crate::steps::Step;

impl Haproxy {
    /// Changes something that runs, as an operator does. Returns the commands.
    pub fn change_by_hand(&mut self, step: Step) -> String {
        let Some(process) = &self.running else { return String::new() };
        let servers: Vec<String> = process
            .backends
            .iter()
            .filter(|(name, _)| name.starts_with("http-") || name.starts_with("tcp-"))
            .flat_map(|(name, backend)| backend.servers.keys().map(move |server| format!("{name}/{server}")))
            .collect();
        let entries: Vec<(String, String)> = process.maps.get("paths").cloned().unwrap_or_default();
        let map = format!("/state/{}/paths.map", process.generation);
        let (server, entry) = (servers.get(step.choose(1, servers.len())), entries.get(step.choose(1, entries.len())));
        let command = match (step.choose(2, 10), server, entry) {
            (0, Some(server), _) => format!("set server {server} state maint"),
            (1, Some(server), _) => format!("set server {server} state drain"),
            (2, Some(server), _) => format!("set server {server} state ready"),
            (3, Some(server), _) => format!("set server {server} weight 3"),
            (4, Some(server), _) => format!("set server {server} addr 10.9.9.9 port 9"),
            (5, Some(server), _) => format!("set server {server} state maint;del server {server}"),
            (6, Some(server), _) => format!("disable health {server}"),
            (7, Some(server), _) => format!("set maxconn server {server} 3"),
            (8, _, Some((key, _))) => format!("del map {map} {key}"),
            _ => "disable frontend discover-web".to_owned(),
        };
        // No fault is meant for the operator's commands.
        let fault = self.fault.take();
        // A refusal is the operator's to read.
        let _ = self.answer_line(&command);
        self.fault = fault;
        command
    }
}
