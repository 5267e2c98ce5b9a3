//! The bound on the memory of old HAProxys, as typed and in bytes. It measures no process.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A share of the memory that this program may use, or a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemoryBound {
    /// In percent.
    Share(u8),
    Bytes(u64),
}

const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl FromStr for MemoryBound {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const RULE: &str = "give a share from 0% to 100%, or a size: 512MiB, 2GiB";
        if let Some(share) = text.strip_suffix('%') {
            return share.parse().ok().filter(|share| *share <= 100).map(Self::Share).ok_or(RULE);
        }
        let unit = UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
        let (number, factor) = unit.ok_or(RULE)?;
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor));
        bytes.map(Self::Bytes).ok_or(RULE)
    }
}

impl MemoryBound {
    /// The bound in bytes. Without a figure of the host's memory, a share bounds nothing.
    pub(crate) fn in_bytes(self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Share(share) => {
                usable_memory().map_or(u64::MAX, |memory| memory.saturating_mul(u64::from(share)) / 100)
            }
        }
    }
}

/// The memory that this program may use: the host's, or less if a control group limits it. `None` if the system hides it.
fn usable_memory() -> Option<u64> {
    let host = parse_total(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(group_limits(Path::new("/sys/fs/cgroup"), &groups).fold(host, u64::min))
}

/// Parses `MemTotal:       16384000 kB`.
fn parse_total(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    value.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// The memory limits of this process's control group and of those above it (cgroup v2, `0::/system.slice/x.service`). A
/// group without a limit says `max`.
fn group_limits(root: &Path, groups: &str) -> impl Iterator<Item = u64> {
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).map(|path| root.join(path));
    let root = root.to_owned();
    let mut place: Option<PathBuf> = own;
    std::iter::from_fn(move || {
        let here = place.take().filter(|here| here.starts_with(&root))?;
        place = here.parent().map(Path::to_owned);
        Some(here)
    })
    .filter_map(|group| fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok())
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a test writes files as other tools do, in place too")]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_a_share_or_a_size() {
        let read = |text: &str| text.parse::<MemoryBound>().ok();
        assert_eq!(read("50%"), Some(MemoryBound::Share(50)));
        assert_eq!(read("512MiB"), Some(MemoryBound::Bytes(512 * 1024 * 1024)));
        assert_eq!(read("2GiB"), Some(MemoryBound::Bytes(2 * 1024 * 1024 * 1024)));
        for bad in ["", "2", "101%", "-1%", "2 GiB", "2GB", "99999999999999GiB"] {
            assert_eq!(read(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_share_is_of_the_least_limit() {
        let dir = tempfile::tempdir().unwrap();
        let groups = "12:cpu:/x\n0::/system.slice/haproxy.service\n";
        let place = dir.path().join("system.slice/haproxy.service");
        fs::create_dir_all(&place).unwrap();
        fs::write(place.join("memory.max"), "max\n").unwrap();
        fs::write(dir.path().join("system.slice/memory.max"), "4096\n").unwrap();
        fs::write(dir.path().join("memory.max"), "8192\n").unwrap();
        assert_eq!(group_limits(dir.path(), groups).collect::<Vec<_>>(), [4096, 8192]);
        assert_eq!(group_limits(dir.path(), "5:memory:/x\n").count(), 0, "cgroup v1");
        assert_eq!(parse_total("MemTotal:       2 kB\nMemFree: 1 kB\n"), Some(2048));
        assert!(MemoryBound::Share(50).in_bytes() <= MemoryBound::Share(100).in_bytes());
        assert_eq!(MemoryBound::Share(0).in_bytes(), 0);
    }
}
