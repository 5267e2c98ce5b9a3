//! Parses the answer to `show stat`: the figures of each frontend, backend and server (Management Guide, 9.1). Pure.

use std::collections::HashMap;
use std::net::SocketAddr;

/// The kind of a row: column `type`. A row's name doesn't tell, because a server may be called `BACKEND` or `FRONTEND`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum RowKind {
    /// A frontend, or the listening half of a listen section.
    Frontend,
    /// All servers of a backend, or of a listen section, together.
    Backend,
    /// One server of a backend.
    #[default]
    Server,
}

/// The figures of a frontend, a backend, or one server. Numbers that HAProxy leaves out are 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// The kind of the row.
    pub kind: RowKind,
    /// The number of the frontend, backend or listen section within its process: `iid`.
    pub proxy_id: u32,
    /// The name of the frontend, backend or listen section: `pxname`.
    pub proxy: String,
    /// The server's name: `svname`. HAProxy writes `FRONTEND` and `BACKEND` into the rows that are not a server's.
    pub name: String,
    /// The server's number within its backend: `sid`. 0 in the rows that are not a server's.
    pub server_id: u32,
    /// The address that HAProxy connects to: `addr`. `None` if it is no IP address and port.
    pub address: Option<SocketAddr>,
    /// In HAProxy's words: `UP`, `UP 1/3`, `DOWN`, `DRAIN`, `MAINT`, `NOLB`, `no check` and more; of a frontend `OPEN`, `FULL`,
    /// `PAUSED`, `STOP`.
    pub status: String,
    /// The weight in use. A backend's is the sum.
    pub weight: u64,
    /// Of a backend, servers that take requests and are not backups. Of a server, 1 if it is not a backup, up or not.
    pub active: u64,
    /// Of a backend, backup servers that take requests. Of a server, 1 if it is a backup, up or not.
    pub backup: u64,
    /// The number of times that the balancing algorithm chose a server: `lbtot`. A sticky client's request isn't
    /// counted.
    pub chosen: u64,
    /// Of a backend, the balancing algorithm: `algo`. HAProxy has no word for some, such as `random`.
    pub algorithm: Option<String>,
    /// The most sessions at a time, if there is a limit: `slim`.
    pub limit: Option<u64>,
    /// Of a server, the value of the cookie that keeps a client with it. `None` without one.
    pub cookie: Option<String>,
    /// The time since the last change of `status`, in seconds. HAProxy 3.4 doesn't count a drain.
    pub last_change: u64,
    /// The total time that it was down, in seconds.
    pub downtime: u64,
    /// The result of the last check: `L4OK`, `L7STS`, …. `None` if nothing is checked.
    pub check: Option<String>,
    /// The HTTP or SMTP status of the last check's answer, if any.
    pub check_code: Option<u16>,
    /// The time that the last check took, in ms.
    pub check_ms: Option<u64>,
    /// The finding of the last check, in HAProxy's words.
    pub check_words: Option<String>,
    /// The sessions: now, at most so far, and in all.
    pub sessions: Count,
    /// The requests that wait for a connection, now and at most so far. The total is not counted.
    pub queue: Count,
    /// The sessions in the last second, and at most in one. The total is not counted.
    pub rate: Count,
    /// The bytes from clients, and to them.
    pub bytes: (u64, u64),
    /// The HTTP requests. `None` in TCP mode.
    pub requests: Option<u64>,
    /// The answers by the first digit of their status, 1 to 5. `None` in TCP mode.
    pub responses: Option<[u64; 5]>,
    /// The connections to servers that failed.
    pub connection_errors: u64,
    /// The answers of servers that failed.
    pub response_errors: u64,
    /// The connections that were tried again, and the requests that went to another server.
    pub retries: (u64, u64),
    /// The average times of the last 1,024 requests.
    pub average: Average,
}

/// Average times of the last 1,024 requests, or connections in TCP mode, in ms. An average of nothing is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Average {
    /// The time until the connection to the server was open: `ctime`. 0 for a reused connection.
    pub connect_ms: Option<u64>,
    /// The time from the request's end to the answer's first byte: `rtime`. `None` in TCP mode.
    pub response_ms: Option<u64>,
    /// The time from the first byte to the last: `ttime`.
    pub total_ms: Option<u64>,
}

/// A figure that rises and falls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// The present value.
    pub now: u64,
    /// The highest value since the process began.
    pub most: u64,
    /// The total since the process began.
    pub total: u64,
}

impl Stat {
    /// True if HAProxy may send new requests there: its checks pass, or it has none, and it is neither in drain nor in
    /// maintenance.
    pub fn is_up(&self) -> bool {
        // "UP 1/3" is up, too: it goes down after more failed checks.
        self.status.starts_with("UP") || self.status == "no check"
    }

