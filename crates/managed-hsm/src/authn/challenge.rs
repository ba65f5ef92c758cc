//! Names under which the service is reached, and the 401 challenge made of them.
//!
//! SDKs accept a challenge only if the request's host ends with `.` + the resource's host (port included). So the
//! resource is the parent domain of the host the client used. Only configured names count: an audience taken from an
//! arbitrary `Host` header would let tokens for other services be replayed here.

use http::HeaderValue;

/// A host name or address, with a port if it is not 443.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HostPort {
    host: String,
    port: u16,
}

impl HostPort {
    /// A name and port; the name is kept in lower case.
    #[must_use]
    pub fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_ascii_lowercase(), port }
    }

    /// The host alone.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    fn suffix(&self) -> String {
        if self.port == 443 { String::new() } else { format!(":{}", self.port) }
    }

    /// `https://HOST[:PORT]`
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("https://{}{}", self.host, self.suffix())
    }

    /// The parent domain as a URL: the audience of tokens for this host. `None` for a single-label name.
    #[must_use]
    pub fn resource(&self) -> Option<String> {
        let (_, parent) = self.host.split_once('.')?;
        Some(format!("https://{parent}{}", self.suffix()))
    }

    fn matches(&self, header: &str) -> bool {
        let (host, port) = match header.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (header, Some(443)),
        };
        host.eq_ignore_ascii_case(&self.host) && port == Some(self.port)
    }
}

/// The names under which clients reach the service. The first is canonical.
#[derive(Clone, Debug)]
pub struct HostNames {
    names: Vec<HostPort>,
    resource: String,
    authority: String,
}

impl HostNames {
    /// `names` must not be empty; `default_resource` is for hosts without a parent domain; `authority` is the
    /// authorization URL of the tenant (`https://AUTHORITY/TENANT`).
    #[must_use]
    pub fn new(names: Vec<HostPort>, default_resource: String, authority: String) -> Self {
        Self { names, resource: default_resource, authority }
    }

    fn find(&self, host: Option<&str>) -> Option<&HostPort> {
        let named = host.and_then(|host| self.names.iter().find(|name| name.matches(host)));
        named.or(self.names.first())
    }

    /// The base of URLs in a reply to a request with this `Host`.
    #[must_use]
    pub fn base_url(&self, host: Option<&str>) -> String {
        self.find(host).map_or_else(String::new, HostPort::base_url)
    }

    /// Every audience that a token may be for.
    #[must_use]
    pub fn audiences(&self) -> Vec<String> {
        let mut audiences: Vec<String> = self.names.iter().filter_map(HostPort::resource).collect();
        audiences.push(self.resource.clone());
        audiences
    }

    /// The `WWW-Authenticate` header for a request with this `Host`.
    #[must_use]
    pub fn challenge(&self, host: Option<&str>) -> Option<HeaderValue> {
        let resource = self.find(host).and_then(HostPort::resource).unwrap_or_else(|| self.resource.clone());
        HeaderValue::try_from(format!(r#"Bearer authorization="{}", resource="{resource}""#, self.authority)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_is_the_parent_domain_with_port() {
        let resource = |host, port| HostPort::new(host, port).resource();
        assert_eq!(resource("HSM1.example.com", 8443).as_deref(), Some("https://example.com:8443"));
        assert_eq!(resource("hsm1.example.com", 443).as_deref(), Some("https://example.com"));
        assert_eq!(resource("127.0.0.1", 8443).as_deref(), Some("https://0.0.1:8443"));
        assert_eq!(resource("localhost", 8443), None);
    }

    #[test]
    fn foreign_hosts_get_the_canonical_name() {
        let names = HostNames::new(
            vec![HostPort::new("a.example.com", 443), HostPort::new("b.example.net", 8443)],
            "https://managedhsm.azure.net".into(),
            "https://login.example/t".into(),
        );
        assert_eq!(names.base_url(Some("B.example.net:8443")), "https://b.example.net:8443");
        for foreign in [None, Some("evil.attacker.com"), Some("b.example.net"), Some("a.example.com:1")] {
            assert_eq!(names.base_url(foreign), "https://a.example.com", "{foreign:?}");
        }
        let challenge = names.challenge(Some("a.example.com")).unwrap();
        assert_eq!(challenge, r#"Bearer authorization="https://login.example/t", resource="https://example.com""#);
    }
}
