//! The project's own images, built from their Dockerfiles.

use std::path::Path;
use std::process::Command;

use crate::bins::folder;
use crate::container::{checked, docker, name};

/// Where this source is.
pub const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// What the Dockerfiles start from.
pub(crate) const BASE: &str = "debian:12-slim";

/// In the order in which they can be removed.
pub(crate) const NAMES: [&str; 4] = ["etcd", "app", "announcer", "balancer"];

/// The images, of the binaries that the tests run, under a tag of their own. Dropping it removes them.
pub struct Images {
    tag: String,
    _bases: Vec<Made>,
}

impl Images {
    /// Builds them.
    ///
    /// # Panics
    /// Without a Docker that answers, or a Debian mirror.
    pub fn build() -> Self {
        Self::build_with(base().into_iter().collect(), &[])
    }

    /// Builds them with the balancer's HAProxy from Debian experimental.
    ///
    /// # Panics
    /// As [`Self::build`].
    pub fn build_with_experimental_haproxy() -> Self {
        const SID: &str = "debian:sid-slim";
        let bases = [base(), import("sid", SID)].into_iter().flatten().collect();
        Self::build_with(bases, &[&format!("BASE={SID}"), "HAPROXY_SUITE=experimental"])
    }

    fn build_with(bases: Vec<Made>, variables: &[&str]) -> Self {
        let images = Self { _bases: bases, tag: name() };
        let mut make = Command::new("make");
        make.args(["--silent", "-C", SOURCE, "images", &format!("TAG={}", images.tag)]).args(variables);
        make.arg(format!("BUILT={}", folder().display())).env_remove("MAKEFLAGS");
        checked(&make.output().expect("make"), "make images");
        images
    }

    /// The tag that they all have.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// One of them, as Docker calls it.
    pub fn name(&self, image: &str) -> String {
        format!("haproxy-discover-{image}:{}", self.tag)
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        for image in NAMES {
            let _ = Command::new("docker").args(["rmi", "--force", &self.name(image)]).output();
        }
    }
}

/// A base image that this test has made. Dropping it removes it.
pub(crate) struct Made(&'static str);

impl Drop for Made {
    fn drop(&mut self) {
        let _ = Command::new("docker").args(["rmi", "--force", self.0]).output();
    }
}

/// Makes the base, where Docker doesn't have it, from Debian's packages: nothing is asked of an image registry.
pub(crate) fn base() -> Option<Made> {
    import("bookworm", BASE)
}

/// The same of the next release.
pub(crate) fn trixie() -> Option<Made> {
    import("trixie", "debian:13-slim")
}

/// Makes the image of a suite, unless Docker has it.
fn import(suite: &str, image: &'static str) -> Option<Made> {
    let known = Command::new("docker").args(["image", "inspect", image]).output().expect("docker");
    if known.status.success() {
        return None;
    }
    docker(&["import", &debian(suite), image]);
    Some(Made(image))
}

/// The root of a small Debian, as a tar that is made once.
pub(crate) fn debian(suite: &str) -> String {
    let root = folder().join(format!("debian-{suite}.tar"));
    if !root.is_file() {
        let make = Command::new(Path::new(SOURCE).join("tests/debian-base")).arg(&root).arg(suite).output();
        checked(&make.expect("tests/debian-base"), "debootstrap");
    }
    root.display().to_string()
}
