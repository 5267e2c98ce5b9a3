//! The bound on upstreams. Each upstream with a check takes a file descriptor at HAProxy's start, and a start that asks for too many
//! fails, although `haproxy -c` passes. Pure: the caller knows HAProxy's limit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use discovery::{ServiceId, UpstreamId};

use crate::desired::names::parse_section;

/// File descriptors that HAProxy needs beside connections and checks: listeners, pipes, files, a few for each thread. 28 were seen
/// with two threads and two listeners (2.6 and 3.2).
const OTHER_FILES: u64 = 256;

/// The upstreams that HAProxy serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServedUpstreams {
    services: BTreeMap<ServiceId, Served>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Served {
    upstreams: BTreeSet<UpstreamId>,
    /// A previewed upstream has two.
    servers: usize,
}

impl ServedUpstreams {
    /// The upstreams of HAProxy's servers, each with the name of its section. Servers of the operator's sections don't count.
    pub fn from_servers<'a>(servers: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut services: BTreeMap<ServiceId, Served> = BTreeMap::new();
        for (section, server) in servers {
            if let (Some(service), Ok(upstream)) = (parse_section(section), server.parse()) {
                let served = services.entry(service).or_default();
                served.upstreams.insert(upstream);
                served.servers += 1;
            }
        }
        Self { services }
    }

    fn count_servers(&self, service: &ServiceId) -> usize {
        self.services.get(service).map_or(0, |served| served.servers)
    }

    /// The number of the service's upstreams.
    pub fn count_upstreams(&self, service: &ServiceId) -> usize {
        self.services.get(service).map_or(0, |served| served.upstreams.len())
    }

    /// True if HAProxy serves this upstream.
    pub fn has_upstream(&self, service: &ServiceId, id: &UpstreamId) -> bool {
        self.services.get(service).is_some_and(|served| served.upstreams.contains(id))
    }
}

/// The room that the last count of all upstreams left. It spares most changes such a count, which walks through all services.
#[derive(Clone, Copy, Debug, Default)]
pub struct SpareRoom {
    /// The number of upstreams that fit.
    most: usize,
    /// At least so many more have room. Upstreams that went since the count make no room here. `None` if not all have room.
    left: Option<usize>,
}

impl SpareRoom {
    /// The room after a count of all upstreams.
    pub fn new(most: usize, total: usize) -> Self {
        Self { most, left: most.checked_sub(total) }
    }

    /// Takes room for at most `growth` more upstreams. Returns false if only a count can tell whether they have room.
    pub fn take_part(&mut self, most: usize, growth: usize) -> bool {
        // HAProxy may have got another limit since the count.
        let left = self.left.and_then(|left| left.checked_sub(growth)).filter(|_| self.most == most);
        self.left = left.or(self.left);
        left.is_some()
    }
}

/// The bound on upstreams while not all have room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamBound {
    /// The bound on all services together.
    pub max_total: usize,
    /// The bound on one service, which only the largest services reach. Smaller ones leave more for them.
    pub max_per_service: usize,
    /// The upstreams that stay although there are too many. Empty unless they alone are more than fit.
    pub served: Arc<ServedUpstreams>,
}

/// The number of upstreams that fit beside the connections of clients, each of which takes two files. `None` if a `maxconn` of the
/// operator's leaves none: HAProxy runs all the same, without strict limits.
///
/// Without a `maxconn` of the operator's, HAProxy makes it from what the upstreams leave. A quarter of the files stays for
/// connections then.
pub fn max_upstreams(most_files: u64, maxconn: Option<u64>) -> Option<usize> {
    let connections = maxconn.map_or(most_files / 4, |most| most.saturating_mul(2));
    let left = most_files.checked_sub(connections)?.checked_sub(OTHER_FILES).filter(|left| *left > 0)?;
    Some(usize::try_from(left).unwrap_or(usize::MAX))
}

/// The number with all digits but the first two set to zero. A bound that followed each upstream of the others would decide
/// everything anew at each of their changes.
fn round_down(number: usize) -> usize {
    let mut step = 1;
    while number / step >= 100 {
        step *= 10;
    }
    number - number % step
}

impl UpstreamBound {
    /// The bound for services with so many servers each, of which `in_all` fit. `None` if all have room.
    ///
    /// HAProxy may serve more than fit: an earlier confgen knew no bound, or the limit has changed. It started with them, and
    /// cutting them would take capacity away. So they stay, and nothing is added to them.
    pub fn from_counts<'a>(
        counts: impl Iterator<Item = (&'a ServiceId, usize)>,
        in_all: usize,
        served: &Arc<ServedUpstreams>,
    ) -> Option<Self> {
        let counts: Vec<(usize, usize)> =
            counts.map(|(id, count)| (count, served.count_servers(id).min(count))).collect();
        let served_in_all: usize = counts.iter().map(|(_, served)| served).sum();
        let is_overfull = served_in_all > in_all;
        let max_total = in_all.max(served_in_all);
        if counts.iter().map(|(count, _)| count).sum::<usize>() <= max_total {
            return None;
        }
        let fits = |most: usize| {
            let needed =
                |(count, served): &(usize, usize)| (*count).min(most).max(if is_overfull { *served } else { 0 });
            counts.iter().map(needed).sum::<usize>() <= max_total
        };
        // The largest number that fits. All that are smaller fit too.
        let (mut most, mut too_many) = (0, counts.iter().map(|(count, _)| *count).max()?);
        while most + 1 < too_many {
            let middle = most.midpoint(too_many);
            if fits(middle) { most = middle } else { too_many = middle }
        }
        let served = if is_overfull { Arc::clone(served) } else { Arc::default() };
        Some(Self { max_total, max_per_service: round_down(most).max(1), served })
    }

