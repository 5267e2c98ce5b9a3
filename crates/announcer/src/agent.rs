//! The agent of a host: registers its containers by their labels, under one lease and over one connection.
//!
//! Architecture invariant: `life`, `plan` and `members` are pure. `run` has the only loop that decides. `engines` follows,
//! and `registrar` alone writes records.

mod addresses;
mod copies;
mod engines;
mod leased;
mod life;
mod list;
mod members;
mod plan;
mod run;
mod standing;
mod state_dir;
mod status;
mod stop;
mod table;
mod withdraw;

use anyhow::Context as _;
use containers::{LabelRules, Reach};
use daemon::shutdown::Shutdown;
use discovery::HostName;
use registry::Client;

use crate::admin::Port;
use crate::agent::addresses::HostAddressFinder;
use crate::agent::copies::CopyOptions;
use crate::agent::plan::Scope;
use crate::agent::state_dir::StateDirError;
use crate::config::address;
use crate::config::container_options::{Command, Containers, ScopeOptions};
use crate::config::host::Host;

/// Options that can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    Etcd(#[from] registry::ConfigError),
    #[error(transparent)]
    StateDir(#[from] StateDirError),
    #[error(transparent)]
    Admin(#[from] daemon::admin::ArgsError),
    #[error("--ttl is too short: etcd grants no lease under 2s")]
    Ttl,
    #[error("the hostname {0:?} can't stand in a record; give --host-name")]
    HostName(String),
    #[error("this host's address isn't known: {0}; give --host-address IP")]
    Address(#[from] address::AddressError),
    #[error("this host's address isn't known: none leads to etcd or by the default route; give --host-address IP")]
    NoAddress,
    #[error("{0} is given twice with --engine")]
    SameEngine(containers::EngineAddress),
}

/// Runs the agent, or one of its commands. Returns the exit status.
pub(crate) fn run_containers(options: Containers) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let shutdown = {
        let _entered = runtime.enter();
        Shutdown::on_signals().context("can't handle signals")?
    };
    // The library would print what the engine says of a container, its environment with its secrets included.
    daemon::log::init_as(&format!("{},bollard=warn", options.log_level), options.log_format)?;
    runtime.block_on(dispatch(options, &shutdown))
}

async fn dispatch(options: Containers, shutdown: &Shutdown) -> anyhow::Result<u8> {
    if options.ttl < crate::config::SHORTEST_TTL {
        return Err(AgentError::Ttl.into());
    }
    let etcd = options.etcd.resolve().map_err(AgentError::from)?;
    let client = Client::new(etcd);
    if let Some(Command::Withdraw) = options.command {
        return withdraw::withdraw_host(client, &options.state_dir, options.ttl, options.drain).await;
    }
    let engines = options.scope.engine.clone();
    if let Some(twice) = engines.iter().enumerate().find(|(at, it)| engines.iter().take(*at).any(|one| one == *it)) {
        return Err(AgentError::SameEngine(twice.1.clone()).into());
    }
    let scope = resolve_scope(&options.scope, &client).await?;
    match options.command {
        Some(Command::Stop { names, time }) => {
            let (drain, handover) = (options.drain, options.replicas.handover);
            let stop = stop::Stop { names, drain, handover, time };
            stop::stop_containers(&client, &engines, &scope, &stop, shutdown).await
        }
        _ if options.list => list::print_list(&client, &engines, &scope, options.output).await,
        _ => {
            let admin = Port::bind(options.admin.resolve().map_err(AgentError::from)?).await?;
            let finder = HostAddressFinder::new(&options.scope, client.config().endpoints());
            let copies = CopyOptions {
                max_restarts: options.replicas.max_restarts,
                handover: options.replicas.handover,
                drain: options.drain,
            };
            let settings =
                run::Settings { engines, scope, ttl: options.ttl, state_dir: options.state_dir, copies, admin, finder };
            run::run_agent(client, settings, shutdown).await
        }
    }
}

async fn resolve_scope(options: &ScopeOptions, client: &Client) -> Result<Scope, AgentError> {
    let host = match &options.host_name {
        Some(host) => host.clone(),
        None => {
            let hostname = Host::from_system().hostname;
            hostname.parse::<HostName>().map_err(|_| AgentError::HostName(hostname))?
        }
    };
    let reach = match &options.container_network {
        Some(network) => Reach::Network(network.clone()),
        None => {
            let found = HostAddressFinder::new(options, client.config().endpoints()).find().await?;
            // A network that starts late: the unit is started again, and finds it then.
            if found.main_address().is_none() {
                return Err(AgentError::NoAddress);
            }
            Reach::Host(found)
        }
    };
    let dialects = options.labels.iter().map(|dialect| (*dialect).into()).collect();
    let rules = LabelRules { prefix: options.label_prefix.clone(), dialects };
    Ok(Scope { rules, reach, host, update: options.update })
}
