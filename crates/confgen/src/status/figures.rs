//! HAProxy's own figures, found by name. Pure: no I/O, no clock.

use std::collections::HashMap;

use haproxy::runtime::{RowKind, Stat};

/// The rows of `show stat`, or the reason why HAProxy can't be asked.
pub type Counted = Result<Vec<Stat>, String>;

/// The rows of `show stat`, found by name. A row's kind keeps a server that is called `BACKEND` apart from its backend.
pub struct Figures<'a> {
    error: Option<&'a str>,
    servers: HashMap<(&'a str, &'a str), &'a Stat>,
    backends: HashMap<&'a str, &'a Stat>,
    frontends: HashMap<&'a str, &'a Stat>,
    /// By backend, the first backup server that is up and has weight. The rows are in HAProxy's order.
    first_backups: HashMap<&'a str, &'a str>,
    /// By backend, the server with the lowest id that is up, has weight and is no backup.
    first_servers: HashMap<&'a str, &'a Stat>,
}

impl<'a> Figures<'a> {
    /// Indexes the rows by name. There are none if HAProxy couldn't be asked.
    pub fn new(counted: &'a Counted) -> Self {
        let error = counted.as_ref().err().map(String::as_str);
        let (mut servers, mut first_backups) = (HashMap::new(), HashMap::new());
        let mut first_servers: HashMap<&str, &Stat> = HashMap::new();
        let (mut backends, mut frontends) = (HashMap::new(), HashMap::new());
        for row in counted.iter().flatten() {
            let (proxy, name) = (row.proxy.as_str(), row.name.as_str());
            match row.kind {
                RowKind::Frontend => _ = frontends.insert(proxy, row),
                RowKind::Backend => _ = backends.insert(proxy, row),
                RowKind::Server => {
                    servers.insert((proxy, name), row);
                    if row.backup > 0 && takes_requests(row) {
                        first_backups.entry(proxy).or_insert(name);
                    } else if takes_requests(row) {
                        let first = first_servers.entry(proxy).or_insert(row);
                        if row.server_id < first.server_id {
                            *first = row;
                        }
                    }
                }
            }
        }
        Self { error, servers, backends, frontends, first_backups, first_servers }
    }

    /// The reason why HAProxy couldn't be asked. `None` if it could.
    pub fn error(&self) -> Option<&'a str> {
        self.error
    }

    pub fn find_server(&self, section: &str, name: &str) -> Option<&'a Stat> {
        self.servers.get(&(section, name)).copied()
    }

    /// The row of all servers of a section together.
    pub fn find_backend(&self, section: &str) -> Option<&'a Stat> {
        self.backends.get(section).copied()
    }

    /// A frontend, or the listening half of a TCP service's section.
    pub fn find_frontend(&self, name: &str) -> Option<&'a Stat> {
        self.frontends.get(name).copied()
    }

    /// The server that gets all requests of a section with `balance first`, until it has as many connections as it may have
    /// (configuration manual, `balance`). `None` for another algorithm.
    pub fn find_preferred(&self, section: &str) -> Option<&'a Stat> {
        let balances_first = self.find_backend(section)?.algorithm.as_deref() == Some("first");
        self.first_servers.get(section).copied().filter(|_| balances_first)
    }

    /// The only backup server of a section that HAProxy uses while no other server is up: without `option allbackups` it is
    /// the first one that is up (configuration manual, `option allbackups`).
    pub fn find_first_backup(&self, section: &str) -> Option<&'a str> {
        self.first_backups.get(section).copied()
    }
}

/// True if HAProxy may choose the server: it is up and has weight.
pub fn takes_requests(row: &Stat) -> bool {
    row.is_up() && row.weight > 0
}
