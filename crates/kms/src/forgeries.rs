//! What must not compile: `cargo xtask check` tries, and expects the error that stands beside each attempt.

use std::sync::Arc;

use crate::{
    call::GrantTokens,
    keys::KeyEntry,
    usable::{Enabled, Usable},
};

fn an_enabled_key(key: &KeyEntry) -> Enabled<'_> {
    Enabled { 0: key } //~ E0451
}

fn a_usable_key(key: Arc<KeyEntry>) -> Usable {
    Usable { key } //~ E0451
}

fn tokens_that_nobody_looked_at() -> GrantTokens {
    GrantTokens { 0: () } //~ E0451
}
