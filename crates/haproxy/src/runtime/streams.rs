//! Counts the connections and streams of a process that can still choose a server (Management Guide, 9.3, `show info`
//! and `show sess`).

use std::collections::{BTreeMap, BTreeSet};

use super::{Command, Error, Info, Socket};

/// The open connections and streams of a process.
///
/// A stream is a request or a TCP session. Once a server has accepted a TCP session, or has begun to answer a request, the
/// stream stays with that server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Streams {
    /// The client connections, those of the internal sockets included. Those of the Runtime API don't count.
    pub connections: u64,
    /// The client connections without a stream: in a TLS handshake, before a request, between two requests.
    pub idle: u64,
    /// The streams that have no backend yet.
    pub unrouted: u64,
    /// The streams of each backend that have no server yet, or may be sent to another one: in the queue, connecting,
    /// and requests without the beginning of an answer, which `retry-on` may repeat.
    pub undecided: BTreeMap<String, u64>,
}

/// The frontend of the Runtime API itself.
const RUNTIME_API: &str = "GLOBAL";

/// A stream with this state on its server side has a connection to its server (`SC_ST_EST`, 8 from 2.0 to 3.4). Lower
/// states come before it.
const ESTABLISHED: u32 = 8;

/// The analyser that waits for the headers of an answer (`AN_RES_WAIT_HTTP`, the same bit from 2.0 to 3.4). HAProxy
/// repeats no request after it.
const WAITS_FOR_ANSWER: u32 = 0x0040_0000;

/// One line of `show sess`.
#[derive(Debug, PartialEq, Eq)]
struct Stream<'a> {
    frontend: &'a str,
    /// `None` before HAProxy has chosen one.
    backend: Option<&'a str>,
    /// The client connection. Streams of one HTTP/2 connection share it. `None` if the client has closed it.
    connection: Option<u32>,
    state: u32,
    is_decided: bool,
}

impl Socket {
    /// Counts a worker's connections and streams, over its master's socket.
    ///
    /// The result is exact for a process that accepts no more connections. A request that comes while HAProxy answers
    /// is counted as an idle connection.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer can't be parsed.
    pub(crate) fn count_streams_of(&self, worker: u32) -> Result<(Info, Streams), Error> {
        // In this order, a connection that ends between the two answers is counted once too often. In the other it
        // would be missed.
        let commands =
            [Command::show_info(), Command::show_streams()].map(|command| command.to_worker(worker).to_string());
        let command = Command::from_line(commands.join(";"));
        let answer = self.send_command(&command)?;
        parse_streams(&answer).ok_or_else(|| self.refused_error(command, &answer))
    }
}

/// Parses both answers. An empty line ends the first.
fn parse_streams(answer: &str) -> Option<(Info, Streams)> {
    let (info, streams) = answer.split_once("\n\n")?;
    let info = Info::parse(info)?;
    let streams = count_streams(info.connections, streams)?;
    Some((info, streams))
}

/// Counts the streams of a process with so many connections.
fn count_streams(connections: u64, answer: &str) -> Option<Streams> {
    let mut counted = Streams { connections, ..Streams::default() };
    let mut busy = BTreeSet::new();
    for line in answer.lines().filter(|line| !line.is_empty()) {
        if !line.starts_with("0x") {
            return None;
        }
        // HAProxy's own streams have no client, such as those that tell a peer.
        if !line.contains(" fe=") {
            continue;
        }
        let stream = Stream::parse(line)?;
        if stream.frontend == RUNTIME_API {
            continue;
        }
        busy.extend(stream.connection);
        match stream.backend {
            _ if stream.is_decided => {}
            None => counted.unrouted += 1,
            // A `listen` section is shown as its own backend before its rules have chosen one.
            Some(backend) if backend == stream.frontend && stream.state == 0 => counted.unrouted += 1,
            Some(backend) => *counted.undecided.entry(backend.to_owned()).or_default() += 1,
        }
    }
    // A stream may have come after HAProxy counted its connections.
    counted.idle = connections.saturating_sub(u64::try_from(busy.len()).ok()?);
    counted.check_invariants();
    Some(counted)
}

impl Streams {
    fn check_invariants(&self) {
        debug_assert_eq!(self.find_broken_rule(), None, "{self:?}");
    }

    /// Finds the first rule that the counts break. `None` if they keep them all.
    fn find_broken_rule(&self) -> Option<&'static str> {
        let rules = [
            ("an idle connection is a connection", self.idle <= self.connections),
            ("a backend that is named has a stream", self.undecided.values().all(|count| *count > 0)),
        ];
        rules.into_iter().find(|(_, holds)| !holds).map(|(rule, _)| rule)
    }
}

