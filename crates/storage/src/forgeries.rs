//! What must not compile: `cargo xtask check` tries, and expects the error that stands beside each attempt.

use std::sync::Arc;

use holdfast_core::{IndexWrite, Permit, Principal};

use crate::{
    call::{Act, Call, Facts},
    grant::{Change, Granted, Known, Upkeep, Whole},
    record::BucketRecord,
    s3::authn::Caller,
    view::View,
};

fn a_caller(principal: Principal, access_key: String, request: Arc<Facts>) -> Caller {
    Caller { principal, access_key, request } //~ E0451
}

fn a_bucket<'v>(granted: Granted<'v>, bucket: BucketRecord) -> Granted<'v> {
    Granted { bucket, ..granted } //~ E0451
}

fn a_call_for_another_act(call: &Call, act: Act) -> Call {
    let caller = call.caller().clone();
    Call { caller, act, about: Default::default(), settled: call.settled() } //~ E0451
}

fn a_look_at_a_bucket(bucket: BucketRecord) -> Known {
    Known { 0: bucket } //~ E0451
}

fn a_change(writes: Vec<IndexWrite>) -> Change {
    Change { writes, event: None, settles: None } //~ E0451
}

fn leave_of_its_own(permit: Permit) -> Upkeep {
    Upkeep { 0: permit } //~ E0451
}

fn all_buckets<'v>(view: &'v View<'v>) -> Whole<'v> {
    Whole { 0: view } //~ E0451
}
