//! The list as text, at most 80 columns wide. Pure: no I/O, no clock.

use std::fmt::Write as _;

use crate::agent::list::{List, ListedContainer};

/// Columns of a terminal that everybody has.
const WIDTH: usize = 80;

/// Columns between two cells.
const GAP: usize = 2;

const HEAD: [&str; 5] = ["CONTAINER", "STATE", "RECORD", "SERVICE", "ADDRESS"];

/// The widest name of a container or a service. It leaves 21 columns for an address, which must be whole.
const LONGEST_NAME: usize = 18;

/// Renders the list. `shows_engines` is true if there are several engines.
pub(crate) fn render_list(list: &List, shows_engines: bool) -> String {
    let rows: Vec<(usize, [String; 5])> = list
        .containers
        .iter()
        .enumerate()
        .flat_map(|(at, it)| make_rows(it).into_iter().map(move |row| (at, row)))
        .collect();
    let widths = measure_columns(&rows);
    let mut text = String::new();
    if list.containers.is_empty() {
        text.push_str("no container has labels that count\n");
    } else {
        push_row(&mut text, &HEAD.map(str::to_owned), widths);
    }
    let mut engine = None;
    for (at, container) in list.containers.iter().enumerate() {
        if shows_engines && engine.replace(&container.engine) != Some(&container.engine) {
            push_lines(&mut text, "", &container.engine);
        }
        for (_, row) in rows.iter().filter(|(of, _)| *of == at) {
            push_row(&mut text, row, widths);
        }
        for service in &container.services {
            if let Some(copy) = &service.copy {
                push_lines(&mut text, "  ", &format!("{}: {}", service.service, copy.standing));
            }
            if let Some(reason) = &service.reason {
                push_lines(&mut text, "  ", &format!("{}: {reason}", service.service));
            }
        }
        for fault in &container.faults {
            push_lines(&mut text, "  ", &format!("refused: {fault}"));
        }
    }
    for (engine, reason) in &list.unreachable {
        push_lines(&mut text, "", &format!("{engine}: {reason}"));
    }
    text
}

fn make_rows(container: &ListedContainer) -> Vec<[String; 5]> {
    let state = match &container.health {
        Some(health) if container.state == "running" => health.clone(),
        _ => container.state.clone(),
    };
    let name = cut(&container.name);
    let row = |service: &str, address: &str, record: &str| {
        [name.clone(), state.clone(), record.to_owned(), cut(service), address.to_owned()]
    };
    if container.services.is_empty() {
        return vec![row("-", "-", "-")];
    }
    let rows = container.services.iter().map(|service| {
        let record = service.record.map_or("-".to_owned(), |state| format!("{state:?}").to_lowercase());
        let address = if service.address.is_empty() { "-" } else { &service.address };
        row(&service.service, address, &record)
    });
    rows.collect()
}

fn cut(text: &str) -> String {
    // Labels and names are a stranger's: no control character may reach the terminal.
    let text = program::text::escape_line(text);
    if text.chars().count() <= LONGEST_NAME {
        return text.into_owned();
    }
    text.chars().take(LONGEST_NAME - 1).chain(['…']).collect()
}

fn measure_columns(rows: &[(usize, [String; 5])]) -> [usize; 5] {
    let mut widths = HEAD.map(str::len);
    for (_, row) in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    widths
}

