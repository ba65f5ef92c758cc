//! The query string, decoded once.

use crate::error::ApiError;

/// Versions of the API that are served: those that clients send, and those published.
const API_VERSIONS: &[&str] = &[
    "7.2",
    "7.3",
    "7.4",
    "7.5",
    "7.6",
    "2025-07-01",
    "2026-04-01",
    "7.2-preview",
    "7.3-preview",
    "7.4-preview.1",
    "7.5-preview.1",
    "7.6-preview.1",
    "7.6-preview.2",
    "2025-06-01-preview",
    "2026-01-01-preview",
    "2026-03-01-preview",
    "2026-05-01-preview",
    "2026-07-01-preview",
];

/// Parameters of a request.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes `a=b&c=d`; `+` is a space (application/x-www-form-urlencoded).
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Refuses an unknown version. Status URLs (`.../pending`) are polled without one, and the next page of a listing is the
    /// same request as the one before it.
    pub(crate) fn check_api_version(&self, path: &str) -> Result<(), ApiError> {
        match self.get("api-version") {
            None if path.trim_end_matches('/').ends_with("/pending") || self.get("$skiptoken").is_some() => Ok(()),
            None => Err(ApiError::bad_parameter("The api-version query parameter is missing")),
            Some(version) if API_VERSIONS.contains(&version) => Ok(()),
            Some(version) => {
                let version = crate::route::printable(version);
                Err(ApiError::bad_parameter(format!("The api-version {version} is not supported")))
            }
        }
    }
}

fn decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    crate::route::percent_decode(&spaced).unwrap_or(spaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions() {
        let check = |query, path| Query::parse(query).check_api_version(path).is_ok();
        assert!(check(Some("api-version=7.6-preview.2"), "/keys"));
        assert!(check(Some("maxresults=5&api-version=2025-07-01"), "/keys"));
        assert!(!check(Some("api-version=1.0"), "/keys") && !check(None, "/keys"));
        assert!(check(None, "/backup/00112233445566778899aabbccddeeff/pending"));
        assert!(check(Some("maxresults=25&$skiptoken=eA"), "/keys"));
        assert!(!check(Some("$skiptoken=eA&api-version=1.0"), "/keys"));
        assert_eq!(Query::parse(Some("%24skiptoken=a%20b+c")).get("$skiptoken"), Some("a b c"));
    }
}
