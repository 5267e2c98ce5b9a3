//! Hooks: changes as JSON for an operator's web service or command. Each hook has a task and a bounded queue of its own, so that none
//! holds up a change or another hook.

use std::process::Stdio;
use std::time::Duration;

use discovery::balancer_api::AppliedChange;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use reqwest::header::CONTENT_TYPE;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};

use crate::cli::{HookArgs, withheld_variables};

/// The most batches that wait for a hook. A batch has the changes of one reconcile.
const MOST_WAITING: usize = 256;

/// The most changes of one call, so that a burst is a few calls.
const MOST_CHANGES: usize = 1_000;

/// The delays before further attempts of a call. A service that restarts is back by then.
const DELAYS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(15)];

/// One attempt.
const WITHIN: Duration = Duration::from_secs(10);

/// The way to all hooks.
#[derive(Debug, Default)]
pub(super) struct Hooks {
    queues: Vec<Queue>,
}

#[derive(Debug)]
struct Queue {
    option: &'static str,
    batches: Sender<Vec<AppliedChange>>,
    /// The last batch had no room. The log has the first one that is lost, and the next that isn't.
    is_full: bool,
}

/// An operator's hook.
#[derive(Debug)]
enum Hook {
    Webhook(reqwest::Client, reqwest::Url),
    Exec(String),
}

/// The JSON that a hook gets.
#[derive(Serialize)]
struct Call<'a> {
    balancer: &'a str,
    changes: &'a [AppliedChange],
}

impl Hooks {
    /// Starts a task for each hook that the options name, on the present runtime.
    pub(super) fn spawn(args: &HookArgs, node: &str) -> anyhow::Result<Self> {
        let mut hooks = Vec::new();
        if let Some(url) = &args.change_webhook {
            // The call fails if a provider is installed already. Any provider will do.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = reqwest::Client::builder().timeout(WITHIN).redirect(reqwest::redirect::Policy::none());
            hooks.push(("--change-webhook", Hook::Webhook(client.build()?, url.clone())));
        }
        if let Some(command) = &args.change_exec {
            hooks.push(("--change-exec", Hook::Exec(command.clone())));
        }
        let mut queues = Vec::new();
        for (option, hook) in hooks {
            let (batches, waiting) = channel(MOST_WAITING);
            let node = node.to_owned();
            tokio::spawn(async move { hook.call_for_all(option, &node, waiting).await });
            queues.push(Queue { option, batches, is_full: false });
        }
        Ok(Self { queues })
    }

    /// Queues changes for each hook. Never blocks. A full queue loses them.
    pub(super) fn queue(&mut self, changes: &[AppliedChange]) {
        for queue in self.queues.iter_mut().filter(|_| !changes.is_empty()) {
            let is_full = queue.batches.try_send(changes.to_vec()).is_err();
            if is_full && !queue.is_full {
                tracing::warn!(option = queue.option, "hook is too slow, leaving changes out");
            }
            queue.is_full = is_full;
        }
    }
}

