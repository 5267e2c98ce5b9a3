//! Files as operators write them: each works beside the services, or is refused by file, line, reason and way out.

use std::ffi::CString;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use lab::http::{Request, Response};
use lab::{App, Balancer, Etcd, Ground, PATIENCE, Setup, bin, free_address, light, until, write};

/// Restarts need not keep their distance here.
const AT_ONCE: [&str; 2] = ["--restart-interval", "100ms"];

const DEFAULTS: &str = "defaults
    mode http
    timeout client 10s
    timeout connect 2s
    timeout server 10s
";

fn ask(address: SocketAddr, target: &str) -> Response {
    Request::get("any.test", target).send(address).unwrap_or_else(|error| panic!("{address}{target}: {error}"))
}

fn status(address: SocketAddr) -> Option<u16> {
    Request::get("any.test", "/").send(address).ok().map(|response| response.status)
}

/// A balancer with one service, and a directory for files. `lay_out` writes files before HAProxy starts.
fn start(lay_out: impl FnOnce(&Etcd, &Setup)) -> Ground {
    let build = Ground::build().http("shop", "shop.test", &["shop-1"]).flags(&AT_ONCE);
    lay_out(&build.etcd, &build.setup);
    let ground = build.launch();
    ground.balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    ground
}

fn own_file(balancer: &Balancer, name: &str) -> PathBuf {
    balancer.folder().join("conf.d").join(name)
}

