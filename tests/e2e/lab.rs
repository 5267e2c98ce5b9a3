//! Hosts with systemd as PID 1: the units as docs/deploy.md has them started, and three hosts that are hurt under load.

mod asked;
mod faults;
mod secured;
mod units;
