//! An output that its own thread writes, so that a stuck output never stops the program.
//!
//! A pipe without a reader takes 64 KiB and then blocks its writer. A full disk and a closed pipe give errors.
//! `O_NONBLOCK` is no solution: it belongs to the open file, which the parent shell and an app may share. Neither is
//! tracing-appender's writer: if it can't write any more, it prints to standard output at exit, and it bounds lines,
//! not bytes.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::unistd::write;

/// Limit of queued bytes while an output takes nothing. They are some ten thousand lines of a log.
const MAX_QUEUED_BYTES: usize = 2 * 1024 * 1024;

/// Most bytes that one write puts into a pipe in one piece (pipe(7)).
const PIPE_BUF: usize = 4096;

/// Stack of the thread, which only writes lines.
const STACK_BYTES: usize = 128 * 1024;

/// Handle of an output. Clones share its queue.
#[derive(Clone)]
pub struct Stream(Arc<Shared>);

struct Shared {
    file: Box<dyn AsFd + Send + Sync>,
    /// Line about dropped lines. `None` keeps all lines, without limit, and stops at the first error.
    describe_gap: Option<fn(u64) -> String>,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Piece>,
    /// Length of all queued lines.
    bytes: usize,
    writer: Writer,
    /// True while the thread writes a piece.
    is_writing: bool,
    /// True if the last write failed.
    is_failing: bool,
    /// Dropped lines that no gap reports yet.
    unreported: u64,
    /// Dropped lines since the start.
    dropped: u64,
    /// First error of the output.
    error: Option<Errno>,
    /// True once the program has given up on the output.
    is_abandoned: bool,
}

/// State of the writing thread.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Writer {
    /// The first line starts the thread.
    #[default]
    NotStarted,
    Runs,
    /// The kernel refused the thread: a limit of the user or the container.
    Refused,
}

enum Piece {
    Line(Vec<u8>),
    /// This many lines are missing here.
    Gap(u64),
}

impl Debug for Stream {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    /// An output for a log. Lines that can't be written are dropped and counted. Once the output takes lines again,
    /// `note` makes the line that says how many are missing.
    pub fn lossy(file: impl AsFd + Send + Sync + 'static, note: fn(u64) -> String) -> Self {
        Self::new(file, Some(note))
    }

    /// An output for an answer. All lines are kept until they are written. An error ends the output.
    pub fn whole(file: impl AsFd + Send + Sync + 'static) -> Self {
        Self::new(file, None)
    }

    fn new(file: impl AsFd + Send + Sync + 'static, note: Option<fn(u64) -> String>) -> Self {
        let (queue, changed) = (Mutex::default(), Condvar::new());
        Self(Arc::new(Shared { file: Box::new(file), describe_gap: note, queue, changed }))
    }

    /// Queues a line, which has its line break. Never blocks, never fails.
    pub fn queue_line(&self, line: Vec<u8>) {
        let mut queue = self.0.lock_queue();
        if queue.writer == Writer::NotStarted {
            queue.writer = if self.start_thread() { Writer::Runs } else { Writer::Refused };
        }
        if queue.writer == Writer::Refused {
            return self.0.write_at_once(&mut queue, &line);
        }
        if self.0.describe_gap.is_some() && queue.bytes + line.len() > MAX_QUEUED_BYTES {
            queue.drop_line();
        } else {
            queue.mark_gap();
            queue.bytes += line.len();
            queue.waiting.push_back(Piece::Line(line));
            self.0.changed.notify_all();
        }
    }

