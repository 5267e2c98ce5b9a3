//! Reads a few columns of the answer to `show stat` (Management Guide, 9.1), and copies none of it. Pure.
//!
//! A row has some ninety fields. confgen reads those of all backends every other second, and those of all servers to find manual
//! changes. [`Stat`](super::Stat) is for the others.

use super::stats::{RowKind, parse_kind};

/// The figures of a backend that confgen reads all the time: how often HAProxy chose its servers, and its traffic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Turns<'a> {
    /// The backend's name: `pxname`.
    pub proxy: &'a str,
    /// The number of the backend within its process: `iid`.
    pub proxy_id: u32,
    /// The sum of its servers' weights in use.
    pub weight: u64,
    /// The servers that take requests and are not backups.
    pub active: u64,
    /// The servers that take requests and are backups.
    pub backup: u64,
    /// The number of times that the balancing algorithm chose a server: `lbtot`.
    pub chosen: u64,
    /// The balancing algorithm: `algo`. HAProxy has no word for some, such as `random`.
    pub algorithm: Option<&'a str>,
    /// The sessions that are open now: `scur`.
    pub sessions: u64,
    /// The sessions since the process began: `stot`.
    pub sessions_total: u64,
    /// The HTTP requests since the process began: `req_tot`. `None` in TCP mode.
    pub requests: Option<u64>,
    /// The answers with 5xx since the process began: `hrsp_5xx`. `None` in TCP mode.
    pub errors: Option<u64>,
    /// The average time from the request to the answer's first byte, of the last 1,024 requests, in ms: `rtime`.
    pub response_ms: u64,
    /// The average time from the first byte to the last, of the last 1,024 requests or connections, in ms: `ttime`.
    pub total_ms: u64,
}

/// What only commands change of a frontend, a backend or a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts<'a> {
    /// The kind of the row.
    pub kind: RowKind,
    /// The name of the frontend, backend or listen section: `pxname`.
    pub proxy: &'a str,
    /// The server's name: `svname`.
    pub name: &'a str,
    /// In HAProxy's words: `PAUSED`, `STOP`, `UP (UNPUB)`.
    pub status: &'a str,
    /// The most sessions at a time, if there is a limit: `slim`.
    pub limit: Option<u64>,
    /// A cookie keeps clients with the server.
    pub has_cookie: bool,
}

impl Facts<'_> {
    /// True for a backend that gets no request before `publish backend` (3.4).
    pub fn is_unpublished(&self) -> bool {
        self.status.ends_with("(UNPUB)")
    }
}

/// The backends in the answer, in its order. `None` if it is no answer to `show stat`.
pub(super) fn parse_turns(answer: &str) -> Option<impl Iterator<Item = Turns<'_>>> {
    let rows = read_columns(answer, TURNS)?;
    let backends = rows.filter(|[kind, ..]| parse_kind(kind) == Some(RowKind::Backend));
    Some(backends.map(|[_, proxy, id, algorithm, figures @ ..]| {
        let [weight, active, backup, chosen, sessions, sessions_total, requests, errors, response, total] = figures;
        Turns {
            proxy,
            proxy_id: id.parse().unwrap_or_default(),
            weight: read_number(weight),
            active: read_number(active),
            backup: read_number(backup),
            chosen: read_number(chosen),
            algorithm: Some(algorithm).filter(|it| !matches!(*it, "" | "unknown")),
            sessions: read_number(sessions),
            sessions_total: read_number(sessions_total),
            requests: requests.parse().ok(),
            errors: errors.parse().ok(),
            response_ms: read_number(response),
            total_ms: read_number(total),
        }
    }))
}

/// The columns of [`Turns`].
const TURNS: [&str; 14] = [
    "type", "pxname", "iid", "algo", "weight", "act", "bck", "lbtot", "scur", "stot", "req_tot", "hrsp_5xx", "rtime",
    "ttime",
];

/// The rows of the answer, in its order. `None` if it is no answer to `show stat`.
pub(super) fn parse_facts(answer: &str) -> Option<impl Iterator<Item = Facts<'_>>> {
    let rows = read_columns(answer, ["type", "pxname", "svname", "status", "slim", "cookie"])?;
    Some(rows.filter_map(|[kind, proxy, name, status, limit, cookie]| {
        let (kind, limit) = (parse_kind(kind)?, limit.parse().ok());
        Some(Facts { kind, proxy, name, status, limit, has_cookie: !cookie.is_empty() })
    }))
}

