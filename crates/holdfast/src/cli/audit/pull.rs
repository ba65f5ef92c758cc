//! `holdfast audit pull`: a copy of a log elsewhere, each line of it verified, which shows it when log or store are put back.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use bytes::Bytes;
use clap::Args;
use holdfast_core::{AuditHead, AuditLine, AuditVerdict, Revision};
use holdfast_store::audit::LogKey;
use holdfast_wire::audit_pull::HeadJson;
use serde::Serialize;

use super::{
    ask::{Asker, Source, Told, fresh_nonce},
    copy::{LogCopy, NotTaken},
};
use crate::fault::Fault;

#[derive(Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    source: Source,
    /// Directory of the copy; made if it is not there
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Fingerprint of the key that must sign the log; without it the first pull takes the one that it meets, and keeps to it
    #[arg(long, value_name = "HEX")]
    key: Option<String>,
    /// Go on as new lines come; a log that cannot be reached is asked again
    #[arg(long)]
    follow: bool,
    /// With --follow: seconds from one look to the next. Each look is itself a line of the log
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval: u64,
}

/// What is found wrong, and what shows it.
#[derive(Serialize)]
struct Evidence<'a> {
    what: &'a str,
    /// What the instance had signed before.
    known: Option<&'a HeadJson>,
    /// What was answered now. It is signed, unless that is what is wrong.
    answered: &'a HeadJson,
}

/// One look at a log, from where the copy ends to where the log ended at its first answer.
struct Look<'a> {
    asker: &'a Asker,
    key: Option<&'a str>,
    /// Heads that were signed and are not reached yet: their lines must come by.
    owed: VecDeque<AuditLine>,
    /// The newest change that the instance has signed for.
    revision: Revision,
    /// What the store has gone back from and to, if it has.
    gone_back: Option<(Revision, Revision)>,
    /// Whether lines that nobody signed for were set aside. Once is left over from before; twice is somebody between.
    set_aside: bool,
}

/// An answer that is signed, for what was asked.
struct Answer {
    head: AuditHead,
    json: HeadJson,
    key: LogKey,
    /// None: the log is of another history.
    lines: Option<(u64, u64, Bytes)>,
}

impl PullArgs {
    #[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command's data, and words beside it")]
    pub(crate) async fn run(self) -> Result<(), Fault> {
        let Self { source, to, key, follow, interval } = self;
        let asker = source.asker()?;
        let key = key.map(|key| key.to_ascii_lowercase());
        loop {
            match look(&asker, LogCopy::open(&to)?, key.as_deref()).await {
                Ok(said) => println!("{said}"),
                // The next look may find it again.
                Err(fault) if follow && fault.is_unavailable() => eprintln!("holdfast: {fault}"),
                Err(fault) => return Err(fault),
            }
            if !follow {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(interval)).await;
        }
    }
}

/// Looks once. Gives what there is to say.
async fn look(asker: &Asker, mut copy: LogCopy, key: Option<&str>) -> Result<String, Fault> {
    let state = copy.state();
    let known = state.and_then(|state| state.signed.read()).map(|(head, _)| head.head);
    let mut look = Look {
        asker,
        key,
        owed: known.filter(|line| line.seq > copy.end().line.seq).into_iter().collect(),
        revision: Revision(state.map_or(0, |state| state.revision)),
        gone_back: None,
        set_aside: false,
    };
    let before = copy.end().line.seq;
    let mut until = None;
    loop {
        let answer = look.ask(&copy).await?;
        let until = *until.get_or_insert(answer.head.head.seq);
        let Some(lines) = answer.lines.clone() else {
            copy = look.parted(copy, &answer)?;
            continue;
        };
        let came = !lines.2.is_empty();
        look.take(&mut copy, &answer, lines)?;
        if !came || copy.end().line.seq >= until {
            return look.conclude(&mut copy, before, &answer);
        }
    }
}

