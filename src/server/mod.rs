//! The HTTP server: accepting connections, and graceful shutdown.

mod connection_limits;
mod head_timer;
mod open_files;
mod refusal;
mod request_head;
mod socket;
mod throttle;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::domain::{Limits, PeerAddress};
use connection_limits::ConnectionSlots;
use head_timer::{Activity, HeadTimer};
use refusal::Refusals;
use socket::Socket;
use throttle::Throttle;

pub use connection_limits::ConnectionLimits;
pub use open_files::raise_open_files_limit;

/// How long to wait before accepting again after an error.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The largest request head, in bytes. It is also the most of a body that is read at once, and the
/// most of an answer's small pieces that are gathered for one write.
const MAX_HEAD_BYTES: usize = 64 << 10;

/// Accepts connections until `stopping` is canceled, then waits until their requests are answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    connection_limits: ConnectionLimits,
    stopping: CancellationToken,
) {
    let connections = GracefulShutdown::new();
    let slots = ConnectionSlots::new(connection_limits);
    let mut refusals = Refusals::new();
    let mut failures = Throttle::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, SocketAddr::new(peer.ip().to_canonical(), peer.port())),
            Err(error) => {
                // Most likely all file descriptors are in use; they are closed in time.
                if let Some(failures) = failures.record() {
                    tracing::warn!(%error, failures, "failed to accept connections");
                }
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let slot = match slots.take(peer.ip()) {
            Ok(slot) => slot,
            Err(full) => {
                refusals.refuse(stream, peer, full);
                continue;
            }
        };
        socket::set_options(&stream, limits);
        let activity = Arc::new(Activity::new());
        let socket = Socket::new(stream, peer, activity.clone(), limits.slow_reader_timeout);
        let mut http = http1::Builder::new();
        http.max_buf_size(MAX_HEAD_BYTES)
            .timer(HeadTimer::new(activity, limits))
            // It only has to be set. The timer decides.
            .header_read_timeout(limits.idle_timeout);
        let service = TowerToHyperService::new(router.clone());
        let service = service_fn(move |request| answer(service.clone(), peer, request));
        let connection = connections.watch(http.serve_connection(TokioIo::new(socket), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                // Most likely the client broke the connection.
                tracing::debug!(%peer, %error, "connection ended");
            }
            drop(slot);
        });
    }
    drop(listener);
    tracing::info!("stopping: finishing requests in flight, refusing new connections");
    connections.shutdown().await;
}

/// Answers a request, which then carries the address of its peer.
async fn answer(
    service: TowerToHyperService<Router>,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    if let Some(refusal) = request_head::refusal(&request) {
        tracing::info!(%peer, status = refusal.status().as_u16(), "refused a malformed request");
        return Ok(refusal);
    }
    request.extensions_mut().insert(PeerAddress(peer));
    service.call(request).await
}
