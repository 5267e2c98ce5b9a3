//! Unix sockets by which HAProxy reaches itself. Pure: it binds nothing.
//!
//! Over the first, connections get from the frontend that reads the server name to the one that terminates TLS, unless their TLS
//! is passed through. Over the second, a process sends its stick tables to its successor. Their mode keeps other programs out: a
//! program that could connect to the first could forge any client's address.

use std::path::Path;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InternalSocket {
    /// The path for `bind`, which HAProxy opens with the rights of its start and outside of the chroot.
    pub(crate) bind: String,
    /// The path for `server`, as it is inside of the chroot.
    pub(crate) server: String,
    /// The words of `bind` that give the socket to the user that HAProxy becomes: `user haproxy` or `uid 107`.
    pub(crate) owner: Option<String>,
}

impl InternalSocket {
    /// A socket in the chroot, or beside the Runtime API's socket without one. Its name ends in the owner's: a socket that is
    /// handed over at a restart keeps its owner, so that another user needs another socket.
    pub(crate) fn new(runtime_socket: &Path, name: &str, owner: Option<String>, chroot: Option<&str>) -> Self {
        let who = owner.as_deref().and_then(|user| user.split(' ').nth(1)).unwrap_or_default();
        let who: String = who.chars().filter(|c| c.is_ascii_alphanumeric() || "_-".contains(*c)).collect();
        // HAProxy binds before `chroot` and `user`, and connects behind those (2.6, 3.0, 3.2). So the two paths differ.
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
    fn the_socket_has_a_path_and_an_owner_for_each_user_and_chroot() {
        let beside = "/run/haproxy/discover-tls.sock";
        assert_eq!(hop(None, None), [beside, beside, ""]);
        let own = "/run/haproxy/discover-tls-haproxy.sock";
        assert_eq!(hop(Some("user haproxy"), None), [own, own, "user haproxy"]);
        let jailed = "/var/lib/haproxy/discover-tls-107.sock";
        assert_eq!(hop(Some("uid 107"), Some("/var/lib/haproxy/")), [jailed, "/discover-tls-107.sock", "uid 107"]);
    }
}
