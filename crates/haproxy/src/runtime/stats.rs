//! The answer to `show stat`: what HAProxy has seen of each backend and server (Management Guide, 9.1).

use std::collections::HashMap;

/// What a row is about: column `type`. A row's name doesn't tell, because a server may be called `BACKEND` or `FRONTEND`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// A frontend, or the listening half of a listen section.
    Frontend,
    /// All servers of a backend, or of a listen section, together.
    Backend,
    /// One server.
    #[default]
    Server,
}

/// A frontend, a backend, or one server of it. Numbers that HAProxy leaves out are 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// What the row is about.
    pub kind: RowKind,
    /// The number of the frontend, backend or listen section within its process: `iid`.
    pub proxy_id: u32,
    /// The name of the frontend, backend or listen section: `pxname`.
    pub proxy: String,
    /// The server's name: `svname`. HAProxy writes `FRONTEND` and `BACKEND` into the rows that are not a server's.
    pub name: String,
    /// In HAProxy's words: `UP`, `UP 1/3`, `DOWN`, `DRAIN`, `MAINT`, `NOLB`, `no check` and more; of a frontend `OPEN`, `FULL`,
    /// `PAUSED`, `STOP`.
    pub status: String,
    /// The weight in use; a backend's is the sum.
    pub weight: u64,
    /// Of a backend, servers that take requests and are not backups. Of a server, 1 if it is not a backup, up or not.
    pub active: u64,
    /// Of a backend, backup servers that take requests. Of a server, 1 if it is a backup, up or not.
    pub backup: u64,
    /// How often the balancing algorithm chose a server: `lbtot`. A sticky client's request isn't counted.
    pub chosen: u64,
    /// Of a backend, the balancing algorithm: `algo`. HAProxy has no word for some, such as `random`.
    pub algorithm: Option<String>,
    /// The most sessions at a time, if there is a limit: `slim`.
    pub limit: Option<u64>,
    /// Since the last change of `status`, in seconds. HAProxy 3.4 doesn't count a drain.
    pub last_change: u64,
    /// In all, in seconds.
    pub downtime: u64,
    /// What the last check came to: `L4OK`, `L7STS`, …; none where nothing is checked.
    pub check: Option<String>,
    /// The HTTP or SMTP status that the last check got, if any.
    pub check_code: Option<u16>,
    /// How long the last check took, in ms.
    pub check_ms: Option<u64>,
    /// What the last check found, in words.
    pub check_words: Option<String>,
    /// Sessions now, at most so far, and in all.
    pub sessions: Count,
    /// Requests that wait for a connection, now and at most so far; the total is not counted.
    pub queue: Count,
    /// Sessions in the last second, and at most in one; the total is not counted.
    pub rate: Count,
    /// Bytes from clients and to them.
    pub bytes: (u64, u64),
    /// Requests by HTTP; none in TCP mode.
    pub requests: Option<u64>,
    /// Answers by the first digit of their status, 1 to 5; none in TCP mode.
    pub responses: Option<[u64; 5]>,
    /// Connections that couldn't be made.
    pub connection_errors: u64,
    /// Answers that broke.
    pub response_errors: u64,
    /// Connections tried again, and requests sent to another server after all.
    pub retries: (u64, u64),
    /// How long the last 1,024 requests took, on average.
    pub average: Average,
}

/// Averages over the last 1,024 requests, or connections in TCP mode, in ms. One of nothing is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Average {
    /// Until the server's connection stood: `ctime`. 0 where one was there already.
    pub connect_ms: Option<u64>,
    /// From the request's end to the answer's first byte: `rtime`. None in TCP mode.
    pub response_ms: Option<u64>,
    /// From the first byte to the last: `ttime`.
    pub total_ms: Option<u64>,
}

/// A figure that comes and goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Now.
    pub now: u64,
    /// At most, since the process began.
    pub most: u64,
    /// In all, since the process began.
    pub total: u64,
}

impl Stat {
    /// Whether HAProxy may send new requests there: its checks find it up, or there are none, and nothing holds it back.
    pub fn is_up(&self) -> bool {
        self.status.starts_with("UP") || self.status == "no check"
    }
}

/// Reads all rows. Columns are found by their names, since each release adds some; a row that is cut short lacks what
/// it lacks. Rows of listening sockets and of kinds that later releases may add are left out. None if the text has no header: it
/// is no answer to `show stat`.
pub(super) fn parse_stats(answer: &str) -> Option<Vec<Stat>> {
    let text = answer.strip_prefix("# ")?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().ok().filter(|header| header.get(0) == Some("pxname"))?.clone();
    let columns: HashMap<&str, usize> = header.iter().enumerate().map(|(position, name)| (name, position)).collect();
    let rows = reader.records().filter_map(Result::ok);
    Some(
        rows.filter_map(|row| parse_row(&|name| row.get(*columns.get(name)?).filter(|value| !value.is_empty())))
            .collect(),
    )
}

