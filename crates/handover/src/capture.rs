//! Copies HAProxy's output to handover's own, and keeps an excerpt for a start that fails. A reader of handover's
//! output that hangs holds HAProxy up once, for a second.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};

/// The longest beginning and the longest end that an excerpt keeps, in bytes each. HAProxy may warn of each of
/// thousands of servers. The reason that it doesn't start is in its first lines or its last.
const EXCERPT_LIMIT: usize = 16 * 1024;

/// The bytes of one read. A pipe that poll(2) reports as writable has room for this many (`PIPE_BUF` in pipe(7)).
const CHUNK: usize = 4096;

/// The longest time that output waits for a reader of handover's own, in milliseconds. After that it is lost.
const WRITE_TIMEOUT_MS: u16 = 1000;

/// The longest wait for the last output of a HAProxy that has ended. A process that it started may keep the pipe open.
const END_TIMEOUT: Duration = Duration::from_millis(500);

/// The output of one HAProxy: the excerpt, and the threads that read it.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    excerpt: Arc<Mutex<Excerpt>>,
    readers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Excerpt {
    first: Vec<u8>,
    last: Vec<u8>,
}

impl Excerpt {
    fn add_chunk(&mut self, chunk: &[u8]) {
        let (first, rest) = chunk.split_at(chunk.len().min(EXCERPT_LIMIT - self.first.len().min(EXCERPT_LIMIT)));
        self.first.extend(first);
        self.last.extend(rest);
        let excess = self.last.len().saturating_sub(EXCERPT_LIMIT);
        self.last.drain(..excess);
    }

    fn to_text(&self) -> String {
        let mut text = String::from_utf8_lossy(&self.first).into_owned();
        text.push_str(&String::from_utf8_lossy(&self.last));
        text
    }
}

impl Capture {
    /// Copies the child's two outputs, which have to be pipes, from threads of their own.
    pub(crate) fn follow_child(child: &mut Child) -> Self {
        let excerpt = Arc::default();
        let outputs = child.stdout.take().map(|output| spawn_reader(output, std::io::stdout(), &excerpt));
        let errors = child.stderr.take().map(|output| spawn_reader(output, std::io::stderr(), &excerpt));
        let readers = outputs.into_iter().chain(errors).collect();
        Self { excerpt, readers }
    }

    /// Returns the excerpt. Call it after the child has ended, because it waits for the output's end.
    pub(crate) fn read_text(&self) -> String {
        let deadline = Instant::now() + END_TIMEOUT;
        while Instant::now() < deadline && !self.readers.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.excerpt.lock().unwrap_or_else(PoisonError::into_inner).to_text()
    }
}

fn spawn_reader(
    output: impl Read + Send + 'static,
    to: impl Write + AsFd + Send + 'static,
    excerpt: &Arc<Mutex<Excerpt>>,
) -> JoinHandle<()> {
    let excerpt = Arc::clone(excerpt);
    std::thread::spawn(move || copy_output(output, to, &excerpt))
}

/// Copies until the writer closes its end.
fn copy_output(mut output: impl Read, mut to: impl Write + AsFd, excerpt: &Mutex<Excerpt>) {
    let mut chunk = [0; CHUNK];
    let mut patience = WRITE_TIMEOUT_MS;
    loop {
        match output.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => {
                let bytes = chunk.get(..length).unwrap_or_default();
                excerpt.lock().unwrap_or_else(PoisonError::into_inner).add_chunk(bytes);
                if is_writable(&to, patience) {
                    patience = WRITE_TIMEOUT_MS;
                    // If supervisord is gone, so is the reader of this pipe. HAProxy must not notice.
                    let _ = to.write_all(bytes).and_then(|()| to.flush());
                } else {
                    // This reader hangs. Until it reads again, output no longer waits for it.
                    patience = 0;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn is_writable(to: &impl AsFd, patience: u16) -> bool {
    let mut fds = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, patience).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_and_the_end_are_kept() {
        let mut kept = Excerpt::default();
        kept.add_chunk(b"first\n");
        (0..10_000).for_each(|line| kept.add_chunk(format!("{line}\n").as_bytes()));
        kept.add_chunk(b"last\n");
        let text = kept.to_text();
        assert!(text.starts_with("first\n0\n1\n") && text.ends_with("9999\nlast\n"), "{text}");
        assert_eq!(text.len(), 2 * EXCERPT_LIMIT);
    }

    #[test]
    fn a_reader_that_hangs_holds_nothing_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        let kept = Mutex::default();
        // This is more than a pipe holds, and the reader never reads.
        copy_output(&vec![b'x'; 128 * 1024][..], writer, &kept);
        assert_eq!(kept.lock().unwrap().to_text().len(), 2 * EXCERPT_LIMIT);
        drop(reader);
    }
}
