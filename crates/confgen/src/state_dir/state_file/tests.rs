#![allow(clippy::disallowed_methods, reason = "a test writes files as a crash leaves them")]

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use discovery::{Change, Entry, Topology};
use proptest::prelude::*;

use super::*;
use crate::desired::Policy;
use crate::desired::tests::settle;
use crate::store::Changed;
use crate::test_support::TempFiles;

/// A store that changes key by key, and the desired state that follows it.
struct Scene {
    topology: Topology,
    desired: DesiredState,
    revision: i64,
}

impl Scene {
    fn new() -> Self {
        let topology = Topology::default();
        let desired = settle(&topology, &LastKnownGood::default(), &Policy::default());
        Self { topology, desired, revision: 0 }
    }

    fn put(&mut self, key: &str, value: &str) {
        let entry = Entry {
            key: key.into(),
            value: value.into(),
            create_revision: self.revision + 1,
            mod_revision: self.revision + 1,
            lease: 0,
        };
        self.apply(&Change::Put(entry));
    }

    fn delete(&mut self, key: &str) {
        self.apply(&Change::Delete { key: key.into(), revision: self.revision + 1, previous: None });
    }

    fn apply(&mut self, change: &Change) {
        self.revision += 1;
        let changed: BTreeSet<_> = self.topology.apply_change(change).into_iter().collect();
        self.desired.update_services(&self.topology, &Changed::Services(changed));
        self.desired.drop_removed();
    }

    fn to_saved(&self) -> SavedState {
        let position = StoreRevision { cluster: u64::MAX, raft_term: 2, revision: self.revision };
        SavedState { desired: self.desired.clone(), position, held: Arc::default(), kept: vec![], lost: vec![] }
    }
}

/// What the next start finds, with its entries sorted.
type Found = (LastKnownGood, PersistedStore);

fn expected(state: &SavedState) -> Found {
    let Snapshot { memory, store, .. } = state.to_snapshot(0);
    (memory, store.apply_changes([]))
}

fn load(place: &TempFiles) -> Found {
    let (memory, store) = StateFile::new(&place.path("")).load().unwrap();
    (memory, store.apply_changes([]))
}