#[test]
fn files_of_every_kind_work_beside_the_services() {
    let _turn = light();
    let own: [SocketAddr; 8] = std::array::from_fn(|_| free_address());
    let [in_, lua, resolved, closed, sticky, limited, paged, peers] = own;
    let other = App::alone("other");
    let scene = start(|_, setup| {
        let conf = setup.folder().join("conf.d");
        let folder = setup.folder().display();
        let put = |name: &str, text: String| write(conf.join(name), text);
        let server = format!("server other {} check inter 500", other.address);
        // Its names begin as those of services do, and no service is called so.
        put(
            "10-in.cfg",
            format!(
                "{DEFAULTS}frontend http-in\n    bind {in_}\n    default_backend http-out\nbackend http-out\n    {server}\n"
            ),
        );
        write(
            setup.folder().join("hello.lua"),
            "core.register_service('hello', 'http', function(applet)\n  applet:set_status(200)\n  \
             applet:start_response()\n  applet:send('from lua')\nend)\n",
        );
        put(
            "20-lua.cfg",
            format!(
                "global\n    lua-load {folder}/hello.lua\n{DEFAULTS}frontend lua\n    bind {lua}\n    http-request use-service lua.hello\n"
            ),
        );
        put(
            "30-resolvers.cfg",
            format!(
                "resolvers local\n    nameserver one 127.0.0.1:53\n    hold valid 10s\n{DEFAULTS}listen resolved\n    bind {resolved}\n    \
                 server one localhost:{} resolvers local init-addr last,libc,none\n",
                other.address.port()
            ),
        );
        put(
            "40-userlist.cfg",
            format!(
                "userlist staff\n    user anna insecure-password secret\n{DEFAULTS}listen closed\n    bind {closed}\n    \
                 http-request auth unless {{ http_auth(staff) }}\n    {server}\n"
            ),
        );
        put(
            "50-stick.cfg",
            format!(
                "{DEFAULTS}listen sticky\n    bind {sticky}\n    stick-table type ip size 1k expire 1m\n    stick on src\n    {server}\n"
            ),
        );
        put(
            "60-rate.cfg",
            format!(
                "{DEFAULTS}backend per-client\n    stick-table type ip size 1k expire 1m store http_req_rate(1m)\n\
                 listen limited\n    bind {limited}\n    http-request track-sc0 src table per-client\n    \
                 http-request deny deny_status 429 if {{ sc_http_req_rate(0,per-client) gt 2 }}\n    {server}\n"
            ),
        );
        write(
            setup.folder().join("404.http"),
            "HTTP/1.0 404 Not Found\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\ntheir own page\n",
        );
        put(
            "70-errors.cfg",
            format!(
                "http-errors theirs\n    errorfile 404 {folder}/404.http\n{DEFAULTS}    errorfile 404 {folder}/404.http\n\
                 frontend paged\n    bind {paged}\n    http-request return status 404 default-errorfiles\n"
            ),
        );
        put(
            "80-peers.cfg",
            format!(
                "global\n    localpeer me\npeers ours\n    peer me {peers}\n    peer another 127.0.0.1:9\n{DEFAULTS}backend shared\n    \
                 stick-table type ip size 1k expire 1m peers ours\n"
            ),
        );
        put(
            "85-mailers.cfg",
            format!(
                "mailers post\n    mailer one 127.0.0.1:9\n{DEFAULTS}backend told\n    email-alert mailers post\n    email-alert from a@b.test\n    email-alert to c@d.test\n    {server}\n"
            ),
        );
        put(
            "90-socket.cfg",
            format!(
                "global\n    stats socket {folder}/theirs.sock mode 600 level user\n    daemon\n    maxconn 500\n    nbthread 2\n    tune.bufsize 32768\n    hard-stop-after 30s\n    server-state-base {folder}\n"
            ),
        );
        put(
            "95-defaults.cfg",
            format!(
                "defaults patient\n    mode http\n    timeout client 1m\n    timeout connect 2s\n    timeout server 1m\n    load-server-state-from-file none\nfrontend late from patient\n    bind unix@{folder}/late.sock\n    http-request return status 204\n{DEFAULTS}"
            ),
        );
    });
    let Ground { etcd, balancer, .. } = &scene;
    balancer.wait_ready(200, "in sync");
    let works = || {
        assert_eq!(ask(in_, "/").app(), "other");
        assert!(ask(lua, "/").body.contains("from lua"));
        assert_eq!(ask(resolved, "/").app(), "other");
        assert_eq!(ask(closed, "/").status, 401);
        // anna:secret
        let anna = Request::get("any.test", "/").header("Authorization", "Basic YW5uYTpzZWNyZXQ=");
        assert_eq!(anna.send(closed).unwrap().app(), "other");
        assert_eq!(ask(sticky, "/").app(), "other");
        assert_eq!((ask(paged, "/").status, ask(paged, "/").body.trim()), (404, "their own page"));
        assert!(UnixStream::connect(balancer.folder().join("theirs.sock")).is_ok());
        assert!(UnixStream::connect(balancer.folder().join("late.sock")).is_ok());
        assert!(std::net::TcpStream::connect(peers).is_ok());
        let answer = balancer.wait_status(PATIENCE, "shop.test", "/", 200);
        assert_eq!(answer.app(), "shop-1");
    };
    works();
    let limit: Vec<u16> = (0..4).map(|_| ask(limited, "/").status).collect();
    assert_eq!(limit, [200, 200, 429, 429]);
    let log = balancer.log("confgen");
    assert!(!log.contains("refuses"), "{log}");

    // A new service comes by a restart, and a named `defaults` is there for it; a drained upstream stays drained.
    etcd.put("http-services/shop/overrides/shop-1", r#"{"state":"drain"}"#);
    etcd.put("http-services/late/profile", "patient");
    etcd.http_service("late", "late.test", &[&other]);
    balancer.wait_status(PATIENCE, "late.test", "/", 200);
    etcd.delete("http-services/shop/overrides/shop-1");
    balancer.wait_settled(PATIENCE);
    works();
}

/// What a file takes of confgen's, and what `/ready`, the log and the page say of it.
#[test]
fn what_a_file_takes_of_confgens_is_refused_by_file_line_and_option() {
    let _turn = light();
    let scene = start(|_, _| {});
    let Ground { balancer, .. } = &scene;
    balancer.wait_ready(200, "in sync");
    let before = (balancer.worker(), balancer.restarts());
    let folder = balancer.folder().display();
    let (http, https, stats) = (balancer.http(), balancer.https(), balancer.stats());
    // Another way to the same directory.
    let link = balancer.folder().join("link");
    symlink(balancer.folder(), &link).unwrap();
    let port = free_address();
    for (text, line, words) in [
        (
            format!("frontend web\n    bind *:{}\nfrontend other\n    bind *:{}\n", http.port(), http.port()),
            2,
            "--http-bind",
        ),
        (format!("frontend web\n\n    bind {http} # mine\n"), 3, "Give yours another port"),
        (format!("listen web\n    bind 127.0.0.1:{}-{}\n", https.port(), https.port()), 2, "--https-bind"),
        (
            format!(
                "frontend prometheus\n    bind :{}\n    http-request use-service prometheus-exporter\n",
                stats.port()
            ),
            2,
            "--stats-bind",
        ),
        (
            format!("global\n    stats socket {folder}/./admin.sock mode 660 level admin\n"),
            2,
            "(--runtime-socket). Delete the line",
        ),
        (format!("global\n    stats socket unix@{}/admin.sock level admin\n", link.display()), 2, "--runtime-socket"),
        (format!("frontend web\n    bind {folder}/admin.sock\n"), 2, "--runtime-socket"),
        (format!("global\n    stats socket {folder}/handover/mine.sock\n"), 2, "handover's own directory"),
        ("global\n    server-state-file /var/lib/haproxy/state\n".to_owned(), 2, "--server-state-file"),
        ("global\n    grace 10s\n".to_owned(), 2, "handover needs no grace"),
        ("frontend discover-web\n".to_owned(), 1, "Rename yours"),
        (format!("frontend a\n    bind {port}\nfrontend b\n    bind {port}\n"), 2, "20-mine.cfg:4: `bind"),
        (format!("{DEFAULTS}backend mine\n    server a 127.0.0.1:9 track http-shop/shop-1\n"), 7, "nbsrv(http-shop)"),
    ] {
        let file = own_file(balancer, "20-mine.cfg");
        write(&file, &text);
        balancer.wait_ready(
            503,
            &format!("confgen refuses the operator's own files, mend them first: {}:{line}: ", file.display()),
        );
        let body = balancer.asked("/ready").unwrap().body;
        assert!(body.contains(words), "{words:?} is missing: {body}");
        // The log is written by a thread of its own.
        until(PATIENCE, "the log to name the line", || {
            balancer.log("confgen").contains(&format!("{}:{line}: ", file.display()))
        });
        let page = balancer.asked("/").unwrap().body;
        assert!(page.contains(&format!("20-mine.cfg:{line}: ")), "{page}");
        balancer.wait_status(PATIENCE, "shop.test", "/", 200);
        fs::remove_file(&file).unwrap();
        balancer.wait_ready(200, "in sync");
    }
    assert_eq!((balancer.worker(), balancer.restarts()), before, "none of them met the HAProxy that runs");
}

/// Debian's own haproxy.cfg, put into the directory as it is.
#[test]
fn debians_stock_file_is_taken_without_its_socket() {
    let _turn = light();
    let scene = start(|_, _| {});
    let Ground { balancer, .. } = &scene;
    balancer.wait_ready(200, "in sync");
    let stock = include_str!("operator_files/debian.cfg");
    let socket = balancer.socket().display().to_string();
    let file = own_file(balancer, "haproxy.cfg");
    write(&file, stock.replace("/run/haproxy/admin.sock", &socket));
    let at = format!("{}:5: `stats socket {socket}` in `global`: ", file.display());
    balancer.wait_ready(503, &at);
    let body = balancer.asked("/ready").unwrap().body;
    assert!(body.contains("Delete the line"), "{body}");
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);

    let before = balancer.restarts();
    let kept: Vec<&str> = stock.lines().filter(|line| !line.contains("stats socket")).collect();
    write(&file, kept.join("\n") + "\n");
    until(PATIENCE, "a restart into it", || balancer.restarts() > before);
    balancer.wait_ready(200, "in sync");
    balancer.wait_settled(PATIENCE);
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
    let root = fs::read_link(format!("/proc/{}/root", balancer.worker())).unwrap();
    assert_eq!(root, PathBuf::from("/var/lib/haproxy"), "its `chroot` beats confgen's own");
}

