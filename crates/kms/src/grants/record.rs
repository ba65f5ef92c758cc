//! How a grant is stored (`docs/formats/kms-records.md`).

use std::collections::BTreeMap;

use holdfast_core::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Constraint, Grant, GrantId, GrantTerms, Party, operation_name, parse_operation};
use crate::{context::EncryptionContext, keys::KeyRef, names::KeyId};

/// Principals and encryption contexts only.
const FORMAT_PRINCIPALS: u8 = 1;
/// Services and `SourceArn` as well. Who does not know of them must not read it: without them a grant gives more.
const FORMAT_SERVICES: u8 = 2;

#[derive(Deserialize, Serialize)]
pub(super) struct StoredGrant {
    v: u8,
    region: String,
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    grantee: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grantee_service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retiring: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retiring_service: Option<String>,
    operations: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    equals: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subset: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_arn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    created: i64,
    issuer: String,
}

/// A party as two fields, of which at most one is there.
fn apart(party: Option<&Party>) -> (Option<String>, Option<String>) {
    match party {
        None => (None, None),
        Some(Party::Principal(arn)) => (Some(arn.clone()), None),
        Some(Party::Service(service)) => (None, Some(service.clone())),
    }
}

/// The inner is `None` if nobody is named.
fn together(principal: Option<String>, service: Option<String>) -> Option<Option<Party>> {
    match (principal, service) {
        (None, None) => Some(None),
        (Some(arn), None) => Some(Some(Party::Principal(arn))),
        (None, Some(service)) => Some(Some(Party::Service(service))),
        (Some(_), Some(_)) => None,
    }
}

impl StoredGrant {
    pub(super) fn new(grant: &Grant) -> Self {
        let terms = &grant.terms;
        let (mut equals, mut subset) = (None, None);
        match &terms.constraint {
            Some(Constraint::Equals(context)) => equals = Some(context.0.clone()),
            Some(Constraint::Subset(context)) => subset = Some(context.0.clone()),
            None => {}
        }
        let (grantee, grantee_service) = apart(Some(&terms.grantee));
        let (retiring, retiring_service) = apart(terms.retiring.as_ref());
        let newer = grantee_service.is_some() || retiring_service.is_some() || terms.source_arn.is_some();
        Self {
            v: if newer { FORMAT_SERVICES } else { FORMAT_PRINCIPALS },
            region: terms.key.region.to_string(),
            key: terms.key.id.to_string(),
            grantee,
            grantee_service,
            retiring,
            retiring_service,
            operations: terms.operations.iter().map(|action| operation_name(*action).to_owned()).collect(),
            equals,
            subset,
            source_arn: terms.source_arn.clone(),
            name: terms.name.clone(),
            created: grant.created.unix_millis(),
            issuer: terms.issuer.clone(),
        }
    }

    pub(super) fn read(value: &[u8], id: &[u8], record_version: u64) -> Option<Grant> {
        serde_json::from_slice::<Self>(value).ok()?.into_grant(id, record_version)
    }

    fn into_grant(self, id: &[u8], record_version: u64) -> Option<Grant> {
        let operations: Option<Vec<_>> = self.operations.iter().map(|name| parse_operation(name)).collect();
        let constraint = match (self.equals, self.subset) {
            (Some(pairs), None) => Some(Constraint::Equals(EncryptionContext(pairs))),
            (None, Some(pairs)) => Some(Constraint::Subset(EncryptionContext(pairs))),
            (None, None) => None,
            (Some(_), Some(_)) => return None,
        };
        let newer = self.grantee_service.is_some() || self.retiring_service.is_some() || self.source_arn.is_some();
        match self.v {
            FORMAT_PRINCIPALS if !newer => {}
            FORMAT_SERVICES => {}
            _ => return None,
        }
        Some(Grant {
            id: GrantId(id.try_into().ok()?),
            terms: GrantTerms {
                key: KeyRef { region: self.region.into(), id: KeyId::parse(&self.key)? },
                grantee: together(self.grantee, self.grantee_service)??,
                retiring: together(self.retiring, self.retiring_service)?,
                operations: operations?,
                constraint,
                source_arn: self.source_arn,
                name: self.name,
                issuer: self.issuer,
            },
            created: Timestamp::from_unix_millis(self.created),
            record_version,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::action::KmsAction;

    /// Written by formats 1 and 2; must be readable for ever.
    const GOLDEN: [&str; 2] = [
        r#"{"v":1,"region":"us-east-1","key":"1234abcd-12ab-34cd-56ef-1234567890ab","grantee":"arn:aws:iam::111122223333:user/a","retiring":"arn:aws:iam::111122223333:user/b","operations":["Decrypt","ReEncryptFrom"],"subset":{"a":"b"},"name":"n","created":1700000000123,"issuer":"arn:aws:iam::111122223333:root"}"#,
        r#"{"v":2,"region":"us-east-1","key":"1234abcd-12ab-34cd-56ef-1234567890ab","grantee_service":"s3.amazonaws.com","retiring_service":"backup.amazonaws.com","operations":["Decrypt"],"equals":{"a":"b"},"source_arn":"arn:aws:s3:us-east-1:111122223333:bucket/b","created":1700000000123,"issuer":"arn:aws:iam::111122223333:root"}"#,
    ];

    fn read(text: &str) -> Option<Grant> {
        serde_json::from_str::<StoredGrant>(text).unwrap().into_grant(&[7; 32], 3)
    }

    #[test]
    fn golden_records() {
        let context = EncryptionContext([("a".to_owned(), "b".to_owned())].into());
        let grants = GOLDEN.map(|golden| read(golden).unwrap());
        let allows = |grant: &Grant, context, source| grant.allows(KmsAction::Decrypt, context, source);
        assert!(allows(&grants[0], Some(&context), None) && !allows(&grants[0], None, None));
        let bucket = "arn:aws:s3:us-east-1:111122223333:bucket/b";
        assert!(allows(&grants[1], Some(&context), Some(bucket)));
        assert!(!allows(&grants[1], Some(&context), None) && !allows(&grants[1], Some(&context), Some("arn:aws:s3")));
        for (golden, grant) in GOLDEN.iter().zip(&grants) {
            assert_eq!(serde_json::to_string(&StoredGrant::new(grant)).unwrap(), *golden);
        }
        // A newer format; a record that says it is older than what it holds; two grantees; none.
        for (from, to) in [
            ("\"v\":2", "\"v\":3"),
            ("\"v\":2", "\"v\":1"),
            ("\"grantee_service\"", "\"grantee\":\"arn:aws:iam::111122223333:user/a\",\"grantee_service\""),
            ("\"grantee_service\":\"s3.amazonaws.com\",", ""),
        ] {
            assert!(read(&GOLDEN[1].replace(from, to)).is_none(), "{to}");
        }
    }
}