fn push_row(text: &mut String, row: &[String; 5], widths: [usize; 5]) {
    let mut line = String::new();
    for (cell, width) in row.iter().zip(widths) {
        // An IPv6 address may be too wide beside long names. It gets a line of its own.
        if !line.is_empty() && line.chars().count() + cell.chars().count() > WIDTH {
            text.push_str(line.trim_end());
            text.push_str("\n  ");
            line.clear();
        }
        let _ = write!(line, "{cell:<width$}{:GAP$}", "");
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

/// Breaks a text between words.
fn push_lines(text: &mut String, indent: &str, words: &str) {
    let escaped = program::text::escape_line(words);
    let mut column = 0;
    for word in escaped.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            column = 0;
        }
        if column == 0 {
            let indent = if text.ends_with('\n') || text.is_empty() { indent } else { "" };
            text.push_str(indent);
            column = indent.len();
        } else {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use discovery::UpstreamState;

    use super::*;
    use crate::agent::list::{ListedCopy, ListedService};

    fn container(name: &str, services: Vec<ListedService>, faults: &[&str]) -> ListedContainer {
        ListedContainer {
            engine: "unix:///run/docker.sock".to_owned(),
            id: "abc".to_owned(),
            name: name.to_owned(),
            state: "running".to_owned(),
            health: None,
            labels: BTreeMap::new(),
            services,
            faults: faults.iter().map(|fault| (*fault).to_owned()).collect(),
        }
    }

    fn service(name: &str, address: &str, record: Option<UpstreamState>, reason: Option<&str>) -> ListedService {
        let (service, address, key) = (name.to_owned(), address.to_owned(), String::new());
        ListedService { service, key, address, record, reason: reason.map(str::to_owned), copy: None }
    }

    #[test]
    fn the_list_fits_into_80_columns() {
        let long = "x".repeat(300);
        let list = List {
            containers: vec![
                container(
                    "shop",
                    vec![service("http-shop.example.com", "10.0.0.5:32768", Some(UpstreamState::Ready), None)],
                    &[],
                ),
                container(
                    "db",
                    vec![service(
                        "tcp-db",
                        "10.0.0.5:3306",
                        None,
                        Some("tcp 10.0.0.5:3306: Connection refused (os error 111)"),
                    )],
                    &["label `haproxy-discover.api.port` is `80x`: expected the container's port, from 1 to 65535"],
                ),
                container(
                    &long,
                    vec![service(
                        &long,
                        "[fd00:1234:5678:9abc:def0:1234:5678:9abc]:65535",
                        Some(UpstreamState::Drain),
                        None,
                    )],
                    &[],
                ),
                container("odd\u{1b}[31m", Vec::new(), &["the container publishes no port"]),
            ],
            unreachable: [(
                "tcp://127.0.0.1:1".to_owned(),
                "the engine at tcp://127.0.0.1:1 can't be reached: refused".to_owned(),
            )]
            .into(),
        };
        let text = render_list(&list, true);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        expect_test::expect![[r#"
            CONTAINER           STATE    RECORD  SERVICE             ADDRESS
            unix:///run/docker.sock
            shop                running  ready   http-shop.example…  10.0.0.5:32768
            db                  running  -       tcp-db              10.0.0.5:3306
              tcp-db: tcp 10.0.0.5:3306: Connection refused (os error 111)
              refused: label `haproxy-discover.api.port` is `80x`: expected the container's
              port, from 1 to 65535
            xxxxxxxxxxxxxxxxx…  running  drain   xxxxxxxxxxxxxxxxx…
              [fd00:1234:5678:9abc:def0:1234:5678:9abc]:65535
            odd\u{1b}[31m       running  -       -                   -
              refused: the container publishes no port
            tcp://127.0.0.1:1: the engine at tcp://127.0.0.1:1 can't be reached: refused
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn a_copy_shows_its_slot_or_that_it_stands_by() {
        let copy = |slot, standing: &str| Some(ListedCopy { replicas: 2, slot, standing: standing.to_owned() });
        let holds = service("http-shop", "10.0.0.5:32768", Some(UpstreamState::Ready), None);
        let stands_by = service("http-shop", "", None, None);
        let words = "it stands by: no slot is free: 2 of 2 copies run, at web-1, web-2";
        let list = List {
            containers: vec![
                container("shop-1", vec![ListedService { copy: copy(Some(1), "holds slot 1 of 2"), ..holds }], &[]),
                container("shop-2", vec![ListedService { copy: copy(None, words), ..stands_by }], &[]),
            ],
            unreachable: BTreeMap::new(),
        };
        expect_test::expect![[r#"
            CONTAINER  STATE    RECORD  SERVICE    ADDRESS
            shop-1     running  ready   http-shop  10.0.0.5:32768
              http-shop: holds slot 1 of 2
            shop-2     running  -       http-shop  -
              http-shop: it stands by: no slot is free: 2 of 2 copies run, at web-1, web-2
        "#]]
        .assert_eq(&render_list(&list, false));
    }

    #[test]
    fn an_empty_list_says_so() {
        let list = List { containers: Vec::new(), unreachable: BTreeMap::new() };
        assert_eq!(render_list(&list, false), "no container has labels that count\n");
    }
}
