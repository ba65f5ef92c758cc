//! What conditions can look at: the request, its caller, its key.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use holdfast_core::{EvidenceClaims, Timestamp};
use holdfast_wire::hex::hex;

use crate::{
    aliases::Aliases, authn::Identity, context::EncryptionContext, keys::KeyEntry, policy::Facts, spec::spec_name,
};

/// A caller whose evidence holds, and the key that it is answered under.
#[derive(Clone)]
pub(crate) struct Attested {
    pub claims: EvidenceClaims,
    pub public_key: Vec<u8>,
}

impl Attested {
    /// `kms:RecipientAttestation:` and this name in lower case.
    fn value(&self, name: &str) -> Option<Vec<Cow<'_, str>>> {
        let register = match (self.claims.kind, name) {
            ("nitro", "imagesha384") => 0,
            ("nitro", _) => name.strip_prefix("pcr")?.parse().ok()?,
            ("nitrotpm", _) => name.strip_prefix("nitrotpmpcr")?.parse().ok()?,
            _ => return None,
        };
        one(hex(self.claims.measurements.get(&register)?))
    }
}

/// The facts of one request.
pub(crate) struct RequestFacts<'a> {
    pub identity: &'a Identity,
    pub region: &'a str,
    pub source: Option<IpAddr>,
    pub now: Timestamp,
    pub key: Option<&'a KeyEntry>,
    pub aliases: &'a Aliases,
    /// How the request names its key, if by an alias.
    pub request_alias: Option<&'a str>,
    pub context: Option<&'a EncryptionContext>,
    pub request_tags: Option<&'a BTreeMap<String, String>>,
    pub attested: Option<&'a Attested>,
    /// The resource on whose behalf a service asks.
    pub source_arn: Option<&'a str>,
    /// Keys that only some operations have, by their full name in lower case. They come first.
    pub more: &'a [(&'static str, Vec<String>)],
}

fn one<'a>(text: impl Into<Cow<'a, str>>) -> Option<Vec<Cow<'a, str>>> {
    Some(vec![text.into()])
}

fn tag<'a>(tags: &'a BTreeMap<String, String>, name: &str) -> Option<Vec<Cow<'a, str>>> {
    tags.get(name).and_then(|value| one(value.as_str()))
}

impl RequestFacts<'_> {
    /// What a request that came by way of a service has as `kms:ViaService`.
    pub(crate) fn via_service(&self) -> Option<String> {
        self.identity.service.as_ref().map(|service| format!("{service}.{}.amazonaws.com", self.region))
    }

    fn of_key<'k>(&self, key: &'k KeyEntry, name: &str) -> Option<Vec<Cow<'k, str>>> {
        match name {
            "kms:keyspec" | "kms:customermasterkeyspec" => one(spec_name(key.spec)),
            "kms:keyusage" | "kms:customermasterkeyusage" => one(key.usage.name()),
            "kms:keyorigin" => one(key.origin.name()),
            "kms:multiregion" => one(key.multi_region.is_some().to_string()),
            "kms:multiregionkeytype" => {
                key.multi_region.as_ref().and_then(|_| one(if key.is_primary() { "PRIMARY" } else { "REPLICA" }))
            }
            "kms:primaryregion" => key.multi_region.as_ref().and_then(|multi| one(multi.primary.to_string())),
            "kms:resourcealiases" => {
                let names = self.aliases.of_key(&key.account, &key.region, key.id);
                Some(names.into_iter().map(Cow::Owned).collect())
            }
            _ => name.strip_prefix("aws:resourcetag/").and_then(|name| tag(&key.tags, name)),
        }
    }
}

impl Facts for RequestFacts<'_> {
    fn values(&self, name: &str) -> Option<Vec<Cow<'_, str>>> {
        if let Some((_, values)) = self.more.iter().find(|(known, _)| *known == name) {
            return Some(values.iter().map(|value| Cow::Borrowed(value.as_str())).collect());
        }
        let identity = self.identity;
        match name {
            "aws:principalarn" => one(identity.arn.as_str()),
            "aws:principalaccount" | "kms:calleraccount" => one(&*identity.account),
            "aws:principaltype" => one(if identity.is_root {
                "Account"
            } else if identity.arn.contains(":role/") {
                "AssumedRole"
            } else {
                "User"
            }),
            "aws:username" => one(identity.user_name()),
            "aws:sourcearn" => self.source_arn.and_then(one),
            "aws:sourceaccount" => self.source_arn.and_then(|arn| arn.split(':').nth(4)).and_then(one),
            "aws:sourceip" => self.source.and_then(|source| one(source.to_canonical().to_string())),
            // There is no other way in.
            "aws:securetransport" => one("true"),
            "aws:currenttime" => {
                let moment = jiff::Timestamp::from_millisecond(self.now.unix_millis()).unwrap_or_default();
                one(moment.to_string())
            }
            "aws:epochtime" => one(self.now.unix_secs().to_string()),
            "aws:requestedregion" => one(self.region),
            "aws:viaawsservice" => one(identity.service.is_some().to_string()),
            "kms:viaservice" => self.via_service().and_then(one),
            "kms:requestalias" => self.request_alias.and_then(one),
            "kms:encryptioncontextkeys" => {
                let context = self.context?;
                Some(context.0.keys().map(|key| Cow::Borrowed(key.as_str())).collect())
            }
            "aws:tagkeys" => {
                let tags = self.request_tags?;
                Some(tags.keys().map(|key| Cow::Borrowed(key.as_str())).collect())
            }
            _ => {
                if let Some(wanted) = name.strip_prefix("kms:encryptioncontext:") {
                    let pairs = self.context?.0.iter();
                    let values = pairs.filter(|(name, _)| name.eq_ignore_ascii_case(wanted));
                    let values: Vec<_> = values.map(|(_, value)| Cow::Borrowed(value.as_str())).collect();
                    return (!values.is_empty()).then_some(values);
                }
                if let Some(name) = name.strip_prefix("kms:recipientattestation:") {
                    return self.attested.and_then(|attested| attested.value(name));
                }
                if let Some(name) = name.strip_prefix("aws:principaltag/") {
                    return tag(&identity.tags, name);
                }
                if let Some(name) = name.strip_prefix("aws:requesttag/") {
                    return self.request_tags.and_then(|tags| tag(tags, name));
                }
                self.key.and_then(|key| self.of_key(key, name))
            }
        }
    }
}
