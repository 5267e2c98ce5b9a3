//! Every setting, by what a client or an upstream sees of it. One balancer serves all rows of a scene.

mod added;
mod authorities;
mod checks;
mod clients;
mod scene;
mod spread;
mod sticky;
mod tcp;
mod upstreams;
