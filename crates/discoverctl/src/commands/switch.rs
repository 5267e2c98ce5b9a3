//! `switch`: makes another color active, in steps. Each step is waited for and watched.

mod active_key;
mod hook;
mod monitor;
mod plan;
mod report;
mod run;
mod sample;
mod signals;
mod state;

use std::time::Duration;

use clap::Args;
use discovery::{Color, Service, ServiceId, Setting, SettingName};

use self::hook::HookEnv;
use self::plan::{Plan, Steps};
use crate::balancer_api::ServiceInFull;
use crate::colors;
use crate::commands::switch::sample::{Limits, Percent};
use crate::context::{Context, check_reason};
use crate::error::{Error, Outcome};
use crate::store::Store;
use crate::target::ServiceArg;

pub(crate) const EXAMPLES: &str = "Examples:
  Switch all requests at once:
      discoverctl switch shop green
  Switch in steps, and go back if more than 1 % of the new color's requests fail:
      discoverctl switch shop green --steps 10,50,100 --every 30s --max-errors 1%
  Test the new color first, and the service afterwards:
      discoverctl switch shop green --before 'curl --fail --silent --output /dev/null https://$DISCOVER_PREVIEW/' \\
          --after 'curl --fail --silent --output /dev/null https://$DISCOVER_DOMAIN/'

Each step is one write of the service's `active` key. The command waits until every live balancer follows, and then watches the
step for --every. It restores the old value if a balancer doesn't follow within --timeout, if a limit is exceeded, if --after
fails, or with a limit if a balancer's key is gone or its API can't be asked for 5 s. Ctrl-C and SIGTERM keep the step, and the
last line says how to continue or go back. If another client writes `active` meanwhile, the command stops and changes nothing.

A failed request is one that the color's upstreams answer with 5xx or not at all. For a TCP service it is a connection that can't
be made. Fewer than 20 requests in a step are not judged.

