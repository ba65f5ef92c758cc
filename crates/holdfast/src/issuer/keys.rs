//! The keys that the issuer signs with. They outlive the process: a restart turns nobody's token into one that nobody knows. A new one is published
//! before it signs, and an old one as long as a token may rest on it.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use holdfast_core::{Ambient, Change, Decided, Itself, Record, RecordKey, Store, Timestamp, Write};
use holdfast_crypto::{KeyMaterial, KeySpec, LoadedKey, RsaSize, SecretBytes, kdf, secret::erase};
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

use super::TOKEN_SECS;
use crate::{fault::Fault, history};

/// A key of the issuer, among the records of its instance, for ever. Id: the key's id.
const KIND: u8 = 7;
/// First byte of a record: which layout follows.
const FORMAT: u8 = 1;
const SPEC: KeySpec = KeySpec::Rsa { size: RsaSize::Bits2048, exponent: 65537 };
/// How old a key is when the next one is made.
const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a key is published before it signs: whoever keeps a copy of the keys has seen it by then.
const PUBLISHED_BEFORE: Duration = Duration::from_secs(24 * 3600);
/// How long the one before it is published after that: as long as a token holds, and a clock may be wrong.
const PUBLISHED_AFTER: Duration = Duration::from_secs(TOKEN_SECS.unsigned_abs() + 3600);

/// A key that is older than now by less than nothing, but not more than this, is a matter of two clocks.
const CLOCK_SKEW_MILLIS: i64 = 24 * 3600 * 1000;
/// Keys at once: two of 90 days, and those that wrong clocks have made.
const KEYS_MAX: usize = 8;

/// What the keys are now.
pub(super) struct Keys {
    all: Vec<Arc<Key>>,
    /// The place of the one that signs.
    signing: usize,
    /// The public parts, as a JWK set.
    pub jwks: String,
}

struct Key {
    id: [u8; 16],
    created: Timestamp,
    encoding: EncodingKey,
    jwk: Value,
    record_version: u64,
}

impl Keys {
    fn new(all: Vec<Arc<Key>>, now: Timestamp) -> Result<Self, Fault> {
        let signing = planned(&all, now).signing.ok_or_else(|| Fault::new("the issuer has no key"))?;
        let jwks = json!({"keys": all.iter().map(|key| &key.jwk).collect::<Vec<_>>()}).to_string();
        Ok(Self { all, signing, jwks })
    }

    /// The key that signs, and its `kid`.
    pub(super) fn signing(&self) -> (&EncodingKey, String) {
        let key = &self.all[self.signing];
        (&key.encoding, URL_SAFE_NO_PAD.encode(key.id))
    }
}

/// What is to be done about keys of these ages, the oldest first.
#[derive(Debug, Eq, PartialEq)]
struct Plan {
    /// A new one is due.
    make: bool,
    /// So many of the oldest are of no use any more.
    drop: usize,
    /// The place of the one that signs; none if there are no keys.
    signing: Option<usize>,
}

fn planned(keys: &[Arc<Key>], now: Timestamp) -> Plan {
    plan(&keys.iter().map(|key| key.created).collect::<Vec<_>>(), now)
}

fn plan(created: &[Timestamp], now: Timestamp) -> Plan {
    let age = |at: &Timestamp| {
        Duration::from_millis(now.unix_millis().saturating_sub(at.unix_millis()).try_into().unwrap_or(0))
    };
    // One that a clock made far in the future says nothing of when the next one is due, and is kept: that clock may have been right.
    let latest = now.unix_millis().saturating_add(CLOCK_SKEW_MILLIS);
    let ages: Vec<Duration> = created.iter().take_while(|at| at.unix_millis() <= latest).map(age).collect();
    let first = (!created.is_empty()).then_some(0);
    let signing = ages.iter().rposition(|age| *age >= PUBLISHED_BEFORE).or(first);
    let signs_alone = |at: &usize| ages.get(*at).is_some_and(|age| *age >= PUBLISHED_BEFORE + PUBLISHED_AFTER);
    Plan {
        make: ages.last().is_none_or(|age| *age >= LIFE) && created.len() < KEYS_MAX,
        drop: signing.filter(signs_alone).unwrap_or(0),
        signing,
    }
}

/// The keys, and where they are kept.
pub(super) struct KeyKeeper {
    store: Arc<dyn Store>,
    ambient: Arc<dyn Ambient>,
    now: ArcSwap<Keys>,
}

