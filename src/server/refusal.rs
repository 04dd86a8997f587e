//! The answer to connections for which there is no room.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::connection_limits::Full;
use super::throttle::Throttle;

const ANSWER: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    content-type: application/json\r\n\
    content-length: 54\r\n\
    retry-after: 1\r\n\
    connection: close\r\n\
    \r\n\
    {\"detail\":\"There are too many connections, try later\"}";

/// Most refused connections that are answered at a time. Others are closed without an answer.
const MAX_ANSWERED: usize = 64;

/// How long the answer to a refused connection may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Most pieces of a refused request that are read after the answer.
const MAX_READS: usize = 16;

/// Refuses connections with little work.
pub(super) struct Refusals {
    answered: Arc<Semaphore>,
    lines: Throttle,
}

impl Refusals {
    pub(super) fn new() -> Self {
        Self { answered: Arc::new(Semaphore::new(MAX_ANSWERED)), lines: Throttle::default() }
    }

    /// Answers with 503 and closes the connection.
    pub(super) fn refuse(&mut self, stream: TcpStream, peer: SocketAddr, full: Full) {
        if let Some(refused) = self.lines.record() {
            match full {
                Full::Total => tracing::warn!(
                    %peer, refused, "refused connections: --max-connections are open"
                ),
                Full::Address => tracing::warn!(
                    %peer, refused,
                    "refused connections: --max-connections-per-address are open from an address"
                ),
            }
        }
        if let Ok(permit) = self.answered.clone().try_acquire_owned() {
            tokio::spawn(async move {
                // An error means that the client broke the connection.
                let _ = tokio::time::timeout(ANSWER_TIMEOUT, answer(stream)).await;
                drop(permit);
            });
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 4096];
    // Some clients take an answer before their request for an error of the protocol.
    if stream.read(&mut request).await? == 0 {
        return Ok(());
    }
    stream.write_all(ANSWER).await?;
    stream.shutdown().await?;
    // Closing with bytes unread resets the connection, and the client may lose the answer.
    for _ in 0..MAX_READS {
        if stream.read(&mut request).await? == 0 {
            break;
        }
    }
    Ok(())
}
