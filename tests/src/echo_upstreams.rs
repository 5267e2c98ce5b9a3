//! Upstreams that say how they were spoken to: one plain HAProxy, as many ports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use crate::{Certificate, Process, Scratch, free_address, until, write};

/// One of them.
pub struct Speaker<'a> {
    name: &'a str,
    bind: &'a str,
    certificate: Option<&'a Certificate>,
    only: Option<&'a str>,
}

/// All of them, running. Dropping them ends them.
pub struct Speakers {
    addresses: BTreeMap<String, SocketAddr>,
    _process: Process,
    _folder: Scratch,
}

impl<'a> Speaker<'a> {
    /// One of this name, with these words on HAProxy's `bind` line.
    pub fn new(name: &'a str, bind: &'a str) -> Self {
        Self { name, bind, certificate: None, only: None }
    }

    /// Over TLS, with this certificate.
    #[must_use]
    pub fn tls(mut self, certificate: &'a Certificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Answers 403 unless this condition of HAProxy's holds.
    #[must_use]
    pub fn only(mut self, condition: &'a str) -> Self {
        self.only = Some(condition);
        self
    }
}

impl Speakers {
    /// Starts them, and waits until they listen.
    pub fn start(speakers: &[Speaker]) -> Self {
        let folder = Scratch::new();
        let mut text = "defaults\n    mode http\n    timeout client 1m\n".to_owned();
        let mut addresses = BTreeMap::new();
        for Speaker { name, bind, certificate, only } in speakers {
            let address = free_address();
            addresses.insert((*name).to_owned(), address);
            let tls = certificate.map(|certificate| {
                let file = folder.join(format!("{name}.pem"));
                certificate.write(&file);
                format!(" ssl crt {}", file.display())
            });
            let deny = only.map(|only| format!("    http-request deny unless {only}\n")).unwrap_or_default();
            let answer = "client: %[src]\\nsni: %[ssl_fc_sni]\\nalpn: %[ssl_fc_alpn]\\nversion: %[req.ver]\\n";
            writeln!(
                text,
                "frontend {name}\n    bind {address} {bind}{}\n{deny}    \
                 http-request return status 200 content-type text/plain lf-string \"{name}\\n{answer}\"",
                tls.unwrap_or_default()
            )
            .expect("a string");
        }
        let file = folder.join("speakers.cfg");
        write(&file, text);
        let process = Process::start(&folder, "speakers", Command::new("haproxy").arg("-db").arg("-f").arg(&file));
        for (name, address) in &addresses {
            until(Duration::from_secs(10), name, || std::net::TcpStream::connect(address).map(drop));
        }
        Self { addresses, _process: process, _folder: folder }
    }

    /// Where the one of this name is.
    pub fn at(&self, name: &str) -> SocketAddr {
        *self.addresses.get(name).unwrap_or_else(|| panic!("no speaker {name}"))
    }

    /// All of them by name.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.addresses.iter().map(|(name, address)| (name.as_str(), *address))
    }
}
