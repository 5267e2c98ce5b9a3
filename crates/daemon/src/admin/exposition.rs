//! The text formats of `/metrics`: chooses one by `Accept`, and translates OpenMetrics into the classic one. Pure: no I/O.
//!
//! prometheus-client encodes only OpenMetrics. A translation must not change a sample's name, labels or value.

/// The parameter `version=0.0.4` tells programs that this plain text is metrics.
pub(super) const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A text format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus's own, which every reader of metrics knows.
    Classic,
    OpenMetrics,
}

impl Format {
    /// Chooses the format that the values of `Accept` prefer (RFC 9110, section 12.5.1). It is the classic one if they name neither,
    /// as a browser's `*/*` does.
    pub(super) fn choose<'a>(accept: impl Iterator<Item = &'a str>) -> Self {
        let ranges: Vec<MediaRange> = accept.flat_map(|value| value.split(',')).map(MediaRange::parse).collect();
        let classic = find_preference(&ranges, "text/plain", "0.0.4");
        let openmetrics = find_preference(&ranges, "application/openmetrics-text", "1.0.0");
        // A browser's `*/*` prefers both alike, and the classic text is the one that every reader knows.
        let is_named = openmetrics.closeness >= Closeness::Name;
        if openmetrics.quality > classic.quality
            || is_named && openmetrics.quality == classic.quality && openmetrics.quality > 0
        {
            Self::OpenMetrics
        } else {
            Self::Classic
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Classic => CLASSIC_TYPE,
            Self::OpenMetrics => OPENMETRICS_TYPE,
        }
    }
}

/// One of the comma-separated parts of `Accept`.
struct MediaRange<'a> {
    name: &'a str,
    version: Option<&'a str>,
    /// In thousandths. 0 is not acceptable, and stands for an unreadable `q` too.
    quality: u16,
}

impl<'a> MediaRange<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self { name: parts.next().unwrap_or_default(), version: None, quality: 1000 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            if name.eq_ignore_ascii_case("q") {
                // RFC 9110 has no rule for an unreadable weight. The other ranges decide then.
                let quality = value.parse::<f32>().ok().filter(|quality| (0.0..=1.0).contains(quality));
                range.quality = quality.map_or(0, |quality| (quality * 1000.0).round() as u16);
            } else if name.eq_ignore_ascii_case("version") {
                range.version = Some(value.trim_matches('"'));
            }
        }
        range
    }

    /// `None` if the range doesn't match this media type.
    fn match_type(&self, name: &str, version: &str) -> Option<Closeness> {
        let group = name.split('/').next().unwrap_or_default();
        let (own_group, own_name) = self.name.split_once('/')?;
        if self.name.eq_ignore_ascii_case(name) {
            match self.version {
                // A range without a version accepts every version.
                None => Some(Closeness::Name),
                Some(own) => (own == version).then_some(Closeness::Version),
            }
        } else if self.name == "*/*" {
            Some(Closeness::Anything)
        } else {
            (own_name == "*" && own_group.eq_ignore_ascii_case(group)).then_some(Closeness::Group)
        }
    }
}

/// How exactly a range names a media type. The closest range decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Closeness {
    #[default]
    Anything,
    Group,
    Name,
    Version,
}

/// Fields in the order in which they decide.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    closeness: Closeness,
    quality: u16,
}

fn find_preference(ranges: &[MediaRange], name: &str, version: &str) -> Preference {
    let matching = ranges
        .iter()
        .filter_map(|range| Some(Preference { closeness: range.match_type(name, version)?, quality: range.quality }));
    matching.max().unwrap_or_default()
}

/// Translates OpenMetrics text into the classic format. Leaves out what that format doesn't have (units, creation times, exemplars,
/// `# EOF`), families without samples, and the times of samples, which the classic format gives in another unit.
pub(super) fn to_classic(openmetrics: &str) -> String {
    let mut classic = String::with_capacity(openmetrics.len());
    let mut family = Family::default();
    for line in openmetrics.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("HELP"), Some(name), Some(help)) => family.enter(name).help = help,
                (Some("TYPE"), Some(name), Some(kind)) => family.enter(name).kind = kind,
                _ => {}
            }
        } else if let Some(sample) = Sample::parse(line)
            && !family.created(sample.name)
        {
            family.write_head(&mut classic);
            classic.extend([sample.name, sample.labels, " ", sample.value, "\n"]);
        }
    }
    classic
}

/// The metadata of a family. OpenMetrics has all of it before the samples, in any order.
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    has_head: bool,
}

impl<'a> Family<'a> {
    fn enter(&mut self, name: &'a str) -> &mut Self {
        if self.name != name {
            *self = Self { name, ..Self::default() };
        }
        self
    }

    /// True for the sample with the time since when a counter, histogram or summary counts.
    fn created(&self, sample: &str) -> bool {
        let counts = matches!(self.kind, "counter" | "histogram" | "summary" | "gaugehistogram");
        counts && sample.strip_suffix("_created") == Some(self.name)
    }

    /// Writes the family's HELP and TYPE, once. The classic format's family has the name of its samples, and fewer types.
    fn write_head(&mut self, classic: &mut String) {
        if std::mem::replace(&mut self.has_head, true) || self.name.is_empty() {
            return;
        }
        let (suffix, kind) = match self.kind {
            "counter" => ("_total", "counter"),
            "info" => ("_info", "gauge"),
            "gauge" | "stateset" => ("", "gauge"),
            "histogram" | "summary" => ("", self.kind),
            _ => ("", "untyped"),
        };
        if !self.help.is_empty() {
            classic.extend(["# HELP ", self.name, suffix, " "]);
            write_help(self.help, classic);
            classic.push('\n');
        }
        classic.extend(["# TYPE ", self.name, suffix, " ", kind, "\n"]);
    }
}

