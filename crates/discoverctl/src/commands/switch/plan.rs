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
        let words = text.split(',').map(|word| word.trim().trim_end_matches('%'));
        let steps = words.map(str::parse::<u32>).collect::<Result<Vec<_>, _>>().unwrap_or_default();
        let is_rising = steps.is_sorted_by(|one, other| one < other) && steps.iter().all(|it| (1..=100).contains(it));
        if steps.is_empty() || !is_rising {
            return Err(format!("{text:?}: steps are percentages from 1 to 100, each above the one before: 10,50,100"));
        }
        Ok(Self(steps))
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
        let values = steps.0.iter().map(|percent| Ok((*percent, colors::plan_shares(color, *percent, &others)?)));
        let steps = values.collect::<Result<_, Error>>()?;
        let plan = Self { color: color.clone(), steps, before };
        debug_assert_eq!(plan.check_invariants(), Ok(()), "{plan:?}");
        Ok(plan)
    }
}

impl Plan {
    /// Checks what has to hold of every plan. The error is the rule that it breaks.
    fn check_invariants(&self) -> Result<(), &'static str> {
        if !self.steps.is_sorted_by(|(one, _), (other, _)| one < other) {
            return Err("each step gives the color more than the one before");
        }
        if self.steps.iter().any(|(_, active)| active.share_of(&self.color).is_none()) {
            return Err("the color is active from the first step on");
        }
        if self.steps.iter().any(|(percent, active)| *percent == 100 && active.iter().count() > 1) {
            return Err("a step of 100 % leaves no other color active");
        }
        Ok(())
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
    let mut others = Vec::new();
    for other in colors::list_colors(service).into_iter().flatten().filter(|other| other != color) {
        let count = colors::find_ready(service, Some(&other)).len();
        // 10,000 is the largest share that `active` takes.
        others.push((other, u32::try_from(count).unwrap_or(u32::MAX).min(10_000)));
    }
    others.retain(|(_, count)| *count > 0);
    Ok(others)
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
    fn each_rule_of_a_plan_is_checked() {
        let check = |steps: &[(u32, &str)]| {
            let steps = steps.iter().map(|(percent, active)| (*percent, active.parse().unwrap())).collect();
            Plan { color: "green".parse().unwrap(), steps, before: None }.check_invariants()
        };
        assert_eq!(check(&[(10, "blue=90 green=10"), (100, "green")]), Ok(()));
        assert!(check(&[(50, "blue=50 green=50"), (10, "blue=90 green=10")]).unwrap_err().contains("more than"));
        assert!(check(&[(50, "blue=50 red=50")]).unwrap_err().contains("active from the first"));
        assert!(check(&[(100, "blue=1 green=99")]).unwrap_err().contains("no other color"));
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
