//! Sockets by which HAProxy reaches itself: the inner hop, over which a connection whose TLS isn't passed through gets from
//! the frontend that reads its server name to the one that terminates it; and the one over which a process tells its
//! successor what it remembers of its clients. Pure.
//!
//! Unix sockets, which their mode keeps to HAProxy: who could connect to the first might forge any client's address.

use std::path::Path;

/// Such a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InternalSocket {
    /// Where it is bound, while HAProxy still is who started it, outside of any chroot.
    pub(crate) bind: String,
    /// Where it is reached from inside of it.
    pub(crate) server: String,
    /// Who may connect to it besides root, as `bind` says it: the user that HAProxy becomes.
    pub(crate) owner: Option<String>,
}

impl InternalSocket {
    /// One of this name beside the Runtime API's socket, or in the directory that HAProxy locks itself into. `owner` is the
    /// user that it becomes, `user haproxy` or `uid 107`.
    ///
    /// A socket that is handed over at a restart keeps its owner. So another user has another name for it.
    pub(crate) fn new(runtime_socket: &Path, name: &str, owner: Option<String>, chroot: Option<&str>) -> Self {
        let who = owner.as_deref().and_then(|user| user.split(' ').nth(1)).unwrap_or_default();
        let who: String = who.chars().filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).collect();
        let name = if who.is_empty() { format!("{name}.sock") } else { format!("{name}-{who}.sock") };
        match chroot {
            Some(jail) => {
                Self { bind: format!("{}/{name}", jail.trim_end_matches('/')), server: format!("/{name}"), owner }
            }
            None => {
                let path = runtime_socket.with_file_name(name).display().to_string();
                Self { bind: path.clone(), server: path, owner }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(owner: Option<&str>, chroot: Option<&str>) -> [String; 3] {
        let hop =
            InternalSocket::new(Path::new("/run/haproxy/admin.sock"), "discover-tls", owner.map(str::to_owned), chroot);
        [hop.bind, hop.server, hop.owner.unwrap_or_default()]
    }

    #[test]
    fn the_socket_is_where_haproxy_finds_it_as_whoever_it_becomes() {
        let beside = "/run/haproxy/discover-tls.sock";
        assert_eq!(hop(None, None), [beside, beside, ""]);
        let own = "/run/haproxy/discover-tls-haproxy.sock";
        assert_eq!(hop(Some("user haproxy"), None), [own, own, "user haproxy"]);
        let jailed = "/var/lib/haproxy/discover-tls-107.sock";
        assert_eq!(hop(Some("uid 107"), Some("/var/lib/haproxy/")), [jailed, "/discover-tls-107.sock", "uid 107"]);
    }
}
