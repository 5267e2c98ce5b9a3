//! The query of `/api/v1/changes`. Pure.

use crate::desired::names::parse_section;
use crate::state_dir::change_log::ChangeQuery;

/// The changes of an answer unless the query says otherwise, and the most of any answer.
const USUAL: usize = 1_000;
const MOST: usize = 10_000;

/// Parses the query. The error is for the client.
pub fn parse_change_query(
    service: Option<&str>,
    since: Option<&str>,
    keys: Option<&str>,
    limit: Option<usize>,
) -> Result<ChangeQuery, String> {
    let service = match service {
        None => None,
        Some(name) => {
            Some(parse_section(name).ok_or_else(|| format!("service={name} is no service, as http-shop is"))?)
        }
    };
    let since = since.map(humantime::parse_rfc3339).transpose();
    let settings_only = match keys {
        None | Some("all") => false,
        Some("settings") => true,
        Some(other) => return Err(format!("keys={other} is neither `settings` nor `all`")),
    };
    let limit = limit.unwrap_or(USUAL).clamp(1, MOST);
    let since = since.map_err(|error| format!("since is no time such as 2026-11-30T10:13:06Z: {error}"))?;
    Ok(ChangeQuery { service, since, settings_only, limit, files: None })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_query_is_read_or_refused() {
        let whole =
            parse_change_query(Some("http-shop"), Some("1970-01-01T00:00:09.5Z"), Some("settings"), Some(7)).unwrap();
        assert_eq!(whole.service.unwrap().to_string(), "http-shop");
        assert_eq!(whole.since, Some(UNIX_EPOCH + Duration::from_millis(9_500)));
        assert_eq!((whole.settings_only, whole.limit), (true, 7));
        let usual = ChangeQuery { limit: USUAL, ..ChangeQuery::default() };
        assert_eq!(parse_change_query(None, None, None, None), Ok(usual));
        assert_eq!(parse_change_query(None, None, None, Some(1 << 40)).map(|query| query.limit), Ok(MOST));
        for (service, since, keys) in [
            (Some("shop"), None, None),
            (None, Some("soon"), None),
            (None, None, Some("some")),
            (Some("http-a b"), None, None),
        ] {
            assert!(parse_change_query(service, since, keys, None).is_err());
        }
    }
}
