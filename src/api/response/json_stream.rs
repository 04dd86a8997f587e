//! JSON bodies of any size, written and sent in parts of bounded size.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::store::{Reservation, StoreError};

/// Bytes that are handed to the connection at a time. What it has taken is no longer bounded here.
const CHUNK_BYTES: usize = 64 << 10;

/// How much of a body a reader must take within the limit on slow readers, in bytes.
const MIN_BYTES_IN_TIME: usize = 1 << 20;

/// Bytes on their way, with the memory that they take until the connection has written them.
pub(crate) struct HeldBytes {
    bytes: Bytes,
    _reservation: Reservation,
}

impl HeldBytes {
    pub(crate) fn hold(bytes: Bytes, reservation: Reservation) -> Bytes {
        Bytes::from_owner(Self { bytes, _reservation: reservation })
    }
}

impl AsRef<[u8]> for HeldBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// A JSON body in parts.
pub(crate) trait JsonParts: Send + 'static {
    /// Appends the next part to `out`.
    fn write_part(
        &mut self,
        out: &mut Vec<u8>,
    ) -> impl Future<Output = Result<Part, StoreError>> + Send;
}

/// What a part is, beside its text.
pub(crate) struct Part {
    /// Whether the body ends with it.
    pub(crate) is_last: bool,
    /// The memory of what was read for it, if that was reserved.
    pub(crate) reservation: Option<Reservation>,
}

/// A part that has been sent, or the end of the body.
enum Sent {
    Chunk(Bytes),
    End,
}

/// Why a body is aborted.
#[derive(Debug, thiserror::Error)]
enum Aborted {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the client took less than {MIN_BYTES_IN_TIME} bytes in {0:?}")]
    SlowReader(Duration),
    #[error("the client closed the connection")]
    ReaderGone,
}

/// The answer with a body. A body of one part is sent whole. Of a longer one, the first part is
/// written before the answer begins, so its errors have their status; a later error aborts the
/// body.
pub(crate) async fn respond(
    state: &AppState,
    mut parts: impl JsonParts,
) -> Result<Response, ApiError> {
    let mut first = Vec::new();
    let part = parts.write_part(&mut first).await?;
    let body = if part.is_last {
        Body::from(first)
    } else {
        let (sender, receiver) = mpsc::channel(1);
        let sending = PartSender { sender, slow_reader_timeout: state.limits.slow_reader_timeout };
        tokio::spawn(async move {
            match sending.send_all(parts, first, part).await {
                Ok(()) | Err(Aborted::ReaderGone) => {}
                Err(error) => tracing::warn!(%error, "answer aborted"),
            }
        });
        chunked(receiver)
    };
    let content_type = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, content_type)], body).into_response())
}

/// Appends a value as JSON.
pub(crate) fn push_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("plain data serializes into memory");
}

/// The body of what is sent. It ends with an error if the sender ends early, so that a part of a
/// JSON text never looks like all of it.
fn chunked(receiver: mpsc::Receiver<Sent>) -> Body {
    Body::from_stream(stream::unfold(Some(receiver), async |receiver| {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Sent::Chunk(bytes)) => Some((Ok(bytes), Some(receiver))),
            Some(Sent::End) => None,
            None => Some((Err(io::Error::other("the answer was aborted")), None)),
        }
    }))
}

struct PartSender {
    sender: mpsc::Sender<Sent>,
    slow_reader_timeout: Duration,
}

impl PartSender {
    async fn send_all(
        self,
        mut parts: impl JsonParts,
        first: Vec<u8>,
        part: Part,
    ) -> Result<(), Aborted> {
        let (mut text, mut part) = (first, part);
        loop {
            if let Some(reservation) = &mut part.reservation {
                reservation.end_read(text.len());
            }
            for piece in text.chunks(MIN_BYTES_IN_TIME) {
                self.send_in_time(piece).await?;
            }
            if part.is_last {
                return self.sender.send(Sent::End).await.map_err(|_| Aborted::ReaderGone);
            }
            // Freed before the next part is written, with its reservation.
            drop((std::mem::take(&mut text), part));
            part = parts.write_part(&mut text).await?;
        }
    }

    async fn send_in_time(&self, piece: &[u8]) -> Result<(), Aborted> {
        let deadline = Instant::now() + self.slow_reader_timeout;
        for chunk in piece.chunks(CHUNK_BYTES) {
            // A copy: the rest of the part must not live as long as its last chunk.
            let chunk = Sent::Chunk(Bytes::copy_from_slice(chunk));
            match timeout_at(deadline, self.sender.send(chunk)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(Aborted::ReaderGone),
                Err(_) => return Err(Aborted::SlowReader(self.slow_reader_timeout)),
            }
        }
        Ok(())
    }
}
