//! confgen: follows the store, renders haproxy.cfg, has HAProxy validate it, and applies it.

mod settle;

mod operator;
mod render;
mod view;

fn main() {}
