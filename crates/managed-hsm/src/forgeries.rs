//! What must not compile: `cargo xtask check` tries, and expects the error that stands beside each attempt.

use holdfast_core::Operation;

use crate::{keys::Located, usable::Usable};

fn a_usable_key(located: &Located, operation: Operation) -> Usable<'_> {
    Usable { located, operation } //~ E0451
}
