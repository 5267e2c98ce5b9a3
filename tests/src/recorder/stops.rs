//! Stops of apps. The app reports its stop signal over a socket, and the recorder asks at once how the world is.

use std::env::{var, var_os};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::fs;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use trace::Observation;

use super::{Shared, old_processes, watch};
use crate::runtime;

/// The variable with the recorder's socket.
pub(super) const SOCKET: &str = "LAB_STOPS";

/// The variable with the path of the announcer's log.
pub(super) const LOG: &str = "LAB_STOPS_LOG";

/// The limit for the recorder's answer to an app. An app whose etcd is frozen ends nevertheless.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The limit for the events up to a stop. They arrive within milliseconds.
const EVENTS_LIMIT: Duration = Duration::from_secs(3);

/// What the announcer logs when it begins to wait for balancers, when all have acknowledged, and when one has not.
const DRAINING: &str = "draining";
const ACKNOWLEDGED: &str = "every balancer has acknowledged the drain";
const MISSING: &str = "not every balancer has acknowledged the drain";

/// Tells the test's recorder that this app has got its stop signal, and waits for its answer. The app serves open requests
/// meanwhile, and should end afterwards only. Without a recorder this does nothing.
pub async fn report_stop(address: SocketAddr) {
    let (Some(socket), Ok(log)) = (var_os(SOCKET), var(LOG)) else { return };
    let told = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(format!("{address}\t{log}\n").as_bytes()).await?;
        stream.read_to_end(&mut Vec::new()).await
    };
    let _ = timeout(ANSWER_LIMIT, told).await;
}

/// Takes reports of apps until the task is aborted.
pub(super) async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.update(|record| record.stops_under_way += 1);
        let shared = shared.clone();
        runtime::spawn(async move {
            let _ = record_stop(&shared, stream).await;
            shared.update(|record| record.stops_under_way -= 1);
        });
    }
}

/// Records a stop that the announcer calls acknowledged. After any other one, such as a second signal or the end of
/// `--drain`, the product promises nothing.
async fn record_stop(shared: &Shared, stream: UnixStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let Some((address, log)) = line.trim_end().split_once('\t') else { return Ok(()) };
    if !is_polite(&String::from_utf8_lossy(&fs::read(log).await?)) {
        return Ok(());
    }
    // The store first: whatever acknowledges after this read must not explain the stop.
    let position = watch::read_position(shared).await;
    let old = old_processes::ask_all(shared, address).await;
    // The app may end now.
    drop(stream);
    let is_placed = match position {
        Some(position) => timeout(EVENTS_LIMIT, watch::reach(shared, position)).await.is_ok_and(|reached| reached),
        None => false,
    };
    shared.update(|record| match position.filter(|_| is_placed) {
        Some(position) => {
            let stop = Observation::Stop { address: address.to_owned(), revision: position.revision };
            record.add_stop(position, std::iter::once(stop).chain(old).collect());
        }
        None => record.left_out += 1,
    });
    Ok(())
}

/// True if the announcer's last drain has ended with every balancer's acknowledgement.
fn is_polite(log: &str) -> bool {
    let drain = log.rfind(DRAINING).and_then(|begin| log.get(begin..)).unwrap_or_default();
    drain.contains(ACKNOWLEDGED) && !drain.contains(MISSING)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_acknowledged_drain_is_polite() {
        for (log, expected) in [
            ("", false),
            ("draining records=1\nevery balancer has acknowledged the drain took=1s\nstopping the app\n", true),
            ("draining records=1\nnot every balancer has acknowledged the drain in time\nstopping the app\n", false),
            ("draining records=1\nno balancer is known, not waiting\nstopping the app\n", false),
            ("draining\nevery balancer has acknowledged the drain\ndraining\nkilling the app\n", false),
        ] {
            assert_eq!(is_polite(log), expected, "{log}");
        }
    }
}
