//! `docs/tutorial.md`, word by word, in a Debian that has nothing yet.

mod howto;

use lab::{Machine, Network, Page, light};

/// After these the project's own programs are put there.
const FIRST: &str = "Programs";

/// What a reader with containers has already: Podman, and an image. The image is this machine with a server of its own, since
/// none can be fetched.
const PODMAN: &str = r#"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends aardvark-dns crun iptables netavark podman \
        >/dev/null 2>&1
    mkdir -p /etc/containers
    cat >/etc/containers/containers.conf <<END
[containers]
cgroups = "disabled"
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
END
    tar --one-file-system --exclude ./var/lib/containers --exclude ./var/cache -C / -c . 2>/dev/null |
        podman import --quiet --change 'CMD ["python3", "-m", "http.server", "80"]' - docker.io/library/httpd
"#;

#[test]
#[ignore = "needs Docker: make lab-test"]
fn it_leads_from_nothing_to_blue_green() {
    let _turn = light();
    let network = Network::new();
    let machine = Machine::bare(&network, "lb-1");
    let page = Page::read("docs/tutorial.md");
    let headings = page.headings();
    assert_eq!(headings.first(), Some(&FIRST));
    machine.make_install();
    machine.follow(&page.steps(&[FIRST]));
    machine.sh(PODMAN);
    machine.follow(&page.steps(&headings[1..]));
}