    /// True for a backend that gets no request before `publish backend` (3.4).
    pub fn is_unpublished(&self) -> bool {
        self.status.ends_with("(UNPUB)")
    }
}

/// Parses all rows. It finds columns by their names, because each release adds some. A field that a row lacks is `None`
/// or 0. Rows of listening sockets, and of kinds that later releases may add, are left out. `None` if the text has no
/// header, and so is no answer to `show stat`.
pub(super) fn parse_stats(answer: &str) -> Option<Vec<Stat>> {
    let text = answer.strip_prefix("# ")?;
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let header = reader.headers().ok().filter(|header| header.get(0) == Some("pxname"))?.clone();
    let columns: HashMap<&str, usize> = header.iter().enumerate().map(|(position, name)| (name, position)).collect();
    let rows = reader.records().filter_map(Result::ok);
    Some(rows.filter_map(|record| Row { record: &record, columns: &columns }.to_stat()).collect())
}

/// One row of the answer. It finds its columns by name.
struct Row<'a> {
    record: &'a csv::StringRecord,
    columns: &'a HashMap<&'a str, usize>,
}

impl Row<'_> {
    /// Finds a field. `None` if the column is missing, or if HAProxy leaves it empty.
    fn find_field(&self, name: &str) -> Option<&str> {
        self.record.get(*self.columns.get(name)?).filter(|value| !value.is_empty())
    }

    fn read_text(&self, name: &str) -> String {
        self.find_field(name).unwrap_or_default().to_owned()
    }

    fn read_number(&self, name: &str) -> Option<u64> {
        self.find_field(name).and_then(|value| value.parse().ok())
    }

    fn read_number_or_zero(&self, name: &str) -> u64 {
        self.read_number(name).unwrap_or_default()
    }

    fn read_count(&self, now: &str, most: &str, total: &str) -> Count {
        Count {
            now: self.read_number_or_zero(now),
            most: self.read_number_or_zero(most),
            total: self.read_number_or_zero(total),
        }
    }

    /// Reads the row. `None` for a kind that isn't known.
    fn to_stat(&self) -> Option<Stat> {
        let kind = match self.find_field("type")? {
            "0" => RowKind::Frontend,
            "1" => RowKind::Backend,
            "2" => RowKind::Server,
            _ => return None,
        };
        let responses = self.read_number("hrsp_2xx");
        let of_class = ["hrsp_1xx", "hrsp_2xx", "hrsp_3xx", "hrsp_4xx", "hrsp_5xx"];
        Some(Stat {
            kind,
            proxy_id: self.read_number("iid").and_then(|id| id.try_into().ok()).unwrap_or_default(),
            proxy: self.read_text("pxname"),
            name: self.read_text("svname"),
            server_id: self.read_number("sid").and_then(|id| id.try_into().ok()).unwrap_or_default(),
            address: self.find_field("addr").and_then(|address| address.parse().ok()),
            status: self.read_text("status"),
            weight: self.read_number_or_zero("weight"),
            active: self.read_number_or_zero("act"),
            backup: self.read_number_or_zero("bck"),
            chosen: self.read_number_or_zero("lbtot"),
            // HAProxy has no name for some algorithms, such as `random`.
            algorithm: self.find_field("algo").filter(|algorithm| *algorithm != "unknown").map(str::to_owned),
            limit: self.read_number("slim"),
            cookie: self.find_field("cookie").map(str::to_owned),
            last_change: self.read_number_or_zero("lastchg"),
            downtime: self.read_number_or_zero("downtime"),
            // While a check runs, HAProxy puts an asterisk before the last result: "* L4OK".
            check: self.find_field("check_status").map(|status| status.trim_start_matches("* ").to_owned()),
            check_code: self.find_field("check_code").and_then(|code| code.parse().ok()).filter(|code| *code > 0),
            check_ms: self.read_number("check_duration"),
            check_words: self.find_field("last_chk").or_else(|| self.find_field("check_desc")).map(str::to_owned),
            sessions: self.read_count("scur", "smax", "stot"),
            queue: self.read_count("qcur", "qmax", ""),
            rate: self.read_count("rate", "rate_max", ""),
            bytes: (self.read_number_or_zero("bin"), self.read_number_or_zero("bout")),
            requests: self.read_number("req_tot"),
            responses: responses.map(|_| of_class.map(|name| self.read_number_or_zero(name))),
            connection_errors: self.read_number_or_zero("econ"),
            response_errors: self.read_number_or_zero("eresp"),
            retries: (self.read_number_or_zero("wretr"), self.read_number_or_zero("wredis")),
            average: Average {
                connect_ms: self.read_number("ctime"),
                // TCP has no answers, and HAProxy says 0.
                response_ms: responses.and(self.read_number("rtime")),
                total_ms: self.read_number("ttime"),
            },
        })
    }
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
