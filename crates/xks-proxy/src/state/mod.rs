//! What quorum governs: policy, credentials, PINs, callers, operators, kill switches. Read whole into memory, replaced whole.

mod kill;
mod record;

use std::{collections::HashMap, sync::Arc, time::Duration};

use holdfast_core::{RecordKey, StoreError, Write};
use holdfast_crypto::SecretBytes;
pub use kill::{KillScope, KillSwitch, Kills};
pub(crate) use record::decode;
use record::split_secret;
pub(crate) use record::{CallerMeta, CredentialMeta, HeardRecord, PinMeta, PolicyRecord};
pub use record::{Operator, OperatorRecord, Operators, OperatorsRecord};

use crate::{
    Beside, Heard, PulledKill,
    authn::{Credential, EnrolledCaller},
    commit::Look,
    error::AdminError,
    policy::Policy,
    quorum::Proposal,
    untold::Untold,
};

/// Kinds of records (`docs/formats/xks-records.md`).
pub(crate) mod kind {
    pub(crate) const OPERATORS: u8 = 1;
    pub(crate) const POLICY: u8 = 2;
    pub(crate) const CREDENTIAL: u8 = 3;
    pub(crate) const PIN: u8 = 4;
    pub(crate) const KILL: u8 = 5;
    pub(crate) const PROPOSAL: u8 = 6;
    pub(crate) const PROPOSAL_SECRET: u8 = 7;
    pub(crate) const CALLER: u8 = 8;
    pub(crate) const HEARD: u8 = 9;
    pub(crate) const UNTOLD: u8 = 10;
}

pub(crate) use record::{encode, encode_with_secret};

/// Times that a state is read when it changes under the reader...
const READS: u32 = 64;
/// ...and how much longer each waits than the one before: 2 s in all.
const READ_PAUSE: Duration = Duration::from_millis(1);
/// What a state is made of.
const KINDS: [u8; 9] = [
    kind::OPERATORS,
    kind::POLICY,
    kind::CREDENTIAL,
    kind::PIN,
    kind::KILL,
    kind::PROPOSAL,
    kind::CALLER,
    kind::HEARD,
    kind::UNTOLD,
];

/// One state of everything that quorum governs.
pub struct Governed {
    /// Who may use what.
    pub policy: Policy,
    /// Credentials by store.
    pub credentials: HashMap<String, Vec<Arc<Credential>>>,
    /// PINs by HSM user.
    pub pins: HashMap<String, Arc<SecretBytes>>,
    /// Kill switches that are pulled, whether the state has taken them in or not.
    pub kills: Kills,
    /// Which kills the state has taken in.
    pub heard: Heard,
    /// Those that it has not.
    pub pulled: Vec<PulledKill>,
    /// Events of changes that may not be in a log yet.
    pub(crate) untold: Vec<Untold>,
    /// Which state this is.
    pub generation: u64,
    /// Who approves changes.
    pub operators: Operators,
    /// Callers that can be proved, by access key id.
    pub callers: HashMap<String, EnrolledCaller>,
    /// Changes that were asked for.
    pub proposals: Vec<Proposal>,
}

impl Governed {
    /// Reads everything.
    ///
    /// # Errors
    /// [`AdminError::Store`], [`AdminError::Record`].
    pub(crate) async fn load(store: &(impl Look + ?Sized), beside: &dyn Beside) -> Result<Self, AdminError> {
        for read in 0..READS {
            if read > 0 {
                tokio::time::sleep(READ_PAUSE * read).await;
            }
            let generation = beside.generation()?;
            let mut governed = Self::read(store).await?;
            // Of one piece: nothing was committed between the first look and the last.
            if beside.generation()? == generation {
                governed.generation = generation;
                governed.pulled = beside.pulled(&governed.heard)?;
                for pulled in &governed.pulled {
                    governed.kills.insert(pulled.kill.clone());
                }
                return Ok(governed);
            }
        }
        Err(AdminError::Store(StoreError::Busy))
    }

