//! `docs/secure.md`, followed to the letter: every block of the page is run, against an etcd made by it.

pub(crate) mod page;
mod renew;
mod roles;
mod site;
