//! Real etcd, one node or three.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string, remove_dir_all};
use std::future::Future;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, CompactionOptions, ConnectOptions, DeleteOptions, Error, GetOptions, PutOptions, Txn, TxnOp,
};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use trace::Counts;

use crate::recorder::{Recorder, Shared};
use crate::{App, PATIENCE, Process, Scratch, free_port, runtime, until};

/// The project's default prefix, which relative keys are put below.
pub const PREFIX: &str = "/haproxy-discover/";

/// etcd's `--max-txn-ops` is 128 unless told.
const TXN_OPS: usize = 128;

struct Node {
    name: String,
    /// `https` if a flag names the node's certificate.
    scheme: &'static str,
    /// Where other hosts reach it, besides on loopback.
    outside: Option<Ipv4Addr>,
    client: u16,
    peer: u16,
    process: Option<Process>,
}

/// etcd's own default.
const TOKEN: &str = "etcd-cluster";

/// One etcd or a cluster of three, with its data in a folder of its own.
///
/// Keys are relative to [`PREFIX`] unless they start with `/`. Each call uses a connection of its own to the first node
/// that isn't killed.
///
/// A recorder follows the store. The test fails when this is dropped, if a promise of the protocol was
/// broken. docs/internals/proof.md lists what the recorder writes down.
pub struct Etcd {
    /// The first to go, while the nodes answer. `None` if nothing is recorded.
    recorder: Option<Recorder>,
    nodes: Vec<Node>,
    folder: Scratch,
    /// `--initial-cluster-token`: with the nodes' names and addresses it makes the cluster id.
    token: String,
    /// Further flags of each node.
    flags: Vec<String>,
}

impl Etcd {
    /// Starts a single node and waits until it answers.
    pub fn start() -> Self {
        Self::with_nodes(1, None, &[])
    }

    /// Starts a single node without a recorder, and waits until it answers. A test that counts etcd's watches would count the
    /// recorder's too.
    pub fn unrecorded() -> Self {
        Self::on_ports(free_port(), free_port())
    }

    /// Starts a single node with further flags, and waits until it answers. With a certificate it waits until the port is
    /// open.
    pub fn with_flags(flags: &[&str]) -> Self {
        Self::with_nodes(1, None, flags)
    }

    /// Starts a single node that refuses to write once its data takes this many bytes.
    pub fn with_quota(bytes: u64) -> Self {
        Self::with_nodes(1, None, &[&format!("--quota-backend-bytes={bytes}")])
    }

    /// Writes until the node is over its quota, and refuses.
    pub fn fill(&self) {
        for n in 0..1000 {
            let put =
                self.try_ask(async move |mut client| client.put(format!("filler/{n}"), vec![b'x'; 60_000], None).await);
            if put.is_err() {
                return;
            }
        }
        panic!("etcd took 60 MB over its quota");
    }

    /// Starts a single node that is reached at this address too, and waits until it answers.
    pub fn at(outside: Ipv4Addr) -> Self {
        Self::with_nodes(1, Some(outside), &[])
    }

    /// Starts three nodes and waits until they answer.
    pub fn cluster() -> Self {
        Self::with_nodes(3, None, &[])
    }

    /// Starts a single node on these ports, the clients' and the peers', and waits until it answers. Nothing is recorded,
    /// because the demo runs for hours.
    pub fn on_ports(client: u16, peer: u16) -> Self {
        let node = Node { name: "etcd0".to_owned(), scheme: "http", outside: None, client, peer, process: None };
        Self::launch_all(vec![node], Vec::new())
    }

    fn with_nodes(count: usize, outside: Option<Ipv4Addr>, flags: &[&str]) -> Self {
        let scheme = if flags.iter().any(|flag| flag.starts_with("--cert-file")) { "https" } else { "http" };
        let flags = flags.iter().map(ToString::to_string).collect();
        let is_recorded = scheme == "http" && cfg!(debug_assertions);
        let node = |index| Node {
            name: format!("etcd{index}"),
            scheme,
            outside,
            client: free_port(),
            peer: free_port(),
            process: None,
        };
        let mut etcd = Self::launch_all((0..count).map(node).collect(), flags);
        // The recorder has no certificate, and would show in the figures of a benchmark.
        if is_recorded {
            let endpoints = etcd.nodes.iter().map(Node::endpoint).collect();
            etcd.recorder = Some(Recorder::start(endpoints, &etcd.folder));
        }
        etcd
    }