    /// Reads the state alone, without what lies beside it.
    pub(crate) async fn read(store: &(impl Look + ?Sized)) -> Result<Self, AdminError> {
        let mut governed = Self {
            policy: Policy::default(),
            credentials: HashMap::new(),
            pins: HashMap::new(),
            kills: Kills::default(),
            heard: Heard::new(),
            pulled: Vec::new(),
            untold: Vec::new(),
            generation: 0,
            operators: Operators::default(),
            callers: HashMap::new(),
            proposals: Vec::new(),
        };
        let mut result = Ok(());
        store
            .scan(&KINDS, &mut |mut record| {
                if result.is_ok() {
                    result = governed.take(record.key.kind, &record.value);
                }
                holdfast_crypto::secret::erase(&mut record.value);
            })
            .await?;
        result?;
        governed.proposals.sort_by_key(|proposal| proposal.request().created);
        for credentials in governed.credentials.values_mut() {
            credentials.sort_by_key(|credential| credential.created);
        }
        Ok(governed)
    }

    fn take(&mut self, kind: u8, value: &[u8]) -> Result<(), AdminError> {
        match kind {
            kind::OPERATORS => self.operators = decode::<OperatorsRecord>(value)?.check()?,
            kind::POLICY => {
                let text = decode::<PolicyRecord>(value)?.text;
                self.policy = Policy::parse(&text).map_err(|error| AdminError::Record(error.to_string()))?;
            }
            kind::CREDENTIAL => {
                let (meta, secret) = split_secret::<CredentialMeta>(value)?;
                let created = holdfast_core::Timestamp::from_unix_secs(meta.created);
                let credential = Credential::new(&meta.store, &meta.access_key_id, created, secret);
                self.credentials.entry(meta.store).or_default().push(Arc::new(credential));
            }
            kind::PIN => {
                let (meta, secret) = split_secret::<PinMeta>(value)?;
                self.pins.insert(meta.hsm, Arc::new(secret));
            }
            kind::KILL => self.kills.insert(decode(value)?),
            kind::PROPOSAL => self.proposals.push(Proposal::decode(value)?),
            kind::CALLER => {
                let (meta, secret) = split_secret::<CallerMeta>(value)?;
                let caller = EnrolledCaller { principal_arn: meta.principal_arn, secret };
                self.callers.insert(meta.access_key_id, caller);
            }
            kind::HEARD => self.heard = decode::<HeardRecord>(value)?.heard,
            kind::UNTOLD => self.untold.push(decode(value)?),
            _ => {}
        }
        Ok(())
    }

    /// How many events of changes may not be in a log yet.
    #[must_use]
    pub fn events_to_tell(&self) -> usize {
        self.untold.len()
    }

    /// Whether everything that `before` allowed a store's callers is allowed still, kill switches aside: nobody and nothing was taken away.
    pub(crate) fn allows_no_less_than(&self, before: &Self, store: &str) -> bool {
        let credentials = self.credentials_of(store);
        let is_there = |old: &Arc<Credential>| credentials.iter().any(|new| new.is_the_same_as(old));
        self.policy.text() == before.policy.text()
            && before.credentials_of(store).iter().all(is_there)
            && before.callers.iter().all(|(id, old)| self.callers.get(id).is_some_and(|new| new.is_the_same_as(old)))
    }

    /// The credentials of a store.
    #[must_use]
    pub fn credentials_of(&self, store: &str) -> &[Arc<Credential>] {
        self.credentials.get(store).map_or(&[], Vec::as_slice)
    }
}

/// The write that puts `value` in a record's place, whatever is there now.
pub(crate) async fn put(
    store: &(impl Look + ?Sized),
    key: RecordKey,
    value: Option<Vec<u8>>,
) -> Result<Write, AdminError> {
    let expected_version = store.read(&key).await?.map_or(0, |record| record.version);
    Ok(Write { key, expected_version, value })
}