fn names(place: &TempFiles) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(place.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Saves a snapshot and then one state after another into the journal. Returns all of them.
fn write_history(file: &mut StateFile) -> Vec<SavedState> {
    let mut scene = Scene::new();
    scene.put("http-services/shop/domain", "shop.test");
    scene.put("http-services/shop/upstreams/1", "10.0.0.1:80");
    let mut states = vec![scene.to_saved()];
    let mut note = |state: SavedState| states.push(state);
    scene.put("http-services/shop/upstreams/2", "10.0.0.2:80");
    note(scene.to_saved());
    scene.put("services/wiki/domain", "wiki.test");
    note(scene.to_saved());
    // The last good value of this one stands only in the memory.
    scene.put("http-services/shop/domain", "\"\u{e9}\n\"");
    note(scene.to_saved());
    scene.delete("http-services/shop/upstreams/1");
    note(scene.to_saved());
    let held = serde_json::from_str(
        r#"{"keys":["http-services/shop/domain"],"noticed":{"cluster":1,"raft_term":1,"revision":3}}"#,
    );
    let kept = r#"[{"service":{"kind":"Http","name":"shop"},"id":"1","upstream":{"address":"10.0.0.1:80"}}]"#;
    let kept: Vec<PersistedUpstream> = serde_json::from_str(kept).unwrap_or_default();
    note(SavedState { held: Arc::new(held.unwrap()), kept, ..scene.to_saved() });
    scene.delete("services/wiki/domain");
    note(scene.to_saved());
    states.iter().for_each(|state| file.save(state.clone()).unwrap());
    states
}

/// The changes in the journal.
fn count_lines(place: &TempFiles) -> usize {
    fs::read_to_string(place.path(JOURNAL)).unwrap().lines().count() - 1
}

#[test]
fn every_cut_and_every_flipped_byte_of_the_journal_leaves_a_whole_state() {
    let place = TempFiles::with_folders(&[]);
    let states = write_history(&mut StateFile::new(&place.path("")));
    assert_eq!(count_lines(&place), states.len() - 1, "one line for each change");
    let found: Vec<Found> = states.iter().map(expected).collect();
    assert_eq!(load(&place), found[found.len() - 1]);
    let whole = fs::read(place.path(JOURNAL)).unwrap();
    for offset in 0..=whole.len() {
        let (before, rest) = whole.split_at(offset);
        let lines = before.iter().filter(|byte| **byte == b'\n').count();
        fs::write(place.path(JOURNAL), before).unwrap();
        assert_eq!(load(&place), found[lines.saturating_sub(1)], "cut at {offset}");
        let Some((byte, after)) = rest.split_first() else { continue };
        for flipped in [byte ^ 1, byte ^ 0x80, 0] {
            fs::write(place.path(JOURNAL), [before, &[flipped], after].concat()).unwrap();
            assert_eq!(load(&place), found[lines.saturating_sub(1)], "flipped at {offset}");
        }
    }
    // The next save replaces the damaged journal.
    StateFile::new(&place.path("")).save(states[2].clone()).unwrap();
    assert_eq!((load(&place), count_lines(&place)), (found[2].clone(), 0));
}

#[test]
fn a_change_writes_what_changed() {
    let place = TempFiles::with_folders(&[]);
    let (mut file, mut scene) = (StateFile::new(&place.path("")), Scene::new());
    for number in 0..200 {
        scene.put(&format!("http-services/shop/upstreams/u{number}"), &format!("10.0.0.{number}:80"));
    }
    file.save(scene.to_saved()).unwrap();
    let length = |name| fs::metadata(place.path(name)).unwrap().len();
    let (snapshot, journal) = (length(SNAPSHOT), length(JOURNAL));
    scene.put("http-services/shop/upstreams/u7", "10.0.1.7:80");
    file.save(scene.to_saved()).unwrap();
    assert!(length(JOURNAL) - journal < 500, "{}", length(JOURNAL) - journal);
    file.save(scene.to_saved()).unwrap();
    assert!(count_lines(&place) == 1 && length(SNAPSHOT) == snapshot, "nothing changed, and nothing was written");
    // A journal that outgrows its snapshot becomes one.
    while length(SNAPSHOT) == snapshot {
        assert!(length(JOURNAL) < 2 * snapshot);
        scene.put("http-services/shop/upstreams/u7", &format!("10.0.1.7:{}", scene.revision));
        file.save(scene.to_saved()).unwrap();
    }
    assert_eq!((load(&place), count_lines(&place)), (expected(&scene.to_saved()), 0));
}

#[test]
fn the_files_of_an_older_confgen_are_read_once_and_replaced() {
    let place = TempFiles::with_folders(&[]);
    let mut scene = Scene::new();
    scene.put("http-services/shop/domain", "shop.test");
    let write_old = |scene: &Scene| {
        let Snapshot { memory, store, .. } = scene.to_saved().to_snapshot(0);
        place.write(OLD_MEMORY, serde_json::to_vec(&memory).unwrap());
        place.write(OLD_STORE, serde_json::to_vec(&store).unwrap());
    };
    write_old(&scene);
    let mut file = StateFile::new(&place.path(""));
    assert_eq!(file.load().unwrap(), expected(&scene.to_saved()));
    file.save(scene.to_saved()).unwrap();
    scene.put("http-services/shop/upstreams/1", "10.0.0.1:80");
    file.save(scene.to_saved()).unwrap();
    assert_eq!((names(&place), load(&place)), (vec![JOURNAL.into(), SNAPSHOT.into()], expected(&scene.to_saved())));
    // An older confgen that ran in between knows more than `state.json`.
    scene.delete("http-services/shop/domain");
    write_old(&scene);
    assert_eq!(load(&place), expected(&scene.to_saved()));
    // A crash of that one after its first file counts as not written.
    fs::remove_file(place.path(OLD_STORE)).unwrap();
    assert_ne!(load(&place), expected(&scene.to_saved()));
    StateFile::new(&place.path("")).save(scene.to_saved()).unwrap();
    assert_eq!((names(&place), load(&place)), (vec![JOURNAL.into(), SNAPSHOT.into()], expected(&scene.to_saved())));
}

#[test]
fn a_broken_snapshot_is_put_aside_and_its_journal_changes_nothing() {
    let place = TempFiles::with_folders(&[]);
    let mut file = StateFile::new(&place.path(""));
    let states = write_history(&mut file);
    place.write(SNAPSHOT, "{\"memory\":");
    assert_eq!(StateFile::new(&place.path("")).load_leniently(), Found::default());
    assert_eq!(load(&place), Found::default());
    assert_eq!(names(&place), [JOURNAL, "state.json.broken"]);
    // The running confgen writes all of it again.
    file.save(states[1].clone()).unwrap();
    assert_eq!((load(&place), count_lines(&place)), (expected(&states[1]), 0));
    // Nor does it change what an older confgen left broken.
    file.save(states[2].clone()).unwrap();
    [OLD_MEMORY, OLD_STORE].iter().for_each(|name| place.write(name, "[7]"));
    assert_eq!((load(&place), names(&place).len()), (Found::default(), 5));
    assert!(place.path("memory.json.broken").exists() && place.path("store.json.broken").exists());
}

#[test]
fn a_file_that_was_removed_or_replaced_is_written_again() {
    let place = TempFiles::with_folders(&[]);
    let mut file = StateFile::new(&place.path(""));
    let states = write_history(&mut file);
    let backup = fs::read(place.path(SNAPSHOT)).unwrap();
    let spoil: [&dyn Fn(); 4] = [
        &|| fs::remove_file(place.path(JOURNAL)).unwrap(),
        &|| fs::remove_file(place.path(SNAPSHOT)).unwrap(),
        &|| place.write(SNAPSHOT, &backup),
        &|| fs::write(place.path(JOURNAL), "").unwrap(),
    ];
    for (spoil, state) in spoil.iter().zip(&states) {
        spoil();
        file.save(state.clone()).unwrap();
        assert_eq!((load(&place), count_lines(&place)), (expected(state), 0));
    }
    // The snapshot of before has another number than the journal.
    file.save(states[5].clone()).unwrap();
    place.write(SNAPSHOT, &backup);
    assert_eq!(load(&place), expected(&states[0]));
}

#[test]
fn a_state_after_a_failed_write_is_saved_whole() {
    let place = TempFiles::with_folders(&[]);
    let mut file = StateFile::new(&place.path(""));
    let states = write_history(&mut file);
    // No file can be replaced by a folder's name, and none appended to.
    fs::remove_file(place.path(JOURNAL)).unwrap();
    fs::create_dir(place.path(JOURNAL)).unwrap();
    assert!(file.save(states[2].clone()).is_err());
    fs::remove_dir(place.path(JOURNAL)).unwrap();
    assert_eq!(load(&place), expected(&states[2]), "the snapshot was written");
    file.save(states[3].clone()).unwrap();
    file.save(states[4].clone()).unwrap();
    assert_eq!((load(&place), count_lines(&place)), (expected(&states[4]), 1));
}

const KEYS: [&str; 8] = [
    "http-services/a/domain",
    "http-services/a/path",
    "http-services/a/upstreams/1",
    "http-services/a/overrides/1",
    "services/a/upstreams/1",
    "tcp-services/b/ports",
    "tcp-services/b/upstreams/1",
    "http-services/c/domain",
];
const VALUES: [&str; 6] = ["a.test", "/x/", "10.0.0.1:80", "drain", "3306", "not \"good\" \n"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_last_saved_state_is_found(steps in prop::collection::vec((0..KEYS.len(), prop::option::of(0..VALUES.len()), 0..8), 1..40)) {
        let place = TempFiles::with_folders(&[]);
        let (mut file, mut scene) = (StateFile::new(&place.path("")), Scene::new());
        for (key, value, next) in steps {
            match value {
                Some(value) => scene.put(KEYS[key], VALUES[value]),
                None => scene.delete(KEYS[key]),
            }
            if next > 1 {
                file.save(scene.to_saved()).unwrap();
                prop_assert_eq!(load(&place), expected(&scene.to_saved()));
            }
            if next == 7 {
                file = StateFile::new(&place.path(""));
            }
        }
    }
}

/// The variable that makes the test below the process that it kills.
const WRITER: &str = "CONFGEN_TEST_STATE_WRITER";

/// The state with this number: each of eight upstreams as the last numbers left it.
fn numbered_state(scene: &mut Scene, number: u32) -> SavedState {
    scene.revision = i64::from(number) - 1;
    let [_, high, middle, low] = number.to_be_bytes();
    scene.put(&format!("http-services/shop/upstreams/u{}", number % 8), &format!("10.{high}.{middle}.{low}:80"));
    scene.to_saved()
}

/// The state with this number, by itself.
fn last_state(scene: &mut Scene, number: u32) -> Option<SavedState> {
    (1..=number).rev().take(8).collect::<Vec<_>>().into_iter().rev().map(|it| numbered_state(scene, it)).last()
}

fn write_until_killed(dir: &Path) {
    let (mut file, mut scene) = (StateFile::new(dir), Scene::new());
    let from = file.load().unwrap().1.position.map_or(0, |position| u32::try_from(position.revision).unwrap());
    last_state(&mut scene, from);
    for number in from + 1.. {
        file.save(numbered_state(&mut scene, number)).unwrap();
        println!("saved {number}");
    }
}

/// `CONFGEN_TEST_KILLS` is the number of kills.
#[test]
fn a_kill_at_any_moment_leaves_the_last_state_or_the_one_before() {
    if let Some(dir) = env::var_os(WRITER) {
        return write_until_killed(Path::new(&dir));
    }
    let kills = env::var("CONFGEN_TEST_KILLS").ok().map_or(200, |kills| kills.parse().unwrap());
    let place = TempFiles::with_folders(&[]);
    let this = format!("{}::a_kill_at_any_moment_leaves_the_last_state_or_the_one_before", module_path!());
    let this = this.split_once("::").unwrap().1;
    let begun = Instant::now();
    let mut last = 0;
    for kill in 0..kills {
        let mut writer = Command::new(env::current_exe().unwrap());
        writer.args(["--exact", this, "--nocapture"]).env(WRITER, place.path("")).stdout(Stdio::piped());
        let mut writer = writer.spawn().unwrap();
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // At least one save, so that the kill hits a later one.
        let first = lines.by_ref().find(|line| line.as_ref().unwrap().starts_with("saved"));
        assert!(first.is_some(), "the writer saves");
        std::thread::sleep(Duration::from_micros((kill * 7_919) % 20_000));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let saved = lines.chain(first).filter_map(|line| line.unwrap().strip_prefix("saved ")?.parse::<u32>().ok());
        let saved = saved.max().unwrap();
        let mut file = StateFile::new(&place.path(""));
        let found = file.load().unwrap();
        let number = u32::try_from(found.1.position.unwrap().revision).unwrap();
        assert!(number == saved || number == saved + 1, "saved {saved}, found {number}");
        let wanted = last_state(&mut Scene::new(), number).unwrap();
        assert_eq!((found.0, found.1.apply_changes([])), expected(&wanted), "state {number}");
        assert!(number > last, "each writer saves something");
        last = number;
    }
    println!("{kills} kills in {:?}, {last} states", begun.elapsed());
}
