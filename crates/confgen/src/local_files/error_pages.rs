//! What clients are shown where no service answers: built in, or from the operator's own files (`--error-pages`). Each
//! of those is checked and copied, so that a broken one never stops HAProxy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use haproxy::check::{CheckResult, Checker};

use crate::render::error_pages::ErrorPages;
use crate::render::error_pages::Page;
use crate::state_dir::{Error, TRIAL, io_error, replace_file};

/// The statuses that HAProxy of any release answers with by itself, and knows `http-error` for.
const STATUSES: [u16; 10] = [400, 403, 404, 408, 421, 429, 500, 502, 503, 504];

/// By the end of a file's name.
const TYPES: [(&str, &str); 3] =
    [("html", "\"text/html; charset=utf-8\""), ("json", "application/json"), ("txt", "\"text/plain; charset=utf-8\"")];

/// Less than HAProxy's buffer (16,384 bytes) without what it keeps free for headers (1,024).
const LONGEST: u64 = 15_000;

/// The folder of the last good copies.
const COPIES: &str = "error-pages";

/// Takes over the pages of `source` into `state_dir`, each with HAProxy's own word on it. It is checked beside the
/// operator's own files (`include`), whose `global` may leave less room for a page.
pub fn collect_error_pages(
    source: Option<&Path>,
    state_dir: &Path,
    include: &Path,
    checker: &Checker,
) -> Result<ErrorPages, Error> {
    let copies = state_dir.join(COPIES);
    fs::create_dir_all(&copies).map_err(io_error("create", &copies))?;
    let trial = |name: &PageName, content: &[u8]| {
        let known = regular_file::read(&copies.join(name.file), LONGEST).is_ok_and(|copy| copy == content);
        if known { Ok(()) } else { check_page(name, content, state_dir, include, checker) }
    };
    let pages = gather_pages(source, &copies, &trial)?;
    for (name, content) in pages.files() {
        replace_file(&copies.join(name), content, 0o640)?;
    }
    remove_stale_copies(&copies, &pages)?;
    Ok(pages)
}

/// The same without HAProxy's word, for somebody who only looks: nothing is written.
pub fn read_error_pages_unchecked(source: Option<&Path>, state_dir: &Path) -> ErrorPages {
    gather_pages(source, &state_dir.join(COPIES), &|_, _| Ok(())).unwrap_or_default()
}

/// A file's name that is a page's.
struct PageName<'a> {
    file: &'a str,
    status: u16,
    content_type: &'static str,
}

/// Reads a name; none is no page's at all.
fn parse_page_name(file: &str) -> Option<Result<PageName<'_>, String>> {
    let (status, end) = file.split_once('.')?;
    let status = status.parse().ok().filter(|_| status.len() == 3)?;
    let content_type = TYPES.iter().find(|(known, _)| *known == end).map(|(_, content_type)| *content_type);
    Some(match content_type {
        _ if !STATUSES.contains(&status) => Err(format!("a page may be for {STATUSES:?}")),
        None => Err("a page's name ends in .html, .json or .txt".into()),
        Some(content_type) => Ok(PageName { file, status, content_type }),
    })
}

type Judge<'a> = &'a dyn Fn(&PageName, &[u8]) -> Result<(), String>;

/// The pages of a directory; one that isn't there has none. A broken one is replaced by its last good copy.
fn gather_pages(source: Option<&Path>, copies: &Path, judge: Judge) -> Result<ErrorPages, Error> {
    let mut pages = ErrorPages::default();
    for file in source.map_or(Ok(Vec::new()), list_sorted)? {
        let Some(name) = file.file_name().and_then(|file| file.to_str()).and_then(parse_page_name) else { continue };
        let outcome = name.and_then(|name| match pages.by_status.get(&name.status) {
            Some(page) => Err(format!("{} is taken already, from {}", name.status, page.name)),
            None => Ok(name),
        });
        let (page, refused) = match outcome {
            Ok(name) => match read_page(&file).and_then(|content| judge(&name, &content).map(|()| content)) {
                Ok(content) => (Some((name, content)), None),
                Err(reason) => {
                    (regular_file::read(&copies.join(name.file), LONGEST).ok().map(|copy| (name, copy)), Some(reason))
                }
            },
            Err(reason) => (None, Some(reason)),
        };
        if let Some((name, content)) = page {
            let page = Page { name: name.file.to_owned(), content_type: name.content_type, content };
            pages.by_status.insert(name.status, page);
        }
        pages.rejected.extend(refused.map(|reason| (file.clone(), reason)));
    }
    Ok(pages)
}

fn list_sorted(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    files.sort();
    Ok(files)
}

fn read_page(file: &Path) -> Result<Vec<u8>, String> {
    let content = regular_file::read(file, LONGEST).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => format!("it is longer than {LONGEST} bytes, which HAProxy has no room for"),
        _ => error.to_string(),
    })?;
    if content.is_empty() { Err("it is empty".into()) } else { Ok(content) }
}