fn parse_row<'a>(field: &impl Fn(&str) -> Option<&'a str>) -> Option<Stat> {
    let kind = match field("type")? {
        "0" => RowKind::Frontend,
        "1" => RowKind::Backend,
        "2" => RowKind::Server,
        _ => return None,
    };
    let word = |name: &str| field(name).unwrap_or_default().to_owned();
    let maybe = |name: &str| field(name).and_then(|value| value.parse::<u64>().ok());
    let number = |name: &str| maybe(name).unwrap_or_default();
    let count =
        |now: &str, most: &str, total: &str| Count { now: number(now), most: number(most), total: number(total) };
    let responses = maybe("hrsp_2xx");
    let of_class = ["hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx"];
    Some(Stat {
        kind,
        proxy_id: maybe("iid").and_then(|id| id.try_into().ok()).unwrap_or_default(),
        proxy: word("pxname"),
        name: word("svname"),
        status: word("status"),
        weight: number("weight"),
        active: number("act"),
        backup: number("bck"),
        chosen: number("lbtot"),
        algorithm: field("algo").filter(|algorithm| *algorithm != "unknown").map(str::to_owned),
        limit: maybe("slim"),
        last_change: number("lastchg"),
        downtime: number("downtime"),
        // While a check runs, its last outcome has an asterisk before it: "* L4OK".
        check: field("check_status").map(|status| status.trim_start_matches("* ").to_owned()),
        check_code: field("check_code").and_then(|code| code.parse().ok()).filter(|code| *code > 0),
        check_ms: maybe("check_duration"),
        check_words: field("last_chk").or_else(|| field("check_desc")).map(str::to_owned),
        sessions: count("scur", "smax", "stot"),
        queue: count("qcur", "qmax", ""),
        rate: count("rate", "rate_max", ""),
        bytes: (number("bin"), number("bout")),
        requests: maybe("req_tot"),
        responses: responses.map(|_| of_class.map(number)),
        connection_errors: number("econ"),
        response_errors: number("eresp"),
        retries: (number("wretr"), number("wredis")),
        average: Average {
            connect_ms: maybe("ctime"),
            // TCP has no answers: HAProxy says 0.
            response_ms: responses.and(maybe("rtime")),
            total_ms: maybe("ttime"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From HAProxy 2.6.12, its columns in another order and most of them left out.
    const ANSWER: &str = "\
# pxname,svname,type,status,scur,smax,stot,bin,bout,econ,eresp,wretr,wredis,weight,act,bck,lastchg,downtime,qcur,qmax,rate,\
rate_max,check_status,check_code,check_duration,hrsp_1xx,hrsp_2xx,hrsp_3xx,hrsp_4xx,hrsp_5xx,req_tot,last_chk,\
qtime,ctime,rtime,ttime,iid,slim,lbtot,algo,\n\
http-shop,node-1,2,UP,3,7,120,1000,2000,1,2,3,4,100,1,0,60,5,0,2,12,40,* L7OK,200,8,0,119,0,1,0,120,\"OK, \"\"really\"\"\",0,1,24,30,9,50,118,,\n\
http-shop,BACKEND,1,UP,3,7,120,1000,2000,1,2,3,4,100,1,0,60,5,0,2,12,40,,,,0,119,0,1,0,120,,,,,,9,999,118,roundrobin,\n\
http-shop,BACKEND,2,DOWN,0,0,0\n\
discover-web,FRONTEND,0,PAUSED\n\
discover-web,sock-1,3,OPEN\n\
tcp-db,a,2,no check,0,0,0,0,0,0,0,0,0,256,1,0,9,,,,0,0,,,,,,,,,,,0,3,0,9,\n\
short,row,2\n\
no,kind\n";

    #[test]
    fn reads_rows_by_the_names_of_their_columns() {
        let rows = parse_stats(ANSWER).unwrap();
        let [server, backend, namesake, frontend, tcp, short] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!((server.proxy.as_str(), server.name.as_str()), ("http-shop", "node-1"));
        assert_eq!(server.sessions, Count { now: 3, most: 7, total: 120 });
        assert_eq!((server.rate.now, server.rate.most, server.queue.most), (12, 40, 2));
        assert_eq!((server.proxy_id, server.chosen, server.limit, &server.algorithm), (9, 118, Some(50), &None));
        assert_eq!((backend.chosen, backend.algorithm.as_deref()), (118, Some("roundrobin")));
        assert_eq!((tcp.chosen, tcp.limit), (0, None));
        assert_eq!((server.check.as_deref(), server.check_code, server.check_ms), (Some("L7OK"), Some(200), Some(8)));
        assert_eq!(server.check_words.as_deref(), Some("OK, \"really\""), "quoted as CSV quotes");
        assert_eq!((server.responses, server.requests), (Some([0, 119, 0, 1, 0]), Some(120)));
        assert!(server.is_up() && tcp.is_up());
        assert_eq!((backend.kind, backend.name.as_str(), backend.is_up()), (RowKind::Backend, "BACKEND", true));
        assert_eq!((namesake.kind, namesake.name.as_str(), namesake.is_up()), (RowKind::Server, "BACKEND", false));
        assert_eq!((frontend.kind, frontend.status.as_str()), (RowKind::Frontend, "PAUSED"));
        assert_eq!((tcp.check.clone(), tcp.responses, tcp.weight), (None, None, 256));
        let average =
            |connect, response, total| Average { connect_ms: connect, response_ms: response, total_ms: total };
        assert_eq!(server.average, average(Some(1), Some(24), Some(30)));
        assert_eq!(tcp.average, average(Some(3), None, Some(9)), "TCP has no answers");
        assert_eq!((short.name.as_str(), short.is_up(), short.sessions), ("row", false, Count::default()));
    }

    #[test]
    fn what_is_no_list_is_none() {
        for answer in ["", "Permission denied\n", "# ", "# a,b\n1,2\n"] {
            assert_eq!(parse_stats(answer), None, "{answer}");
        }
    }
}
