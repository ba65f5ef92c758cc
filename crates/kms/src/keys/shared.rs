//! What many keys have alike is held once: regions, accounts, policies. It goes with the last key that has it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Weak},
};

use crate::policy::{MalformedPolicy, PolicyDocument, PolicyKind};

/// So many values may be gone before somebody looks for them.
const GONE_MIN: usize = 64;

/// Values by the hash of their text. Of two texts with one hash, the older is held once more: that costs memory, and nothing else.
struct Pool<T: ?Sized> {
    values: HashMap<u64, Weak<T>>,
    hasher: RandomState,
    /// How many may be there before those that are gone are looked for.
    full: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashMap::new(), hasher: RandomState::new(), full: GONE_MIN }
    }
}

impl<T: ?Sized + AsRef<str>> Pool<T> {
    fn get<E>(&mut self, text: &str, make: impl FnOnce() -> Result<Arc<T>, E>) -> Result<Arc<T>, E> {
        let hash = self.hasher.hash_one(text);
        let held = self.values.get(&hash).and_then(Weak::upgrade);
        if let Some(held) = held.filter(|held| (**held).as_ref() == text) {
            return Ok(held);
        }
        if self.values.len() >= self.full {
            self.sweep();
        }
        let made = make()?;
        self.values.insert(hash, Arc::downgrade(&made));
        Ok(made)
    }

    fn sweep(&mut self) {
        self.values.retain(|_, value| value.strong_count() > 0);
        self.values.shrink_to(2 * self.values.len());
        self.full = GONE_MIN.max(2 * self.values.len());
    }
}

/// The texts and policies of the keys in memory.
#[derive(Default)]
pub(crate) struct Shared {
    texts: Pool<str>,
    policies: Pool<PolicyDocument>,
    /// Keys that went since the last sweep.
    gone: usize,
}

impl Shared {
    pub(crate) fn text(&mut self, text: &str) -> Arc<str> {
        let made: Result<_, std::convert::Infallible> = self.texts.get(text, || Ok(text.into()));
        let Ok(text) = made;
        text
    }

    /// A key's policy that was taken before.
    pub(crate) fn policy(&mut self, text: &str) -> Result<Arc<PolicyDocument>, MalformedPolicy> {
        self.policies.get(text, || PolicyDocument::parse_stored(PolicyKind::Key, text).map(Arc::new))
    }

    /// A key is gone, and perhaps what it alone had.
    pub(crate) fn gone(&mut self) {
        self.gone += 1;
        if self.gone >= GONE_MIN.max(self.policies.values.len() / 2) {
            self.gone = 0;
            self.policies.sweep();
            self.texts.sweep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(sid: usize) -> String {
        format!(
            r#"{{"Version":"2012-10-17","Statement":[{{"Sid":"{sid}","Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*"}}]}}"#
        )
    }

    #[test]
    fn the_same_is_held_once_and_the_other_apart() {
        let mut shared = Shared::default();
        let (one, two) = (shared.policy(&policy(1)).unwrap(), shared.policy(&policy(2)).unwrap());
        assert!(Arc::ptr_eq(&one, &shared.policy(&policy(1)).unwrap()));
        assert!(!Arc::ptr_eq(&one, &two));
        assert_eq!((one.text(), two.text()), (&*policy(1), &*policy(2)));
        // The letter counts, and not what it means.
        assert!(!Arc::ptr_eq(&one, &shared.policy(&format!("{} ", policy(1))).unwrap()));
        let region = shared.text("us-east-1");
        assert!(Arc::ptr_eq(&region, &shared.text("us-east-1")));
        assert!(shared.policy("{").is_err());
    }

    #[test]
    fn a_hash_that_two_texts_have_confuses_nobody() {
        let mut shared = Shared::default();
        let one = shared.policy(&policy(1)).unwrap();
        let hash = shared.policies.hasher.hash_one(policy(2).as_str());
        shared.policies.values.insert(hash, Arc::downgrade(&one));
        assert_eq!(shared.policy(&policy(2)).unwrap().text(), policy(2));
    }

    #[test]
    fn what_nobody_has_goes() {
        let mut shared = Shared::default();
        // One after the other, as a key whose policy is changed again and again.
        for sid in 0..10_000 {
            drop(shared.policy(&policy(sid)).unwrap());
            assert!(shared.policies.values.len() <= GONE_MIN);
        }
        let held: Vec<_> = (0..10_000).map(|sid| shared.policy(&policy(sid)).unwrap()).collect();
        assert_eq!(shared.policies.values.len(), 10_000);
        let weak: Vec<_> = held.iter().map(Arc::downgrade).collect();
        for policy in held {
            drop(policy);
            shared.gone();
        }
        assert!(weak.iter().all(|policy| policy.upgrade().is_none()));
        assert!(shared.policies.values.len() <= 2 * GONE_MIN, "{}", shared.policies.values.len());
    }
}
