//! Changes backends, servers and maps without a restart. It decides no change: confgen's plan does.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use super::{Command, Error, ServerOptions, Socket, Word};

/// A server within its backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName {
    /// The name of the backend or listen section.
    pub backend: Word,
    /// The server's name in it.
    pub server: Word,
}

/// An admin state that a command may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminState {
    /// The server takes requests while its checks pass.
    Ready,
    /// The server takes requests of sticky clients only.
    Drain,
    /// The server takes no request, and is not checked.
    Maint,
}

/// One change to a backend, a server or a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Add a backend that takes everything from this named `defaults` section (3.4). It gets no request before
    /// [`PublishBackend`](Self::PublishBackend).
    AddBackend(Word, Word),
    /// Have a backend get requests (3.4). Does nothing to one that gets some already.
    PublishBackend(Word),
    /// Add a server in this state. Enable its checks if its options have them.
    AddServer(ServerName, SocketAddr, ServerOptions, AdminState),
    /// Set the admin state of a server.
    SetState(ServerName, AdminState),
    /// Have a server take requests once its checks have passed, like one that was down. The server has to be in
    /// maintenance, and checked.
    ///
    /// `set server … health down` has no effect in maintenance. A server that leaves maintenance counts as up until its
    /// first check (2.6). So it leaves into drain, and takes nothing meanwhile.
    ReadyOnceChecked(ServerName),
    /// Set the weight of a server.
    SetWeight(ServerName, u16),
    /// Have a server queue for its turn again with an unchanged weight, because `balance roundrobin` may have set it
    /// aside.
    ///
    /// HAProxy gives turns in windows of as many requests as all weights add up to, times 16. If the weights shrink and
    /// grow again within a few requests, servers that were moved to the next window wait for it, while the others get
    /// all requests (`lb_fwrr.c` of 2.6 to 3.4). A changed weight moves a server back. HAProxy ignores an unchanged
    /// weight, so this sets a different weight first.
    Requeue(ServerName, u16),
    /// Set the address and port of a server.
    SetAddress(ServerName, SocketAddr),
    /// Give servers that were added the sticky cookie that they lack until then (2.6). Other servers keep theirs.
    RefreshCookies(Word),
    /// Have a frontend take connections again that `disable frontend` paused.
    EnableFrontend(Word),
    /// Set the most connections of a frontend at a time.
    SetFrontendLimit(Word, u64),
    /// Set the most connections to a server at a time. 0 is no limit.
    SetServerLimit(ServerName, u64),
    /// Have HAProxy check a server again after `disable health`.
    EnableChecks(ServerName),
    /// Have HAProxy ask a server's agent again after `disable agent`.
    EnableAgent(ServerName),
    /// Have a server that isn't checked take requests again after `set server … health down`.
    MarkUp(ServerName),
    /// Set the port that a server's checks use. 0 is that of its traffic.
    SetCheckPort(ServerName, u16),
    /// Set the address that a server's checks use (not on 3.4, which refuses every address).
    SetCheckAddress(ServerName, IpAddr),
    /// Speak TLS with a server again after `set server … ssl off`.
    EnableTls(ServerName),
    /// Add a key with its value to a map.
    AddToMap(Token, Token, Token),
    /// Set another value of a map's key.
    SetInMap(Token, Token, Token),
    /// Delete a key of a map.
    RemoveFromMap(Token, Token),
}

/// The result of a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The server or the backend is gone, or was not there.
    Removed,
    /// It takes no new request, and still has connections, streams or servers. Ask again later.
    InUse,
    /// HAProxy refuses to delete it, with its answer.
    Refused(String),
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.server)
    }
}

