//! Objects of the token: found by name, held by handle, read for what they are.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError, RwLock},
};

use cryptoki::{
    error::Error,
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::Session,
};
use holdfast_core::{ExternalKey, ExternalKeySpec, KeyOperation, KeyOperations, TokenObject};
use holdfast_crypto::RsaPublicKey;

use super::fault::{Fault, classify};
use crate::names;

/// A key that was found.
#[derive(Clone)]
pub(super) struct Found {
    pub handle: ObjectHandle,
    pub key: ExternalKey,
}

/// Keys that were found, by the names they answer to; and a listing that is under way.
#[derive(Default)]
pub(super) struct ObjectCache {
    found: RwLock<HashMap<TokenObject, Found>>,
    listing: Mutex<Listing>,
}

#[derive(Default)]
struct Listing {
    handles: Vec<ObjectHandle>,
    read: Vec<(TokenObject, Found)>,
}

/// What a search gave.
pub(super) enum Search {
    One(Found),
    None,
    Several,
}

impl ObjectCache {
    pub(super) fn cached(&self, object: &TokenObject) -> Option<Found> {
        self.found.read().unwrap_or_else(PoisonError::into_inner).get(object).cloned()
    }

    pub(super) fn evict(&self, object: &TokenObject) {
        self.found.write().unwrap_or_else(PoisonError::into_inner).remove(object);
    }

    /// Looks in the token, and remembers what is there now.
    pub(super) fn search(&self, session: &Session, object: &TokenObject) -> Result<Search, Error> {
        let search = search(session, object)?;
        let mut known = self.found.write().unwrap_or_else(PoisonError::into_inner);
        match &search {
            Search::One(found) => known.insert(object.clone(), found.clone()),
            Search::None | Search::Several => known.remove(object),
        };
        Ok(search)
    }

    /// One page of all keys, and whether there are more. After the last one everything known is as it is in the token now.
    pub(super) fn list(
        &self,
        session: &Session,
        page: usize,
        page_len: usize,
    ) -> Result<(Vec<(TokenObject, ExternalKey)>, bool), Error> {
        let mut listing = self.listing.lock().unwrap_or_else(PoisonError::into_inner);
        if page == 0 {
            *listing = Listing { handles: handles(session)?, read: Vec::new() };
        }
        let Listing { handles, read: entries } = &mut *listing;
        let first = page.saturating_mul(page_len).min(handles.len());
        let last = (first + page_len).min(handles.len());
        let mut keys = Vec::with_capacity(last - first);
        for handle in handles[first..last].iter().copied() {
            match read(session, handle) {
                Ok((object, key)) => {
                    entries.push((object.clone(), Found { handle, key: key.clone() }));
                    keys.push((object, key));
                }
                // Deleted since the listing began.
                Err(error) if classify(&error) == Fault::StaleObject => {}
                Err(error) => return Err(error),
            }
        }
        let more = last < handles.len();
        if !more {
            let index = names::index(std::mem::take(entries));
            let found = index.into_iter().filter_map(|(name, found)| Some((name, found?))).collect();
            *self.found.write().unwrap_or_else(PoisonError::into_inner) = found;
        }
        Ok((keys, more))
    }
}

fn template(object: &TokenObject, class: ObjectClass) -> Vec<Attribute> {
    let mut template = vec![Attribute::Class(class), Attribute::Token(true)];
    template.extend(object.label.as_ref().map(|label| Attribute::Label(label.clone().into_bytes())));
    template.extend(object.id.as_ref().map(|id| Attribute::Id(id.clone())));
    template
}

fn search(session: &Session, object: &TokenObject) -> Result<Search, Error> {
    let mut handles = Vec::new();
    for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
        handles.extend(session.find_objects(&template(object, class))?);
    }
    match handles.as_slice() {
        [] => Ok(Search::None),
        [handle] => Ok(Search::One(Found { handle: *handle, key: read(session, *handle)?.1 })),
        _ => Ok(Search::Several),
    }
}

