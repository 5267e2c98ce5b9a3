//! The options, resolved: what each part of confgen is told. Reads the host's name and the environment, and nothing else.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use discovery::{Bind, Kind, Node, ServiceId};
use haproxy::check::Checker;
use haproxy::masters;
use haproxy::supervisor::Control;

use crate::cli::Options;
use crate::local_files::{LocalPaths, certificates};
use crate::operator_files::parse::OwnEndpoints;
use crate::render::view::Site;

/// HAProxy's own check of ten thousand servers takes 90 ms; an address that has to be resolved may hang for longer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(30);

impl Options {
    /// What the template is told.
    pub fn build_site(&self, stats_hash: crate::render::stats_hash::Hash) -> Site {
        Site {
            http_binds: self.http_bind.clone(),
            https_binds: self.https_bind.clone(),
            stats_binds: self.stats_bind.clone(),
            runtime_socket: self.runtime_socket.clone(),
            server_state_file: self.server_state_file.clone(),
            crt_list: certificates::crt_list_path(&self.state_dir),
            log: self.log.clone(),
            trusted_proxies: self.trusted_proxies.clone(),
            proxy_protocol_from: self.proxy_protocol_from.clone(),
            stats_hash,
            stats_domain: self.stats_domain.clone(),
            acme: self.acme_service.clone().map(|name| ServiceId { kind: Kind::Http, name }),
            rights: self.rights.clone(),
            pages: Arc::default(),
        }
    }

    /// The files to keep an eye on.
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
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
        }
    }

    /// The addresses, sockets and files that belong to the generated file and to handover.
    fn reserved_addresses(&self) -> OwnEndpoints {
        OwnEndpoints {
            binds: self.frontend_binds().collect(),
            runtime_socket: self.runtime_socket.clone(),
            master_dirs: masters::candidate_directories(&self.runtime_socket).collect(),
            state_file: self.server_state_file.clone(),
        }
    }

    /// The files that are checked, as HAProxy is to be started with them.
    pub fn checked_files(&self) -> Vec<PathBuf> {
        let mut files = self.check_command.config_files();
        files.extend([self.include.clone(), self.haproxy_cfg.clone()]);
        files
    }

    /// This balancer's name.
    pub fn resolve_node(&self) -> anyhow::Result<Node> {
        if let Some(node) = &self.node {
            return Ok(node.clone());
        }
        let host = nix::unistd::gethostname().context("ask for the host's name; or name this balancer with --node")?;
        host.to_string_lossy().parse().context("the host's name can't be this balancer's: name it with --node")
    }

    /// Who checks files.
    pub fn build_checker(&self) -> Checker {
        Checker::new(self.check_command.clone(), CHECK_TIMEOUT)
    }

    /// Who restarts HAProxy. supervisord tells its children where it is.
    pub fn build_control(&self) -> anyhow::Result<Control> {
        let server = program::variable::read("SUPERVISOR_SERVER_URL");
        let server = server.as_deref().map(|url| url.to_str().context("read SUPERVISOR_SERVER_URL: not UTF-8"));
        Ok(Control::new(self.restart_command.clone(), server.transpose()?))
    }

    /// The ports that are ours, by the option that says so.
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