    /// Counts what was recorded so far. Zero if nothing is recorded.
    pub fn count_observations(&self) -> Counts {
        self.recorder.as_ref().map(|recorder| Counts::of_trace(&recorder.take_trace().0)).unwrap_or_default()
    }

    /// Leaves this test's trace unchecked, because the test does what no run of the product does.
    pub fn leave_unchecked(&self, reason: &str) {
        self.recorder.iter().for_each(|recorder| recorder.leave_unchecked(reason));
    }

    /// Has an app below this command report its stop to the recorder. `log` is where the output of the app's announcer goes.
    pub fn follow_stops(&self, command: &mut Command, log: &Path) {
        self.recorder.iter().for_each(|recorder| recorder.follow_stops(command, log));
    }

    /// What the recorder's tasks share. `None` if nothing is recorded.
    pub(crate) fn share_recorder(&self) -> Option<Arc<Shared>> {
        self.recorder.as_ref().map(Recorder::share)
    }

    #[cfg(test)]
    pub(crate) fn recorder(&self) -> Option<&Recorder> {
        self.recorder.as_ref()
    }

    fn launch_all(nodes: Vec<Node>, flags: Vec<String>) -> Self {
        let count = nodes.len();
        let mut etcd = Self { recorder: None, nodes, folder: Scratch::new(), token: TOKEN.to_owned(), flags };
        for index in 0..count {
            etcd.launch(index);
        }
        etcd.wait_ready();
        etcd
    }

    /// The endpoints of all nodes as `--endpoints` takes them.
    pub fn endpoints(&self) -> String {
        self.nodes.iter().map(Node::endpoint).collect::<Vec<_>>().join(",")
    }

    /// The endpoint that other hosts use, where there is one.
    pub fn endpoint_outside(&self) -> Option<String> {
        self.nodes.first().and_then(Node::endpoint_outside)
    }

    /// Waits until a linearizable read is answered. A node with a certificate has to open its port only, because the
    /// client here has none.
    #[track_caller]
    pub fn wait_ready(&self) {
        let endpoint = self.endpoint();
        if let Some(address) = endpoint.strip_prefix("https://") {
            until(PATIENCE, "etcd's port", || TcpStream::connect(address));
            return;
        }
        until(PATIENCE, "etcd", || {
            let endpoint = endpoint.clone();
            runtime::run(async move { connect(&endpoint).await?.get("health", None).await })
        });
    }

    /// The process of a node.
    pub fn pid(&self, node: usize) -> Pid {
        self.nodes[node].process.as_ref().expect("a node that isn't killed").pid()
    }

    /// The node that leads the cluster.
    pub fn leader(&self) -> usize {
        let leader = self.ask(|mut client| async move { client.status().await }).leader();
        let leads = |node: &Node| {
            let endpoint = node.endpoint();
            let status = runtime::run(async move { connect(&endpoint).await?.status().await });
            status.is_ok_and(|status| status.header().is_some_and(|header| header.member_id() == leader))
        };
        self.nodes.iter().position(leads).expect("a leader")
    }

