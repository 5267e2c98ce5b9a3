//! The console: the admin port's pages, rendered from the status, HAProxy's figures and what `admin` fetched. Pure: no I/O, no clock.
//!
//! askama escapes every value as HTML. No page has a script or a style of its own, so the content security policy allows none.

pub mod assets;
mod balancers;
pub mod certificates;
mod changes;
mod format;
mod frame;
pub mod haproxy;
mod plot;
pub mod query;
pub mod service;
pub mod services;
pub mod store;

pub use balancers::{Balancer, list_balancers};

#[cfg(test)]
mod tests;
