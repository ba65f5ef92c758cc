//! A credential that ends while its holder's pull is at work.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use holdfast_core::{
    AuditError, AuditHead, AuditLine, AuditPullError, AuditSink, Gate, PartitionId, PrincipalKind, Timestamp,
};
use http_body_util::BodyExt;

use super::*;
use crate::Spine;

struct Clock;

impl Ambient for Clock {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }

    fn fill(&self, out: &mut [u8]) {
        out.fill(7);
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Moment {
    Never,
    LogRead,
    EventWritten,
    AnswerWritten,
}

/// A credential, a log and its event, any of which ends the credential.
struct Place {
    ends: Moment,
    good: Arc<AtomicBool>,
    /// The weakened build: nobody looks again.
    looks_again: bool,
    events: Mutex<Vec<(AuditOutcome, Option<&'static str>)>>,
}

impl Place {
    fn comes(&self, moment: Moment) {
        if self.ends == moment {
            self.good.store(false, SeqCst);
        }
    }
}

impl Policy for Place {
    fn decide(&self, _: &Principal, _: &Intent) -> Decision {
        Decision::Allow("he may".into())
    }
}

impl Readers for Place {
    type Early = ();
    type Caller = Principal;

    async fn early(&self, _: &Head, _: &mut Trace) -> Result<(), Stranger> {
        Ok(())
    }

    async fn caller(&self, _: &Request<'_>, (): ()) -> Result<Principal, Stranger> {
        Ok(Principal::verified_exactly(PrincipalKind::User, "test", "auditor"))
    }

    fn principal(caller: &Principal) -> &Principal {
        caller
    }

    fn still_known(&self, _: &Principal) -> Result<(), Stranger> {
        if self.good.load(SeqCst) || !self.looks_again {
            return Ok(());
        }
        Err(Stranger::Unproved("the token has expired".into()))
    }

    fn holds(&self, _: &Principal) -> Option<Holds> {
        let good = Arc::clone(&self.good);
        self.looks_again.then(|| Box::new(move || good.load(SeqCst)) as Holds)
    }

    fn permit(&self, caller: &Principal) -> Result<Permit, Denial> {
        authorize(self, caller, pull_intent())
    }
}

#[async_trait::async_trait]
impl AuditSource for Place {
    async fn pull(&self, ask: AuditAsk) -> Result<AuditPulled, AuditPullError> {
        self.comes(Moment::LogRead);
        let head = AuditHead {
            instance: PartitionId::from_bytes([1; 16]),
            log: ask.log,
            nonce: ask.nonce,
            after: AuditLine::default(),
            verdict: AuditVerdict::Continues,
            head: AuditLine::default(),
            revision: Revision(0),
            time: String::new(),
        };
        Ok(AuditPulled { head, signature: Vec::new(), segment: 1, offset: 0, lines: b"secret\n".to_vec() })
    }
}

#[async_trait::async_trait]
impl AuditSink for Place {
    async fn append(&self, event: AuditEvent) -> Result<(), AuditError> {
        self.events.lock().unwrap().push((event.outcome, event.error_code));
        self.comes(Moment::EventWritten);
        Ok(())
    }
}

/// Status; whether the lines were in the answer, and left; events.
async fn pull(ends: Moment, looks_again: bool) -> (StatusCode, bool, bool, Vec<(AuditOutcome, Option<&'static str>)>) {
    let place = Place { ends, good: Arc::new(AtomicBool::new(true)), looks_again, events: Mutex::default() };
    let place = Arc::new(place);
    let door = AuditDoor::new(Arc::clone(&place) as Arc<dyn AuditSource>, "kms", || Revision(0), Arc::new(Clock));
    let spine = Spine::new(Arc::clone(&place) as Arc<dyn AuditSink>, Arc::new(Clock), Gate::new(), None);
    let body = format!(r#"{{"format":"{FORMAT}","nonce":"{}"}}"#, "07".repeat(32));
    let request = http::Request::post(PATH).body(Full::new(Bytes::from(body))).unwrap();
    let (parts, body) = request.into_parts();
    let response = spine.handle(&door.through(&*place), parts, body, None).await;
    let status = response.status();
    let (bytes, pass) = response.into_body().into_parts();
    let given = bytes.collect().await.unwrap().to_bytes().ends_with(b"secret\n");
    place.comes(Moment::AnswerWritten);
    let left = given && pass.is_none_or(|pass| pass.step(|| ()).is_some());
    let events = place.events.lock().unwrap().clone();
    (status, given, left, events)
}

#[tokio::test]
async fn a_credential_that_ends_ends_the_pull() {
    let allowed = (AuditOutcome::Allowed, None);
    let (ok, gone) = (StatusCode::OK, StatusCode::UNAUTHORIZED);
    assert_eq!(pull(Moment::Never, true).await, (ok, true, true, vec![allowed]), "control: it does not end");
    let denied = (AuditOutcome::Denied, Some("Unauthenticated"));
    assert_eq!(pull(Moment::LogRead, true).await, (gone, false, false, vec![denied]));
    let withheld = (AuditOutcome::Withheld, Some("Unauthenticated"));
    assert_eq!(pull(Moment::EventWritten, true).await, (gone, false, false, vec![allowed, withheld]));
    assert_eq!(pull(Moment::AnswerWritten, true).await, (ok, true, false, vec![allowed]), "it breaks off");
    for moment in [Moment::LogRead, Moment::EventWritten, Moment::AnswerWritten] {
        assert_eq!(
            pull(moment, false).await,
            (ok, true, true, vec![allowed]),
            "control, {moment:?}: nobody looks again"
        );
    }
}