impl KeyKeeper {
    /// Reads the keys, and makes the first.
    pub(super) async fn open(store: Arc<dyn Store>, ambient: Arc<dyn Ambient>) -> Result<Self, Fault> {
        let found = read(store.as_ref()).await?;
        let all = match tended(store.as_ref(), ambient.as_ref(), found.clone()).await {
            // What is due can wait until the store takes it, if there is a key.
            Err(error) if !found.is_empty() => {
                tracing::error!(%error, "the issuer's keys could not be changed; the old ones stay");
                found
            }
            other => other?,
        };
        let now = ArcSwap::from_pointee(Keys::new(all, ambient.now())?);
        Ok(Self { store, ambient, now })
    }

    pub(super) fn now(&self) -> Arc<Keys> {
        self.now.load_full()
    }

    /// Lets another key sign, makes the next one, and drops old ones, when it is time.
    pub(super) async fn tend(&self) -> Result<(), Fault> {
        // Which one signs is a matter of time alone, whatever becomes of the store.
        self.now.store(Arc::new(Keys::new(self.now.load().all.clone(), self.ambient.now())?));
        let all = tended(self.store.as_ref(), self.ambient.as_ref(), read(self.store.as_ref()).await?).await?;
        self.now.store(Arc::new(Keys::new(all, self.ambient.now())?));
        Ok(())
    }

    /// Whether there is something to tend.
    pub(super) fn is_due(&self) -> bool {
        let now = self.now.load();
        let plan = planned(&now.all, self.ambient.now());
        plan.make || plan.drop > 0 || plan.signing != Some(now.signing)
    }
}

async fn read(store: &dyn Store) -> Result<Vec<Arc<Key>>, Fault> {
    let mut records = Vec::new();
    store.scan(KIND, &mut |record| records.push(record)).await.map_err(Fault::new)?;
    let mut all = records.into_iter().map(|record| decode(record).map(Arc::new)).collect::<Result<Vec<_>, Fault>>()?;
    all.sort_by_key(|key| (key.created, key.id));
    Ok(all)
}

/// The keys after what was due.
async fn tended(store: &dyn Store, ambient: &dyn Ambient, mut all: Vec<Arc<Key>>) -> Result<Vec<Arc<Key>>, Fault> {
    let Plan { make, drop, .. } = planned(&all, ambient.now());
    for key in all.drain(..drop) {
        let write = Write { key: record_key(&key.id), expected_version: key.record_version, value: None };
        commit(store, ambient, "IssuerKeyDelete", &key.id, write).await?;
    }
    if make {
        // It takes a while.
        let material = tokio::task::spawn_blocking(|| KeyMaterial::generate(SPEC, |_| ())).await;
        let material = material.map_err(Fault::new)?.map_err(Fault::new)?;
        let created = ambient.now();
        let value = encode(created, &material);
        let key = key_of(created, material, 1)?;
        let write = Write { key: record_key(&key.id), expected_version: 0, value: Some(value) };
        commit(store, ambient, "IssuerKeyCreate", &key.id, write).await?;
        all.push(Arc::new(key));
        all.sort_by_key(|key| (key.created, key.id));
    }
    Ok(all)
}

async fn commit(
    store: &dyn Store,
    ambient: &dyn Ambient,
    operation: &'static str,
    id: &[u8; 16],
    write: Write,
) -> Result<(), Fault> {
    let context = vec![("kid", URL_SAFE_NO_PAD.encode(id))];
    let reason = "a key that the embedded issuer signs with".to_owned();
    let event = history::event(ambient, operation, None, reason, context);
    let change = Change { writes: vec![write], event: Decided::by_itself(event, Itself::Configured) };
    store.commit(change).await.map(drop).map_err(Fault::new)
}

fn record_key(id: &[u8; 16]) -> RecordKey {
    RecordKey::new(KIND, id.as_slice())
}

/// Format (1), when it was made in milliseconds since 1970 (8), PKCS #8.
fn encode(created: Timestamp, material: &KeyMaterial) -> Vec<u8> {
    [&[FORMAT], created.unix_millis().to_be_bytes().as_slice(), material.expose_canonical()].concat()
}

fn decode(mut record: Record) -> Result<Key, Fault> {
    let parts = record.value.split_first().and_then(|(format, rest)| {
        let (created, material) = rest.split_first_chunk::<8>()?;
        (*format == FORMAT).then(|| (i64::from_be_bytes(*created), SecretBytes::copy_of(material)))
    });
    erase(&mut record.value);
    let (created, material) =
        parts.ok_or_else(|| Fault::new("a key of the issuer is of a version that is not known"))?;
    let material = KeyMaterial::from_canonical(SPEC, material);
    key_of(Timestamp::from_unix_millis(created), material, record.version)
}

