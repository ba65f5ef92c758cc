//! The vocabulary of Holdfast and its seams.
//!
//! Roles (doors) and back ends (vault) meet here and nowhere else: a role sees [`Hsm`], [`Store`], [`AuditSink`] and
//! [`Ambient`], never an engine. The crate is pure: no clock, file, environment, async runtime or entropy source.
//!
//! A request flows one way, and each step is a type that only the step before can make:
//!
//! ```text
//! bytes -> wire request -> Principal -> Intent{action, resource} -> Permit -> Outcome -> wire reply
//! ```

mod access;
mod ambient;
mod audit;
mod audit_pull;
mod blob;
mod evidence;
mod external;
mod gate;
mod hex;
mod hsm;
mod index;
mod kek;
mod key;
mod open_keys;
mod principal;
mod sealer;
mod store;
mod trouble;

pub use access::{
    Action, BucketId, Decision, Denial, Intent, Permit, PermitMismatch, Policy, Resource, Spent, authorize,
};
pub use ambient::{Ambient, Timestamp};
pub use audit::{AuditError, AuditEvent, AuditOutcome, AuditSink};
pub use audit_pull::{
    AuditAsk, AuditHead, AuditLine, AuditPlace, AuditPullError, AuditPulled, AuditSource, AuditVerdict,
};
pub use blob::{BlobId, BlobStore, BlobWriter, OWNER_MARK_BYTES_MAX};
pub use evidence::{EvidenceClaims, EvidenceError, EvidenceVerifier};
pub use external::{
    ExternalHsm, ExternalKey, ExternalKeyId, ExternalKeySpec, ExternalOperation, ExternalOutcome, ExternalWrap,
    HsmHealth, HsmState, InvalidExternalKeyId, KeyFinding, TokenObject,
};
pub use gate::{CLEAR_WAIT_MAX, Gate, Holds, Pass, REMEMBERED, Reader};
pub use hex::hex;
pub use hsm::{
    AtThisMoment, CiphertextParts, EncryptionScheme, Hsm, HsmAdmin, HsmError, MaskedKey, Need, NewKey, OpenKey,
    Operation, Outcome, WrapScheme,
};
pub use index::{
    AcceptTold, Index, IndexChange, IndexDecision, IndexReader, IndexSets, IndexVisitor, IndexWrite, SetCheck, SetNames,
};
pub use kek::{DekWrapAlgorithm, KekError, KekService, WrappedDek};
pub use key::{
    InvalidName, KeyAttributes, KeyName, KeyOperation, KeyOperations, KeyVersion, KeyVersionId, PartitionId,
};
pub use open_keys::{OpenKeyError, OpenKeys};
pub use principal::{Principal, PrincipalKind};
pub use sealer::{SealError, Sealer};
pub use store::{
    Change, Changed, Committed, Decided, Itself, Projection, Record, RecordKey, Revision, Store, StoreError, Write,
};
pub use trouble::{Trouble, Troubles};
