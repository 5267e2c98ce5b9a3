//! Takes over the operator's error pages (`--error-pages`), so that HAProxy still starts when one breaks or disappears. This
//! module doesn't write the lines of haproxy.cfg.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use haproxy::check::{CheckResult, Checker};

use crate::local_files::trial::{self, Candidate, Collected, Copies, LocalFile, TrialFolder};
use crate::operator_files::validate::{CHECK_DEFAULTS, CHECK_FRONTEND};
use crate::render::error_pages::ErrorPages;
use crate::render::error_pages::Page;
use crate::state_dir::{Error, io_error};

/// The statuses that HAProxy answers with by itself in every supported release, and for which it knows `http-error`.
const STATUSES: [u16; 10] = [400, 403, 404, 408, 421, 429, 500, 502, 503, 504];

/// The content type by the end of a file's name.
const TYPES: [(&str, &str); 3] =
    [("html", "\"text/html; charset=utf-8\""), ("json", "application/json"), ("txt", "\"text/plain; charset=utf-8\"")];

/// The longest page, in bytes. HAProxy's buffer has 16,384 bytes, of which it keeps 1,024 free for headers.
const LONGEST: u64 = 15_000;

/// The owner may write a copy, and HAProxy's group may read it.
const MODE: u32 = 0o640;

/// Takes over the pages of `source` into `state_dir`. HAProxy checks each beside the operator's own files (`include`), since
/// their `global` may leave less room for a page.
///
/// # Errors
/// If a directory can't be listed, or a copy can't be written or removed.
pub fn collect_error_pages(
    source: Option<&Path>,
    state_dir: &Path,
    include: &Path,
    checker: &Checker,
) -> Result<ErrorPages, Error> {
    let copies = copies_of(state_dir);
    copies.create_folder()?;
    let collected = trial::collect(
        read_files(source)?,
        &copies,
        |_, name, content| parse_page(name, content),
        |some| find_complaint(some, state_dir, include, checker),
    )?;
    // haproxy.cfg names the generation's own copies, so these may go.
    copies.remove_stale(|path| !collected.in_use.values().any(|(_, page)| path.ends_with(&page.name)))?;
    Ok(choose_pages(collected))
}

/// The pages as they would be taken over. HAProxy checks none, and nothing is written.
pub fn read_error_pages_unchecked(source: Option<&Path>, state_dir: &Path) -> ErrorPages {
    let files = read_files(source).unwrap_or_default();
    let copies = copies_of(state_dir);
    choose_pages(trial::collect_unchecked(files, &copies, |_, name, content| parse_page(name, content)))
}

fn copies_of(state_dir: &Path) -> Copies {
    Copies::new(state_dir.join("error-pages"), MODE, LONGEST)
}

/// The status and the content type that a file's name stands for, or the reason why it can't. `None` for a file that is no
/// page at all, such as `style.css`.
fn parse_page_name(file: &str) -> Option<Result<(u16, &'static str), String>> {
    let (status, end) = file.split_once('.')?;
    let status = status.parse().ok().filter(|_| status.len() == 3)?;
    let content_type = TYPES.iter().find(|(known, _)| *known == end).map(|(_, content_type)| *content_type);
    Some(match content_type {
        _ if !STATUSES.contains(&status) => Err(format!("a page may be for {STATUSES:?}")),
        None => Err("a page's name ends in .html, .json or .txt".into()),
        Some(content_type) => Ok((status, content_type)),
    })
}

fn parse_page(name: &str, content: &[u8]) -> Result<(u16, Page), String> {
    let (status, content_type) = parse_page_name(name).unwrap_or_else(|| Err("it is no page".into()))?;
    Ok((status, Page { name: name.to_owned(), content_type, content: content.to_owned() }))
}

/// The pages of a directory, sorted. A missing directory has none.
fn read_files(source: Option<&Path>) -> Result<Vec<LocalFile<PathBuf>>, Error> {
    let Some(dir) = source else { return Ok(Vec::new()) };
    let mut paths: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(io_error("list", dir)(error)),
    };
    paths.sort();
    let mut files = Vec::new();
    // The directory may have other files, such as an editor's or a style sheet.
    for path in paths {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some(outcome) = parse_page_name(name) else { continue };
        let content = outcome.and_then(|_| read_page(&path));
        files.push(LocalFile { copy_name: name.to_owned(), key: path, content });
    }
    Ok(files)
}

fn read_page(file: &Path) -> Result<Vec<u8>, String> {
    let content = regular_file::read(file, LONGEST).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => format!("it is longer than {LONGEST} bytes, which HAProxy has no room for"),
        _ => error.to_string(),
    })?;
    if content.is_empty() { Err("it is empty".into()) } else { Ok(content) }
}

/// One page for each status: the first by file name.
fn choose_pages(collected: Collected<PathBuf, (u16, Page)>) -> ErrorPages {
    let mut pages = ErrorPages { rejected: collected.rejected, ..ErrorPages::default() };
    for (file, (status, page)) in collected.in_use {
        match pages.by_status.get(&status) {
            Some(first) => _ = pages.rejected.insert(file, format!("{status} is taken already, from {}", first.name)),
            None => _ = pages.by_status.insert(status, page),
        }
    }
    pages
}

/// HAProxy's complaint about some pages together. A complaint about the operator's own files is no page's fault.
fn find_complaint(
    some: &[&Candidate],
    state_dir: &Path,
    include: &Path,
    checker: &Checker,
) -> Result<Option<String>, Error> {
    let folder = TrialFolder::create(state_dir)?;
    let mut text = CHECK_DEFAULTS.to_owned();
    for candidate in some {
        let file = folder.write_file(&candidate.copy_name, &candidate.content)?;
        if let Some(Ok((status, content_type))) = parse_page_name(&candidate.copy_name) {
            text += &format!("    http-error status {status} content-type {content_type} file {}\n", file.display());
        }
    }
    text += &format!("{CHECK_FRONTEND}\n");
    let words = match folder.check(&text, Some(include), checker)? {
        // A page over 15,360 bytes is a warning, and one over about 16,200 bytes a 500 to clients (2.6, 3.0, 3.2).
        Ok(CheckResult::Valid { warnings }) => warnings.join("\n"),
        Ok(CheckResult::Rejected { output }) => output,
        Err(failure) => return Ok(Some(failure)),
    };
    let ours = folder.prefix();
    let complaint = words.lines().find(|line| line.contains(&ours) && line.contains("http"));
    Ok(complaint.map(|line| line.rsplit_once("] : ").map_or(line, |(_, words)| words).replace(&ours, "")))
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
