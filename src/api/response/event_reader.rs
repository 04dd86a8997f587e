//! The reader's end of an event stream: the body of its response.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, Sleep, sleep};
use tokio_stream::Stream;

/// Why a stream ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StreamEnd {
    /// The turn has ended, and the reader was told.
    Finished,
    /// The task was deleted.
    Deleted,
    /// The key was revoked, or has expired.
    KeyEnded,
    /// The service stops.
    Stopping,
    /// The reader did not take an event in time.
    SlowReader,
    /// The database could not be read for too long.
    Unavailable,
    /// A failure of the service.
    Failed,
}

/// The data of the event that precedes an aborted body.
#[derive(Serialize)]
pub(crate) struct StreamError {
    code: &'static str,
    message: &'static str,
}

impl StreamEnd {
    /// The type of that event. Official clients drop events of types that they do not know.
    pub(crate) const EVENT_TYPE: &str = "stream_error";

    pub(crate) fn error(self) -> StreamError {
        let (code, message) = match self {
            Self::Finished | Self::Failed => ("internal", "Internal Server Error"),
            Self::Deleted => ("task_deleted", "The task was deleted"),
            Self::KeyEnded => (
                "unauthenticated",
                "The API key was revoked or has expired: open the stream again with a valid key",
            ),
            Self::Stopping => (
                "stopping",
                "The service stops: open the stream again, with the header Last-Event-ID",
            ),
            Self::SlowReader => (
                "slow_reader",
                "The events were not read in time: read them faster, and open the stream again \
                 with the header Last-Event-ID",
            ),
            Self::Unavailable => (
                "unavailable",
                "The service is unavailable: open the stream again later, with the header \
                 Last-Event-ID",
            ),
        };
        StreamError { code, message }
    }

    pub(crate) fn code(self) -> &'static str {
        self.error().code
    }
}

/// A stream ended before its turn did. The reader sees a response that is not complete.
#[derive(Debug, thiserror::Error)]
#[error("the event stream was aborted")]
pub(crate) struct StreamAborted;

/// A comment, which readers skip.
const KEEP_ALIVE: Bytes = Bytes::from_static(b":\n\n");

/// The body of an event stream. It asks for each event when the connection can take it.
pub(crate) struct EventReader {
    events: mpsc::Receiver<Bytes>,
    demand: Arc<Semaphore>,
    has_asked: bool,
    keep_alive_interval: Duration,
    keep_alive: Pin<Box<Sleep>>,
    /// Set before the sender is dropped. A sender that panicked has not set it.
    end: Arc<OnceLock<StreamEnd>>,
    error: Box<dyn Fn(StreamEnd) -> Bytes + Send>,
    phase: Phase,
}

enum Phase {
    Events,
    /// The error event was sent. What is in the connection's buffer is lost when the body fails, so
    /// the connection first gets a chance to write it.
    Flush,
    Abort,
    Ended,
}

impl EventReader {
    pub(super) fn new(
        events: mpsc::Receiver<Bytes>,
        demand: Arc<Semaphore>,
        keep_alive_interval: Duration,
        end: Arc<OnceLock<StreamEnd>>,
        error: Box<dyn Fn(StreamEnd) -> Bytes + Send>,
    ) -> Self {
        Self {
            events,
            demand,
            has_asked: false,
            keep_alive_interval,
            keep_alive: Box::pin(sleep(keep_alive_interval)),
            end,
            error,
            phase: Phase::Events,
        }
    }

    fn restart_keep_alive(&mut self) {
        let next = Instant::now() + self.keep_alive_interval;
        self.keep_alive.as_mut().reset(next);
    }
}

impl Stream for EventReader {
    type Item = Result<Bytes, StreamAborted>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.phase {
            Phase::Events => match self.events.poll_recv(context) {
                Poll::Ready(Some(event)) => {
                    self.has_asked = false;
                    self.restart_keep_alive();
                    Poll::Ready(Some(Ok(event)))
                }
                Poll::Pending => {
                    if !std::mem::replace(&mut self.has_asked, true) {
                        self.demand.add_permits(1);
                    }
                    if self.keep_alive.as_mut().poll(context).is_ready() {
                        self.restart_keep_alive();
                        return Poll::Ready(Some(Ok(KEEP_ALIVE)));
                    }
                    Poll::Pending
                }
                Poll::Ready(None) => {
                    let end = self.end.get().copied().unwrap_or(StreamEnd::Failed);
                    if matches!(end, StreamEnd::Finished) {
                        self.phase = Phase::Ended;
                        return Poll::Ready(None);
                    }
                    self.phase = Phase::Flush;
                    Poll::Ready(Some(Ok((self.error)(end))))
                }
            },
            Phase::Flush => {
                self.phase = Phase::Abort;
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Phase::Abort => {
                self.phase = Phase::Ended;
                Poll::Ready(Some(Err(StreamAborted)))
            }
            Phase::Ended => Poll::Ready(None),
        }
    }
}