/// Every secret and private key.
fn handles(session: &Session) -> Result<Vec<ObjectHandle>, Error> {
    let mut handles = Vec::new();
    for class in [ObjectClass::SECRET_KEY, ObjectClass::PRIVATE_KEY] {
        handles.extend(session.find_objects(&[Attribute::Class(class), Attribute::Token(true)])?);
    }
    Ok(handles)
}

/// What the token says of a key. An attribute that it does not tell counts as the worse of its values.
fn read(session: &Session, handle: ObjectHandle) -> Result<(TokenObject, ExternalKey), Error> {
    const ASKED: [AttributeType; 19] = [
        AttributeType::Label,
        AttributeType::Id,
        AttributeType::Class,
        AttributeType::KeyType,
        AttributeType::ValueLen,
        AttributeType::Modulus,
        AttributeType::PublicExponent,
        AttributeType::Decrypt,
        AttributeType::Encrypt,
        AttributeType::Wrap,
        AttributeType::Unwrap,
        AttributeType::Sign,
        AttributeType::Verify,
        AttributeType::Derive,
        AttributeType::Extractable,
        AttributeType::Sensitive,
        AttributeType::NeverExtractable,
        AttributeType::SignRecover,
        AttributeType::VerifyRecover,
    ];
    let mut object = TokenObject::default();
    let (mut kind, mut value_len, mut private) = (None, None, false);
    let (mut modulus, mut exponent) = (Vec::new(), Vec::new());
    let (mut extractable, mut sensitive, mut never) = (true, false, None);
    let mut usage = Vec::new();
    let mut allow = |allowed: bool, operation| {
        if allowed {
            usage.push(operation);
        }
    };
    for attribute in session.get_attributes(handle, &ASKED)? {
        match attribute {
            Attribute::Label(label) => object.label = String::from_utf8(label).ok(),
            Attribute::Id(id) => object.id = Some(id).filter(|id| !id.is_empty()),
            Attribute::Class(class) => private = class == ObjectClass::PRIVATE_KEY,
            Attribute::KeyType(found) => kind = Some(found),
            Attribute::ValueLen(len) => value_len = Some(u64::from(len)),
            Attribute::Modulus(n) => modulus = n,
            Attribute::PublicExponent(e) => exponent = e,
            Attribute::Decrypt(allowed) => allow(allowed, KeyOperation::Decrypt),
            Attribute::Encrypt(allowed) => allow(allowed, KeyOperation::Encrypt),
            Attribute::Wrap(allowed) => allow(allowed, KeyOperation::WrapKey),
            Attribute::Unwrap(allowed) => allow(allowed, KeyOperation::UnwrapKey),
            Attribute::Sign(allowed) | Attribute::SignRecover(allowed) => allow(allowed, KeyOperation::Sign),
            Attribute::Verify(allowed) | Attribute::VerifyRecover(allowed) => allow(allowed, KeyOperation::Verify),
            Attribute::Derive(allowed) => allow(allowed, KeyOperation::Derive),
            Attribute::Extractable(is) => extractable = is,
            Attribute::Sensitive(is) => sensitive = is,
            Attribute::NeverExtractable(is) => never = Some(is),
            _ => {}
        }
    }
    let strip = |number: Vec<u8>| number.iter().copied().skip_while(|byte| *byte == 0).collect();
    let spec = match (kind, private) {
        (Some(KeyType::AES), false) => {
            ExternalKeySpec::Aes(u32::try_from(value_len.unwrap_or(0).saturating_mul(8)).unwrap_or(0))
        }
        (Some(KeyType::RSA), true) => ExternalKeySpec::Rsa(RsaPublicKey { n: strip(modulus), e: strip(exponent) }),
        (Some(kind), _) => ExternalKeySpec::Other(kind.to_string()),
        (None, _) => ExternalKeySpec::Other("unknown".into()),
    };
    let usage: KeyOperations = usage.into_iter().collect();
    Ok((object, ExternalKey { spec, usage, extractable, sensitive, was_extractable: never.map(|never| !never) }))
}