    /// Kills a node with SIGKILL; its data stays.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].process = None;
    }

    /// Stops a node's clock: it neither answers nor closes a connection. Waits until each of its threads stands, because
    /// under load one goes on for some milliseconds.
    pub fn freeze(&mut self, node: usize) {
        self.process(node).signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.pid(node));
        until(PATIENCE, "a frozen etcd", || {
            let mut threads = read_dir(&tasks).expect("a process").map(|thread| thread.expect("an entry").path());
            threads.all(|thread| read_to_string(thread.join("stat")).is_ok_and(|stat| stat.contains(") T ")))
        });
    }

    /// Lets a frozen node go on.
    pub fn thaw(&mut self, node: usize) {
        self.process(node).signal(Signal::SIGCONT);
    }

    /// Starts a killed node again with the data it had, and waits until the store answers.
    pub fn restart(&mut self, node: usize) {
        self.kill(node);
        self.launch(node);
        self.wait_ready();
    }

    /// Kills all nodes, removes their data and starts them with the same flags: a new store that bears the old cluster
    /// id.
    pub fn wipe(&mut self) {
        self.renew(|_, _| {});
    }

    /// The same as another cluster: a new store with a cluster id of its own.
    pub fn wipe_as(&mut self, token: &str) {
        token.clone_into(&mut self.token);
        self.wipe();
    }

    /// Saves the store into a file, as `etcdctl snapshot save` does.
    pub fn back_up(&self) -> PathBuf {
        let file = self.folder.join("backup");
        let file_name = file.display().to_string();
        etcdctl(&["--endpoints", &self.endpoint(), "snapshot", "save", &file_name]);
        file
    }

    /// Kills the node and starts it with what a backup has. For a single node.
    pub fn restore(&mut self, backup: &Path) {
        self.renew(|node, data| {
            let [backup, data] = [backup, data].map(|path| path.display().to_string());
            let cluster = format!("{}={}", node.name, node.peer_url());
            let flags = ["--initial-cluster", &cluster, "--initial-advertise-peer-urls", &node.peer_url()];
            let restore = ["snapshot", "restore", &backup, "--data-dir", &data, "--name", &node.name];
            etcdctl(&[&restore[..], &flags].concat());
        });
    }

    fn renew(&mut self, fill: impl Fn(&Node, &Path)) {
        let count = self.nodes.len();
        (0..count).for_each(|node| self.kill(node));
        // No watch of the old store can begin any more.
        self.recorder.iter().for_each(Recorder::expect_other_store);
        for node in 0..count {
            let data = self.folder.join(&self.nodes[node].name);
            remove_dir_all(&data).expect("removing etcd's data");
            fill(&self.nodes[node], &data);
            self.launch(node);
        }
        self.wait_ready();
    }

    /// Writes a key without a lease and returns the store's revision after it.
    pub fn put(&self, key: &str, value: impl Into<Vec<u8>>) -> i64 {
        let (key, value) = (absolute(key), value.into());
        let put = self.ask(async move |mut client| client.put(key, value, None).await);
        put.header().expect("a header").revision()
    }

    /// Writes many keys, as many as fit into each transaction; of one given twice, the last value.
    pub fn put_all(&self, entries: impl IntoIterator<Item = (String, Vec<u8>)>) {
        // A transaction with the same key twice is refused.
        let entries: BTreeMap<String, Vec<u8>> = entries.into_iter().collect();
        let puts: Vec<TxnOp> =
            entries.into_iter().map(|(key, value)| TxnOp::put(absolute(&key), value, None)).collect();
        self.ask(async move |mut client| {
            for some in puts.chunks(TXN_OPS) {
                client.txn(Txn::new().and_then(some)).await?;
            }
            Ok(())
        });
    }

    /// Deletes these keys and writes those, in one transaction.
    pub fn exchange(&self, gone: &[&str], entries: &[(&str, &str)]) {
        let deletes = gone.iter().map(|key| TxnOp::delete(absolute(key), None));
        let puts = entries.iter().map(|(key, value)| TxnOp::put(absolute(key), *value, None));
        let all: Vec<TxnOp> = deletes.chain(puts).collect();
        self.ask(async move |mut client| client.txn(Txn::new().and_then(all.clone())).await);
    }

    /// Writes a service of HTTP by hand: its domains, and these apps as its upstreams, without a lease.
    pub fn http_service(&self, service: &str, domain: &str, apps: &[&App]) {
        let below = format!("http-services/{service}");
        let upstream = |app: &&App| (format!("{below}/upstreams/{}", app.name), app.address.to_string().into_bytes());
        let domain = (format!("{below}/domain"), domain.as_bytes().to_vec());
        self.put_all(apps.iter().map(upstream).chain([domain]));
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<String> {
        let key = absolute(key);
        let found = self.ask(async move |mut client| client.get(key, None).await);
        found.kvs().first().map(|entry| String::from_utf8_lossy(entry.value()).into_owned())
    }

    /// The lease that a key hangs on; 0 is none.
    pub fn lease_of(&self, key: &str) -> Option<i64> {
        let key = absolute(key);
        let found = self.ask(async move |mut client| client.get(key, None).await);
        found.kvs().first().map(etcd_client::KeyValue::lease)
    }

    /// All keys that start with `below`, absolute, in order.
    pub fn keys(&self, below: &str) -> Vec<String> {
        let options = GetOptions::new().with_prefix().with_keys_only();
        let below = absolute(below);
        let found = self.ask(async move |mut client| client.get(below, Some(options)).await);
        found.kvs().iter().map(|entry| String::from_utf8_lossy(entry.key()).into_owned()).collect()
    }

    /// All keys that start with `below`, absolute, with their values: 4 MiB at most.
    pub fn entries(&self, below: &str) -> BTreeMap<String, Vec<u8>> {
        let options = GetOptions::new().with_prefix();
        let below = absolute(below);
        let found = self.ask(async move |mut client| client.get(below, Some(options)).await);
        let entry =
            |entry: &etcd_client::KeyValue| (String::from_utf8_lossy(entry.key()).into_owned(), entry.value().to_vec());
        found.kvs().iter().map(entry).collect()
    }

    /// Deletes a key.
    pub fn delete(&self, key: &str) {
        let key = absolute(key);
        self.ask(async move |mut client| client.delete(key, None).await);
    }

    /// Deletes all keys that start with `below`.
    pub fn delete_all(&self, below: &str) {
        let options = DeleteOptions::new().with_prefix();
        let below = absolute(below);
        self.ask(async move |mut client| client.delete(below, Some(options)).await);
    }

    /// Grants a lease of `seconds`, at least 2 on etcd 3.4, and returns its id.
    pub fn grant(&self, seconds: i64) -> i64 {
        self.ask(async move |mut client| client.lease_grant(seconds, None).await).id()
    }

    /// Writes a key under a lease.
    pub fn put_leased(&self, key: &str, value: impl Into<Vec<u8>>, lease: i64) {
        let (key, value) = (absolute(key), value.into());
        let options = PutOptions::new().with_lease(lease);
        self.ask(async move |mut client| client.put(key, value, Some(options)).await);
    }

    /// Ends a lease, and the keys that hang on it.
    pub fn revoke(&self, lease: i64) {
        self.ask(async move |mut client| client.lease_revoke(lease).await);
    }

    /// The store's revision.
    pub fn revision(&self) -> i64 {
        self.ask(async move |mut client| client.get("health", None).await).header().expect("a header").revision()
    }

    /// The store's cluster id.
    pub fn cluster_id(&self) -> u64 {
        self.ask(async move |mut client| client.get("health", None).await).header().expect("a header").cluster_id()
    }

    /// The value of one of the first node's metrics.
    #[track_caller]
    pub fn metric(&self, name: &str) -> f64 {
        let address = self.endpoint().trim_start_matches("http://").parse().expect("an address");
        // HTTP/1.0 has no chunks, which may part a line.
        let answer = crate::http::raw(address, b"GET /metrics HTTP/1.0\r\n\r\n").expect("etcd's metrics");
        let text = String::from_utf8_lossy(&answer);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{name} isn't among etcd's metrics"))
    }

    /// Throws away the history before the present revision.
    pub fn compact(&self) {
        let revision = self.revision();
        let options = CompactionOptions::new().with_physical();
        self.ask(async move |mut client| client.compact(revision, Some(options)).await);
    }

    /// Does something with a client of the first living node.
    ///
    /// # Panics
    /// When etcd refuses it.
    pub fn ask<T, F, A>(&self, act: A) -> T
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
        A: FnOnce(Client) -> F + Send + 'static,
    {
        self.try_ask(act).unwrap_or_else(|error| panic!("etcd at {}: {error}", self.endpoint()))
    }

    /// The same where etcd may be in no state to answer.
    ///
    /// # Errors
    /// What etcd said.
    pub fn try_ask<T, F, A>(&self, act: A) -> Result<T, Error>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send,
        A: FnOnce(Client) -> F + Send + 'static,
    {
        let endpoint = self.endpoint();
        runtime::run(async move { act(connect(&endpoint).await?).await })
    }

    fn endpoint(&self) -> String {
        self.nodes.iter().find(|node| node.process.is_some()).expect("a node that isn't killed").endpoint()
    }

    fn process(&mut self, node: usize) -> &mut Process {
        self.nodes[node].process.as_mut().expect("a node that isn't killed")
    }

    fn launch(&mut self, index: usize) {
        let cluster: Vec<String> = self.nodes.iter().map(|node| format!("{}={}", node.name, node.peer_url())).collect();
        let node = &self.nodes[index];
        let listen =
            [Some(node.endpoint()), node.endpoint_outside()].into_iter().flatten().collect::<Vec<_>>().join(",");
        let mut command = Command::new("etcd");
        command
            .args([
                "--name",
                &node.name,
                "--initial-cluster",
                &cluster.join(","),
                "--initial-cluster-token",
                &self.token,
            ])
            .args(["--listen-client-urls", &listen, "--advertise-client-urls", &node.endpoint()])
            .args(["--listen-peer-urls", &node.peer_url(), "--initial-advertise-peer-urls", &node.peer_url()])
            .args(["--logger", "zap", "--log-level", "warn", "--data-dir"])
            .arg(self.folder.join(&node.name))
            .args(&self.flags);
        let process = Process::start(&self.folder, &node.name, &mut command);
        self.nodes[index].process = Some(process);
    }
}