The commands get DISCOVER_SERVICE, DISCOVER_COLOR, DISCOVER_UPSTREAMS (the color's addresses, separated by blanks),
DISCOVER_DOMAIN (the service's first host) and DISCOVER_PREVIEW (the host that previews the color).";

#[derive(Debug, Args)]
pub(crate) struct Switch {
    /// The service: shop, or http-shop or tcp-shop if two have the name
    #[arg(value_name = "SVC")]
    service: ServiceArg,
    /// The color to make active
    #[arg(value_name = "COLOR")]
    color: Color,
    /// Give the color this share of the traffic in each step, in percent
    #[arg(long, value_name = "LIST", default_value = "100")]
    steps: Steps,
    /// Watch each step for this time
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    every: Duration,
    /// Go back if more than this share of the color's requests fails
    #[arg(long, value_name = "SHARE")]
    max_errors: Option<Percent>,
    /// Go back if the color's average response time exceeds this
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    max_latency: Option<Duration>,
    /// Run this command with sh -c before anything is written, and stop if it fails
    #[arg(long, value_name = "CMD")]
    before: Option<String>,
    /// Run this command with sh -c after the last step, and go back if it fails
    #[arg(long, value_name = "CMD")]
    after: Option<String>,
    /// Go back on Ctrl-C and SIGTERM instead of keeping the step
    #[arg(long)]
    undo_on_interrupt: bool,
    /// Switch to a color without a healthy upstream, or of unknown health
    #[arg(long)]
    force: bool,
    /// Write this reason into the change log
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Print the steps, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait at most this long for the balancers in each step
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Switch {
    pub(crate) async fn run(self, context: &Context) -> Result<Outcome, Error> {
        check_reason(self.reason.as_deref())?;
        let store = context.read_store().await?;
        let id = self.service.find_service(&store.topology)?;
        let service = store.topology.services().get(&id).cloned();
        let service = service.ok_or_else(|| Error::Refused(format!("no service {id} in the store")))?;
        let plan = Plan::new(&service, &self.color, &self.steps)?;
        let limits = Limits { errors: self.max_errors, latency: self.max_latency };
        // Checked for --dry-run as well, so that it prints no steps that would be refused.
        self.check_color(context, &store, &id, &service, limits).await?;
        if self.dry_run {
            context.screen.show(&report::SwitchReport::for_dry_run(&id, &plan))?;
            return Ok(Outcome::Yes);
        }
        let env = hook_env(&id, &service, &self.color);
        run::SwitchRun::new(context, &store, &id, plan, self, limits, env)?.run().await
    }

    /// Refuses a color that has no ready or no healthy upstream, and limits that the balancers' answers can't judge.
    async fn check_color(
        &self,
        context: &Context,
        store: &Store,
        id: &ServiceId,
        service: &Service,
        limits: Limits,
    ) -> Result<(), Error> {
        let ready = colors::find_ready(service, Some(&self.color));
        if ready.is_empty() && !self.force {
            let known = colors::list_colors(service).into_iter().flatten().map(|color| color.to_string());
            let hint = crate::target::suggest_names(self.color.as_str(), known);
            let words = "nothing was changed (--force does it anyway)";
            return Err(Error::Refused(format!("no upstream of color {} is ready; {words}{hint}", self.color)));
        }
        let answers = context.balancer_api(store)?.ask_all::<ServiceInFull>(&format!("services/{id}")).await;
        // --force accepts unknown health. It can't make up for counters that a limit needs.
        if limits.is_any() && answers.is_empty() {
            return Err(Error::NoBalancer(
                "no balancer lives whose API could judge --max-errors; nothing was changed".into(),
            ));
        }
        if let Some(why) = colors::find_unjudged(&answers).filter(|_| limits.is_any()) {
            let words = "without its API --max-errors and --max-latency can't be judged; nothing was changed";
            return Err(Error::NoBalancer(format!("{why}; {words}")));
        }
        colors::count_healthy(&answers, &ready).require_healthy(&self.color, self.force)
    }
}

/// Builds the environment of the operator's commands.
fn hook_env(id: &ServiceId, service: &Service, color: &Color) -> HookEnv {
    let addresses = colors::find_records(service, Some(color)).map(|(_, it)| it.address.to_string());
    let hosts = match service.setting(SettingName::Domain).and_then(|field| field.value.as_ref().ok()) {
        Some(Setting::Domain(hosts)) => hosts.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    };
    // A preview's host is `<color>.<host>`, which no wildcard names.
    let exact = hosts.iter().find(|host| !host.starts_with('*'));
    let preview = exact.filter(|_| service.setting(SettingName::Preview).is_some());
    HookEnv {
        service: id.name.to_string(),
        color: color.to_string(),
        upstreams: addresses.collect::<Vec<_>>().join(" "),
        domain: hosts.first().cloned().unwrap_or_default(),
        // confgen names the preview's host in lower case, whatever case the color has.
        preview: preview.map(|host| format!("{color}.{host}").to_lowercase()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Topology};

    #[test]
    fn a_preview_is_at_the_first_exact_host() {
        let env = |keys: &[(&str, &str)]| {
            let entry = |(key, value): &(&str, &str)| Entry {
                key: format!("http-services/shop/{key}"),
                value: (*value).into(),
                create_revision: 1,
                mod_revision: 1,
                lease: 0,
            };
            let topology = Topology::from_entries(&keys.iter().map(entry).collect::<Vec<_>>());
            let (id, service) = topology.services().iter().next().unwrap();
            super::hook_env(id, service, &"Green".parse().unwrap())
        };
        let upstream = ("upstreams/a", r#"{"address":"10.0.0.1:80","color":"Green"}"#);
        let all = env(&[("domain", "*.shop.com shop.com"), ("preview", "10.0.0.0/8"), upstream]);
        assert_eq!((all.domain.as_str(), all.preview.as_str()), ("*.shop.com", "green.shop.com"));
        assert_eq!(all.upstreams, "10.0.0.1:80");
        assert_eq!(env(&[("domain", "shop.com"), upstream]).preview, "");
    }
}
