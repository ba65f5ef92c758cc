//! Time and randomness: what a pure core must be given.

/// A moment: milliseconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the epoch.
    #[must_use]
    pub const fn from_unix_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// From seconds since the epoch; saturates at the ends of the range.
    #[must_use]
    pub fn from_unix_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(1000))
    }

    /// Milliseconds since the epoch.
    #[must_use]
    pub fn unix_millis(self) -> i64 {
        self.0
    }

    /// Whole seconds since the epoch, rounded down.
    #[must_use]
    pub fn unix_secs(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// The world's clock and entropy. In production the operating system; in tests a script.
pub trait Ambient: Send + Sync {
    /// The time now. It may step: nothing may rely on it being monotonic.
    fn now(&self) -> Timestamp;

    /// Fills `out` with random bytes fit for keys.
    fn fill(&self, out: &mut [u8]);
}

impl dyn Ambient + '_ {
    /// `N` random bytes.
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}