    /// The reason against an upstream without room, with the remedies.
    pub fn exceeded_reason(&self) -> String {
        let Self { max_total: in_all, max_per_service: of_each, .. } = self;
        format!(
            "HAProxy can open files for the checks of {in_all} upstreams, and this service has more than the {of_each} that smaller \
             ones leave; raise LimitNOFILE of HAProxy's unit or minfds of supervisord, lower `maxconn`, or announce fewer"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Policy;

    #[test]
    fn a_quarter_of_the_files_stays_for_connections_unless_the_operator_says_otherwise() {
        assert_eq!(max_upstreams(65_536, None), Some(48_896));
        assert_eq!(max_upstreams(65_536, Some(30_000)), Some(5_280));
        assert_eq!(max_upstreams(1_024, Some(10_000)), None);
    }

    #[test]
    fn all_upstreams_are_counted_again_once_the_room_may_be_used_up() {
        let mut room = SpareRoom::new(10, 7);
        assert_eq!([2, 1, 1, 0].map(|growth| room.take_part(10, growth)), [true, true, false, true]);
        assert!(!room.take_part(11, 0), "another limit");
        assert!(!SpareRoom::new(10, 11).take_part(10, 0) && !SpareRoom::default().take_part(0, 0), "no room at all");
    }

    fn service(number: usize) -> ServiceId {
        ServiceId { kind: discovery::Kind::Http, name: format!("s{number}").parse().unwrap() }
    }

    fn bound(counts: &[usize], in_all: usize, served: &[usize]) -> Option<UpstreamBound> {
        let counts: Vec<_> = counts.iter().enumerate().map(|(number, count)| (service(number), *count)).collect();
        let servers = served.iter().enumerate().flat_map(|(number, served)| {
            (0..*served).map(move |server| (format!("http-s{number}"), format!("u{server}")))
        });
        let servers: Vec<_> = servers.collect();
        let served = ServedUpstreams::from_servers(servers.iter().map(|(section, name)| (&**section, &**name)));
        UpstreamBound::from_counts(counts.iter().map(|(id, count)| (id, *count)), in_all, &Arc::new(served))
    }

    #[test]
    fn the_largest_service_is_cut_and_no_other() {
        let most = |counts: &[usize], in_all| bound(counts, in_all, &[]).map(|it| it.max_per_service);
        assert_eq!(most(&[3, 4, 5], 12), None);
        assert_eq!(most(&[3, 4, 5], 11), Some(4));
        assert_eq!(most(&[2, 20_000, 3], 1_000), Some(990), "in steps");
        assert_eq!(most(&[500, 20_000, 600], 1_000), Some(330));
        assert_eq!(most(&[1, 1, 1], 2), Some(1), "each keeps one");
        assert_eq!(most(&[], 0), None);
    }

    #[test]
    fn a_service_that_haproxy_serves_makes_room_for_others_if_all_that_it_serves_fits() {
        let bound = bound(&[20, 10], 22, &[20, 2]).unwrap();
        assert_eq!((bound.max_total, bound.max_per_service), (22, 12));
        assert_eq!(*bound.served, ServedUpstreams::default());
    }

    #[test]
    fn upstreams_that_haproxy_serves_stay_and_none_is_added() {
        assert_eq!(bound(&[20, 10], 10, &[20, 10]), None);
        let bound = bound(&[21, 12, 3], 10, &[20, 10]).unwrap();
        assert_eq!((bound.max_total, bound.max_per_service), (30, 1));
        assert_eq!([0, 1, 2].map(|number| bound.served.count_upstreams(&service(number))), [20, 10, 0]);
        let is_served = |name: &str| bound.served.has_upstream(&service(1), &name.parse().unwrap());
        assert_eq!(["u9", "u10"].map(is_served), [true, false]);
    }

    #[test]
    fn a_served_upstream_is_not_displaced_by_an_older_record() {
        use crate::desired::tests::{settle, topology};
        let served = ServedUpstreams::from_servers([("http-shop", "b"), ("http-shop", "c")].into_iter());
        let bound = UpstreamBound { max_total: 2, max_per_service: 1, served: Arc::new(served) };
        let policy = Policy { upstream_bound: Some(bound), ..Policy::default() };
        let upstreams =
            ["a 10.0.0.1:80", "b 10.0.0.2:80", "c 10.0.0.3:80"].map(|it| format!("http-services/shop/upstreams/{it}"));
        let desired = settle(&topology(&upstreams.join("\n")), &Default::default(), &policy);
        let (_, shop) = desired.services().next().unwrap();
        let served: Vec<_> = shop.servers.iter().map(|server| server.id.as_str()).collect();
        assert_eq!(served, ["b", "c"]);
    }
}
