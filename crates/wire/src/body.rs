//! Reading a request body within bounds of size and time.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;

/// How much of a body over the limit is taken in and thrown away, and for how long.
const DISCARDED_BYTES_MAX: usize = 8 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Bounds of a request body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// Bytes.
    pub bytes_max: usize,
    /// Time for it to arrive.
    pub timeout: Duration,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BodyFault {
    /// The connection ended, or its framing is wrong.
    #[error("the request body could not be read")]
    Broken,
    /// It is longer than allowed.
    #[error("the request body is too large")]
    TooLarge,
    /// It did not arrive in time.
    #[error("the request body did not arrive in time")]
    TooSlow,
}

/// Reads `body`. Of one that is too large some of the rest is taken in, since a client that is still sending would lose the
/// answer to a reset connection.
///
/// # Errors
/// [`BodyFault`].
pub async fn read<B>(body: B, limits: BodyLimits) -> Result<Bytes, BodyFault>
where
    B: Body<Data = Bytes> + Send,
{
    let mut body = std::pin::pin!(body);
    let declared_too_large = body.size_hint().lower() > limits.bytes_max as u64;
    let read = async {
        if declared_too_large {
            return Err(BodyFault::TooLarge);
        }
        let mut whole = BytesMut::new();
        loop {
            let Some(frame) = body.frame().await else { return Ok(whole.freeze()) };
            let Ok(mut data) = frame.map_err(|_| BodyFault::Broken)?.into_data() else { continue };
            if whole.len() + data.remaining() > limits.bytes_max {
                return Err(BodyFault::TooLarge);
            }
            // One frame is the usual case, and needs no copy.
            if whole.is_empty() && body.is_end_stream() {
                return Ok(data);
            }
            whole.extend_from_slice(&data.copy_to_bytes(data.remaining()));
        }
    };
    let result = tokio::time::timeout(limits.timeout, read).await.unwrap_or(Err(BodyFault::TooSlow));
    if result == Err(BodyFault::TooLarge) {
        let discard = async {
            let mut discarded = 0;
            while discarded < DISCARDED_BYTES_MAX
                && let Some(Ok(frame)) = body.frame().await
            {
                discarded += frame.data_ref().map_or(0, Buf::remaining);
            }
        };
        let _ = tokio::time::timeout(DISCARD_TIMEOUT, discard).await;
    }
    result
}