/// Writes the commands as HAProxy reads them, separated by `;`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddBackend(name, defaults) => write!(f, "add backend {name} from {defaults}"),
            Self::PublishBackend(name) => write!(f, "publish backend {name}"),
            Self::AddServer(name, address, options, state) => {
                write!(f, "add server {name} {address}{options}")?;
                if options.check {
                    // Without this command the server is never checked, whatever `check` says.
                    write!(f, ";enable health {name}")?;
                }
                // An added server starts in maintenance.
                match state {
                    AdminState::Ready => write!(f, ";enable server {name}"),
                    AdminState::Drain => write!(f, ";set server {name} state drain"),
                    AdminState::Maint => Ok(()),
                }
            }
            Self::SetState(name, AdminState::Ready) => write!(f, "set server {name} state ready"),
            Self::SetState(name, AdminState::Drain) => write!(f, "set server {name} state drain"),
            Self::SetState(name, AdminState::Maint) => write!(f, "set server {name} state maint"),
            Self::ReadyOnceChecked(name) => {
                write!(f, "set server {name} state drain;set server {name} health down;set server {name} state ready")
            }
            Self::SetWeight(name, weight) => write!(f, "set server {name} weight {weight}"),
            Self::Requeue(name, weight) => {
                // Never 0, which would take the server out.
                let other = if *weight > 1 { weight - 1 } else { weight + 1 };
                write!(f, "set server {name} weight {other};set server {name} weight {weight}")
            }
            Self::SetAddress(name, address) => {
                write!(f, "set server {name} addr {} port {}", address.ip(), address.port())
            }
            Self::RefreshCookies(backend) => {
                write!(f, "enable dynamic-cookie backend {backend}")
            }
            Self::EnableFrontend(name) => write!(f, "enable frontend {name}"),
            Self::SetFrontendLimit(name, most) => write!(f, "set maxconn frontend {name} {most}"),
            Self::SetServerLimit(name, most) => write!(f, "set maxconn server {name} {most}"),
            Self::EnableChecks(name) => write!(f, "enable health {name}"),
            Self::EnableAgent(name) => write!(f, "enable agent {name}"),
            Self::MarkUp(name) => write!(f, "set server {name} health up"),
            Self::SetCheckPort(name, port) => write!(f, "set server {name} check-port {port}"),
            Self::SetCheckAddress(name, address) => write!(f, "set server {name} check-addr {address}"),
            Self::EnableTls(name) => write!(f, "set server {name} ssl on"),
            Self::AddToMap(map, key, value) => write!(f, "add map {map} {key} {value}"),
            Self::SetInMap(map, key, value) => write!(f, "set map {map} {key} {value}"),
            Self::RemoveFromMap(map, key) => write!(f, "del map {map} {key}"),
        }
    }
}

/// A file's path, or a map's key or value, at most 4,096 bytes: text of a map's line without what HAProxy's command
/// line gives a meaning (blanks, `;`, `\`, `<`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(String);

/// The error of a text that can't stand in a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` can't stand in a Runtime API command")]
pub struct NotAToken(String);

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        if !text.is_empty() && text.len() <= 4096 && text.bytes().all(is_token_byte) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAToken(text.chars().take(80).flat_map(char::escape_debug).collect()))
        }
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b";\\<\"'#".contains(&byte)
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The longest line of commands in bytes. HAProxy reads a line into a buffer of 16 kB (`tune.bufsize`), and hangs on a
/// longer one.
pub(super) const LINE_LIMIT: usize = 12 * 1024;

impl Socket {
    /// Makes the changes in their order, and returns HAProxy's complaints. A complaint doesn't name its change, so that
    /// a caller that gets one has to observe HAProxy again.
    ///
    /// # Errors
    /// If HAProxy doesn't answer, or not to the end within the time limit. HAProxy may then have made some of the
    /// changes.
    pub fn apply_changes(&self, changes: &[Change]) -> Result<Vec<String>, Error> {
        let mut complaints = Vec::new();
        let mut rest = changes;
        while !rest.is_empty() {
            let (some, more) = rest.split_at(count_fitting(rest));
            let line = some.iter().map(ToString::to_string).collect::<Vec<_>>().join(";");
            complaints.extend(complaints_in(&self.send_changes(line)?).map(str::to_owned));
            rest = more;
        }
        Ok(complaints)
    }

    /// Sets a server to maintenance, and deletes it if it has no connection left.
    ///
    /// # Errors
    /// If HAProxy doesn't answer, or not to the end within the time limit.
    pub fn remove_server(&self, server: &ServerName) -> Result<Removal, Error> {
        let answer = self.send_changes(format!("set server {server} state maint;del server {server}"))?;
        Ok(match complaints_in(&answer).next() {
            None | Some("No such server." | "No such backend.") => Removal::Removed,
            Some(words) if words.contains("still has connections") => Removal::InUse,
            Some(words) => Removal::Refused(words.to_owned()),
        })
    }

    /// Has a backend get no more requests, and deletes it if it has no stream and no server left (3.4).
    ///
    /// # Errors
    /// If HAProxy doesn't answer, or not to the end within the time limit.
    pub fn remove_backend(&self, backend: &Word) -> Result<Removal, Error> {
        let answer = self.send_changes(format!("unpublish backend {backend};del backend {backend}"))?;
        Ok(match complaints_in(&answer).next() {
            None | Some("No such backend.") => Removal::Removed,
            Some("Backend still has attached streams on it." | "Only a backend without server can be deleted.") => {
                Removal::InUse
            }
            Some(words) => Removal::Refused(words.to_owned()),
        })
    }
}

impl Socket {
    /// Sends changes and returns the answer. `del server` closes its answer without the empty line that all others have
    /// (2.6). So this finds an answer cut short only if its last line has no end.
    fn send_changes(&self, line: String) -> Result<String, Error> {
        let command = Command::from_line(line);
        let answer = self.exchange_text(&command)?;
        if answer.ends_with('\n') {
            Ok(answer)
        } else {
            Err(Error::CutShort { path: self.path().to_owned(), command, length: answer.len() })
        }
    }
}

