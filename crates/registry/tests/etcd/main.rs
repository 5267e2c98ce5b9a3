//! The registry against real etcd: what etcd does when it is killed, frozen, wiped, compacted or denies something, and
//! that the registry recovers from each of them. Each test starts its own etcd and prints its figures
//! (`cargo test -p registry --test etcd -- --nocapture`).

#![cfg(test)]

mod calls;
mod cluster;
mod follow;
mod hold;
mod secured;
mod shared;
mod support;