fn key_of(created: Timestamp, material: KeyMaterial, record_version: u64) -> Result<Key, Fault> {
    // The library takes PKCS #1, which is the last member of PKCS #8.
    let pkcs1 = material.expose_rsa_pkcs1().ok_or_else(|| Fault::new("the issuer's key is not RSA"))?;
    let encoding = EncodingKey::from_rsa_der(pkcs1);
    let LoadedKey::Rsa(loaded) = material.load().map_err(Fault::new)? else {
        return Err(Fault::new("the issuer's key is not RSA"));
    };
    let public = loaded.public();
    let mut id = [0; 16];
    id.copy_from_slice(&kdf::sha256(&[&public.n])[..16]);
    let text = |number: &[u8]| URL_SAFE_NO_PAD.encode(number);
    let jwk = json!({
        "kty": "RSA",
        "use": "sig",
        "alg": "RS256",
        "kid": text(&id),
        "n": text(&public.n),
        "e": text(&public.e),
    });
    Ok(Key { id, created, encoding, jwk, record_version })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_900_000_000;

    fn made_ago(ages: &[Duration]) -> Vec<Timestamp> {
        let at = |age: &Duration| Timestamp::from_unix_secs(NOW - i64::try_from(age.as_secs()).unwrap());
        ages.iter().map(at).collect()
    }

    fn planned_for(ages: &[Duration]) -> (bool, usize, Option<usize>) {
        let Plan { make, drop, signing } = plan(&made_ago(ages), Timestamp::from_unix_secs(NOW));
        (make, drop, signing)
    }

    #[test]
    fn a_key_is_published_before_it_signs_and_as_long_as_tokens_rest_on_it() {
        let (zero, second) = (Duration::ZERO, Duration::from_secs(1));
        assert_eq!(planned_for(&[]), (true, 0, None));
        assert_eq!(planned_for(&[zero]), (false, 0, Some(0)), "the first signs at once");
        assert_eq!(planned_for(&[LIFE - second]), (false, 0, Some(0)));
        assert_eq!(planned_for(&[LIFE]), (true, 0, Some(0)));
        assert_eq!(planned_for(&[LIFE, zero]), (false, 0, Some(0)), "the next one is published, and does not sign yet");
        assert_eq!(planned_for(&[LIFE + PUBLISHED_BEFORE, PUBLISHED_BEFORE]), (false, 0, Some(1)));
        let after = PUBLISHED_BEFORE + PUBLISHED_AFTER;
        assert_eq!(
            planned_for(&[LIFE + after, after - second]),
            (false, 0, Some(1)),
            "tokens of the old one may be about"
        );
        assert_eq!(planned_for(&[LIFE + after, after]), (false, 1, Some(1)));
    }

    #[test]
    fn a_clock_that_goes_back_takes_no_key_away() {
        let (now, soon) = (Timestamp::from_unix_secs(NOW), Timestamp::from_unix_secs(NOW + 3600));
        assert_eq!(plan(&[soon], now), Plan { make: false, drop: 0, signing: Some(0) });
        let far = plan(&[Timestamp::from_unix_millis(i64::MIN)], Timestamp::from_unix_millis(i64::MAX));
        assert_eq!(far, Plan { make: true, drop: 0, signing: Some(0) });
        // One that was made while the clock stood years ahead stops no other from being made, and stays.
        let ahead = Timestamp::from_unix_secs(NOW + 1_000_000_000);
        assert_eq!(plan(&[ahead], now), Plan { make: true, drop: 0, signing: Some(0) });
        let old = made_ago(&[LIFE]);
        assert_eq!(plan(&[old[0], ahead], now), Plan { make: true, drop: 0, signing: Some(0) });
        assert_eq!(plan(&[old[0], now, ahead], now), Plan { make: false, drop: 0, signing: Some(0) });
        // However often.
        assert_eq!(plan(&[ahead; KEYS_MAX], now), Plan { make: false, drop: 0, signing: Some(0) });
    }

    #[test]
    fn records_come_back_as_they_were_written_and_others_are_refused() {
        let material = KeyMaterial::generate(SPEC, |_| ()).unwrap();
        let value = encode(Timestamp::from_unix_millis(7), &material);
        assert_eq!(value[..9], [1, 0, 0, 0, 0, 0, 0, 0, 7]);
        let record = |value: Vec<u8>| Record { key: RecordKey::new(KIND, []), version: 3, value };
        let key = decode(record(value.clone())).unwrap();
        assert_eq!((key.created, key.record_version), (Timestamp::from_unix_millis(7), 3));
        assert_eq!(
            record_key(&key.id).id,
            kdf::sha256(&[&URL_SAFE_NO_PAD.decode(key.jwk["n"].as_str().unwrap()).unwrap()])[..16]
        );
        for bad in [&[][..], &[1], &[1, 0, 0], &[2, 0, 0, 0, 0, 0, 0, 0, 7], &[1, 0, 0, 0, 0, 0, 0, 0, 7, 0]] {
            assert!(decode(record(bad.to_vec())).is_err());
        }
    }
}
