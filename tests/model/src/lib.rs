//! A model of the protocol. Its decisions are the product's own functions ([`announcer::decisions`], [`confgen::decisions`]): they
//! are called, and nothing of them is copied. etcd, HAProxy, clients and time are the model's. docs/internals/proof.md says what it
//! proves, for which sizes, and what it assumes.

pub mod brain;
pub mod claims;
pub mod drain;
pub mod etcd;
pub mod guard;
pub mod intern;
pub mod proof;
pub mod slots;