/// Why HAProxy would not show this page. What it says of the operator's own files is none of the page's fault.
fn check_page(
    name: &PageName,
    content: &[u8],
    state_dir: &Path,
    include: &Path,
    checker: &Checker,
) -> Result<(), String> {
    let lay_out = || -> io::Result<(tempfile::TempDir, PathBuf)> {
        let folder = tempfile::Builder::new().prefix(TRIAL).tempdir_in(state_dir)?;
        let (page, cfg) = (folder.path().join(name.file), folder.path().join("haproxy.cfg"));
        fs::File::create_new(&page).and_then(|mut file| io::Write::write_all(&mut file, content))?;
        let text = format!(
            "defaults\n    mode http\n    http-error status {} content-type {} file {}\n    timeout client 1s\n\
             frontend confgen-check\n    bind 127.0.0.1:1\n",
            name.status,
            name.content_type,
            page.display()
        );
        fs::File::create_new(&cfg).and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))?;
        Ok((folder, cfg))
    };
    let (folder, cfg) = lay_out().map_err(|error| error.to_string())?;
    let words = match checker.check_files(&[include.to_owned(), cfg]) {
        Ok(CheckResult::Valid { warnings }) => warnings.join("\n"),
        Ok(CheckResult::Rejected { output }) => output,
        Err(error) => return Err(error.to_string()),
    };
    let ours = folder.path().display().to_string();
    let complaint = words.lines().find(|line| line.contains(&ours) && line.contains("http"));
    complaint.map_or(Ok(()), |line| {
        Err(line.rsplit_once("] : ").map_or(line, |(_, words)| words).replace(&format!("{ours}/"), ""))
    })
}

/// Removes the copies of pages that are gone.
fn remove_stale_copies(copies: &Path, pages: &ErrorPages) -> Result<(), Error> {
    let entries = fs::read_dir(copies).map_err(io_error("list", copies))?.flatten();
    let gone = |path: &PathBuf| !pages.files().any(|(name, _)| path.ends_with(name));
    for path in entries.map(|entry| entry.path()).filter(gone) {
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::error_pages::{BUILT_IN, HttpErrorLine};
    use crate::test_support::{TempFiles, new_checker};

    fn place() -> TempFiles {
        TempFiles::with_folders(&["pages", "conf.d", "state"])
    }

    fn collected(place: &TempFiles) -> ErrorPages {
        let [pages, state, include] = ["pages", "state", "conf.d"].map(|name| place.path(name));
        collect_error_pages(Some(&pages), &state, &include, &new_checker()).unwrap()
    }

    fn refused(pages: &ErrorPages) -> Vec<String> {
        let name = |file: &Path| file.file_name().unwrap().to_string_lossy().into_owned();
        pages.rejected.iter().map(|(file, reason)| format!("{}: {reason}", name(file))).collect()
    }

    fn files(pages: &ErrorPages) -> Vec<(&str, &str)> {
        pages.files().map(|(name, content)| (name, std::str::from_utf8(content).unwrap())).collect()
    }

    #[test]
    fn a_page_takes_the_place_of_the_built_in_words() {
        let place = place();
        assert_eq!(collected(&place), ErrorPages::default());
        place.write("pages/404.html", "<p>nothing here");
        place.write("pages/421.json", "{}");
        for no_page in ["style.css", "README", ".404.html.swp", "40x.html"] {
            place.write(&format!("pages/{no_page}"), "x");
        }
        let pages = collected(&place);
        assert_eq!(
            (files(&pages), refused(&pages).len()),
            (vec![("404.html", "<p>nothing here"), ("421.json", "{}")], 0)
        );
        let lines = pages.http_error_lines("/s");
        assert_eq!(lines.len(), BUILT_IN.len());
        assert!(lines.contains(&HttpErrorLine {
            status: 404,
            content_type: "\"text/html; charset=utf-8\"",
            body: "file /s/404.html".into()
        }));
        assert_eq!(read_error_pages_unchecked(Some(&place.path("pages")), &place.path("nowhere")), pages);
        fs::remove_file(place.path("pages/404.html")).unwrap();
        assert_eq!(files(&collected(&place)).len(), 1);
        assert!(!place.path("state/error-pages/404.html").exists());
    }

    #[test]
    fn a_broken_page_is_refused_and_the_last_good_one_kept() {
        let place = place();
        place.write("pages/503.html", "soon");
        place.write("pages/504.txt", "x".repeat(15_000));
        let good = collected(&place);
        assert_eq!((good.files().count(), good.rejected.len()), (2, 0));
        for (content, reason) in [(String::new(), "it is empty"), ("x".repeat(15_001), "longer than 15000 bytes")] {
            place.write("pages/503.html", content);
            let pages = collected(&place);
            assert_eq!(files(&pages), files(&good));
            assert!(refused(&pages)[0].contains(reason), "{:?}", pages.rejected);
        }
        fs::remove_file(place.path("pages/503.html")).unwrap();
        nix::unistd::mkfifo(&place.path("pages/503.html"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let pages = collected(&place);
        assert_eq!(
            (files(&pages), refused(&pages)),
            (files(&good), vec!["503.html: it is a FIFO, not a regular file".into()])
        );
        place.write("pages/418.html", "teapot");
        place.write("pages/502.htm", "x");
        place.write("pages/504.html", "x");
        let pages = collected(&place);
        // By name, `504.html` comes before `504.txt`.
        assert_eq!(files(&pages).last(), Some(&("504.html", "x")));
        assert_eq!(refused(&pages).len(), 4, "{:?}", pages.rejected);
    }

    #[test]
    fn the_operators_own_buffer_counts() {
        let place = place();
        place.write("conf.d/global.cfg", "global\n    tune.bufsize 8192\n");
        place.write("pages/404.html", "x".repeat(7_500));
        place.write("pages/503.html", "x".repeat(9_000));
        place.write("pages/504.html", "x".repeat(7_000));
        let pages = collected(&place);
        assert_eq!(files(&pages).len(), 1, "{:?}", pages.rejected);
        assert!(refused(&pages).iter().all(|words| words.contains("buffer")), "{:?}", pages.rejected);
        // What else is wrong with the operator's files is no page's fault.
        place.write("conf.d/global.cfg", "global\n    nonsense\n");
        assert_eq!(collected(&place).rejected.len(), 0);
    }
}
