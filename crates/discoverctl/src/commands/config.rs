//! `config`: the options in effect, and the source of each.

use std::collections::BTreeMap;

use clap::Args;
use serde::Serialize;

use crate::config::EffectiveOption;
use crate::error::{Error, Outcome};
use crate::print::{Block, Cell, Printable, Screen, Table};

pub(crate) const EXAMPLES: &str = "Examples:
  discoverctl config
  discoverctl config --output json | jq -r '.options.endpoints.value'

An option of the command line beats its variable. A variable beats ~/.config/haproxy-discover/discoverctl.toml, and that file beats
/etc/haproxy-discover/discoverctl.toml. The command asks neither etcd nor a balancer.";

#[derive(Debug, Args)]
pub(crate) struct Config {}

#[derive(Debug, Serialize)]
struct Options {
    options: BTreeMap<&'static str, OptionShown>,
}

/// One option and its source.
#[derive(Debug, Serialize)]
struct OptionShown {
    /// Null for an option without a value.
    value: Option<String>,
    /// The flag, the variable, the file, or `default`; null for an option without a value.
    source: Option<String>,
}

impl Config {
    pub(crate) fn run(&self, screen: &Screen, options: Vec<EffectiveOption>) -> Result<Outcome, Error> {
        let mut shown = BTreeMap::new();
        for EffectiveOption { key, value, source } in options {
            shown.insert(key, OptionShown { source: value.as_ref().map(|_| source), value });
        }
        screen.show(&Options { options: shown })?;
        Ok(Outcome::Yes)
    }
}

impl Printable for Options {
    fn to_blocks(&self) -> Vec<Block> {
        let mut table = Table::new(["OPTION", "VALUE", "FROM"]);
        for (name, option) in &self.options {
            table.add_row([
                (*name).into(),
                Cell::or_dash(option.value.as_ref()),
                Cell::or_dash(option.source.as_ref()),
            ]);
        }
        vec![Block::Table(table)]
    }
}
