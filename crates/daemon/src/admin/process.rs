//! Metrics of the process, under the names of Prometheus's own clients. Blocks, since it reads /proc.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use procfs::process::{LimitValue, Process};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Adds `process_…`. A value that can't be read is left out.
pub(super) fn register_process(registry: &mut Registry) {
    let myself = Process::myself().and_then(|process| Ok((process.stat()?, process)));
    let Ok((stat, process)) = myself else { return };
    let ticks = procfs::ticks_per_second().max(1) as f64;
    let registry = registry.sub_registry_with_prefix("process");

    let cpu = Counter::<f64, AtomicU64>::default();
    cpu.inc_by((stat.utime + stat.stime) as f64 / ticks);
    registry.register_with_unit("cpu", "CPU time spent, by the program and by the kernel for it", Unit::Seconds, cpu);

    register_gauge(registry, "virtual_memory", "Virtual memory", Some(Unit::Bytes), stat.vsize as f64);
    let resident = (stat.rss * procfs::page_size()) as f64;
    register_gauge(registry, "resident_memory", "Resident memory", Some(Unit::Bytes), resident);
    if let Some(start) = start_time(stat.starttime as f64 / ticks) {
        let help = "When the process started, in seconds since 1970";
        register_gauge(registry, "start_time", help, Some(Unit::Seconds), start);
    }
    if let Ok(count) = process.fd_count() {
        register_gauge(registry, "open_fds", "Open file descriptors", None, count as f64);
    }
    if let Ok(limits) = process.limits()
        && let LimitValue::Value(most) = limits.max_open_files.soft_limit
    {
        register_gauge(registry, "max_fds", "How many file descriptors may be open", None, most as f64);
    }
}

fn register_gauge(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: f64) {
    let gauge = Gauge::<f64, AtomicU64>::default();
    gauge.set(value);
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, gauge),
        None => registry.register(name, help, gauge),
    }
}

/// Adds `log_lines_dropped` to the daemon's own metrics.
pub fn register_log(registry: &mut Registry) {
    let dropped = Counter::<u64, AtomicU64>::default();
    dropped.inc_by(program::log::dropped_lines());
    let help = "Lines of the log that could not be written: stderr was full, closed or not read";
    registry.register("log_lines_dropped", help, dropped);
}

/// Start of the process in seconds since 1970, from its time after boot. systemd's `ProcSubset=pid` hides /proc/stat,
/// which has the boot's time, so the clock of that time is read. It is read once, so that the value doesn't jump when
/// the time of day is set.
fn start_time(after_boot: f64) -> Option<f64> {
    static START: OnceLock<Option<f64>> = OnceLock::new();
    *START.get_or_init(|| {
        let age = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?).as_secs_f64() - after_boot;
        Some(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64() - age)
    })
}
