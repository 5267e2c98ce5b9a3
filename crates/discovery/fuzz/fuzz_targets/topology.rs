//! Lines of `key value` become a topology: no panic, and nothing accepted that could break a line or a command.
#![no_main]

#[path = "../../tests/safety/mod.rs"]
mod safety;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let entries: Vec<(String, Vec<u8>)> = data
        .split(|byte| *byte == 0)
        .map(|line| {
            let at = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
            let (key, value) = line.split_at(at);
            (String::from_utf8_lossy(key).into_owned(), value.get(1..).unwrap_or_default().to_vec())
        })
        .collect();
    safety::check(&entries);
});
