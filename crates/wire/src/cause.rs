//! Why a service of ours did not do what it was asked, as a code that another service of ours reads: no decision is read from words.
//!
//! An answer that is an error carries the code as the member `holdfastCause` of its JSON body. Other services do not send it, and other
//! clients let it go. It makes nothing laxer than status and code of the dialect say by themselves: of a code and a status that
//! contradict each other the stricter counts.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny};

/// Name of the member.
pub const CAUSE_MEMBER: &str = "holdfastCause";

/// Why a service did not do what it was asked, from the laxest to the strictest.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Cause {
    /// It, or what it rests on, is away, has failed or is too slow: it may pass by itself, and nobody said no.
    Outage,
    /// It has too much to do: it passes by itself, and nobody said no.
    Busy,
    /// Somebody or something decided, or it is not known to be anything else: it does not pass until somebody acts.
    Refusal,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Outage, Self::Busy, Self::Refusal];

    /// The code.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outage => "outage",
            Self::Busy => "busy",
            Self::Refusal => "refusal",
        }
    }

    /// Reads a code. One that is not known counts as the strictest.
    #[must_use]
    pub fn read(code: &str) -> Self {
        Self::ALL.into_iter().find(|cause| cause.as_str() == code).unwrap_or(Self::Refusal)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// Never fails: what is no code at all counts as the strictest.
impl<'de> Deserialize<'de> for Cause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Any {
            Code(String),
            Other(IgnoredAny),
        }
        Ok(match Any::deserialize(deserializer)? {
            Any::Code(code) => Self::read(&code),
            Any::Other(_) => Self::Refusal,
        })
    }
}

/// What an answer says of its cause: a member of its JSON body, to be read with `#[serde(default)]`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ToldCause(pub Option<Cause>);

/// A member that is there says something, if only `null`.
impl<'de> Deserialize<'de> for ToldCause {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cause::deserialize(deserializer).map(|cause| Self(Some(cause)))
    }
}

impl ToldCause {
    /// Whether it leaves an answer of this cause what it is: nothing is said, or nothing stricter.
    #[must_use]
    pub fn bears_out(self, cause: Cause) -> bool {
        match self.0 {
            None | Some(Cause::Outage | Cause::Busy) => true,
            Some(Cause::Refusal) => cause == Cause::Refusal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, Deserialize)]
    struct Answer {
        #[serde(default, rename = "holdfastCause")]
        cause: ToldCause,
    }

    fn told(body: &str) -> Option<Cause> {
        serde_json::from_str::<Answer>(body).unwrap().cause.0
    }

    #[test]
    fn what_is_no_known_code_is_the_strictest() {
        assert_eq!(told("{}"), None);
        for cause in Cause::ALL {
            assert_eq!(told(&format!(r#"{{"{CAUSE_MEMBER}":"{cause}"}}"#)), Some(cause));
        }
        for odd in [r#""Outage""#, r#""outage ""#, r#""""#, "null", "1", "[\"outage\"]", r#"{"outage":true}"#, "true"] {
            assert_eq!(told(&format!(r#"{{"{CAUSE_MEMBER}":{odd}}}"#)), Some(Cause::Refusal), "{odd}");
        }
        let twice = format!(r#"{{"{CAUSE_MEMBER}":"refusal","{CAUSE_MEMBER}":"outage"}}"#);
        assert!(serde_json::from_str::<Answer>(&twice).is_err(), "said twice is not said");
    }

    #[test]
    fn a_refusal_is_contradicted_by_nothing() {
        for cause in Cause::ALL {
            assert!(ToldCause(None).bears_out(cause) && ToldCause(Some(Cause::Outage)).bears_out(cause));
            assert_eq!(ToldCause(Some(Cause::Refusal)).bears_out(cause), cause == Cause::Refusal);
        }
    }
}
