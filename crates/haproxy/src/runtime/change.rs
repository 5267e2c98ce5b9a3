//! Changes to what HAProxy runs, without a restart.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::{Command, Error, ServerOptions, Socket, Word};

/// A server within its backend.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerName {
    /// The backend, or listen section.
    pub backend: Word,
    /// The server.
    pub server: Word,
}

/// A state that may be imposed on a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminState {
    /// Takes requests while its checks are good.
    Ready,
    /// Takes sticky clients only.
    Drain,
    /// Takes no new request, is not checked.
    Maint,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A new server in this state, checked at once if so wished.
    AddServer(ServerName, SocketAddr, ServerOptions, AdminState),
    /// Another state.
    SetState(ServerName, AdminState),
    /// Takes requests once its checks have passed, as one that was down. It has to be in maintenance, and checked.
    ///
    /// `set server … health down` has no effect in maintenance: a server that leaves it counts as up until its first check
    /// (2.6). So it leaves as drained, and takes nothing meanwhile.
    ReadyOnceChecked(ServerName),
    /// Another weight.
    SetWeight(ServerName, u16),
    /// Has a server queue for its turn again, with the weight that it has: `balance roundrobin` may have set it aside.
    ///
    /// HAProxy hands out turns in windows of as many requests as all weights add up to, times 16. If the weights shrink and
    /// grow again within a few requests, servers that were moved to the next window wait until the present one is over, while
    /// the others get all requests (`lb_fwrr.c` of 2.6 to 3.4). A new weight moves a server back. HAProxy ignores an unchanged
    /// weight, so the change is there and back.
    Requeue(ServerName, u16),
    /// Another address.
    SetAddress(ServerName, SocketAddr),
    /// Gives servers that were added the sticky cookie that they lack until then (2.6). Nobody else loses theirs.
    RefreshCookies(Word),
    /// A map's new key.
    AddToMap(Token, Token, Token),
    /// A map's key with another value.
    SetInMap(Token, Token, Token),
    /// A map's key goes.
    RemoveFromMap(Token, Token),
}

/// How the removal of a server went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// It is gone, or was not there.
    Removed,
    /// It takes no new request, but has connections: to be asked again.
    InUse,
    /// HAProxy doesn't let it go, in its own words.
    Refused(String),
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.backend, self.server)
    }
}

/// As HAProxy reads it: commands separated by `;`.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddServer(name, address, options, state) => {
                write!(f, "add server {name} {address}{options}")?;
                if options.check {
                    // Without it the server is never checked, whatever `check` says.
                    write!(f, ";enable health {name}")?;
                }
                // It comes in maintenance.
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
                let other = if *weight > 1 { weight - 1 } else { weight + 1 };
                write!(f, "set server {name} weight {other};set server {name} weight {weight}")
            }
            Self::SetAddress(name, address) => {
                write!(f, "set server {name} addr {} port {}", address.ip(), address.port())
            }
            Self::RefreshCookies(backend) => {
                write!(f, "enable dynamic-cookie backend {backend}")
            }
            Self::AddToMap(map, key, value) => write!(f, "add map {map} {key} {value}"),
            Self::SetInMap(map, key, value) => write!(f, "set map {map} {key} {value}"),
            Self::RemoveFromMap(map, key) => write!(f, "del map {map} {key}"),
        }
    }
}

/// A file's path, or a map's key or value: what a person could have written in a line of a map, without what HAProxy's
/// command line gives a meaning (blanks, `;`, `\`, `<`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(String);

/// The text can't stand in a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` can't stand in a Runtime API command")]
pub struct NotAToken(String);

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let fine = |byte: u8| byte.is_ascii_graphic() && !b";\\<\"'#".contains(&byte);
        if !text.is_empty() && text.len() <= 4096 && text.bytes().all(fine) {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotAToken(text.chars().take(80).flat_map(char::escape_debug).collect()))
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// HAProxy reads a line into a buffer of 16 kB (`tune.bufsize`), and hangs on a longer one.
pub(super) const LINE_LIMIT: usize = 12 * 1024;

impl Socket {
    /// Makes the changes in their order, and returns HAProxy's complaints. They don't say what they are about: whoever
    /// gets one has to look at what HAProxy runs now.
    ///
    /// # Errors
    /// When nobody answers, or not to the end within the bound; what of the changes was made is then not known.
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

    /// Takes a server out, and removes it if it has no connection left.
    ///
    /// # Errors
    /// When nobody answers, or not to the end within the bound.
    pub fn remove_server(&self, server: &ServerName) -> Result<Removal, Error> {
        let answer = self.send_changes(format!("set server {server} state maint;del server {server}"))?;
        Ok(match complaints_in(&answer).next() {
            None | Some("No such server." | "No such backend.") => Removal::Removed,
            Some(words) if words.contains("still has connections") => Removal::InUse,
            Some(words) => Removal::Refused(words.to_owned()),
        })
    }
}

impl Socket {
    /// Sends changes and returns what is said to them. `del server` closes its answer without the empty line that all
    /// others have (2.6), so that only an answer without any end can be told to be cut short.
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

/// How many changes fit into a line: at least one.
fn count_fitting(changes: &[Change]) -> usize {
    let mut length = 0;
    let fits = |change: &&Change| {
        length += change.to_string().len() + 1;
        length <= LINE_LIMIT
    };
    changes.iter().take_while(fits).count().max(1)
}

/// The lines of an answer that say that something was not done.
fn complaints_in(answer: &str) -> impl Iterator<Item = &str> {
    // The last is what 3.0 says to `set server addr` with the address that the server has.
    const DONE: [&str; 3] = ["New server registered.", "Server deleted.", "nothing changed"];
    // `set server addr` answers in any case: "IP changed from …", "no need to change the addr, port changed from …".
    let done = |line: &str| DONE.contains(&line) || line.ends_with("by 'stats socket command'");
    answer.lines().filter(move |line| !line.is_empty() && !done(line))
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