impl Look<'_> {
    /// Asks, and believes what is signed.
    async fn ask(&mut self, copy: &LogCopy) -> Result<Answer, Fault> {
        let (nonce, after) = (fresh_nonce(), copy.end());
        let log = copy.state().map(|state| state.log.as_str());
        let (json, lines) = match self.asker.ask(log, after, nonce).await? {
            Told::Lines { segment, offset, lines, head } => (head, Some((segment, offset, lines))),
            Told::Parted { head } => (head, None),
        };
        let wrong = |what: &str| found(copy, what, &json);
        let (head, signature) =
            json.read().ok_or_else(|| Fault::new("what was answered is no answer: its head cannot be read"))?;
        let key = match copy.key() {
            Some(key) => key.clone(),
            None => {
                let first = lines.as_ref().and_then(|(_, _, lines)| lines.split(|byte| *byte == b'\n').next());
                let key = first.and_then(LogKey::in_line);
                key.ok_or_else(|| Fault::new("the log does not begin with a line that names its key"))?
            }
        };
        let met_first = copy.state().map(|state| state.key.as_str());
        if self.key.or(met_first).is_some_and(|expected| expected != key.fingerprint()) {
            return Err(wrong(&format!("another key: the log is signed by {}", key.fingerprint())));
        }
        if !key.signed(&head, &signature) {
            return Err(wrong("another key: the answer is not signed by the instance that the copy is of"));
        }
        if head.nonce != nonce || head.after != after.line {
            return Err(wrong("an old answer: it is signed for another question than the one asked"));
        }
        if log.is_some_and(|log| head.log != log) {
            return Err(wrong(&format!("another log: this is {}", head.log)));
        }
        let answer = Answer { head, json, key, lines };
        self.compare(copy, &answer)?;
        Ok(answer)
    }

    /// Compares two signed heads: what was signed once does not become less.
    fn compare(&mut self, copy: &LogCopy, answer: &Answer) -> Result<(), Fault> {
        let head = &answer.head;
        if let Some((known, _)) = copy.state().and_then(|state| state.signed.read()) {
            let (was, is) = (known.head, head.head);
            if is.seq < was.seq {
                let what = format!(
                    "log put back: at {} the instance signed for line {}, and now its log ends at line {}",
                    known.time, was.seq, is.seq
                );
                return Err(found(copy, &what, &answer.json));
            }
            if is.seq == was.seq && is.hash != was.hash {
                let what =
                    format!("log replaced: line {} is another one than the one signed for at {}", is.seq, known.time);
                return Err(found(copy, &what, &answer.json));
            }
        }
        if head.revision < self.revision {
            self.gone_back = Some((self.gone_back.map_or(self.revision, |(from, _)| from), head.revision));
        } else {
            self.revision = head.revision;
        }
        if head.head.seq > copy.end().line.seq && self.owed.back().is_none_or(|owed| owed.seq < head.head.seq) {
            self.owed.push_back(head.head);
        }
        Ok(())
    }

    /// The log does not go on from where the copy ends. Lines that nobody has signed for may be the reason: then it is asked behind the last
    /// one that somebody has.
    #[expect(clippy::print_stderr, reason = "words beside the command's data")]
    fn parted(&mut self, copy: LogCopy, answer: &Answer) -> Result<LogCopy, Fault> {
        let (end, head) = (copy.end().line, answer.head.head);
        let what = match answer.head.verdict {
            AuditVerdict::Shorter => {
                format!("log put back: it ends at line {}, and the copy has line {}", head.seq, end.seq)
            }
            AuditVerdict::Differs => format!("log replaced: its line {} is another one than the copy's", end.seq),
            AuditVerdict::Continues => "a false answer: it refuses, and is signed for going on".to_owned(),
        };
        if answer.head.verdict == AuditVerdict::Continues || end == copy.proved().line {
            return Err(found(&copy, &what, &answer.json));
        }
        if std::mem::replace(&mut self.set_aside, true) {
            return Err(found(
                &copy,
                "log altered: lines are given that the log does not have, again and again",
                &answer.json,
            ));
        }
        let (copy, name) = copy.set_unproved_aside()?;
        eprintln!("holdfast: lines that were never signed for do not stand in the log; they are in {name} now");
        Ok(copy)
    }

    /// Takes lines into the copy, and what is known with them.
    fn take(
        &mut self,
        copy: &mut LogCopy,
        answer: &Answer,
        (segment, offset, lines): (u64, u64, Bytes),
    ) -> Result<(), Fault> {
        let (head, json) = (answer.head.head, &answer.json);
        // What is signed is known before the lines are there: whatever happens in between, it was signed.
        copy.remember(json.clone(), self.revision)?;
        if !lines.is_empty() {
            let owed = &self.owed;
            let is_known = |line: AuditLine| owed.iter().all(|owed| owed.seq != line.seq || owed.hash == line.hash);
            match copy.append((segment, offset), &lines, &answer.key, is_known) {
                Ok(()) => {}
                Err(NotTaken::File(fault)) => return Err(fault),
                Err(NotTaken::Lines(why)) => {
                    return Err(found(copy, &format!("log altered: its lines do not continue the copy: {why}"), json));
                }
            }
        }
        let end = copy.end().line;
        if end.seq > head.seq || (lines.is_empty() && end.seq < head.seq) {
            let what = format!(
                "log altered: the instance has signed for line {}, and line {} is the last one given",
                head.seq, end.seq
            );
            return Err(found(copy, &what, json));
        }
        if end.seq == head.seq {
            if end.hash != head.hash {
                let what = format!("log altered: line {} is not the one that the instance signed for", end.seq);
                return Err(found(copy, &what, json));
            }
            copy.prove_end();
        }
        while self.owed.front().is_some_and(|owed| owed.seq <= end.seq) {
            self.owed.pop_front();
        }
        copy.remember(json.clone(), self.revision)
    }

    /// What is to be said when the copy has what the log had.
    fn conclude(&self, copy: &mut LogCopy, before: u64, answer: &Answer) -> Result<String, Fault> {
        let accepted: Vec<String> = copy.accepted().iter().map(u64::to_string).collect();
        let accepted = accepted.join(", ");
        if let Some((from, to)) = self.gone_back {
            let went = format!(
                "store put back: the instance had signed for change {from}, and its store has come to change {to} only"
            );
            if accepted.is_empty() {
                return Err(found(copy, &went, &answer.json));
            }
            let fault =
                found(copy, &format!("{went}; somebody accepted that at the start in line {accepted}"), &answer.json);
            // Said once: from now on that is the store.
            copy.remember(answer.json.clone(), to)?;
            return Err(fault);
        }
        if !accepted.is_empty() {
            let what = format!(
                "log or store put back: at the start in line {accepted} they were not of one moment, and somebody accepted that"
            );
            return Err(found(copy, &what, &answer.json));
        }
        let (end, head) = (copy.end().line.seq, &answer.head);
        let new = end - before.min(end);
        Ok(format!("{new} new lines, up to line {end}, signed for at {}; key {}", head.time, answer.key.fingerprint()))
    }
}

/// Keeps what shows that something is wrong, and says it.
fn found(copy: &LogCopy, what: &str, answered: &HeadJson) -> Fault {
    let evidence = Evidence { what, known: copy.state().map(|state| &state.signed), answered };
    match copy.keep_evidence(&evidence) {
        Ok(name) => Fault::history(what)
            .hint(format!("what was signed is kept in {name} beside the copy; the copy is as it was")),
        Err(fault) => Fault::history(format!("{what} (this could not be written down: {fault})")),
    }
}
