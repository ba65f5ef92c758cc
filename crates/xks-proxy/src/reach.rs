//! What HSM users could do: one that can use all keys is one theft away from using all.

use std::{collections::HashSet, sync::PoisonError};

use holdfast_core::TokenObject;

use crate::{XksProxy, error::Refusal};

impl XksProxy {
    /// Counts, for each HSM user, the keys that it can use although the policy does not name them for it; and remembers it.
    pub async fn foreign_keys(&self) -> Vec<(String, usize)> {
        let mut found = Vec::new();
        for (name, hsm) in &self.hsms {
            let Ok(keys) = hsm.list(self.limits.body_timeout).await else { continue };
            let governed = self.governed();
            let ours: HashSet<&TokenObject> = governed
                .policy
                .keys()
                .filter(|key| key.hsms.contains(name))
                .flat_map(|key| key.versions())
                .map(|(_, object)| object)
                .chain(self.health_keys.get(name))
                .collect();
            let foreign = keys.iter().filter(|(object, _)| !is_named(object, &ours)).count();
            found.push((name.clone(), foreign));
        }
        *self.foreign.lock().unwrap_or_else(PoisonError::into_inner) = found.iter().cloned().collect();
        found.retain(|(_, foreign)| *foreign > 0);
        found
    }

    /// Refuses an HSM user that is to have its own keys only, and has others, or was not looked at yet.
    pub(crate) fn check_reach(&self, hsm: &str) -> Result<(), Refusal> {
        if !self.own_keys_only.contains(hsm) {
            return Ok(());
        }
        match self.foreign.lock().unwrap_or_else(PoisonError::into_inner).get(hsm) {
            Some(0) => Ok(()),
            Some(keys) => Err(Refusal::Blocked(format!(
                "HSM user {hsm:?} can use {keys} keys that the policy does not name for it, and is to have its own only"
            ))),
            None => Err(Refusal::Dependency("the HSM user was not looked at yet".into())),
        }
    }
}

/// Whether any of the names that a policy has is one of this object's: label, id, or both.
fn is_named(object: &TokenObject, ours: &HashSet<&TokenObject>) -> bool {
    let label = TokenObject { label: object.label.clone(), id: None };
    let id = TokenObject { label: None, id: object.id.clone() };
    [object, &label, &id].into_iter().any(|name| *name != TokenObject::default() && ours.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let object = TokenObject { label: Some("a".into()), id: Some(vec![1]) };
        let named = |name: &TokenObject| is_named(&object, &HashSet::from([name]));
        assert!(named(&TokenObject::labelled("a")));
        assert!(named(&TokenObject { label: None, id: Some(vec![1]) }));
        assert!(named(&object));
        assert!(!named(&TokenObject::labelled("b")));
        assert!(!named(&TokenObject { label: Some("a".into()), id: Some(vec![2]) }));
        assert!(!is_named(&TokenObject::default(), &HashSet::from([&TokenObject::default()])));
    }
}
