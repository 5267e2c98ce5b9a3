//! Outputs that take nothing, for programs that must go on nevertheless.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{pipe, write};

/// An output of a program that can't be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// A full device: each write fails.
    Full,
    /// A pipe whose reader has gone: each write fails.
    ReaderGone,
    /// A full pipe without a reader. Each write waits.
    Unread,
    /// No file at all.
    Closed,
}

impl Outlet {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Full, Self::ReaderGone, Self::Unread, Self::Closed];

    /// A file to write to, and the end of a pipe that has to stay open.
    ///
    /// # Panics
    /// For [`Outlet::Closed`], which is no file: see [`Outlet::command`].
    pub fn open(self) -> (OwnedFd, Option<OwnedFd>) {
        match self {
            Self::Full => (File::options().write(true).open("/dev/full").expect("/dev/full").into(), None),
            Self::ReaderGone => (pipe().expect("a pipe").1, None),
            Self::Unread => {
                let (reader, writer) = pipe().expect("a pipe");
                fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("a pipe that doesn't wait");
                // One byte at a time at last, so that not even the shortest line finds room.
                for size in [4096, 1] {
                    while write(&writer, &vec![b'.'; size]) != Err(Errno::EAGAIN) {}
                }
                fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).expect("a pipe that waits");
                (writer, Some(reader))
            }
            Self::Closed => panic!("a closed output is no file"),
        }
    }

    /// The command with both of its outputs there, and what has to stay open meanwhile.
    pub fn command(self, command: &Command) -> (Command, Option<OwnedFd>) {
        let mut shell = Command::new("sh");
        let redirected = if self == Self::Closed { "exec \"$@\" <&- >&- 2>&-" } else { "exec \"$@\"" };
        shell.args(["-c", redirected, "sh"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        if self == Self::Closed {
            return (shell, None);
        }
        // Both are one file, as `2>&1` makes them.
        let (output, reader) = self.open();
        shell.stderr(output.try_clone().expect("a second handle")).stdout(output);
        (shell, reader)
    }
}