impl<'a> Stream<'a> {
    /// Parses `0x…: proto=tcpv4 src=… fe=web be=shop srv=a … rp[f=…,an=…h,…] scf=[8,…,fd=24…] scb=[8,…] …`. Releases
    /// before 2.6 write `s0` and `s1` for `scf` and `scb`.
    fn parse(line: &'a str) -> Option<Self> {
        let client = find_word(line, " scf=[").or_else(|| find_word(line, " s0=["))?;
        let server = find_word(line, " scb=[").or_else(|| find_word(line, " s1=["))?;
        let state: u32 = server.split(',').next()?.parse().ok()?;
        let analysers = find_word(line, " rp[")?.split_once(",an=")?.1.split('h').next()?;
        let analysers = u32::from_str_radix(analysers, 16).ok()?;
        let connection = client.split_once(",fd=")?.1.split([',', ']']).next()?;
        Some(Self {
            frontend: find_word(line, " fe=")?,
            backend: find_word(line, " be=").filter(|backend| *backend != "<NONE>"),
            connection: connection.parse::<i64>().ok().map(|fd| u32::try_from(fd).ok())?,
            state,
            is_decided: state >= ESTABLISHED && analysers & WAITS_FOR_ANSWER == 0,
        })
    }
}

/// Finds the text from `name` to the next blank.
fn find_word<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_once(name)?.1.split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each file is what a HAProxy of that release said after its soft stop, with 21 connections: 10 idle ones (of them one
    /// in its TLS handshake, three with a part of a request, two of HTTP/2, one of the inner hop), one in the inspect-delay,
    /// three on either side of the inner hop, an answer under way, an HTTP/2 connection with two of them, one request
    /// without an answer, one whose body is being sent, and one each that is queued, connecting, and in front of the queue.
    fn read(answer: &str) {
        let (info, streams) = parse_streams(answer).unwrap();
        assert!(info.stopping && !info.listening);
        assert_eq!((streams.connections, streams.idle), (21, 10));
        assert_eq!(streams.unrouted, 1, "the inspect-delay");
        let undecided: Vec<_> = streams.undecided.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(undecided, [("app", 2), ("connecting", 1), ("limited", 2)]);
    }

    #[test]
    fn haproxy_2_6_is_read() {
        read(include_str!("streams/2.6"));
    }

    #[test]
    fn haproxy_3_0_is_read() {
        read(include_str!("streams/3.0"));
    }

    #[test]
    fn haproxy_3_2_is_read() {
        read(include_str!("streams/3.2"));
    }

    const STREAM: &str = "0x55fe: proto=tcpv4 src=127.0.0.1:59082 fe=web be=app srv=b ts=00 rq[f=49c40080h,i=0,an=8000h,rx=] \
                          rp[f=80040202h,i=0,an=4000000h,rx=59s] scf=[8,80h,fd=24] scb=[8,11h,fd=25] exp=0s rc=0 c_exp=";

    #[test]
    fn counts_that_break_a_rule_are_found() {
        let idle = Streams { connections: 1, idle: 2, ..Streams::default() };
        assert_eq!(idle.find_broken_rule(), Some("an idle connection is a connection"));
        let empty = Streams { undecided: BTreeMap::from([("app".to_owned(), 0)]), ..Streams::default() };
        assert_eq!(empty.find_broken_rule(), Some("a backend that is named has a stream"));
        assert_eq!(Streams { connections: 2, idle: 2, ..Streams::default() }.find_broken_rule(), None);
    }

    #[test]
    fn a_stream_is_decided_once_its_answer_has_begun() {
        let is_decided = |line: &str| Stream::parse(line).unwrap().is_decided;
        assert!(is_decided(STREAM));
        assert!(!is_decided(&STREAM.replace("an=4000000h", "an=1400000h")), "no answer yet");
        for state in 0..8 {
            assert!(!is_decided(&STREAM.replace("scb=[8", &format!("scb=[{state}"))), "state {state}");
        }
        assert!(is_decided(&STREAM.replace("scf=", "s0=").replace("scb=", "s1=")), "an older release");
    }

    #[test]
    fn a_connection_is_idle_unless_a_stream_uses_it() {
        assert_eq!(count_streams(3, STREAM).unwrap().idle, 2);
        assert_eq!(count_streams(3, &format!("{STREAM}\n{STREAM}")).unwrap().idle, 2, "two streams of one connection");
        assert_eq!(count_streams(3, &STREAM.replace("fd=24", "fd=-1")).unwrap().idle, 3, "the client has closed it");
        assert_eq!(count_streams(3, &STREAM.replace("fe=web", "fe=GLOBAL")).unwrap().idle, 3, "the question itself");
        let own = "0x7f00: proto=? ts=00 epoch=0 age=1s rq[f=0h,i=0,an=00h] rp[f=0h,i=0,an=00h] scf=[8,0h,fd=-1]";
        assert_eq!(count_streams(3, own).unwrap(), Streams { connections: 3, idle: 3, ..Streams::default() });
        assert_eq!(count_streams(0, STREAM).unwrap().idle, 0, "it ended in between");
    }

    #[test]
    fn a_listen_section_may_still_route_its_stream() {
        let in_state = |state: &str| {
            let line = STREAM.replace("fe=web be=app", "fe=app be=app").replace("scb=[8", state);
            let streams = count_streams(1, &line).unwrap();
            (streams.unrouted, streams.undecided.len())
        };
        assert_eq!(in_state("scb=[0"), (1, 0));
        assert_eq!(in_state("scb=[5"), (0, 1), "connecting");
    }

    #[test]
    fn an_answer_of_another_form_is_refused() {
        for line in ["Permission denied", "0x1: fe=web", &STREAM.replace("an=", "a="), &STREAM.replace("fd=", "f=")] {
            assert_eq!(count_streams(1, line), None, "{line}");
        }
        assert_eq!(parse_streams("Can't find the target"), None);
    }
}
