//! Parses the answer to `show stat`: the figures of each frontend, backend and server (Management Guide, 9.1). Pure.

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
    let header = reader.headers().ok().filter(|header| header.get(0) == Some("pxname"))?;
    // Once for all rows: a busy balancer has thousands, and confgen asks for them all the time.
    let setters: Vec<Option<Setter>> = header.iter().map(find_setter).collect();
    let kind = header.iter().position(|name| name == "type");
    let (mut rows, mut record) = (Vec::new(), csv::StringRecord::new());
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {}
            Ok(false) => return Some(rows),
            // A row that is no UTF-8.
            Err(_) => continue,
        }
        let kind = kind.and_then(|column| parse_kind(record.get(column)?));
        rows.extend(kind.map(|kind| parse_row(kind, &record, &setters)));
    }
}

pub(super) fn parse_kind(number: &str) -> Option<RowKind> {
    match number {
        "0" => Some(RowKind::Frontend),
        "1" => Some(RowKind::Backend),
        "2" => Some(RowKind::Server),
        _ => None,
    }
}

fn parse_row(kind: RowKind, record: &csv::StringRecord, setters: &[Option<Setter>]) -> Stat {
    let mut row = Stat { kind, ..Stat::default() };
    for (field, set) in record.iter().zip(setters) {
        // HAProxy leaves a field empty if it has no meaning in this row.
        if let Some(set) = set.filter(|_| !field.is_empty()) {
            set(&mut row, field);
        }
    }
    // TCP has no answers, and HAProxy says 0.
    row.average.response_ms = row.average.response_ms.filter(|_| row.responses.is_some());
    row
}

/// Sets a figure of a row from a field that is not empty.
type Setter = fn(&mut Stat, &str);

/// `None` for a column that isn't read.
fn find_setter(column: &str) -> Option<Setter> {
    let setter: Setter = match column {
        "iid" => |row, text| row.proxy_id = text.parse().unwrap_or_default(),
        "pxname" => |row, text| row.proxy = text.to_owned(),
        "svname" => |row, text| row.name = text.to_owned(),
        "sid" => |row, text| row.server_id = text.parse().unwrap_or_default(),
        "addr" => |row, text| row.address = text.parse().ok(),
        "status" => |row, text| row.status = text.to_owned(),
        "weight" => |row, text| row.weight = read_number(text),
        "act" => |row, text| row.active = read_number(text),
        "bck" => |row, text| row.backup = read_number(text),
        "lbtot" => |row, text| row.chosen = read_number(text),
        // HAProxy has no name for some algorithms, such as `random`.
        "algo" => |row, text| row.algorithm = Some(text.to_owned()).filter(|text| text != "unknown"),
        "slim" => |row, text| row.limit = text.parse().ok(),
        "cookie" => |row, text| row.cookie = Some(text.to_owned()),
        "lastchg" => |row, text| row.last_change = read_number(text),
        "downtime" => |row, text| row.downtime = read_number(text),
        // While a check runs, HAProxy puts an asterisk before the last result: "* L4OK".
        "check_status" => |row, text| row.check = Some(text.trim_start_matches("* ").to_owned()),
        "check_code" => |row, text| row.check_code = text.parse().ok().filter(|code| *code > 0),
        "check_duration" => |row, text| row.check_ms = text.parse().ok(),
        "last_chk" => |row, text| row.check_words = Some(text.to_owned()),
        "check_desc" => |row, text| row.check_words = row.check_words.take().or_else(|| Some(text.to_owned())),
        "scur" => |row, text| row.sessions.now = read_number(text),
        "smax" => |row, text| row.sessions.most = read_number(text),
        "stot" => |row, text| row.sessions.total = read_number(text),
        "qcur" => |row, text| row.queue.now = read_number(text),
        "qmax" => |row, text| row.queue.most = read_number(text),
        "rate" => |row, text| row.rate.now = read_number(text),
        "rate_max" => |row, text| row.rate.most = read_number(text),
        "bin" => |row, text| row.bytes.0 = read_number(text),
        "bout" => |row, text| row.bytes.1 = read_number(text),
        "req_tot" => |row, text| row.requests = text.parse().ok(),
        "hrsp_1xx" => |row, text| count_responses(row)[0] = read_number(text),
        "hrsp_2xx" => |row, text| count_responses(row)[1] = read_number(text),
        "hrsp_3xx" => |row, text| count_responses(row)[2] = read_number(text),
        "hrsp_4xx" => |row, text| count_responses(row)[3] = read_number(text),
        "hrsp_5xx" => |row, text| count_responses(row)[4] = read_number(text),
        "econ" => |row, text| row.connection_errors = read_number(text),
        "eresp" => |row, text| row.response_errors = read_number(text),
        "wretr" => |row, text| row.retries.0 = read_number(text),
        "wredis" => |row, text| row.retries.1 = read_number(text),
        "ctime" => |row, text| row.average.connect_ms = text.parse().ok(),
        "rtime" => |row, text| row.average.response_ms = text.parse().ok(),
        "ttime" => |row, text| row.average.total_ms = text.parse().ok(),
        _ => return None,
    };
    Some(setter)
}

fn read_number(text: &str) -> u64 {
    text.parse().unwrap_or_default()
}

fn count_responses(row: &mut Stat) -> &mut [u64; 5] {
    row.responses.get_or_insert_default()
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
