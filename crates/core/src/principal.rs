//! Who asks.

use std::{fmt, sync::Arc};

/// An authenticated caller. Made only by a verifier, from checked evidence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Principal(Arc<Inner>);

#[derive(Debug, Eq, PartialEq)]
struct Inner {
    kind: PrincipalKind,
    tenant: String,
    object_id: String,
    application_id: Option<String>,
    display_name: Option<String>,
    groups: Vec<String>,
}

/// What sort of caller a principal is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PrincipalKind {
    /// A workload: service principal or managed identity.
    Service,
    /// The service itself: automatic rotation, purge after retention.
    System,
    /// A person.
    User,
}

impl Principal {
    /// A caller whose evidence has been verified. `cargo xtask check` allows this call in `authn` modules only.
    ///
    /// Identifiers are compared without regard to ASCII case; they are kept in lower case.
    #[must_use]
    pub fn verified(
        kind: PrincipalKind,
        tenant: &str,
        object_id: &str,
        application_id: Option<&str>,
        display_name: Option<&str>,
        groups: &[String],
    ) -> Self {
        Self(Arc::new(Inner {
            kind,
            tenant: tenant.to_ascii_lowercase(),
            object_id: object_id.to_ascii_lowercase(),
            application_id: application_id.map(str::to_ascii_lowercase),
            display_name: display_name.map(str::to_owned),
            groups: groups.iter().map(|group| group.to_ascii_lowercase()).collect(),
        }))
    }

    /// The same for callers whose names are compared to the letter, of an authority by that name.
    #[must_use]
    pub fn verified_exactly(kind: PrincipalKind, authority: &str, name: &str) -> Self {
        Self(Arc::new(Inner {
            kind,
            tenant: authority.to_owned(),
            object_id: name.to_owned(),
            application_id: None,
            display_name: None,
            groups: Vec::new(),
        }))
    }

    /// The service acting on its own account.
    #[must_use]
    pub fn system() -> Self {
        Self::verified(PrincipalKind::System, "", "system", None, None, &[])
    }

    /// What sort of caller.
    #[must_use]
    pub fn kind(&self) -> PrincipalKind {
        self.0.kind
    }

    /// The tenant that vouches for the caller.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.0.tenant
    }

    /// The id that role assignments name.
    #[must_use]
    pub fn object_id(&self) -> &str {
        &self.0.object_id
    }

    /// The application the caller uses.
    #[must_use]
    pub fn application_id(&self) -> Option<&str> {
        self.0.application_id.as_deref()
    }

    /// A name for people to read; never used to decide.
    #[must_use]
    pub fn display_name(&self) -> Option<&str> {
        self.0.display_name.as_deref()
    }

    /// Groups the caller belongs to.
    #[must_use]
    pub fn groups(&self) -> &[String] {
        &self.0.groups
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.object_id())
    }
}
