//! Doors for the fuzz targets (`fuzz/`), compiled with `--cfg fuzzing` alone: every reader of outside bytes.

use holdfast_core::Timestamp;
use holdfast_crypto::KeyMaterial;
use http::Method;

use crate::{
    authn, keys,
    query::Query,
    release_policy, rotation,
    route::{Route, Scope},
    wire,
};

/// Method, path and query. What was read must say what it is without a panic.
pub fn request_line(method: u8, path: &str, query: &str) {
    let methods = [Method::GET, Method::PUT, Method::POST, Method::PATCH, Method::DELETE];
    if let Ok(route) = Route::parse(&methods[usize::from(method) % methods.len()], path) {
        let _ = (route.operation(), route.intent(), route.key());
    }
    let query = Query::parse(Some(query));
    let _ = query.check_api_version(path);
    if let Some(scope) = Scope::from_wire(path) {
        assert_eq!(Scope::from_wire(&scope.to_wire()), Some(scope));
    }
}

/// A body, read as every operation would.
pub fn body(body: &[u8]) {
    if let Ok(request) = wire::parse::<wire::ImportRequest>(body)
        && let Ok(key) = request.key.to_imported()
        && let Ok(material) = KeyMaterial::import(key)
    {
        // What was taken in can be used.
        assert!(material.load().is_ok());
    }
    if let Ok(policy) = wire::parse::<wire::RotationPolicyBody>(body)
        && let Ok(Some(policy)) = rotation::check(policy, None, Timestamp::default())
    {
        let _ = rotation::expiry(&policy, Timestamp::default());
    }
    if let Ok(stored) = serde_json::from_slice::<keys::StoredKey>(body) {
        let _ = stored.into_entry(1);
    }
    let _ = release_policy::check(body);
    let _ = wire::parse::<wire::CreateRequest>(body);
    let _ = wire::parse::<wire::CryptoRequest>(body);
    let _ = wire::parse::<wire::RandomRequest>(body);
    let _ = wire::parse::<wire::TransferBlob>(body);
    let _ = wire::parse::<wire::UpdateRequest>(body);
    let _ = wire::parse::<wire::Value>(body);
}

/// A bearer token that nobody signed must never verify under any key of a set that somebody else wrote.
pub fn token(token: &str, key_set: &[u8]) {
    authn::fuzz(token, key_set);
}