/// Writes a help text. OpenMetrics escapes quotes in it. The classic format refuses such an escape.
fn write_help(help: &str, classic: &mut String) {
    let mut rest = help;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        classic.push_str(plain);
        let mut after = escaped.chars();
        match after.next() {
            Some('"') => classic.push('"'),
            Some(c) => classic.extend(['\\', c]),
            // A backslash at the end escapes nothing. The classic format demands two.
            None => classic.push_str("\\\\"),
        }
        rest = after.as_str();
    }
    classic.push_str(rest);
}

/// A line with a value, without its time and exemplar.
struct Sample<'a> {
    name: &'a str,
    /// With the braces. Empty without labels.
    labels: &'a str,
    value: &'a str,
}

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_at_checked(line.find(['{', ' '])?)?;
        let (labels, rest) = rest.split_at_checked(labels_length(rest)?)?;
        Some(Self { name, labels, value: rest.split_ascii_whitespace().next()? })
    }
}

/// Bytes up to the brace that ends the labels. A quoted value may have braces too. 0 without labels, `None` without an end.
fn labels_length(text: &str) -> Option<usize> {
    if !text.starts_with('{') {
        return Some(0);
    }
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = is_quoted,
            b'"' => is_quoted = !is_quoted,
            b'}' if !is_quoted => return Some(index + 1),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_header_chooses_the_format() {
        use Format::{Classic, OpenMetrics};
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                            application/openmetrics-text;version=0.0.1;q=0.5,\
                            text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, format) in [
            ("", Classic),
            ("*/*", Classic),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Classic),
            ("text/plain", Classic),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Classic),
            (prometheus_2, OpenMetrics),
            (prometheus_3, OpenMetrics),
            ("application/openmetrics-text", OpenMetrics),
            ("APPLICATION/OpenMetrics-Text; VERSION=\"1.0.0\"; Q=1", OpenMetrics),
            ("application/openmetrics-text; version=0.0.1, */*;q=0.1", Classic),
            ("application/openmetrics-text;q=0.4, text/plain;q=0.5", Classic),
            ("application/openmetrics-text;q=0.5, text/plain;q=0.4", OpenMetrics),
            ("application/openmetrics-text, text/plain", OpenMetrics),
            ("application/openmetrics-text;q=0.5, */*", Classic),
            ("application/openmetrics-text;q=0.5, text/*;q=0.6", Classic),
            ("application/*", OpenMetrics),
            ("application/openmetrics-text;q=0", Classic),
            ("application/openmetrics-text;q=0, text/plain;q=0", Classic),
            ("application/openmetrics-text;q=NaN", Classic),
            ("application/openmetrics-text;q=2", Classic),
            (";;=,/,*", Classic),
        ] {
            assert_eq!(Format::choose([accept].into_iter()), format, "{accept}");
        }
        assert_eq!(Format::choose(std::iter::empty()), Classic);
        let two_lines = ["text/plain;q=0.3", "application/openmetrics-text"];
        assert_eq!(Format::choose(two_lines.into_iter()), OpenMetrics);
    }

    #[test]
    fn the_classic_text_has_the_same_samples() {
        let openmetrics = "# HELP app_applies Says \\\"how often\\\", a \\\\ and a \\n.\n\
                           # TYPE app_applies counter\n\
                           app_applies_total{kind=\"a } \\\" # {b\"} 3 1520879607.789 # {trace=\"x\"} 0.5\n\
                           app_applies_created{kind=\"a\"} 1520872607.123\n\
                           # TYPE cpu_seconds counter\n\
                           # UNIT cpu_seconds seconds\n\
                           # HELP cpu_seconds CPU.\n\
                           cpu_seconds_total 0.5\n\
                           # HELP build The version.\n\
                           # TYPE build info\n\
                           build_info{version=\"1\"} 1\n\
                           # HELP job_created A gauge.\n\
                           # TYPE job_created gauge\n\
                           job_created 7\n\
                           # HELP none Without samples.\n\
                           # TYPE none gauge\n\
                           # HELP took_seconds Times.\n\
                           # TYPE took_seconds histogram\n\
                           took_seconds_sum 1.5\n\
                           took_seconds_bucket{le=\"+Inf\"} 2 # {} 1.0\n\
                           # TYPE odd unknown\n\
                           odd 1\n\
                           # EOF\n";
        let classic = "# HELP app_applies_total Says \"how often\", a \\\\ and a \\n.\n\
                       # TYPE app_applies_total counter\n\
                       app_applies_total{kind=\"a } \\\" # {b\"} 3\n\
                       # HELP cpu_seconds_total CPU.\n\
                       # TYPE cpu_seconds_total counter\n\
                       cpu_seconds_total 0.5\n\
                       # HELP build_info The version.\n\
                       # TYPE build_info gauge\n\
                       build_info{version=\"1\"} 1\n\
                       # HELP job_created A gauge.\n\
                       # TYPE job_created gauge\n\
                       job_created 7\n\
                       # HELP took_seconds Times.\n\
                       # TYPE took_seconds histogram\n\
                       took_seconds_sum 1.5\n\
                       took_seconds_bucket{le=\"+Inf\"} 2\n\
                       # TYPE odd untyped\n\
                       odd 1\n";
        assert_eq!(to_classic(openmetrics), classic);
    }

    #[test]
    fn broken_lines_are_left_out() {
        for line in ["", "#", "# TYPE", "x", "x{", "x{a=\"b", "x{a=\"}\" 1", "x{} ", "{"] {
            assert_eq!(to_classic(line), "", "{line}");
        }
    }
}
