//! How many requests and connections servers have, now (Management Guide, 9.3, `show stat`).

use super::{Command, Error, Socket, Word};

/// One server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sessions {
    /// Its backend.
    pub backend: String,
    /// Its name.
    pub server: String,
    /// Requests and TCP connections it has, and those that wait for it alone. An idle connection is none, whichever end
    /// keeps it.
    pub count: u64,
}

/// A longer line is not sent: all servers are asked for at once. HAProxy hangs on one that is longer than its buffer of
/// 16 kB (`tune.bufsize`).
const LINE_LIMIT: usize = 8 * 1024;

/// What HAProxy says of a backend that it doesn't have.
const UNKNOWN: &str = "No such proxy.";

impl Socket {
    /// The sessions of these backends' servers, and maybe of others; a backend that isn't there has none. Without any name
    /// they are everybody's: up to 3.2 a frontend may bear a backend's name, and is then the one that is asked. With a pid
    /// it is that worker that is asked, over its master's socket: it answers after a soft stop too.
    ///
    /// # Errors
    /// As [`ask`](Self::ask), or when it isn't the answer to that.
    pub fn count_sessions(&self, backends: &[Word], worker: Option<u32>) -> Result<Vec<Sessions>, Error> {
        // A master's prefix holds for one command, not for the line. 4 is servers; -1 is all.
        let command = |backend: &str| {
            let command = Command::from_line(format!("show stat {backend} 4 -1"));
            worker.map_or(command.clone(), |pid| command.to_worker(pid)).to_string()
        };
        let mut commands: Vec<String> = backends.iter().map(|backend| command(backend.as_str())).collect();
        if commands.is_empty() || commands.iter().map(|command| command.len() + 1).sum::<usize>() > LINE_LIMIT {
            commands = vec![command("-1")];
        }
        let line = Command::from_line(commands.join(";"));
        let answer = self.send_command(&line)?;
        parse_sessions(&answer, commands.len()).ok_or_else(|| self.refused_error(line, &answer))
    }
}

/// Reads so many answers; names hold nothing that CSV would quote.
fn parse_sessions(answer: &str, answers: usize) -> Option<Vec<Sessions>> {
    let (mut sessions, mut seen) = (Vec::new(), 0);
    for line in answer.lines().filter(|line| !line.is_empty()) {
        if line == UNKNOWN || line.starts_with("# pxname,svname,qcur,qmax,scur,") {
            seen += 1;
            continue;
        }
        let mut fields = line.split(',');
        let (backend, server) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        let mut number = || fields.next().map(|field| if field.is_empty() { Ok(0) } else { field.parse::<u64>() });
        let (queued, _, current) = (number()?.ok()?, number()?, number()?.ok()?);
        sessions.push(Sessions { backend, server, count: queued.saturating_add(current) });
    }
    (seen == answers).then_some(sessions)
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
