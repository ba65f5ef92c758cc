//! Who may take a copy of the audit log: a token's principal, by local roles, like everything else here.

use holdfast_core::{Denial, Holds, Permit, Principal, authorize};
use holdfast_service::{Head, Readers, Request, Stranger, Trace, pull_intent};
use http::{HeaderMap, HeaderValue, header};

use crate::{
    ManagedHsm,
    authn::{Presented, Rejection},
};

/// Those whom a role assignment allows it.
pub(crate) struct RoleReaders<'a>(pub &'a ManagedHsm);

impl Readers for RoleReaders<'_> {
    type Early = Presented;
    type Caller = Presented;

    async fn early(&self, head: &Head, trace: &mut Trace) -> Result<Presented, Stranger> {
        let header = single(head.headers())?;
        let presented = self.0.authenticator.authenticate(header).await.map_err(stranger)?;
        trace.recognize(presented.principal());
        Ok(presented)
    }

    async fn caller(&self, request: &Request<'_>, early: Presented) -> Result<Presented, Stranger> {
        let header = single(request.head().headers())?;
        self.0.authenticator.confirm(early, header).await.map_err(stranger)
    }

    fn principal(caller: &Presented) -> &Principal {
        caller.principal()
    }

    fn still_known(&self, caller: &Presented) -> Result<(), Stranger> {
        self.0.authenticator.still_valid(caller).map_err(stranger)
    }

    fn holds(&self, caller: &Presented) -> Option<Holds> {
        Some(self.0.authenticator.validity(caller))
    }

    fn permit(&self, caller: &Principal) -> Result<Permit, Denial> {
        authorize(&**self.0.rbac.state(), caller, pull_intent())
    }

    fn challenge(&self, head: &Head) -> Option<HeaderValue> {
        self.0.hosts.challenge(head.header(header::HOST.as_str()))
    }
}

fn single(headers: &HeaderMap) -> Result<Option<&HeaderValue>, Stranger> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next();
    match values.next() {
        None => Ok(value),
        Some(_) => Err(Stranger::Unproved("more than one Authorization header".into())),
    }
}

fn stranger(rejection: Rejection) -> Stranger {
    match rejection {
        Rejection::IssuerUnavailable(why) => Stranger::Unverifiable(why),
        Rejection::NoToken | Rejection::BadToken(_) | Rejection::WrongAudience { .. } => {
            Stranger::Unproved(rejection.to_string())
        }
    }
}
