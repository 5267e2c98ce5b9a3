//! Exchanges one request and its whole answer over a stream socket before a deadline. It knows no protocol.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt::SendTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

/// A stream with time limits for reads and writes.
pub(crate) trait BoundedStream: Read + Write {
    /// Sets the time limit of the next read.
    fn limit_read(&self, left: Duration) -> io::Result<()>;
    /// Sets the time limit of the next write.
    fn limit_write(&self, left: Duration) -> io::Result<()>;
}

impl BoundedStream for UnixStream {
    fn limit_read(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))
    }

    fn limit_write(&self, left: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(left))
    }
}

impl BoundedStream for TcpStream {
    fn limit_read(&self, left: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(left))
    }

    fn limit_write(&self, left: Duration) -> io::Result<()> {
        self.set_write_timeout(Some(left))
    }
}

/// Connects to a unix socket within `timeout`. The standard library would wait for ever if the listener's queue is
/// full.
pub(crate) fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // SO_SNDTIMEO also limits connect(2), and takes 0 for no limit (socket(7)).
    let millis = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX).max(1);
    setsockopt(&socket, SendTimeout, &TimeVal::milliseconds(millis))?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// Sends the whole request before `deadline`.
pub(crate) fn send_all(stream: &mut dyn BoundedStream, request: &[u8], deadline: Instant) -> io::Result<()> {
    stream.limit_write(time_left(deadline)?)?;
    stream.write_all(request)
}

/// Reads until the other side closes. More than `limit` bytes are an error.
pub(crate) fn receive_all(stream: &mut dyn BoundedStream, deadline: Instant, limit: usize) -> io::Result<Vec<u8>> {
    receive_until(stream, deadline, limit, |_| false)
}

/// Reads until the other side closes, or until `whole` accepts what has come, for a peer that may not close.
pub(crate) fn receive_until(
    stream: &mut dyn BoundedStream,
    deadline: Instant,
    limit: usize,
    whole: fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        stream.limit_read(time_left(deadline)?)?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(read) => answer.extend_from_slice(chunk.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if whole(&answer) {
            return Ok(answer);
        }
        if answer.len() > limit {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("an answer of more than {limit} bytes")));
        }
    }
}

fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A socket takes a timeout of zero for none at all.
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}