    /// Waits until all lines are written or dropped. False if that takes longer than `limit`. `None` waits without
    /// limit.
    pub fn flush(&self, limit: Option<Duration>) -> bool {
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut queue = self.0.lock_queue();
        while !queue.is_abandoned && (queue.is_writing || !queue.waiting.is_empty()) {
            let Some(deadline) = deadline else {
                queue = self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            queue = self.0.changed.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Drops all queued lines, and ends every [`Self::flush`].
    pub fn abandon(&self) {
        let mut queue = self.0.lock_queue();
        queue.is_abandoned = true;
        queue.waiting.clear();
        self.0.changed.notify_all();
    }

    /// Number of lines dropped so far.
    pub fn dropped_lines(&self) -> u64 {
        self.0.lock_queue().dropped
    }

    /// First error. `None` while every line could be written.
    pub fn first_error(&self) -> Option<io::Error> {
        self.0.lock_queue().error.map(io::Error::from)
    }

    /// Starts the thread. False if the kernel refuses it.
    fn start_thread(&self) -> bool {
        let shared = Arc::clone(&self.0);
        // The new thread inherits the mask. Signals are for the threads that wait for them.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
        let thread = std::thread::Builder::new().name("output".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || shared.write_for_ever()).is_ok();
        if let Ok(before) = before {
            let _ = before.thread_set_mask();
        }
        started
    }
}

impl Shared {
    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_for_ever(&self) {
        let mut is_torn = false;
        loop {
            let piece = self.next_piece();
            let outcome = match &piece {
                Piece::Line(line) => write_whole(self.file.as_fd(), line, &mut is_torn),
                Piece::Gap(count) => {
                    let text = self.describe_gap.map(|note| note(*count)).unwrap_or_default();
                    write_whole(self.file.as_fd(), text.as_bytes(), &mut is_torn)
                }
            };
            let mut queue = self.lock_queue();
            queue.is_writing = false;
            queue.is_failing = outcome.is_err();
            if let Err(error) = outcome {
                queue.error.get_or_insert(error);
                match piece {
                    Piece::Line(_) => queue.drop_line(),
                    Piece::Gap(count) => queue.unreported += count,
                }
                if self.describe_gap.is_none() {
                    // A part of an answer is worse than its end.
                    queue.waiting.clear();
                }
            }
            self.changed.notify_all();
        }
    }

    /// Waits for the next piece, and marks it as being written.
    fn next_piece(&self) -> Piece {
        let mut queue = self.lock_queue();
        loop {
            if queue.waiting.is_empty() && !queue.is_failing {
                queue.mark_gap();
            }
            if let Some(piece) = queue.waiting.pop_front() {
                if let Piece::Line(line) = &piece {
                    queue.bytes = queue.bytes.saturating_sub(line.len());
                }
                queue.is_writing = true;
                return piece;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Writes a line if that needs no wait, and drops it otherwise.
    fn write_at_once(&self, queue: &mut Queue, line: &[u8]) {
        let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)];
        // A pipe that is ready takes PIPE_BUF bytes without a wait (pipe(7)).
        let is_ready = line.len() <= PIPE_BUF && matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..));
        if !is_ready || write_whole(self.file.as_fd(), line, &mut false).is_err() {
            queue.drop_line();
        }
    }
}

impl Queue {
    fn drop_line(&mut self) {
        self.unreported += 1;
        self.dropped += 1;
    }

    /// Queues a gap for the dropped lines, in their place.
    fn mark_gap(&mut self) {
        if self.unreported > 0 {
            self.waiting.push_back(Piece::Gap(std::mem::take(&mut self.unreported)));
        }
    }
}

/// Writes the whole text. `is_torn` is true if the text before it was written only in part, and is set if this one is.
fn write_whole(file: BorrowedFd<'_>, text: &[u8], is_torn: &mut bool) -> Result<(), Errno> {
    if text.is_empty() {
        return Ok(());
    }
    if *is_torn {
        // A reader would join the rest of the torn line with this one.
        write_bytes(file, b"\n").1?;
        *is_torn = false;
    }
    let (written, outcome) = write_bytes(file, text);
    *is_torn = outcome.is_err() && written > 0;
    outcome
}

/// Number of bytes written, and the error that stopped the rest.
pub(crate) fn write_bytes(file: BorrowedFd<'_>, text: &[u8]) -> (usize, Result<(), Errno>) {
    let mut written = 0;
    while let Some(rest) = text.get(written..).filter(|rest| !rest.is_empty()) {
        match write(file, rest) {
            // A second attempt would write 0 bytes too, and loop forever.
            Ok(0) => return (written, Err(Errno::EIO)),
            Ok(count) => written += count,
            Err(Errno::EINTR) => {}
            // Another process, such as the app, may set O_NONBLOCK on the file that it shares with us.
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(file, PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return (written, Err(error)),
                }
            }
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead as _, BufReader, Read as _};

    use nix::unistd::pipe;

    use super::*;

    fn note(count: u64) -> String {
        format!("{count} missing\n")
    }

    /// Long enough for a busy machine.
    const SOON: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn a_pipe_that_is_not_read_blocks_nobody_and_tells_of_the_gap_once_it_is() {
        let (read, write) = pipe().unwrap();
        let stream = Stream::lossy(write, note);
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let lines = 2 * MAX_QUEUED_BYTES / line.len();
        (0..lines).for_each(|_| stream.queue_line(line.clone()));
        let dropped = stream.dropped_lines();
        assert!(dropped > 0 && !stream.flush(Some(Duration::from_millis(10))), "{dropped} of {lines}");
        // A line that the pipe took while others were dropped parts one gap into two.
        let (mut written, mut missing) = (0, 0);
        let mut reader = BufReader::new(File::from(read)).lines().map(Result::unwrap);
        while (written, missing) != (lines as u64 - dropped, dropped) {
            let line = reader.next().unwrap();
            match line.strip_suffix(" missing") {
                Some(count) => missing += count.parse::<u64>().unwrap(),
                None => {
                    assert_eq!(line.len(), 1023, "a line is torn");
                    written += 1;
                }
            }
            assert!(written + missing <= lines as u64, "{line}");
        }
        assert!(stream.flush(SOON));
    }

    #[test]
    fn a_full_device_takes_nothing_and_ends_nothing() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let stream = Stream::lossy(full, note);
        (0..100).for_each(|_| stream.queue_line(b"line\n".to_vec()));
        assert!(stream.flush(SOON));
        assert_eq!(stream.dropped_lines(), 100);
        assert_eq!(stream.first_error().unwrap().raw_os_error(), Some(Errno::ENOSPC as i32));
    }

    #[test]
    fn a_reader_that_has_gone_ends_nothing() {
        let (read, write) = pipe().unwrap();
        drop(read);
        let stream = Stream::lossy(write, note);
        stream.queue_line(b"line\n".to_vec());
        assert!(stream.flush(SOON));
        assert_eq!(stream.first_error().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn an_answer_is_kept_whole_however_slowly_it_is_read() {
        let (read, write) = pipe().unwrap();
        let stream = Stream::whole(write);
        let line = b"y".repeat(MAX_QUEUED_BYTES);
        (0..3).for_each(|_| stream.queue_line(line.clone()));
        assert!(!stream.flush(Some(Duration::ZERO)));
        let mut all = vec![0; 3 * MAX_QUEUED_BYTES];
        File::from(read).read_exact(&mut all).unwrap();
        assert!(stream.flush(SOON) && stream.first_error().is_none() && stream.dropped_lines() == 0);
    }

    #[test]
    fn a_pipe_that_somebody_else_made_non_blocking_is_waited_for() {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let (read, write) = pipe().unwrap();
        fcntl(&write, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let stream = Stream::whole(write);
        stream.queue_line(b"z".repeat(1 << 20));
        let mut all = vec![0; 1 << 20];
        File::from(read).read_exact(&mut all).unwrap();
        assert!(stream.flush(SOON) && stream.first_error().is_none());
    }

    #[test]
    fn the_thread_takes_no_signal() {
        let stream = Stream::lossy(File::options().write(true).open("/dev/null").unwrap(), note);
        stream.queue_line(b"line\n".to_vec());
        assert!(stream.flush(SOON));
        let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
        let ours: Vec<_> = tasks
            .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "output"))
            .map(|task| std::fs::read_to_string(task.join("status")).unwrap_or_default())
            .filter(|status| !status.is_empty())
            .collect();
        assert!(!ours.is_empty());
        for status in ours {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap().trim();
            let mask = u64::from_str_radix(mask, 16).unwrap();
            assert_ne!(mask & (1 << (nix::libc::SIGTERM - 1)), 0, "{status}");
        }
    }
}
