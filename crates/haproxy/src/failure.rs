//! The reason of HAProxy's last failed start. handover writes it, confgen shows it.
//!
//! It is a file beside the masters' sockets. handover overwrites it in place, and it always has the same size, so that
//! a full disk doesn't prevent the write. The file doesn't say if the failure lasts. supervisord knows that.

use std::path::Path;
use std::time::SystemTime;

use crate::{left_file, masters};

/// The file's name in the directory of the masters' sockets.
pub const FILE: &str = "failure";

/// The file's size in bytes: one page. Zeros follow a shorter text.
pub const SIZE: usize = 4096;

/// The longest text that [`summarize_output`] returns, in characters.
const SUMMARY_LIMIT: usize = 1500;

/// Makes the file's whole content. A longer text is cut. An empty text means that the last start succeeded.
pub fn encode_message(words: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SIZE);
    for character in words.chars() {
        // A cut in a character would leave bytes that are not UTF-8.
        if bytes.len() + character.len_utf8() > SIZE {
            break;
        }
        bytes.extend(character.encode_utf8(&mut [0; 4]).bytes());
    }
    bytes.resize(SIZE, 0);
    bytes
}

/// Reads the reason of a start that failed after `since`, in short. `None` if handover has left none, or an older one.
pub fn read_message(runtime_socket: &Path, since: SystemTime) -> Option<String> {
    masters::candidate_directories(runtime_socket).find_map(|dir| read_file(&dir.join(FILE), since))
}

fn read_file(path: &Path, since: SystemTime) -> Option<String> {
    let (bytes, modified) = left_file::read_trusted(path, SIZE)?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let words = summarize_output(&String::from_utf8_lossy(bytes.get(..end)?));
    (modified >= since && !words.is_empty()).then_some(words)
}

/// Shortens a program's output to one line for an operator. HAProxy's notices and process ids go. So does anything that
/// a terminal or a browser would not show as it stands.
pub fn summarize_output(output: &str) -> String {
    let lines = output.lines().map(tidy_line).filter(|line| !line.is_empty() && !line.starts_with("[NOTICE]"));
    let mut kept: Vec<String> = Vec::new();
    for line in lines {
        if kept.last() != Some(&line) {
            kept.push(line);
        }
    }
    let text = kept.join("; ");
    match text.char_indices().nth(SUMMARY_LIMIT) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Shortens one line, such as `[ALERT]    (4142) : cannot bind socket`: its padding and process id go.
fn tidy_line(line: &str) -> String {
    let plain: String = line.chars().map(|character| if is_hidden(character) { ' ' } else { character }).collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    match words.as_slice() {
        [level, pid, ":", rest @ ..] if level.starts_with('[') && is_pid(pid) => format!("{level} {}", rest.join(" ")),
        words => words.join(" "),
    }
}

fn is_pid(word: &str) -> bool {
    word.starts_with('(') && word.ends_with(')') && word.len() > 2
}

/// True for a control character, and for one that has no width or changes the direction of a text.
fn is_hidden(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    #[test]
    fn haproxys_words_are_made_short() {
        let output = "[NOTICE]   (7) : haproxy version is 2.6.12\n\
                      [ALERT]    (7) : Starting frontend f: cannot bind socket (Address already in use) [0.0.0.0:80]\n\
                      [ALERT]    (7) : [haproxy.main()] Some protocols failed to start their listeners! Exiting.\n\n";
        assert_eq!(
            summarize_output(output),
            "[ALERT] Starting frontend f: cannot bind socket (Address already in use) [0.0.0.0:80]; \
             [ALERT] [haproxy.main()] Some protocols failed to start their listeners! Exiting."
        );
        assert_eq!(
            summarize_output("a\u{1b}[31mb\u{202e}c\n a [31mb c"),
            "a [31mb c",
            "hidden characters, and doubles"
        );
        assert_eq!(summarize_output("\n[NOTICE]   (7) : x\n"), "");
        assert!(summarize_output(&"x".repeat(10_000)).chars().count() < SUMMARY_LIMIT + 3);
    }

    #[test]
    fn words_are_read_back_while_they_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let masters = masters::nested_directory(&socket);
        let past = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(read_message(&socket, past), None, "no handover");
        fs::create_dir(&masters).unwrap();
        let write = |name: &str, words: &str| {
            std::io::Write::write_all(&mut File::create(masters.join(name)).unwrap(), &encode_message(words)).unwrap();
        };
        write(FILE, "no space\nleft");
        assert_eq!(read_message(&socket, past).as_deref(), Some("no space; left"));
        assert_eq!(read_message(&socket, SystemTime::now() + Duration::from_secs(60)), None, "of an earlier start");
        write(FILE, "");
        assert_eq!(read_message(&socket, past), None, "a start that succeeded");
        fs::remove_file(masters.join(FILE)).unwrap();
        write("other", "a secret");
        symlink("other", masters.join(FILE)).unwrap();
        assert_eq!(read_message(&socket, past), None, "a link");
    }

    #[test]
    fn the_file_has_one_size() {
        for words in [String::new(), "é".repeat(SIZE), "x".repeat(SIZE + 1)] {
            let bytes = encode_message(&words);
            assert_eq!(bytes.len(), SIZE);
            let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(SIZE);
            assert!(std::str::from_utf8(&bytes[..end]).is_ok());
        }
    }
}
