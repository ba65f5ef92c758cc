//! An authenticated request on its way through a dialect.

use std::{sync::Arc, time::Instant};

use holdfast_core::{ExternalKeyId, Principal};

use crate::{
    XksProxy,
    authn::Proved,
    error::Refusal,
    policy::{KeyStore, PolicyKey},
    state::Governed,
    using::{Told, Use},
};

/// An authenticated request on its way through a dialect.
pub(crate) struct Call<'a> {
    pub proxy: &'a XksProxy,
    pub governed: &'a Governed,
    pub store: &'a Arc<KeyStore>,
    pub body: &'a [u8],
    pub key: Option<ExternalKeyId>,
    pub principal: Principal,
    pub deadline: Instant,
    pub told: &'a mut Told,
    pub context: &'a mut Vec<(&'static str, String)>,
}

impl<'a> Call<'a> {
    /// The key that the path names, if this store offers it and no switch stops it.
    pub(crate) fn key(&self) -> Result<Arc<PolicyKey>, Refusal> {
        let id = self.key.as_ref().ok_or(Refusal::UnknownPath)?;
        let key = self.governed.policy.key(id).filter(|_| self.store.offers(id));
        key.cloned().ok_or(Refusal::KeyNotFound)
    }

    pub(crate) fn principal_name(&self) -> String {
        self.principal.object_id().to_owned()
    }

    /// Tells the audit log something more.
    pub(crate) fn tell(&mut self, name: &'static str, value: &str) {
        self.context.push((name, value.to_owned()));
    }

    pub(crate) fn using<'b>(&'b mut self, key: &'b PolicyKey, caller: Proved<'b>, version: u32) -> Use<'b> {
        self.told.version = Some(version);
        Use {
            proxy: self.proxy,
            governed: self.governed,
            store: self.store,
            key,
            principal: &self.principal,
            caller,
            deadline: self.deadline,
            told: self.told,
        }
    }
}
