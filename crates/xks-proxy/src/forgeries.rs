//! What must not compile: `cargo xtask check` tries, and expects the error that stands beside each attempt.

use std::sync::Arc;

use holdfast_core::Store;

use crate::{
    XksProxy,
    authn::Proved,
    commit::State,
    policy::Question,
    quorum::{Approved, Refused, Word},
    restore::{Accepted, Restore},
};

fn a_proved_caller(question: Question<'_>) -> Proved<'_> {
    Proved { 0: question } //~ E0451
}

fn an_operators_word(proposal: String) -> Word {
    Word { proposal } //~ E0451
}

fn a_quorum(proposal: String) -> Approved {
    Approved { proposal } //~ E0451
}

fn a_refusal(proposal: String) -> Refused {
    Refused { proposal } //~ E0451
}

fn an_accepted_restore(restore: Restore, by: Vec<String>) -> Accepted {
    Accepted { restore, by } //~ E0451
}

fn the_store_behind_the_state(proxy: &XksProxy) -> Arc<dyn Store> {
    let State { 0: store } = &proxy.store; //~ E0451
    Arc::clone(store)
}