#[test]
fn a_section_keeps_the_name_that_it_had_before_a_service() {
    let _turn = light();
    let own = free_address();
    let app = App::alone("in-1");
    let text = format!("{DEFAULTS}frontend http-in\n    bind {own}\n    http-request return status 204\n");
    let scene = start(|_, setup| write(setup.folder().join("conf.d/10-in.cfg"), &text));
    let Ground { etcd, balancer, .. } = &scene;
    balancer.wait_ready(200, "in sync");

    // The service comes second: it alone isn't served.
    etcd.http_service("in", "in.test", &[&app]);
    until(PATIENCE, "the service to be quarantined", || {
        let body = balancer.asked("/api/v1/quarantine").map_err(|error| error.to_string())?.body;
        let fits = body.contains("http-services/in/") && body.contains("10-in.cfg:6 (`frontend http-in`)");
        if fits { Ok(()) } else { Err(body) }
    });
    etcd.http_service("blog", "blog.test", &[&app]);
    balancer.wait_status(PATIENCE, "blog.test", "/", 200);
    balancer.wait_ready(200, "in sync");
    assert_eq!(status(own), Some(204));

    // The section goes: the service is served. The section comes back: it is second now.
    fs::remove_file(own_file(balancer, "10-in.cfg")).unwrap();
    balancer.wait_status(PATIENCE, "in.test", "/", 200);
    balancer.wait_settled(PATIENCE);
    write(own_file(balancer, "10-in.cfg"), &text);
    balancer.wait_ready(
        503,
        "10-in.cfg:6: `frontend http-in`: the section of http-services/in, which is served, has this name",
    );
    // A new confgen knows that the service was first.
    balancer.kill("confgen");
    balancer.wait_ready(503, "the section of http-services/in, which is served, has this name");
    balancer.wait_status(PATIENCE, "in.test", "/", 200);
    etcd.delete_all("http-services/in/");
    balancer.wait_ready(200, "in sync");
    until(PATIENCE, "the operator's frontend", || status(own) == Some(204));
    balancer.wait_status(PATIENCE, "shop.test", "/", 200);
}

