//! The options, resolved into what each part of confgen takes. This module reads the host's name and the environment, and no file.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use discovery::{Bind, Kind, Node, ServiceId};
use haproxy::check::Checker;
use haproxy::masters;
use haproxy::supervisor::Control;

use crate::cli::{Options, Switch};
use crate::local_files::{LocalPaths, certificates};
use crate::operator_files::parse::{LOCAL_PEER, OwnEndpoints};
use crate::render::view::Site;

/// The bound on one `haproxy -c`. It takes 90 ms for ten thousand servers, but an address that must be resolved may hang.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

impl Options {
    /// The options that stand in haproxy.cfg. Error pages come later, from the local files.
    pub fn build_site(&self, stats_hash: crate::render::stats_hash::Hash) -> Site {
        Site {
            http_binds: self.http_bind.clone(),
            https_binds: self.https_bind.clone(),
            stats_binds: self.stats_bind.clone(),
            runtime_socket: self.runtime_socket.clone(),
            server_state_file: self.server_state_file.clone(),
            hard_stop_after: self.hard_stop_after,
            crt_list: certificates::crt_list_path(&self.state_dir),
            log: self.log.clone(),
            trusted_proxies: self.trusted_proxies.clone(),
            proxy_protocol_from: self.proxy_protocol_from.clone(),
            has_traces: self.trace_context == Switch::On,
            stats_hash,
            stats_domain: self.stats_domain.clone(),
            acme: self.acme_service.clone().map(|name| ServiceId { kind: Kind::Http, name }),
            rights: self.rights.clone(),
            pages: Arc::default(),
        }
    }

    /// The local files that confgen reads, and the variables that the operator's files can use.
    pub fn local_paths(&self) -> LocalPaths {
        LocalPaths {
            include: self.include.clone(),
            fill: self.fill.clone(),
            certs: self.certs.clone(),
            authorities: self.ca_dir.clone(),
            domains: self.domains_file.clone(),
            pages: self.error_pages.clone(),
            cfg: self.haproxy_cfg.clone(),
            state_dir: self.state_dir.clone(),
            chroot: self.rights.chroot.clone(),
            own_endpoints: self.reserved_addresses(),
            environment: std::env::vars_os()
                .chain(self.local_peer().map(|name| (LOCAL_PEER.into(), name)))
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        }
    }

    /// The addresses, sockets and files of the generated file and of handover, which the operator's files can't use.
    fn reserved_addresses(&self) -> OwnEndpoints {
        OwnEndpoints {
            binds: self.frontend_binds().collect(),
            runtime_socket: self.runtime_socket.clone(),
            master_dirs: masters::candidate_directories(&self.runtime_socket).collect(),
            state_file: self.server_state_file.clone(),
        }
    }

    /// The name by which HAProxy finds itself among peers: `-L` of its command line, else the host's name.
    fn local_peer(&self) -> Option<OsString> {
        let mut words = self.check_command.words();
        let named = words.find(|word| *word == "-L").and_then(|_| words.next()).map(OsStr::to_owned);
        named.or_else(|| nix::unistd::gethostname().ok())
    }

    /// The files of a check, in the order in which HAProxy reads them at its start.
    pub fn checked_files(&self) -> Vec<PathBuf> {
        let mut files = self.check_command.config_files();
        // In the order of HAProxy's `-f` options, because a file without `defaults` inherits those of the file before it.
        files.extend([self.include.clone(), self.haproxy_cfg.clone()]);
        files
    }

    /// This balancer's name: `--node`, else the host's name. The error says that the host's name can't be one.
    pub fn resolve_node(&self) -> anyhow::Result<Node> {
        if let Some(node) = &self.node {
            return Ok(node.clone());
        }
        let host = nix::unistd::gethostname().context("read the host's name, or name this balancer with --node")?;
        host.to_string_lossy().parse().context("use the host's name as this balancer's; it can't be one, so set --node")
    }

    /// The checker for `--check-command`.
    pub fn build_checker(&self) -> Checker {
        Checker::new(self.check_command.clone(), CHECK_TIMEOUT)
    }

    /// The control of HAProxy's program in supervisord. supervisord tells its children its URL.
    pub fn build_control(&self) -> anyhow::Result<Control> {
        let server = program::variable::read("SUPERVISOR_SERVER_URL");
        let server = server.as_deref().map(|url| url.to_str().context("read SUPERVISOR_SERVER_URL: not UTF-8"));
        Ok(Control::new(self.restart_command.clone(), server.transpose()?))
    }

    /// The ports of the generated file's own frontends, each with the option that sets it.
    pub fn bound_ports(&self) -> BTreeMap<u16, String> {
        self.frontend_binds().map(|(bind, option)| (bind.port, option.to_owned())).collect()
    }

    /// The addresses of the generated file's own frontends, each with the option that sets it.
    fn frontend_binds(&self) -> impl Iterator<Item = (Bind, &'static str)> {
        let options =
            [("--http-bind", &self.http_bind), ("--https-bind", &self.https_bind), ("--stats-bind", &self.stats_bind)];
        options.into_iter().flat_map(|(option, binds)| binds.iter().map(move |bind| (*bind, option)))
    }
}
