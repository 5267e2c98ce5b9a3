//! The floor that confgen is measured against: a watch event becomes the Runtime API commands, and nothing else.
//!
//! A key `/floor/BACKEND/SERVER` with an address as its value is that server. No state, no checks, no file, no retry.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool of the tests, which ships nowhere")]
#![allow(clippy::expect_used, reason = "a measurement that can't be made ends the run")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Parser;
use etcd_client::{Client, EventType, WatchOptions};

/// Puts watched servers into HAProxy.
#[derive(Parser)]
struct Args {
    /// Where etcd listens
    #[arg(long)]
    endpoint: String,
    /// HAProxy's stats socket
    #[arg(long)]
    socket: PathBuf,
}

/// The pace of checks that confgen sends too.
const PACE: &str = "downinter 500ms error-limit 85 fall 4 fastinter 1s observe layer4 on-error fail-check";

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut client = Client::connect([&args.endpoint], None).await.context("connecting to etcd")?;
    let mut watch = client.watch("/floor/", Some(WatchOptions::new().with_prefix())).await?;
    println!("watching");
    while let Some(answer) = watch.message().await? {
        for event in answer.events() {
            let Some(entry) = event.kv() else { continue };
            let server = entry.key_str()?.trim_start_matches("/floor/");
            let line = match event.event_type() {
                EventType::Put => {
                    let address = entry.value_str()?;
                    format!(
                        "add server {server} {address} weight 100 check {PACE};enable health {server};enable server {server}"
                    )
                }
                EventType::Delete => format!("set server {server} state maint;del server {server}"),
            };
            tell(&args.socket, &line)?;
        }
    }
    Ok(())
}

fn tell(socket: &Path, line: &str) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
