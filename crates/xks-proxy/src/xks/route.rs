//! `[/prefix]/kms/xks/v1/keys/{externalKeyId}/{metadata|encrypt|decrypt}` and `[/prefix]/kms/xks/v1/health`.

use holdfast_core::ExternalKeyId;

/// Longest path and query together (XKS proxy API 1.0.3).
const URI_BYTES_MAX: usize = 256;
const ROOT: &str = "/kms/xks/v1/";

/// What is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Operation {
    Decrypt,
    Encrypt,
    GetHealthStatus,
    GetKeyMetadata,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Decrypt => "Decrypt",
            Self::Encrypt => "Encrypt",
            Self::GetHealthStatus => "GetHealthStatus",
            Self::GetKeyMetadata => "GetKeyMetadata",
        }
    }
}

/// A path, taken apart.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Target<'a> {
    pub prefix: &'a str,
    pub operation: Operation,
    /// None for health.
    pub key: Option<ExternalKeyId>,
}

/// Takes a path apart, from its right-hand end: prefixes may look like anything.
pub(crate) fn route(path: &str) -> Option<Target<'_>> {
    if path.len() > URI_BYTES_MAX {
        return None;
    }
    let at = path.rfind(ROOT)?;
    let (prefix, rest) = (&path[..at], &path[at + ROOT.len()..]);
    if rest == "health" {
        return Some(Target { prefix, operation: Operation::GetHealthStatus, key: None });
    }
    let (key, operation) = rest.strip_prefix("keys/")?.split_once('/')?;
    let operation = match operation {
        "decrypt" => Operation::Decrypt,
        "encrypt" => Operation::Encrypt,
        "metadata" => Operation::GetKeyMetadata,
        _ => return None,
    };
    Some(Target { prefix, operation, key: Some(ExternalKeyId::parse(key).ok()?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let target = route("/a/b/kms/xks/v1/keys/k.1_-/encrypt").unwrap();
        assert_eq!(
            (target.prefix, target.operation, target.key.unwrap().as_str()),
            ("/a/b", Operation::Encrypt, "k.1_-")
        );
        assert_eq!(route("/kms/xks/v1/health").unwrap().prefix, "");
        assert_eq!(route("/kms/xks/v1/kms/xks/v1/health").unwrap().prefix, "/kms/xks/v1");
        let long = "k".repeat(129);
        for bad in [
            "/kms/xks/v1/",
            "/kms/xks/v1/keys/a",
            "/kms/xks/v1/keys/a/encrypt/",
            "/kms/xks/v1/keys//encrypt",
            "/kms/xks/v1/keys/a%20b/encrypt",
            "/kms/xks/v2/health",
            "/kms/xks/v1/health/",
            &format!("/kms/xks/v1/keys/{long}/encrypt"),
            &format!("/{}/kms/xks/v1/health", "p".repeat(250)),
        ] {
            assert_eq!(route(bad), None, "{bad}");
        }
    }
}
