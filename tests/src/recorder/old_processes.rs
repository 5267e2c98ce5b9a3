//! Sessions of old HAProxy processes, asked over their masters' sockets.

use std::collections::BTreeMap;
use std::fs::read_dir;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;
use trace::Observation;

use super::Shared;

/// The limit for one answer. A master that has no such worker keeps the connection open.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);

/// A balancer's HAProxys.
#[derive(Clone)]
pub(crate) struct HaproxyPlace {
    /// The balancer's name in the trace.
    pub(crate) name: String,
    /// The Runtime API's socket. handover keeps the masters' sockets in `handover/` beside it.
    pub(crate) socket: PathBuf,
}

/// Asks the old processes of all balancers for their sessions on servers at this address. A balancer that isn't there, or
/// has no old process, has no observation.
pub(super) async fn ask_all(shared: &Shared, address: &str) -> Vec<Observation> {
    let places = shared.haproxys.lock().expect("no task panics").clone();
    let mut observations = Vec::new();
    for place in places {
        if let Some(sessions) = ask_balancer(&place.socket, address).await {
            observations.push(Observation::Old { node: place.name, sessions });
        }
    }
    observations
}

/// The sessions of all old processes of a balancer, by upstream. `None` if it has no old process that answers.
async fn ask_balancer(socket: &Path, address: &str) -> Option<BTreeMap<String, u64>> {
    let info = ask(socket, "show info").await.ok()?;
    let current = info.lines().find_map(|line| line.strip_prefix("Pid: "))?;
    let masters = read_dir(socket.with_file_name("handover")).ok()?.flatten().map(|entry| entry.path());
    let mut sessions: Option<BTreeMap<String, u64>> = None;
    for master in masters.filter(|path| path.extension().is_some_and(|end| end == "sock")) {
        let Ok(processes) = ask(&master, "show proc").await else { continue };
        for worker in list_workers(&processes).into_iter().filter(|worker| *worker != current) {
            let Ok(table) = ask(&master, &format!("@!{worker} show stat -1 4 -1")).await else { continue };
            let Some(found) = parse_sessions(&table, address) else { continue };
            let all = sessions.get_or_insert_default();
            found.into_iter().for_each(|(name, count)| *all.entry(name).or_default() += count);
        }
    }
    sessions
}

/// The process ids of a master's workers, by `show proc` (HAProxy's management guide, 9.4.1).
fn list_workers(processes: &str) -> Vec<&str> {
    let rows = processes.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row.get(1) == Some(&"worker")).map(|row| row[0]).collect()
}

/// The sessions of the servers at an address, with the requests that wait for one of them. `None` if the answer is no table.
fn parse_sessions(table: &str, address: &str) -> Option<BTreeMap<String, u64>> {
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next()?.strip_prefix("# ")?.split(',').collect();
    let column = |name: &str| header.iter().position(|it| *it == name);
    let [backend, server, queued, current, at] =
        ["pxname", "svname", "qcur", "scur", "addr"].map(|name| column(name).unwrap_or(usize::MAX));
    let rows = lines.map(|line| line.split(',').collect::<Vec<_>>());
    let rows = rows.filter(|row| row.get(at) == Some(&address));
    let count = |row: &[&str], column: usize| row.get(column).and_then(|it| it.parse::<u64>().ok()).unwrap_or(0);
    let counted = rows.map(|row| {
        let name = format!("{}/{}", row.get(backend)?, row.get(server)?);
        Some((name, count(&row, queued) + count(&row, current)))
    });
    counted.collect()
}

/// Sends one command, and reads until the answer's empty line or its end.
async fn ask(socket: &Path, command: &str) -> io::Result<String> {
    let asked = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let (mut answer, mut part) = (Vec::new(), [0; 16 * 1024]);
        while !answer.ends_with(b"\n\n") {
            match stream.read(&mut part).await? {
                0 => break,
                length => answer.extend_from_slice(&part[..length]),
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(ANSWER_LIMIT, asked).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_counted_by_the_servers_address() {
        let table = "# pxname,svname,qcur,qmax,scur,smax,addr,\nhttp-shop,a,1,0,2,0,10.0.0.1:80,\n\
                     http-shop,b,0,0,9,0,10.0.0.2:80,\ntcp-db,c,,,4,0,10.0.0.1:80,\n\n";
        let expected = [("http-shop/a".to_owned(), 3), ("tcp-db/c".to_owned(), 4)].into();
        assert_eq!(parse_sessions(table, "10.0.0.1:80"), Some(expected));
        assert_eq!(parse_sessions("Can't find the target PID\n", "10.0.0.1:80"), None);
    }

    #[test]
    fn workers_are_told_from_masters() {
        let processes = "#<PID>          <type>          <reloads>       <uptime>        <version>\n\
                         1162            master          5 [failed: 0]   0d00h02m07s     2.6\n# workers\n\
                         1271            worker          1               0d00h00m00s     2.6\n# old workers\n\
                         1233            worker          3               0d00h00m43s     2.6\n\n";
        assert_eq!(list_workers(processes), ["1271", "1233"]);
    }
}
