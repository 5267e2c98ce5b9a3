use std::time::Duration;

use super::*;
use crate::desired::tests::{settle, topology};

const SECTION: &str = "http-shop";

/// HAProxy with one section, as it counts.
struct Scene {
    tracker: Tracker,
    desired: DesiredState,
    start: Instant,
    /// In seconds.
    clock: u64,
    backend: Stat,
    servers: Vec<Stat>,
}

impl Scene {
    fn new(settings: &str, servers: usize) -> Self {
        let server = |number: usize| Stat {
            proxy_id: 3,
            proxy: SECTION.into(),
            name: format!("s{number}"),
            status: "UP".into(),
            weight: 100,
            active: 1,
            last_change: 1_000,
            ..Stat::default()
        };
        let servers: Vec<Stat> = (0..servers).map(server).collect();
        let active = servers.len() as u64;
        let algorithm = Some("roundrobin".into());
        let backend = Stat { kind: RowKind::Backend, weight: 100 * active, active, algorithm, ..server(0) };
        let desired = decide(settings);
        let mut scene =
            Self { tracker: Tracker::default(), desired, start: Instant::now(), clock: 0, backend, servers };
        assert_eq!(scene.look(), (vec![], vec![]), "a first count shows nothing");
        scene
    }

    /// Requests that HAProxy gives to all servers but these, in turns.
    fn serve(&mut self, requests: u64, but: &[usize]) {
        let chosen: Vec<usize> = (0..self.servers.len()).filter(|number| !but.contains(number)).collect();
        (0..requests).for_each(|turn| self.servers[chosen[turn as usize % chosen.len()]].chosen += 1);
        self.backend.chosen += requests;
    }

    /// A second passes, and the tracker looks. Returns the sections that grew, and the servers that starve.
    fn look(&mut self) -> (Vec<String>, Vec<String>) {
        self.clock += 1;
        self.servers.iter_mut().for_each(|row| row.last_change += 1);
        self.look_as(7)
    }

    fn look_as(&mut self, pid: u32) -> (Vec<String>, Vec<String>) {
        let Stat { proxy, proxy_id, weight, active, chosen, algorithm, .. } = &self.backend;
        let row = Turns {
            proxy,
            proxy_id: *proxy_id,
            weight: *weight,
            active: *active,
            chosen: *chosen,
            algorithm: algorithm.as_deref(),
            ..Turns::default()
        };
        let glance = self.tracker.observe_backends(pid, std::iter::once(row), &self.desired);
        let before = self.tracker.list_starving();
        if !glance.due.is_empty() {
            assert_eq!(glance.due, [3]);
            let rows = [&self.servers[..], std::slice::from_ref(&self.backend)].concat();
            let found = self.tracker.count_servers(pid, &rows, self.start + Duration::from_secs(self.clock));
            let is_new = self.tracker.list_starving().keys().any(|name| !before.contains_key(name));
            assert_eq!(found.contains(SECTION), is_new, "a server is found once");
        }
        let starving = self.tracker.list_starving().into_keys().map(|(_, server)| server).collect();
        (glance.grown.into_iter().collect(), starving)
    }

    /// The servers that starve after so many requests, of which each look sees fifty.
    fn starving_after(&mut self, requests: u64, but: &[usize]) -> Vec<String> {
        let mut starving = Vec::new();
        for _ in 0..requests / 50 {
            self.serve(50, but);
            starving = self.look().1;
        }
        starving
    }
}

fn decide(settings: &str) -> DesiredState {
    let store = format!("{settings}\nhttp-services/shop/domain shop.test\nhttp-services/shop/upstreams/s0 10.0.0.1:80");
    settle(&topology(&store), &Default::default(), &Default::default())
}

const NONE: [&str; 0] = [];

#[test]
fn a_server_that_misses_twenty_turns_starves_until_it_is_chosen() {
    let mut scene = Scene::new("", 10);
    assert_eq!(scene.starving_after(150, &[4]), NONE, "not before 20 turns");
    assert_eq!(scene.starving_after(50, &[4]), ["s4"]);
    let starved = *scene.tracker.list_starving().values().next().unwrap();
    assert_eq!(starved, Starved { chosen: 0, requests: 200, share: 20 });
    assert_eq!(scene.starving_after(1_000, &[4]), ["s4"], "nor is it found again");
    scene.serve(10, &[]);
    assert_eq!(scene.look().1, NONE, "one request ends it at once");
    assert_eq!(scene.starving_after(1_000, &[]), NONE);
}

#[test]
fn two_servers_need_a_hundred_requests() {
    let mut scene = Scene::new("", 2);
    assert_eq!(scene.starving_after(50, &[1]), NONE);
    assert_eq!(scene.starving_after(50, &[1]), ["s1"]);
}