/// The fields of these columns, row by row. A column or a field that is missing is empty. `None` without a header.
fn read_columns<'a, const N: usize>(answer: &'a str, names: [&str; N]) -> Option<impl Iterator<Item = [&'a str; N]>> {
    let text = answer.strip_prefix("# ")?;
    let (header, rest) = text.split_once('\n').unwrap_or((text, ""));
    let mut header = header.split(',').peekable();
    if header.peek() != Some(&"pxname") {
        return None;
    }
    let slots = header.map(|column| names.iter().position(|name| *name == column)).collect();
    let mut rows = Rows { rest, slots };
    Some(std::iter::from_fn(move || rows.next_row()))
}

/// The rows that were not read yet.
struct Rows<'a> {
    rest: &'a str,
    /// For each column, its place among those that are read.
    slots: Vec<Option<usize>>,
}

impl<'a> Rows<'a> {
    /// `None` at the end. A field in quotes keeps them, and may have commas and line feeds.
    fn next_row<const N: usize>(&mut self) -> Option<[&'a str; N]> {
        if self.rest.is_empty() {
            return None;
        }
        let (text, mut fields) = (self.rest, [""; N]);
        let (mut column, mut start, mut is_quoted) = (0, 0, false);
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                b'"' => is_quoted = !is_quoted,
                b',' | b'\n' if !is_quoted => {
                    self.take_field(column, text.get(start..at)?, &mut fields);
                    (column, start) = (column + 1, at + 1);
                }
                _ => {}
            }
            if byte == b'\n' && !is_quoted {
                self.rest = text.get(start..)?;
                return Some(fields);
            }
        }
        self.take_field(column, text.get(start..)?, &mut fields);
        self.rest = "";
        Some(fields)
    }

    fn take_field<const N: usize>(&self, column: usize, field: &'a str, fields: &mut [&'a str; N]) {
        let slot = self.slots.get(column).copied().flatten();
        if let Some(place) = slot.and_then(|slot| fields.get_mut(slot)) {
            *place = field;
        }
    }
}

fn read_number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Stat;
    use crate::runtime::stats::parse_stats;

    /// As HAProxy 2.6.12 writes it, with most of the columns left out.
    const ANSWER: &str = "\
# pxname,svname,slim,status,weight,act,last_chk,type,iid,lbtot,cookie,algo,scur,stot,req_tot,hrsp_5xx,rtime,ttime,bck,later,\n\
discover-web,FRONTEND,500,OPEN,,,,0,2,,,,,\n\
http-shop,one,,UP,100,1,\"OK, \"\"really\"\"\nin two lines\",2,9,118,c1,,,\n\
http-shop,two,7,no check,100,1,,2,9,7,,,,\n\
http-shop,BACKEND,50,UP (UNPUB),200,2,,1,9,125,,roundrobin,3,140,150,4,24,30,1,,\n\
\n\
# pxname,svname,slim,status,weight,act,last_chk,type,iid,lbtot,cookie,algo,later,\n\
http-odd,BACKEND,,DOWN,0,0,,1,10,0,,unknown,,\n\
discover-web,sock-1,,OPEN,,,,3,2,,,,,\n\
short,row";

    #[test]
    fn the_columns_are_those_of_a_whole_row() {
        let whole: Vec<Stat> = parse_stats(ANSWER).unwrap();
        let facts: Vec<Facts> = parse_facts(ANSWER).unwrap().collect();
        let expected = whole.iter().map(|row| Facts {
            kind: row.kind,
            proxy: &row.proxy,
            name: &row.name,
            status: &row.status,
            limit: row.limit,
            has_cookie: row.cookie.is_some(),
        });
        assert_eq!(facts, expected.collect::<Vec<_>>());
        assert_eq!(facts.len(), 5);
        let turns: Vec<Turns> = parse_turns(ANSWER).unwrap().collect();
        let expected = whole.iter().filter(|row| row.kind == RowKind::Backend).map(|row| Turns {
            proxy: &row.proxy,
            proxy_id: row.proxy_id,
            weight: row.weight,
            active: row.active,
            backup: row.backup,
            chosen: row.chosen,
            algorithm: row.algorithm.as_deref(),
            sessions: row.sessions.now,
            sessions_total: row.sessions.total,
            requests: row.requests,
            errors: row.responses.map(|responses| responses[4]),
            response_ms: row.average.response_ms.unwrap_or_default(),
            total_ms: row.average.total_ms.unwrap_or_default(),
        });
        assert_eq!(turns, expected.collect::<Vec<_>>());
        assert_eq!(turns.len(), 2);
    }

    #[test]
    fn what_is_no_list_is_none() {
        for answer in ["", "Permission denied\n", "# ", "# a,b\n1,2\n"] {
            assert!(parse_facts(answer).is_none() && parse_turns(answer).is_none(), "{answer}");
        }
        assert_eq!(parse_facts("# pxname,type\n").unwrap().count(), 0);
    }
}