impl Node {
    fn endpoint(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.client)
    }

    fn endpoint_outside(&self) -> Option<String> {
        self.outside.map(|address| format!("http://{address}:{}", self.client))
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer)
    }
}

fn etcdctl(arguments: &[&str]) {
    let output = Command::new("etcdctl").env("ETCDCTL_API", "3").args(arguments).output().expect("etcdctl");
    assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) async fn connect(endpoint: &str) -> Result<Client, Error> {
    let options =
        ConnectOptions::new().with_connect_timeout(Duration::from_secs(2)).with_timeout(Duration::from_secs(5));
    Client::connect([endpoint], Some(options)).await
}

pub(crate) fn absolute(key: &str) -> String {
    if key.starts_with('/') { key.to_owned() } else { format!("{PREFIX}{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_its_data_over_a_kill_and_loses_it_in_a_wipe() {
        let mut etcd = Etcd::start();
        let first = etcd.put("http-services/shop/domain", "shop.test");
        assert_eq!(etcd.get("/haproxy-discover/http-services/shop/domain").as_deref(), Some("shop.test"));
        etcd.restart(0);
        assert_eq!(etcd.keys(""), ["/haproxy-discover/http-services/shop/domain"]);
        let (id, backup) = (etcd.cluster_id(), etcd.back_up());
        etcd.put("http-services/shop/path", "/");
        etcd.wipe();
        assert_eq!(etcd.keys(""), Vec::<String>::new());
        assert!(etcd.revision() < first);
        assert_eq!(etcd.cluster_id(), id);
        etcd.restore(&backup);
        assert_eq!((etcd.keys(""), etcd.revision()), (vec![format!("{PREFIX}http-services/shop/domain")], first));
        etcd.wipe_as("another");
        assert_ne!(etcd.cluster_id(), id);
    }

    #[test]
    fn a_lease_takes_its_keys_along() {
        let etcd = Etcd::start();
        let lease = etcd.grant(60);
        etcd.put_leased("balancers/lab", "{}", lease);
        assert_eq!(etcd.lease_of("balancers/lab"), Some(lease));
        etcd.revoke(lease);
        assert_eq!(etcd.get("balancers/lab"), None);
        etcd.compact();
    }

    #[test]
    fn three_nodes_live_on_without_one() {
        let mut etcd = Etcd::cluster();
        let leader = etcd.leader();
        etcd.kill(leader);
        etcd.wait_ready();
        assert_ne!(etcd.leader(), leader);
        etcd.put("/a", "1");
        etcd.restart(leader);
        assert_eq!(etcd.get("/a").as_deref(), Some("1"));
    }
}