#[test]
fn a_small_weight_needs_more_requests() {
    let mut scene = Scene::new("", 2);
    scene.servers[1].weight = 5;
    scene.backend.weight = 105;
    scene.look();
    scene.serve(50, &[]);
    assert_eq!(scene.look().1, NONE);
    assert_eq!(scene.starving_after(400, &[1]), NONE, "of 420 requests 20 would be its own");
    assert_eq!(scene.starving_after(50, &[1]), ["s1"]);
    // A neighbour that leaves makes a share greater from then on only.
    let mut scene = Scene::new("", 2);
    scene.servers[1].weight = 5;
    scene.backend.weight = 105;
    scene.look();
    assert_eq!(scene.starving_after(100, &[1]), NONE);
    scene.backend.weight = 10;
    assert_eq!(scene.starving_after(200, &[1]), NONE);
}

#[test]
fn nothing_is_concluded_where_a_server_may_rightly_get_nothing() {
    let assert_silent = |settings: &str, change: fn(&mut Scene)| {
        let mut scene = Scene::new(settings, 4);
        change(&mut scene);
        assert_eq!(scene.starving_after(2_000, &[2]), NONE, "{settings}");
    };
    for algorithm in ["leastconn", "source", "uri", "first", "random", "static-rr"] {
        let mut scene = Scene::new("", 4);
        scene.backend.algorithm = Some(algorithm.into());
        assert_eq!(scene.starving_after(2_000, &[2]), NONE, "{algorithm}");
        // The last two are no settings; a profile may have them.
        if !["first", "static-rr"].contains(&algorithm) {
            assert_silent(&format!("http-services/shop/balance {algorithm}"), |it| it.backend.algorithm = None);
        }
    }
    assert_silent("", |it| it.servers[2].status = "DOWN".into());
    assert_silent("", |it| it.servers[2].status = "DRAIN".into());
    assert_silent("", |it| it.servers[2].weight = 0);
    assert_silent("", |it| it.servers[2].backup = 1);
    // Its connections may be as many as `maxconn` allows, and HAProxy passes it over then.
    assert_silent("", |it| (it.servers[2].limit, it.servers[2].sessions.now) = (Some(5), 1));
    assert_silent("", |it| (it.servers[2].limit, it.servers[2].queue.now) = (Some(5), 1));
    let mut scene = Scene::new("", 4);
    scene.servers[2].limit = Some(5);
    assert_eq!(scene.starving_after(2_000, &[2]), ["s2"], "an idle server isn't full");
}

#[test]
fn a_release_that_names_no_algorithm_is_told_by_the_settings() {
    let mut scene = Scene::new("", 4);
    scene.backend.algorithm = None;
    assert_eq!(scene.starving_after(200, &[2]), ["s2"]);
}

#[test]
fn what_changed_meanwhile_starts_the_count_anew() {
    let assert_anew = |change: fn(&mut Scene)| {
        let mut scene = Scene::new("", 4);
        for _ in 0..20 {
            scene.serve(50, &[2]);
            change(&mut scene);
            assert_eq!(scene.look().1, NONE);
        }
    };
    // The server was down, or in slow start.
    assert_anew(|it| it.servers[2].last_change = 0);
    assert_anew(|it| it.servers[2].weight += 1);
    // A drain that the store asked for and took back.
    assert_anew(|it| it.desired = decide(""));
    // Another process answers, and one whose counters were cleared.
    let mut scene = Scene::new("", 4);
    for pid in 8..28 {
        scene.serve(50, &[2]);
        assert_eq!(scene.look_as(pid).1, NONE);
    }
    let mut scene = Scene::new("", 4);
    assert_eq!(scene.starving_after(50, &[2]), NONE);
    scene.backend.chosen = 0;
    scene.servers.iter_mut().for_each(|row| row.chosen = 0);
    assert_eq!(scene.starving_after(50, &[2]), NONE);
}

#[test]
fn a_section_grows_with_its_weight_or_its_servers() {
    let mut scene = Scene::new("", 4);
    let grown = |scene: &mut Scene, weight, active| {
        (scene.backend.weight, scene.backend.active) = (weight, active);
        !scene.look().0.is_empty()
    };
    assert!(!grown(&mut scene, 400, 4));
    assert!(!grown(&mut scene, 200, 2), "servers went down");
    assert!(!grown(&mut scene, 200, 2));
    assert!(grown(&mut scene, 300, 3), "one came back");
    assert!(!grown(&mut scene, 300, 3));
    assert!(grown(&mut scene, 310, 3), "slow start");
    scene.backend.algorithm = Some("leastconn".into());
    assert!(!grown(&mut scene, 400, 4), "there are no turns");
}

#[test]
fn a_question_is_about_so_many_servers() {
    let due = |active: &[u64]| -> usize {
        let due: Vec<_> = active.iter().enumerate().map(|(id, active)| (0, *active, id as u32)).collect();
        pick_backends(due).len()
    };
    assert_eq!(due(&[]), 0);
    assert_eq!(due(&[10_000, 10]), 1, "the great one has a question of its own");
    assert_eq!(due(&[10_000]), 1);
    assert_eq!(due(&[200, 200, 200]), 2);
    assert_eq!(due(&vec![2; 1_000]), MOST_SECTIONS);
    assert_eq!(pick_backends(vec![(9, 2, 1), (0, 499, 2), (5, 2, 3)]), [2], "longest ago first");
}
