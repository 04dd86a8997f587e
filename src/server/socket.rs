//! The socket of a connection, whose peer has to read.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::head_timer::Activity;
use crate::domain::Limits;

/// Most bytes of an answer that wait in the socket until the peer has room for them.
///
/// The kernel takes more when less than half of them wait. Without the limit it holds up to 4 MB
/// for each connection, and takes more after a third of them: a reader who is only slow would look
/// as if it read nothing.
#[cfg(target_os = "linux")]
const MAX_UNSENT_BYTES: u32 = 64 << 10;

/// Limits what waits in the socket of a connection, and for how long. The options of the listener
/// would miss connections that were made before they were set.
pub(super) fn set_options(stream: &TcpStream, limits: &Limits) {
    // An error means that the client has broken the connection.
    let _ = stream.set_nodelay(true);
    // Other systems have no such options.
    #[cfg(target_os = "linux")]
    {
        let socket = socket2::SockRef::from(stream);
        let _ = socket.set_tcp_notsent_lowat(MAX_UNSENT_BYTES);
        let _ = socket.set_tcp_user_timeout(Some(limits.acknowledge_timeout));
    }
    #[cfg(not(target_os = "linux"))]
    let _ = limits;
}

/// A socket that fails a write of which the peer takes nothing for too long.
///
/// The connection is then reset. An orderly end could look like the end of the answer, and what
/// waits in the kernel would stay there.
pub(super) struct Socket {
    stream: TcpStream,
    peer: SocketAddr,
    activity: Arc<Activity>,
    slow_reader_timeout: Duration,
    /// Runs while a write waits for the peer.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Socket {
    pub(super) fn new(
        stream: TcpStream,
        peer: SocketAddr,
        activity: Arc<Activity>,
        slow_reader_timeout: Duration,
    ) -> Self {
        Self { stream, peer, activity, slow_reader_timeout, stalled: None }
    }

    /// Passes on the outcome of a write, unless it has waited for too long.
    fn bounded(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.activity.written();
            self.stalled = None;
            return written;
        }
        let limit = self.slow_reader_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        if stalled.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        let _ = self.stream.set_zero_linger();
        tracing::info!(peer = %self.peer, "cut off a client that does not read its answer");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read")))
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.activity.read();
        }
        read
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bounded(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        self.bounded(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Neither of these waits for the peer.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
