//! How keys, aliases and accounts are named.

use std::{fmt, sync::Arc};

use holdfast_core::{KeyName, KeyVersionId, Resource};

/// The id of a key: a UUID, or `mrk-` and 32 hex digits for a multi-region key.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct KeyId {
    bytes: [u8; 16],
    multi_region: bool,
}

impl KeyId {
    /// A byte that is as good as random.
    pub(crate) fn shard(self) -> u8 {
        self.bytes[15]
    }

    /// A new one, of random bytes.
    pub(crate) fn new(mut random: [u8; 16], multi_region: bool) -> Self {
        if !multi_region {
            // RFC 9562, version 4.
            random[6] = random[6] & 0x0f | 0x40;
            random[8] = random[8] & 0x3f | 0x80;
        }
        Self { bytes: random, multi_region }
    }

    pub(crate) fn from_parts(bytes: [u8; 16], multi_region: bool) -> Self {
        Self { bytes, multi_region }
    }

    pub(crate) fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }

    pub(crate) fn is_multi_region(&self) -> bool {
        self.multi_region
    }

    /// Exactly as it is written; ids are compared to the letter.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        if let Some(hex) = text.strip_prefix("mrk-") {
            return KeyVersionId::parse(hex).map(|id| Self { bytes: *id.as_bytes(), multi_region: true });
        }
        let mut hex = String::with_capacity(32);
        for (index, part) in text.split('-').enumerate() {
            let len = *[8, 4, 4, 4, 12].get(index)?;
            if part.len() != len {
                return None;
            }
            hex.push_str(part);
        }
        KeyVersionId::parse(&hex).map(|id| Self { bytes: *id.as_bytes(), multi_region: false })
    }

    /// The name under which the partition knows it.
    pub(crate) fn name(&self) -> Option<KeyName> {
        KeyName::parse(&self.to_string()).ok()
    }

    /// What is permitted on the key of this id; `None`: no key has such an id.
    pub(crate) fn resource(&self) -> Option<Resource> {
        self.name().map(Resource::Key)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = KeyVersionId::from_bytes(self.bytes).to_string();
        if self.multi_region {
            write!(f, "mrk-{hex}")
        } else {
            write!(f, "{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
        }
    }
}

/// How a caller names a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum KeyNaming<'a> {
    /// An alias, of the caller's account and region unless it is an ARN.
    Alias { account: Option<&'a str>, name: &'a str },
    /// A key id, likewise.
    Key { account: Option<&'a str>, id: &'a str },
}

/// Why a name is none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BadName<'a> {
    /// Not an ARN of this service.
    Arn,
    /// Another region: this one.
    Region(&'a str),
}

impl<'a> KeyNaming<'a> {
    pub(crate) fn parse(text: &'a str, region: &str) -> Result<Self, BadName<'a>> {
        let (account, rest) = if text.starts_with("arn:") {
            let parts: Vec<&str> = text.splitn(6, ':').collect();
            let ["arn", "aws", "kms", its_region, account, rest] = parts.as_slice() else { return Err(BadName::Arn) };
            if *its_region != region {
                return Err(BadName::Region(its_region));
            }
            if !is_account(account) {
                return Err(BadName::Arn);
            }
            if let Some(id) = rest.strip_prefix("key/") {
                return Ok(Self::Key { account: Some(account), id });
            }
            (Some(*account), *rest)
        } else {
            (None, text)
        };
        match rest.starts_with("alias/") {
            true => Ok(Self::Alias { account, name: rest }),
            false if account.is_some() => Err(BadName::Arn),
            false => Ok(Self::Key { account, id: rest }),
        }
    }
}

/// 12 digits.
#[must_use]
pub fn is_account(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit())
}

pub(crate) fn key_arn(region: &str, account: &str, id: KeyId) -> String {
    format!("arn:aws:kms:{region}:{account}:key/{id}")
}

pub(crate) fn alias_arn(region: &str, account: &str, name: &str) -> String {
    format!("arn:aws:kms:{region}:{account}:{name}")
}

/// A region that is served, as the index shares it.
pub(crate) fn served(regions: &[Arc<str>], name: &str) -> Option<Arc<str>> {
    regions.iter().find(|region| &***region == name).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for text in ["1234abcd-12ab-34cd-56ef-1234567890ab", "mrk-1234abcd12ab34cd56ef1234567890ab"] {
            assert_eq!(KeyId::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            "1234ABCD-12ab-34cd-56ef-1234567890ab",
            "1234abcd12ab34cd56ef1234567890ab",
            "1234abcd-12ab-34cd-56ef-1234567890ab-",
            "1234abcd-12ab-34cd-56ef1234567890ab",
            "mrk-1234",
            "mrk-1234abcd-12ab-34cd-56ef-1234567890ab",
        ] {
            assert_eq!(KeyId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn namings() {
        let region = "us-east-1";
        assert_eq!(KeyNaming::parse("alias/a", region), Ok(KeyNaming::Alias { account: None, name: "alias/a" }));
        assert_eq!(KeyNaming::parse("x", region), Ok(KeyNaming::Key { account: None, id: "x" }));
        let arn = "arn:aws:kms:us-east-1:111122223333:";
        let account = Some("111122223333");
        assert_eq!(
            KeyNaming::parse(&format!("{arn}alias/a"), region),
            Ok(KeyNaming::Alias { account, name: "alias/a" })
        );
        assert_eq!(KeyNaming::parse(&format!("{arn}key/x"), region), Ok(KeyNaming::Key { account, id: "x" }));
        assert_eq!(KeyNaming::parse(&format!("{arn}key/x"), "eu-west-1"), Err(BadName::Region(region)));
        for bad in ["arn:aws:kms", "arn:aws:s3:us-east-1:111122223333:key/x", "arn:aws:kms:us-east-1:1:key/x"] {
            assert_eq!(KeyNaming::parse(bad, region), Err(BadName::Arn), "{bad}");
        }
        assert_eq!(KeyNaming::parse(&format!("{arn}x"), region), Err(BadName::Arn));
    }
}
