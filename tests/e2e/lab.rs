//! Hosts with systemd as PID 1: the units as docs/deploy.md has them started, and three hosts that are hurt or
//! rebooted under load.

mod asked;
mod faults;
mod rolling;
mod secured;
mod units;
