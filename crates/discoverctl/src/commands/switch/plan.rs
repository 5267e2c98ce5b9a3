//! The plan of a switch, decided before anything is written. Pure.

use std::str::FromStr;

use discovery::{Active, Color, Service};

use crate::colors;
use crate::error::Error;

/// `--steps 10,50,100`: the share of each step in percent, in rising order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Steps(Vec<u32>);

impl FromStr for Steps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused =
            || format!("{text:?}: steps are hundredths from 1 to 100, each more than the one before: 10,50,100");
        let number = |word: &str| word.trim().trim_end_matches('%').parse::<u32>().ok();
        let steps: Option<Vec<u32>> = text.split(',').map(number).collect();
        let steps = steps.ok_or_else(refused)?;
        let is_fine = steps.is_sorted_by(|one, other| one < other) && steps.iter().all(|it| (1..=100).contains(it));
        if is_fine { Ok(Self(steps)) } else { Err(refused()) }
    }
}

/// The values that a switch writes, and the value before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// The color to make active.
    pub(crate) color: Color,
    /// The share in percent and the value of each step.
    pub(crate) steps: Vec<(u32, Active)>,
    /// The active colors before; None if none were set.
    pub(crate) before: Option<Active>,
}

impl Plan {
    /// Plans the steps of a switch.
    pub(crate) fn new(service: &Service, color: &Color, steps: &Steps) -> Result<Self, Error> {
        let before = colors::read_active(service)?;
        let others: Vec<(Color, u32)> = match &before {
            Some(active) => active.iter().map(|(color, share)| (color.clone(), share)).collect(),
            None => count_other_colors(service, color, steps)?,
        };
        if before.as_ref().is_some_and(|active| active.share_of(color).is_some() && active.iter().count() == 1) {
            return Err(Error::Refused(format!("{color} is active already; nothing was changed")));
        }
        let step = |percent: &u32| Ok((*percent, colors::plan_shares(color, *percent, &others)?));
        let steps = steps.0.iter().map(step).collect::<Result<_, Error>>()?;
        Ok(Self { color: color.clone(), steps, before })
    }
}

/// Counts the upstreams of each other color if no color is active. Every upstream serves then, so the others share the
/// rest by their numbers. Upstreams without a color can't have a share, and a partial step is refused.
fn count_other_colors(service: &Service, color: &Color, steps: &Steps) -> Result<Vec<(Color, u32)>, Error> {
    let is_partial = steps.0.iter().any(|percent| *percent < 100);
    if is_partial && !colors::find_ready(service, None).is_empty() {
        let words = "no color is active, and some upstreams have none: they would get nothing from the first step on";
        return Err(Error::Refused(format!("{words}; give them a color, or leave --steps out; nothing was changed")));
    }
    let others = colors::list_colors(service).into_iter().flatten().filter(|other| other != color);
    let part = |other: Color| {
        let count = colors::find_ready(service, Some(&other)).len();
        (other, u32::try_from(count).unwrap_or(u32::MAX).min(10_000))
    };
    Ok(others.map(part).filter(|(_, count)| *count > 0).collect())
}

#[cfg(test)]
mod tests {
    use discovery::{Entry, Topology};

    use super::*;

    fn plan(keys: &[(&str, &str)], steps: &str) -> Result<Vec<String>, String> {
        let entry = |(key, value): &(&str, &str)| Entry {
            key: format!("http-services/shop/{key}"),
            value: (*value).into(),
            create_revision: 1,
            mod_revision: 1,
            lease: 0,
        };
        let topology = Topology::from_entries(&keys.iter().map(entry).collect::<Vec<_>>());
        let service = topology.services().values().next().unwrap();
        let plan = Plan::new(service, &"green".parse().unwrap(), &steps.parse().unwrap());
        plan.map(|it| it.steps.iter().map(|(_, active)| active.to_string()).collect())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn steps_grow() {
        assert_eq!("10, 50%,100".parse(), Ok(Steps(vec![10, 50, 100])));
        for bad in ["", "0", "101", "50,10", "10,10", "a", "10,"] {
            assert!(bad.parse::<Steps>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_begins_where_the_store_stands() {
        const BLUE: &str = r#"{"address":"10.0.0.1:80","color":"blue"}"#;
        const GREEN: &str = r#"{"address":"10.0.0.2:80","color":"green"}"#;
        let all = |steps: &[&str]| Ok(steps.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>());
        let colored = [("upstreams/a", BLUE), ("upstreams/b", GREEN)];
        assert_eq!(plan(&[("active", "blue")], "10,100"), all(&["blue=90 green=10", "green"]));
        assert_eq!(plan(&[("active", "blue=90 green=10")], "50,100"), all(&["blue=50 green=50", "green"]));
        assert_eq!(plan(&colored, "25,100"), all(&["blue=75 green=25", "green"]));
        assert_eq!(plan(&[("upstreams/c", "10.0.0.3:80"), ("upstreams/b", GREEN)], "100"), all(&["green"]));
        let refused = |keys, steps| plan(keys, steps).unwrap_err();
        assert!(refused(&[("active", "green=7")], "10").starts_with("green is active already"));
        assert!(
            refused(&[("upstreams/c", "10.0.0.3:80"), ("upstreams/b", GREEN)], "10")
                .contains("some upstreams have none")
        );
        assert!(refused(&[("active", "green blue=")], "10").starts_with("http-services/shop/active: "));
    }
}