#[test]
fn a_service_that_a_file_names_leaves_an_empty_section() {
    let _turn = light();
    let own = free_address();
    let scene = start(|etcd, setup| {
        // `gone` isn't there yet at the first start; `shop` is.
        let text = format!(
            "{DEFAULTS}frontend mine\n    bind {own}\n    use_backend http-gone if {{ path /gone }} {{ nbsrv(tcp-db) lt 1 }}\n    \
             http-request track-sc0 src table http-table\n    default_backend http-aa\n"
        );
        write(setup.folder().join("conf.d/10-mine.cfg"), text);
        etcd.put("http-services/aa/domain", "aa.test");
    });
    let Ground { etcd, balancer, .. } = &scene;
    let app = App::alone("aa-1");
    balancer.wait_ready(200, "in sync");
    let file = balancer.file();
    let at = own_file(balancer, "10-mine.cfg").display().to_string();
    assert!(file.contains(&format!("# No such service now; {at}:8 names it")), "{file}");
    assert_eq!(ask(own, "/gone").status, 503);
    etcd.http_service("aa", "aa.test", &[&app]);
    until(PATIENCE, "the service at the operator's frontend", || ask(own, "/").status == 200);

    // The service goes by name: the warning says which line will answer 503, and everything else goes on.
    let said = Command::new(bin("discoverctl"))
        .args(["delete", "aa", "--yes", "--endpoints", &etcd.endpoints()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.status.success(), "{stderr}");
    assert!(stderr.contains(&format!("{at}:10 names http-aa")), "{stderr}");
    until(PATIENCE, "503 at the operator's frontend", || ask(own, "/").status == 503);
    etcd.http_service("new", "new.test", &[&app]);
    balancer.wait_status(PATIENCE, "new.test", "/", 200);
    balancer.wait_ready(200, "in sync");
    balancer.restart();
    balancer.wait_settled(PATIENCE);
    assert_eq!(ask(own, "/").status, 503);
    assert!(balancer.file().contains("\nbackend http-aa from discover-http\n"), "{}", balancer.file());

    // It comes back.
    etcd.http_service("aa", "aa.test", &[&app]);
    balancer.wait_status(PATIENCE, "aa.test", "/", 200);
    until(PATIENCE, "the service at the operator's frontend", || ask(own, "/").status == 200);
}

#[test]
fn a_port_belongs_to_a_service_that_had_it_first() {
    let _turn = light();
    let (app, port) = (App::alone("db-1"), free_address());
    let scene = start(|_, _| {});
    let Ground { etcd, balancer, .. } = &scene;
    etcd.put("tcp-services/db/ports", port.to_string());
    etcd.put("tcp-services/db/upstreams/db-1", app.address.to_string());
    until(PATIENCE, "the TCP service", || status(port) == Some(200));
    let file = own_file(balancer, "20-mine.cfg");
    write(&file, format!("{DEFAULTS}frontend mine\n    bind {port}\n    http-request return status 204\n"));
    balancer.wait_ready(
        503,
        &format!("20-mine.cfg:7: `bind {port}` in `frontend mine`: port {} belongs to tcp-services/db", port.port()),
    );
    assert_eq!(status(port), Some(200));
    etcd.delete_all("tcp-services/db/");
    until(PATIENCE, "the operator's frontend", || status(port) == Some(204));
    balancer.wait_ready(200, "in sync");
    // Now the file had it first.
    etcd.put("tcp-services/db/ports", port.to_string());
    until(PATIENCE, "the port to be refused", || {
        balancer
            .log("confgen")
            .contains(&format!("is reserved: {}:7 (`bind {port}` in `frontend mine`) binds it", file.display()))
    });
    assert_eq!(status(port), Some(204));
}

/// None of them holds confgen up: it goes on without, or says which one it can't read.
#[test]
fn what_is_no_regular_file_is_passed_over_or_named() {
    let _turn = light();
    let own = free_address();
    let scene = start(|_, setup| {
        let conf = setup.folder().join("conf.d");
        let fifo = CString::new(conf.join("10-fifo.cfg").display().to_string()).unwrap();
        nix::unistd::mkfifo(fifo.as_c_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
        fs::create_dir(conf.join("20-directory.cfg")).unwrap();
        symlink("/dev/zero", conf.join("30-device.cfg")).unwrap();
        // As Windows' editors write it.
        let text = format!("{DEFAULTS}frontend mine\n    bind {own}\n    http-request return status 204\n");
        write(conf.join("40-lines.cfg"), text.replace('\n', "\r\n"));
    });
    let Ground { balancer, .. } = &scene;
    balancer.wait_ready(200, "in sync");
    assert_eq!(status(own), Some(204));
    for (words, lay_out) in [
        ("50-odd.cfg", &(|file: &PathBuf| symlink("50-odd.cfg", file).unwrap()) as &dyn Fn(&PathBuf)),
        ("it is longer than", &|file| fs::File::create(file).unwrap().set_len(1 << 34).unwrap()),
        ("Missing LF on last line", &|file| write(file, "global\n    daemon")),
        ("50-odd.cfg", &|file| write(file, "global\n    dae\0mon\n")),
        ("out of section", &|file| write(file, "\u{feff}global\n")),
    ] {
        let file = own_file(balancer, "50-odd.cfg");
        lay_out(&file);
        balancer.wait_ready(503, words);
        balancer.wait_status(PATIENCE, "shop.test", "/", 200);
        fs::remove_file(&file).unwrap();
        balancer.wait_ready(200, "in sync");
    }
}
