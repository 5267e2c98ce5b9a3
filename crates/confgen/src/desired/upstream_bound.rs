//! The bound on upstreams. Each upstream with a check takes a file descriptor at HAProxy's start, and a start that asks for too many
//! fails, although `haproxy -c` passes. Pure: the caller knows HAProxy's limit.

/// File descriptors that HAProxy needs beside connections and checks: listeners, pipes, files, a few for each thread. 28 were seen
/// with two threads and two listeners (2.6 and 3.2).
const OTHER_FILES: u64 = 256;

/// The bound on upstreams while not all have room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamBound {
    /// The bound on all services together.
    pub max_total: usize,
    /// The bound on one service, which only the largest services reach. Smaller ones leave more for them.
    pub max_per_service: usize,
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

/// Sets all digits of a number but the first two to zero. Otherwise each upstream of a smaller service would move the bound, and
/// every move has all services decided again.
fn round_down(number: usize) -> usize {
    let mut step = 1;
    while number / step >= 100 {
        step *= 10;
    }
    number - number % step
}

impl UpstreamBound {
    /// Shares `in_all` among services with so many upstreams each. `None` if all upstreams have room.
    pub fn from_counts(counts: impl Iterator<Item = usize>, in_all: usize) -> Option<Self> {
        let mut counts: Vec<usize> = counts.collect();
        if counts.iter().sum::<usize>() <= in_all {
            return None;
        }
        // The smallest services go first, and leave the rest of their share to the others.
        counts.sort_unstable();
        let (mut room, mut services) = (in_all, counts.len());
        for count in counts {
            let share = room / services;
            if count > share {
                return Some(Self { max_total: in_all, max_per_service: round_down(share).max(1) });
            }
            (room, services) = (room - count, services - 1);
        }
        None
    }

    /// The reason against an upstream without room, with the remedies.
    pub fn exceeded_reason(&self) -> String {
        let Self { max_total: in_all, max_per_service: of_each } = self;
        format!(
            "HAProxy can open files for the checks of {in_all} upstreams, and this service has more than the {of_each} that smaller \
             ones leave; raise LimitNOFILE of HAProxy's unit or minfds of supervisord, lower `maxconn`, or announce fewer"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quarter_of_the_files_stays_for_connections_unless_the_operator_says_otherwise() {
        assert_eq!(max_upstreams(65_536, None), Some(48_896));
        assert_eq!(max_upstreams(65_536, Some(30_000)), Some(5_280));
        assert_eq!(max_upstreams(1_024, Some(10_000)), None);
    }

    #[test]
    fn the_largest_service_is_cut_and_no_other() {
        let bound = |counts: &[usize], in_all| {
            UpstreamBound::from_counts(counts.iter().copied(), in_all).map(|it| it.max_per_service)
        };
        assert_eq!(bound(&[3, 4, 5], 12), None);
        assert_eq!(bound(&[3, 4, 5], 11), Some(4));
        assert_eq!(bound(&[2, 20_000, 3], 1_000), Some(990), "in steps");
        assert_eq!(bound(&[500, 20_000, 600], 1_000), Some(330));
        assert_eq!(bound(&[1, 1, 1], 2), Some(1), "each keeps one");
        assert_eq!(bound(&[], 0), None);
    }
}
