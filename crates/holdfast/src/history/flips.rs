//! Any bit of any file of an installation turns over: it does not open, and says why, or all is as it was, or what is damaged is told by whoever
//! serves it. It never panics, hangs, or tells something else.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::tests::copy;

/// How long an opening may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What an installation tells: by what was asked. `None`: a refusal.
#[derive(Debug, Default)]
pub(crate) struct Tells {
    pub content: BTreeMap<String, Option<Vec<u8>>>,
    /// Whether it tells of itself that something was not as it was left.
    pub complains: bool,
}

/// All that is random in a run: the same numbers for the same seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }

    /// Flips one bit: of any byte, or, half of the time, of one that is not zero, since files of rows are mostly room.
    fn flip(&mut self, bytes: &mut [u8]) -> (usize, u8) {
        let any = self.below(bytes.len());
        let at = match self.below(2) {
            0 => any,
            _ => (any..bytes.len()).chain(0..any).find(|at| bytes[*at] != 0).unwrap_or(any),
        };
        let bit = 1 << self.below(8);
        bytes[at] ^= bit;
        (at, bit)
    }
}

fn asked(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Files with something in them.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.metadata().is_ok_and(|data| data.is_file() && data.len() > 0) {
            found.push(path);
        }
    }
}

/// What a file is, among those of its kind.
fn kind(path: &Path) -> String {
    let name = path.file_name().unwrap().to_string_lossy();
    match path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy()) {
        Some(parent) if parent.len() == 2 || parent == "blobs" => "blobs".into(),
        _ if name.starts_with("audit-") => "audit".into(),
        _ => name.into_owned(),
    }
}

/// In memory, where there is such a place: these tests sync thousands of times.
pub(crate) fn place() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() }.unwrap()
}

/// Flips in the gate are `flips`; `HOLDFAST_FLIPS` asks for more of each test, `HOLDFAST_FLIPS_SEED` for those of another run. `made` is an
/// installation that was closed, and `open` opens a copy of it, asks for all that there is, changes something, and closes it.
pub(crate) async fn flips(
    role: &str,
    part: u64,
    flips: u64,
    made: &Path,
    open: impl AsyncFn(&Path) -> Result<Tells, String>,
) {
    let seed = asked("HOLDFAST_FLIPS_SEED", 1) * 1000 + part;
    let mut numbers = Numbers(seed);
    let mut verdicts = BTreeMap::<(String, &str), u64>::new();
    let untouched = place();
    copy(made, untouched.path());
    let expected = open(untouched.path()).await.unwrap();
    assert!(!expected.complains && expected.content.values().all(Option::is_some), "control: {expected:?}");
    for round in 0..asked("HOLDFAST_FLIPS", flips) {
        let copied = place();
        copy(made, copied.path());
        let mut all = Vec::new();
        files(copied.path(), &mut all);
        all.sort();
        let path = &all[numbers.below(all.len())];
        let mut bytes = fs::read(path).unwrap();
        let flipped = numbers.flip(&mut bytes);
        fs::write(path, bytes).unwrap();
        let what = format!("{role}, round {round} of seed {seed}: {flipped:?} of {}", path.display());
        let opened = tokio::time::timeout(PATIENCE, open(copied.path())).await;
        let verdict = match opened.unwrap_or_else(|_| panic!("{what}: it hangs")) {
            Err(why) => {
                assert!(why.len() > 20, "{what}: {why}");
                "refused"
            }
            Ok(told) => judge(&expected, &told).unwrap_or_else(|why| panic!("{what}: {why}")),
        };
        *verdicts.entry((kind(path), verdict)).or_default() += 1;
    }
    for ((file, verdict), count) in &verdicts {
        println!("{role}: {file}: {verdict}: {count}");
    }
    assert!(verdicts.keys().any(|(_, verdict)| *verdict != "same"), "control: some are seen");
}

fn judge(expected: &Tells, told: &Tells) -> Result<&'static str, String> {
    let mut refused = false;
    for (asked, answer) in &expected.content {
        match told.content.get(asked) {
            Some(found) if found == answer => {}
            Some(None) => refused = true,
            // What is asked for by its name is never something else, whatever is told beside it.
            Some(Some(_)) if asked.starts_with("list") && told.complains => refused = true,
            other => return Err(format!("{asked}: {other:?}")),
        }
    }
    if told.content.len() != expected.content.len() {
        return Err(format!("it tells of {:?}", told.content.keys()));
    }
    Ok(if refused || told.complains { "told when it is served" } else { "same" })
}