/// The number of changes that fit into a line. At least one, so that each line makes progress.
fn count_fitting(changes: &[Change]) -> usize {
    let mut length = 0;
    for (count, change) in changes.iter().enumerate() {
        length += change.to_string().len() + ";".len();
        if length > LINE_LIMIT {
            return count.max(1);
        }
    }
    changes.len().max(1)
}

/// Finds the lines of an answer that say that something was not done.
fn complaints_in(answer: &str) -> impl Iterator<Item = &str> {
    answer.lines().filter(|line| !line.is_empty() && !is_success(line))
}

fn is_success(line: &str) -> bool {
    // The last one is the answer of 3.0 to `set server addr` with the address that the server has. 2.6 to 3.4 answer `set server ssl`
    // with a sentence.
    const DONE: [&str; 8] = [
        "New backend registered.",
        "Backend published.",
        "Backend unpublished.",
        "Backend deleted.",
        "New server registered.",
        "Server deleted.",
        "server ssl setting updated.",
        "nothing changed",
    ];
    // `set server addr` always answers: "IP changed from …", "no need to change the addr, port changed from …".
    DONE.contains(&line) || line.ends_with("by 'stats socket command'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ServerName {
        ServerName { backend: "http-shop".parse().unwrap(), server: "n1".parse().unwrap() }
    }

    #[test]
    fn changes_read_as_haproxy_takes_them() {
        let address = "[fd00::1]:80".parse().unwrap();
        let options = ServerOptions { weight: 100, check: true, send_proxy: Some(2), ..ServerOptions::default() };
        assert_eq!(
            Change::AddServer(name(), address, options, AdminState::Ready).to_string(),
            "add server http-shop/n1 [fd00::1]:80 weight 100 check check-send-proxy send-proxy-v2;\
             enable health http-shop/n1;enable server http-shop/n1"
        );
        let (backend, shape) = (name().backend, "discover-http-https".parse().unwrap());
        let added = Change::AddBackend(backend.clone(), shape).to_string();
        assert_eq!(added, "add backend http-shop from discover-http-https");
        assert_eq!(Change::PublishBackend(backend).to_string(), "publish backend http-shop");
        assert_eq!(Change::SetAddress(name(), address).to_string(), "set server http-shop/n1 addr fd00::1 port 80");
        assert_eq!(
            Change::ReadyOnceChecked(name()).to_string(),
            "set server http-shop/n1 state drain;set server http-shop/n1 health down;set server http-shop/n1 state ready"
        );
        let requeue = |weight| Change::Requeue(name(), weight).to_string();
        assert_eq!(requeue(100), "set server http-shop/n1 weight 99;set server http-shop/n1 weight 100");
        assert_eq!(requeue(1), "set server http-shop/n1 weight 2;set server http-shop/n1 weight 1", "0 would drain it");
    }

    #[test]
    fn a_token_breaks_no_command() {
        for hostile in ["", "a b", "a;b", "a\\b", "a\nb", "<<", "é", "a\tb"] {
            assert!(hostile.parse::<Token>().is_err(), "{hostile:?}");
        }
        assert!("*.example.com/api/".parse::<Token>().is_ok());
    }

    #[test]
    fn answers_tell_what_was_not_done() {
        let fine = "New server registered.\n\n\nServer deleted.\n\n";
        assert_eq!(complaints_in(fine).count(), 0);
        let address = "no need to change the addr, port changed from '1' to '2' by 'stats socket command'\n";
        assert_eq!(complaints_in(address).count(), 0);
        assert_eq!(
            complaints_in("New server registered.\n\nNo such server.\n").collect::<Vec<_>>(),
            ["No such server."]
        );
    }

    #[test]
    fn a_backend_that_was_not_added_is_a_complaint() {
        let added = "New backend registered.\n\nNew server registered.\n\n\n\nBackend published.\n\n";
        assert_eq!(complaints_in(added).count(), 0);
        for refused in ["Cannot find default proxy 'x'.", "New backend registered (no support for dynamic servers: x)"]
        {
            assert_eq!(complaints_in(&format!("{refused}\n\n")).count(), 1, "{refused}");
        }
    }

    #[test]
    fn long_lists_are_cut_into_lines() {
        let changes = vec![Change::SetWeight(name(), 1); 2_000];
        let mut rest = &changes[..];
        while !rest.is_empty() {
            let (some, more) = rest.split_at(count_fitting(rest));
            assert!(some.iter().map(|change| change.to_string().len() + 1).sum::<usize>() <= LINE_LIMIT);
            rest = more;
        }
    }
}
