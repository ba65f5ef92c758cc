//! A state that is older than what is known of: operators accept it, as many as a change takes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use holdfast_core::{Store, Write};
use serde::{Deserialize, Serialize};

use crate::{
    Heard, PulledKill,
    error::AdminError,
    quorum::{heard_key, kill_key, statement},
    state::{Governed, HeardRecord, Operators, OperatorsRecord, encode, put},
};

/// What operators accept: exactly this file in the place of what is known.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Always `accept-restore`: no request of another kind reads like this one.
    pub act: String,
    /// Hex id of the instance.
    pub instance: String,
    /// Generation of the state that lies there.
    pub found: u64,
    /// Its tag, hex.
    pub found_tag: String,
    /// The newest generation that is known of.
    pub newest: u64,
    /// Who knows of it.
    pub witness: String,
    /// Kills that are known of and gone: up to which number, by process.
    pub lost_kills: Heard,
    /// Processes that the state knows, and whose marks are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_processes: Vec<String>,
}

/// What operators have said of a restore so far. It lies beside the state, in clear: it holds signatures and no secret.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Acceptance {
    /// The restore, exactly as signed.
    pub text: String,
    /// Operators, each with a signature in Base64.
    pub signatures: Vec<(String, String)>,
}

/// As many of those who govern accept a restore as a change takes: their signatures were counted. [`Acceptance::tally`] makes it.
#[must_use]
pub struct Accepted {
    restore: Restore,
    by: Vec<String>,
}

impl Accepted {
    /// What they have signed.
    #[must_use]
    pub fn restore(&self) -> &Restore {
        &self.restore
    }

    /// Who.
    #[must_use]
    pub fn by(&self) -> &[String] {
        &self.by
    }
}

impl Acceptance {
    /// Of a restore; what was said of another one is dropped.
    ///
    /// # Errors
    /// [`AdminError::Record`] if it cannot be written.
    pub fn of(restore: &Restore, earlier: Option<Self>) -> Result<Self, AdminError> {
        let text = serde_json::to_string(restore).map_err(|error| AdminError::Record(error.to_string()))?;
        let earlier = earlier.filter(|earlier| earlier.text == text);
        Ok(earlier.unwrap_or(Self { text, signatures: Vec::new() }))
    }

    /// What an operator signs.
    #[must_use]
    pub fn statement(&self) -> String {
        statement(&self.text, true)
    }

    /// Takes a signature in.
    ///
    /// # Errors
    /// [`AdminError::Denied`] if it is not that operator's over exactly this.
    pub fn hear(&mut self, operator: &str, signature: &[u8], operators: &Operators) -> Result<(), AdminError> {
        let known = operators.named(operator);
        let known = known.ok_or_else(|| AdminError::Denied(format!("{operator:?} is not an operator")))?;
        if !known.key.verify(self.statement().as_bytes(), signature) {
            return Err(AdminError::Denied(format!("the signature is not one of {operator:?} over this restore")));
        }
        self.signatures.retain(|(name, _)| name != operator);
        self.signatures.push((operator.to_owned(), STANDARD.encode(signature)));
        Ok(())
    }

    /// What the signatures come to; if there are not enough, whose there are.
    ///
    /// # Errors
    /// [`AdminError::Record`] if the text is not that of a restore.
    pub fn tally(&self, operators: &Operators) -> Result<Result<Accepted, Vec<String>>, AdminError> {
        let by = self.accepted_by(operators);
        if by.len() < operators.threshold {
            return Ok(Err(by));
        }
        let restore = serde_json::from_str(&self.text).map_err(|error| AdminError::Record(error.to_string()))?;
        Ok(Ok(Accepted { restore, by }))
    }

    /// Whose signatures hold; each is verified again, since the file is open to be written.
    fn accepted_by(&self, operators: &Operators) -> Vec<String> {
        let statement = self.statement();
        let holds = |name: &str, signature: &str| {
            let signature = STANDARD.decode(signature).unwrap_or_default();
            operators.named(name).is_some_and(|operator| operator.key.verify(statement.as_bytes(), &signature))
        };
        let mut names: Vec<String> = self
            .signatures
            .iter()
            .filter(|(name, signature)| holds(name, signature))
            .map(|(name, _)| name.clone())
            .collect();
        names.sort();
        names.dedup();
        names
    }
}

/// Who governs a state, and which kills it has taken in.
///
/// # Errors
/// [`AdminError::Store`], [`AdminError::Record`].
pub async fn governors_of(store: &dyn Store) -> Result<(OperatorsRecord, Heard), AdminError> {
    let governed = Governed::read(store).await?;
    Ok((governed.operators.record(), governed.heard))
}

/// Settles the kills of an accepted state in one commit: those that are still to be read are in it, those that are lost no longer
/// count as missing.
///
/// # Errors
/// [`AdminError::Store`], [`AdminError::Record`].
pub async fn accept_restore(
    store: &dyn Store,
    mut heard: Heard,
    accepted: &Accepted,
    pulled: &[PulledKill],
) -> Result<(), AdminError> {
    let mut batch: Vec<Write> = Vec::new();
    for PulledKill { process, number, kill } in pulled {
        let last = heard.entry(process.clone()).or_default();
        *last = (*last).max(*number);
        let write = put(store, kill_key(&kill.scope), Some(encode(kill)?)).await?;
        batch.retain(|earlier| earlier.key != write.key);
        batch.push(write);
    }
    for (process, number) in &accepted.restore.lost_kills {
        let last = heard.entry(process.clone()).or_default();
        *last = (*last).max(*number);
    }
    batch.push(put(store, heard_key(), Some(encode(&HeardRecord { heard })?)).await?);
    Ok(store.keep(batch).await?)
}
