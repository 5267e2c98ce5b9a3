//! Checks what every accepted value promises, for all values of a topology. The fuzz target uses it too.

use discovery::{Entry, ServiceId, Setting, Topology};

/// Asserts that no character ends or splits a line, a word or a command, begins a comment, quotes, or expands.
fn assert_word(word: &str) {
    let breaks = |c: char| c.is_whitespace() || c.is_control() || "\"'#;".contains(c);
    assert!(!word.contains(breaks), "{word:?}");
}

/// Asserts that a printed value has only words that can stand in a line of haproxy.cfg or in a command.
fn assert_service(id: &ServiceId, service: &discovery::Service) {
    assert_word(&id.to_string());
    for setting in service.settings().filter_map(|(_, field)| field.value.as_ref().ok()) {
        assert_setting(setting);
    }
    for (id, field) in service.upstreams() {
        assert_word(id.as_str());
        if let Ok(upstream) = &field.value {
            assert_word(&upstream.address.to_string());
            assert!(upstream.address.socket_addr().port() > 0);
            assert!(upstream.weight.get() <= 256);
            upstream.color.iter().for_each(|color| assert_word(color.as_str()));
            upstream.host.iter().for_each(|host| assert_word(host.as_str()));
        }
    }
    service.overrides().for_each(|(id, _)| assert_word(id.as_str()));
}

/// Asserts that what a slot or stand-by says is made of words, and that it reads as it prints.
fn assert_copies(copies: &discovery::Copies) {
    for slot in copies.slots().filter_map(|(_, field)| field.value.as_ref().ok()) {
        assert_word(slot.id.as_str());
        slot.host.iter().for_each(|host| assert_word(host.as_str()));
        assert_eq!(discovery::Slot::parse(slot.to_string().as_bytes()).as_ref(), Ok(slot));
    }
    for (id, field) in copies.standby() {
        assert_word(id.as_str());
        let Ok(standby) = &field.value else { continue };
        standby.host.iter().for_each(|host| assert_word(host.as_str()));
        assert!(!standby.to_string().contains(char::is_control));
    }
}

fn assert_setting(setting: &Setting) {
    let printed = setting.to_string();
    assert!(!printed.contains(['\n', '\r']), "{printed:?}");
    printed.split(' ').filter(|word| !word.is_empty()).for_each(assert_word);
    if !matches!(setting, Setting::Sslpass(())) {
        // The printed text parses to the same value, so it has no second meaning.
        let kind = if matches!(setting, Setting::Ports(_)) { discovery::Kind::Tcp } else { discovery::Kind::Http };
        assert_eq!(Setting::parse(kind, setting.name(), printed.as_bytes()).as_ref(), Ok(setting), "{printed:?}");
    }
}

/// Builds a topology of the keys and checks all accepted values. Refusals must print on one line.
pub fn check(entries: &[(String, Vec<u8>)]) {
    let entry = |(key, value): &(String, Vec<u8>)| Entry {
        key: key.clone(),
        value: value.clone(),
        create_revision: 1,
        mod_revision: 1,
        lease: 0,
    };
    let entries: Vec<Entry> = entries.iter().map(entry).collect();
    let topology = Topology::from_entries(&entries);
    topology.copies().values().for_each(|copies| assert_copies(copies));
    for (id, service) in topology.services() {
        assert_service(id, service);
        let settings = service.settings().filter_map(|(_, field)| field.value.as_ref().err());
        let upstreams = service.upstreams().filter_map(|(_, field)| field.value.as_ref().err());
        for refusal in settings.chain(upstreams) {
            assert!(!refusal.to_string().contains(char::is_control), "{refusal}");
        }
    }
}
