//! What is tried again and again is told when it begins to fail, and when that is over: a log tells of each change of state, and not of each attempt.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Whether something fails that is tried again and again.
#[derive(Debug, Default)]
pub struct Trouble(AtomicBool);

impl Trouble {
    /// It failed. True: it did not when it was tried last, and that is to be told.
    #[must_use]
    pub fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    /// It went well. True: it failed when it was tried last, and that is over.
    pub fn ends(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }
}

/// The same of many things, each by its name, which are tried in rounds.
#[derive(Debug, Default)]
pub struct Troubles(Mutex<Rounds>);

#[derive(Debug, Default)]
struct Rounds {
    before: BTreeSet<String>,
    now: BTreeSet<String>,
}

impl Troubles {
    fn lock(&self) -> MutexGuard<'_, Rounds> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All are tried once more: what does not fail now fails no more.
    pub fn round(&self) {
        let mut rounds = self.lock();
        rounds.before = std::mem::take(&mut rounds.now);
    }

    /// It failed. True: not in the round before, nor in this one so far, and that is to be told.
    #[must_use]
    pub fn begins(&self, name: &str) -> bool {
        let mut rounds = self.lock();
        let is_new = !rounds.before.contains(name) && !rounds.now.contains(name);
        rounds.now.insert(name.to_owned());
        is_new
    }

    /// It could not be told that it fails: it is to be told when it fails again.
    pub fn untold(&self, name: &str) {
        let mut rounds = self.lock();
        rounds.before.remove(name);
        rounds.now.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_told_once() {
        let trouble = Trouble::default();
        assert!(!trouble.ends());
        for _ in 0..2 {
            assert!(trouble.begins() && !trouble.begins() && !trouble.begins());
            assert!(trouble.ends() && !trouble.ends());
        }
    }

    #[test]
    fn of_many_each_is_told_once_until_it_goes_well_for_a_round() {
        let troubles = Troubles::default();
        for _ in 0..2 {
            assert!(troubles.begins("a") && !troubles.begins("a") && troubles.begins("b"));
            troubles.round();
            assert!(!troubles.begins("a"));
            troubles.round();
            assert!(!troubles.begins("a") && troubles.begins("b"), "b went well for a round");
            troubles.round();
            troubles.round();
        }
    }

    #[test]
    fn what_could_not_be_told_is_told_when_it_fails_again() {
        let troubles = Troubles::default();
        for round in 0..3 {
            assert!(troubles.begins("a"));
            assert_eq!(troubles.begins("b"), round == 0, "the control");
            troubles.untold("a");
            troubles.round();
        }
    }
}