impl Hook {
    async fn call_for_all(&self, option: &'static str, node: &str, mut waiting: Receiver<Vec<AppliedChange>>) {
        while let Some(mut changes) = waiting.recv().await {
            // Batches that came during the last call go together.
            while changes.len() < MOST_CHANGES {
                match waiting.try_recv() {
                    Ok(more) => changes.extend(more),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
            let Ok(body) = serde_json::to_vec(&Call { balancer: node, changes: &changes }) else { continue };
            let mut outcome = self.call(&body).await;
            for delay in DELAYS {
                let Err(error) = &outcome else { break };
                tracing::debug!(option, %error, "hook failed, trying again");
                sleep(delay).await;
                outcome = self.call(&body).await;
            }
            if let Err(error) = outcome {
                tracing::warn!(option, %error, changes = changes.len(), "hook failed, leaving changes out");
            }
        }
    }

    async fn call(&self, body: &[u8]) -> Result<(), String> {
        match self {
            Self::Webhook(client, url) => post(client, url, body).await,
            Self::Exec(command) => timeout(WITHIN, run(command, body))
                .await
                .unwrap_or_else(|_| Err(format!("no end within {} s", WITHIN.as_secs()))),
        }
    }
}

async fn post(client: &reqwest::Client, url: &reqwest::Url, body: &[u8]) -> Result<(), String> {
    let request = client.post(url.clone()).header(CONTENT_TYPE, "application/json").body(body.to_vec());
    // The URL may have a token in it, and must not get into the log.
    let answer = request.send().await.map_err(|error| program::text::describe_error(&error.without_url()))?;
    if answer.status().is_success() { Ok(()) } else { Err(format!("it answers {}", answer.status().as_u16())) }
}

/// A running command. Dropping it kills the command with its whole process group.
struct Running(tokio::process::Child, Option<Pid>);

impl Drop for Running {
    fn drop(&mut self) {
        // A command that has ended has no group any more, and its id may belong to another process.
        if let Some(group) = self.1.filter(|_| matches!(self.0.try_wait(), Ok(None))) {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn run(command: &str, body: &[u8]) -> Result<(), String> {
    // The command's own output could forge lines of the log.
    let (input, output) = (Stdio::piped(), Stdio::null());
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(input).stdout(output).stderr(Stdio::null()).process_group(0);
    // The command needs no password of confgen's.
    withheld_variables().for_each(|name| _ = shell.env_remove(name));
    let child = shell.spawn().map_err(|error| error.to_string())?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    let mut running = Running(child, group);
    if let Some(mut stdin) = running.0.stdin.take() {
        // A command may end without reading all of it.
        let _ = stdin.write_all(body).await;
    }
    let status = running.0.wait().await.map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    fn change(revision: i64) -> AppliedChange {
        AppliedChange { revision, key: "http-services/shop/domain".into(), ..AppliedChange::default() }
    }

    #[tokio::test]
    async fn a_command_reads_the_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("calls");
        let body = serde_json::to_vec(&Call { balancer: "lb1", changes: &[change(7)] }).unwrap();
        assert_eq!(run(&format!("cat >{}", file.display()), &body).await, Ok(()));
        assert_eq!(std::fs::read(&file).unwrap(), body);
        assert!(body.starts_with(br#"{"balancer":"lb1","changes":[{"#));
        assert_eq!(run("exit 3", &body).await, Err("exit status: 3".into()));
        let forever = timeout(Duration::from_millis(100), run("sleep 60", &body)).await;
        assert!(forever.is_err());
    }

    #[tokio::test]
    async fn a_web_service_gets_a_post() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/token-1", listener.local_addr().unwrap()).parse().unwrap();
        let server = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for status in ["503 Busy", "204 Done"] {
                let (mut stream, _) = listener.accept().unwrap();
                let mut bytes = [0; 4096];
                let length = stream.read(&mut bytes).unwrap();
                seen.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
                write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
            }
            seen
        });
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::new();
        assert_eq!(post(&client, &url, b"{}").await, Err("it answers 503".into()));
        assert_eq!(post(&client, &url, b"{}").await, Ok(()));
        let seen = server.join().unwrap();
        assert!(seen[0].starts_with("POST /token-1 HTTP/1.1\r\n"), "{seen:?}");
        let refused = post(&client, &url, b"{}").await.unwrap_err();
        assert!(!refused.contains("token-1"), "{refused}");
    }

    #[tokio::test]
    async fn a_full_queue_loses_changes_and_blocks_nothing() {
        let (batches, _waiting) = channel(1);
        let mut hooks = Hooks { queues: vec![Queue { option: "--change-exec", batches, is_full: false }] };
        hooks.queue(&[change(1)]);
        assert!(!hooks.queues[0].is_full);
        hooks.queue(&[change(2)]);
        assert!(hooks.queues[0].is_full);
    }
}
