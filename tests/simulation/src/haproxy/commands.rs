//! Carries commands out, with HAProxy's answers. A line that production code must never send is a violation.

use std::io;

use super::config::{free_id, parse_server};
use super::{Backend, CommandFault, Haproxy, Process, Server};

/// HAProxy hangs on a line that is longer than its buffer (`tune.bufsize`).
const LONGEST_LINE: usize = 16 * 1024;

/// An answer of one command.
enum Outcome {
    Done(&'static str),
    /// It isn't carried out, for this reason.
    Refused(&'static str),
    /// No command of HAProxy's, or one with other words than HAProxy takes.
    Unknown,
}
use Outcome::{Done, Refused, Unknown};

impl Haproxy {
    /// Answers a line of commands.
    pub fn answer_line(&mut self, line: &str) -> io::Result<Vec<u8>> {
        if self.running.is_none() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.check_line(line);
        if let Some(answer) = self.answer_question(line) {
            // A question can fail too.
            if self.take_fault() == Some(CommandFault::Break) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // An observation begins with the generation. A look for manual changes asks for the servers alone.
            match line {
                "show env CONFGEN_GEN" => self.begun_at = Some(self.external),
                "show servers state" => self.observed_external = self.begun_at.take().unwrap_or(self.observed_external),
                _ => {}
            }
            return Ok(answer.into_bytes());
        }
        let mut commands: Vec<&str> = line.split(';').collect();
        if self.reverses_commands {
            commands.reverse();
        }
        if let Some(lines) = &mut self.lines {
            lines.push(line.to_owned());
        }
        let mut answer = String::new();
        for command in commands {
            let outcome = match self.take_fault() {
                Some(CommandFault::Refuse) => Refused("Out of memory."),
                Some(CommandFault::Break) => return Err(io::ErrorKind::TimedOut.into()),
                None => self.execute(command),
            };
            let words = match outcome {
                Done(words) => {
                    self.changes += 1;
                    words
                }
                Refused(_) if self.hides_complaints => "",
                Refused(words) => words,
                Unknown => {
                    self.violations.push(format!("HAProxy knows no command `{command}`"));
                    "Unknown command."
                }
            };
            answer.push_str(words);
            if !words.is_empty() {
                answer.push('\n');
            }
            answer.push('\n');
        }
        self.version += 1;
        Ok(answer.into_bytes())
    }

    fn take_fault(&mut self) -> Option<CommandFault> {
        match &mut self.fault {
            Some((0, _)) => {
                // A removal that is refused is found by the look for manual changes, a second later.
                self.external += 1;
                self.fault.take().map(|(_, fault)| fault)
            }
            Some((before, _)) => {
                *before -= 1;
                None
            }
            None => None,
        }
    }

    fn check_line(&mut self, line: &str) {
        let is_safe = line.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        if !is_safe || line.contains("<<") || line.contains('\\') || line.len() > LONGEST_LINE {
            self.violations.push(format!("an unsafe line is sent: {line:?}"));
        }
    }

    fn execute(&mut self, command: &str) -> Outcome {
        let words: Vec<&str> = command.split(' ').collect();
        let adds_backends = self.adds_backends;
        let Some(process) = &mut self.running else { return Unknown };
        match words.as_slice() {
            ["add", "backend", name, "from", _] if adds_backends => process.add_backend(name),
            ["publish", "backend", name] if adds_backends => process.publish(name, true),
            ["unpublish", "backend", name] if adds_backends => process.publish(name, false),
            ["del", "backend", name] if adds_backends => {
                let outcome = process.delete_backend(name);
                if matches!(outcome, Done(_)) && process.is_route_target(name) {
                    self.violations.push(format!("backend {name} is deleted, and a map leads there"));
                }
                outcome
            }
            ["add", "server", name, address, options @ ..] => process.add_server(name, address, options),
            ["del", "server", name] => process.delete_server(name),
            ["enable", "server", name] => {
                process.change(name, |it| (it.maint, it.is_disabled_by_file) = (false, false))
            }
            ["enable", "health", name] => process.change(name, |it| it.checks_off = false),
            ["disable", "health", name] => process.change(name, |it| it.checks_off = true),
            ["enable", "agent", name] => process.change(name, |_| {}),
            ["enable", "dynamic-cookie", "backend", name] => process.refresh_cookies(name),
            ["enable", "frontend", name] => process.pause(name, false),
            ["disable", "frontend", name] => process.pause(name, true),
            ["shutdown", "frontend", name] => process.shut_down(name),
            ["set", "maxconn", "frontend", name, most] => process.limit_frontend(name, most),
            ["set", "maxconn", "server", name, most] => {
                most.parse().map_or(Unknown, |most| process.change(name, |it| it.limit = most))
            }
            ["set", "server", name, change @ ..] => process.set_server(name, change),
            ["add", "map", path, key, value] => {
                let outcome = process.edit_map(path, |entries| entries.push(((*key).to_owned(), (*value).to_owned())));
                self.check_target(path, value);
                outcome
            }
            ["set", "map", path, key, value] => {
                let outcome = process.edit_map(path, |entries| {
                    entries
                        .iter_mut()
                        .filter(|(known, _)| known == key)
                        .for_each(|entry| entry.1 = (*value).to_owned());
                });
                self.check_target(path, value);
                outcome
            }
            ["del", "map", path, key] => process.delete_from_map(path, key),
            _ => Unknown,
        }
    }

    /// A route to a backend that isn't there would be a 503.
    fn check_target(&mut self, path: &str, value: &str) {
        let leads = path.ends_with("/paths.map") || path.ends_with("/passthrough.map");
        let has_backend = self.running.as_ref().is_some_and(|process| process.backends.contains_key(value));
        // A backend whose addition was refused a moment ago is added again once confgen has read the complaint.
        let is_disturbed = self.external != self.observed_external;
        if leads && !has_backend && !is_disturbed {
            self.violations.push(format!("a map leads to {value}, which is no backend"));
        }
    }
}

impl Process {
    fn server(&mut self, name: &str) -> Result<&mut Server, Outcome> {
        let Some((backend, server)) = name.split_once('/') else { return Err(Unknown) };
        let Some(backend) = self.backends.get_mut(backend) else { return Err(Refused("No such backend.")) };
        backend.servers.get_mut(server).ok_or(Refused("No such server."))
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut Server)) -> Outcome {
        match self.server(name) {
            Ok(server) => {
                change(server);
                Done("")
            }
            Err(outcome) => outcome,
        }
    }

    fn set_server(&mut self, name: &str, words: &[&str]) -> Outcome {
        match *words {
            ["state", "ready"] => self.change(name, |it| {
                (it.maint, it.drain, it.is_disabled_by_file) = (false, false, false);
            }),
            ["state", "drain"] => self.change(name, |it| {
                (it.maint, it.drain, it.is_disabled_by_file) = (false, true, false);
            }),
            ["state", "maint"] => {
                self.change(name, |it| (it.maint, it.drain, it.is_disabled_by_file) = (true, false, false))
            }
            ["health", health @ ("up" | "down")] => self.change(name, |it| {
                // Without effect in maintenance.
                it.up = if it.maint { it.up } else { health == "up" };
            }),
            ["weight", weight] => weight.parse().map_or(Unknown, |weight| self.change(name, |it| it.weight = weight)),
            ["addr", ip, "port", port] => match port.parse() {
                Ok(port) => match self.change(name, |it| (it.ip, it.port) = (ip.to_owned(), port)) {
                    Done(_) => Done("IP changed from 'x' to 'y' by 'stats socket command'"),
                    refused => refused,
                },
                Err(_) => Unknown,
            },
            ["check-port" | "check-addr", _] => self.change(name, |_| {}),
            ["ssl", "on"] => self.change(name, |_| {}),
            _ => Unknown,
        }
    }

    fn add_server(&mut self, name: &str, address: &str, options: &[&str]) -> Outcome {
        let Some((backend, server)) = name.split_once('/') else { return Unknown };
        let Some(backend) = self.backends.get_mut(backend) else { return Refused("No such backend.") };
        if backend.servers.contains_key(server) {
            return Refused("Already exists a server with the same name in backend.");
        }
        let words = [server, address].into_iter().chain(options.iter().copied());
        let Some((name, parsed)) = parse_server(words) else { return Unknown };
        if parsed.id != 0 && backend.servers.values().any(|it| it.id == parsed.id) {
            return Refused("Custom id already used.");
        }
        let id = if parsed.id == 0 { free_id(backend) } else { parsed.id };
        // HAProxy's default weight is 1, and a new server isn't checked before `enable health`.
        let weight = if options.contains(&"weight") { parsed.weight } else { 1 };
        let checks_off = options.contains(&"check");
        backend.servers.insert(name, Server { id, weight, initial_weight: weight, maint: true, checks_off, ..parsed });
        Done("New server registered.")
    }

    fn delete_server(&mut self, name: &str) -> Outcome {
        let Some((backend, server)) = name.split_once('/') else { return Unknown };
        let sessions = self.sessions(backend, server);
        let Some(backend) = self.backends.get_mut(backend) else { return Refused("No such backend.") };
        match backend.servers.get(server) {
            None => Refused("No such server."),
            Some(it) if !it.maint => Refused("Only servers in maintenance mode can be deleted."),
            Some(_) if sessions > 0 => Refused("Server still has connections attached to it, cannot remove it."),
            Some(_) => {
                backend.servers.remove(server);
                Done("Server deleted.")
            }
        }
    }

    fn refresh_cookies(&mut self, name: &str) -> Outcome {
        let Some(backend) = self.backends.get_mut(name) else { return Refused("No such backend.") };
        let has_cookies = backend.has_cookies;
        backend.servers.values_mut().for_each(|server| server.has_cookie = has_cookies);
        Done("")
    }

    fn add_backend(&mut self, name: &str) -> Outcome {
        if self.backends.contains_key(name) {
            return Refused("A backend with the same name already exists.");
        }
        let backend = Backend { is_unpublished: true, is_added: true, ..Backend::default() };
        self.backends.insert(name.to_owned(), backend);
        Done("New backend registered.")
    }

    fn publish(&mut self, name: &str, is_published: bool) -> Outcome {
        match self.backends.get_mut(name) {
            Some(backend) => {
                backend.is_unpublished = !is_published;
                Done(if is_published { "Backend published." } else { "Backend unpublished." })
            }
            None => Refused("No such backend."),
        }
    }

    fn delete_backend(&mut self, name: &str) -> Outcome {
        let has_stream = self.connections.iter().filter_map(|it| it.stream.as_ref()).any(|it| it.backend == name);
        match self.backends.get(name) {
            None => Refused("No such backend."),
            Some(_) if has_stream => Refused("Backend still has attached streams on it."),
            Some(backend) if !backend.servers.is_empty() => Refused("Only a backend without server can be deleted."),
            Some(_) => {
                self.backends.remove(name);
                Done("Backend deleted.")
            }
        }
    }

    fn is_route_target(&self, name: &str) -> bool {
        let maps = ["paths", "passthrough"].into_iter().filter_map(|map| self.maps.get(map));
        maps.flatten().any(|(_, value)| value == name)
    }

    fn pause(&mut self, name: &str, is_paused: bool) -> Outcome {
        match self.frontends.get_mut(name) {
            Some(frontend) => {
                frontend.is_paused = is_paused;
                Done("")
            }
            None => Refused("No such frontend."),
        }
    }

    fn shut_down(&mut self, name: &str) -> Outcome {
        match self.frontends.get_mut(name) {
            Some(frontend) => {
                frontend.is_shut_down = true;
                Done("")
            }
            None => Refused("No such frontend."),
        }
    }

    fn limit_frontend(&mut self, name: &str, most: &str) -> Outcome {
        match (self.frontends.get_mut(name), most.parse()) {
            (Some(frontend), Ok(most)) => {
                frontend.limit = most;
                Done("")
            }
            _ => Refused("No such frontend."),
        }
    }

    fn edit_map(&mut self, path: &str, edit: impl FnOnce(&mut Vec<(String, String)>)) -> Outcome {
        let generation = self.generation.clone();
        let name = path.strip_prefix(&format!("/state/{generation}/")).and_then(|rest| rest.strip_suffix(".map"));
        match name.and_then(|name| self.maps.get_mut(name)) {
            Some(entries) => {
                edit(entries);
                Done("")
            }
            None => Refused("Unknown map identifier. Please use #<id> or <file>."),
        }
    }

    fn delete_from_map(&mut self, path: &str, key: &str) -> Outcome {
        let mut is_there = false;
        let outcome = self.edit_map(path, |entries| {
            let before = entries.len();
            entries.retain(|(known, _)| known != key);
            is_there = entries.len() < before;
        });
        if matches!(outcome, Done(_)) && !is_there { Refused("entry not found.") } else { outcome }
    }
}
