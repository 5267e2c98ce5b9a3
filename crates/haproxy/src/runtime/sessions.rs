//! Counts the requests and connections that servers have now (Management Guide, 9.3, `show stat`).

use super::{Command, Error, Socket, Word};

/// The sessions of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// The name of its backend.
    pub backend: String,
    /// The server's name.
    pub server: String,
    /// The server's requests and TCP connections, and those that wait for this server. An idle connection doesn't
    /// count, whichever end keeps it.
    pub count: u64,
}

/// The longest line that is sent, in bytes. Instead of a longer one this asks for all servers. HAProxy hangs on a line
/// that is longer than its buffer of 16 kB (`tune.bufsize`).
const LINE_LIMIT: usize = 8 * 1024;

/// HAProxy's answer about a backend that it doesn't have.
const UNKNOWN: &str = "No such proxy.";

impl Socket {
    /// Counts the sessions of these backends' servers, and maybe of others. A backend that HAProxy doesn't have has
    /// none. Without a name this asks for all servers: up to 3.2 a frontend may have a backend's name, and HAProxy then
    /// answers for the frontend. With `worker` this asks that worker over its master's socket. It answers after a soft
    /// stop too.
    ///
    /// # Errors
    /// As [`send_command`](Self::send_command), or if the answer has another form.
    pub fn count_sessions(&self, backends: &[Word], worker: Option<u32>) -> Result<Vec<Sessions>, Error> {
        let mut commands: Vec<String> =
            backends.iter().map(|backend| format_command(backend.as_str(), worker)).collect();
        if commands.is_empty() || commands.iter().map(|command| command.len() + 1).sum::<usize>() > LINE_LIMIT {
            commands = vec![format_command("-1", worker)];
        }
        let line = Command::from_line(commands.join(";"));
        let answer = self.send_command(&line)?;
        parse_sessions(&answer, commands.len()).ok_or_else(|| self.refused_error(line, &answer))
    }
}

fn format_command(backend: &str, worker: Option<u32>) -> String {
    // 4 asks for servers, and -1 for all of them.
    let command = Command::from_line(format!("show stat {backend} 4 -1"));
    // A master's prefix holds for one command, not for the line.
    worker.map_or(command.clone(), |pid| command.to_worker(pid)).to_string()
}

/// Parses so many answers. No name holds a character that CSV would quote.
fn parse_sessions(answer: &str, answers: usize) -> Option<Vec<Sessions>> {
    let (mut sessions, mut seen) = (Vec::new(), 0);
    for line in answer.lines().filter(|line| !line.is_empty()) {
        if line == UNKNOWN || line.starts_with("# pxname,svname,qcur,qmax,scur,") {
            seen += 1;
            continue;
        }
        let mut fields = line.split(',');
        let (backend, server) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        let (queued, _, current) = (parse_number(fields.next()?)?, fields.next()?, parse_number(fields.next()?)?);
        sessions.push(Sessions { backend, server, count: queued.saturating_add(current) });
    }
    (seen == answers).then_some(sessions)
}

/// Parses a figure. HAProxy leaves it empty if it counts none.
fn parse_number(field: &str) -> Option<u64> {
    if field.is_empty() { Some(0) } else { field.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "# pxname,svname,qcur,qmax,scur,smax,slim,";

    #[test]
    fn what_waits_for_a_server_counts_too() {
        let answer = format!("{HEADER}\nhttp-app,one,2,5,3,9,,\n\nNo such proxy.\n\n{HEADER}\ntcp-db,a,,,1,1,\n\n");
        let sessions = parse_sessions(&answer, 3).unwrap();
        let counts: Vec<_> = sessions.iter().map(|it| (it.server.as_str(), it.count)).collect();
        assert_eq!(counts, [("one", 5), ("a", 1)]);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for answer in ["", "Permission denied\n", "http-app,one,x,0,0,\n", "http-app\n", "No such proxy.\n"] {
            assert_eq!(parse_sessions(answer, 2), None, "{answer}");
        }
        assert_eq!(parse_sessions(&format!("{HEADER}\nhttp-app,one,0,0,0,\n"), 2), None, "one answer is missing");
    }
}
