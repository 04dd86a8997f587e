//! The HTTP server in this process, and plain connections to it.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use task_history::domain::Limits;
use task_history::server::{self, ConnectionLimits};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::TIMEOUT;
use super::test_app::TestApp;

/// More connections than a test has.
pub const MANY: ConnectionLimits = ConnectionLimits { total: 1000, per_address: 1000 };

/// A TCP server. Dropping it stops it.
pub struct TcpServer {
    address: SocketAddr,
    _stop: DropGuard,
}

impl TcpServer {
    /// The server of an app. It stops with the app's streams.
    pub async fn of_app(app: &TestApp, limits: Limits) -> Self {
        Self::serve(app.router.clone(), limits, MANY, app.stopping.clone()).await
    }

    pub async fn start(router: Router, limits: Limits, connections: ConnectionLimits) -> Self {
        Self::serve(router, limits, connections, CancellationToken::new()).await
    }

    async fn serve(
        router: Router,
        limits: Limits,
        connections: ConnectionLimits,
        stopping: CancellationToken,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let stop = stopping.clone().drop_guard();
        tokio::spawn(async move {
            server::serve(listener, router, &limits, connections, stopping).await;
        });
        Self { address, _stop: stop }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.expect("a connection")
    }

    /// A connection from 127.0.0.`host`.
    pub async fn connect_from(&self, host: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        let from = Ipv4Addr::new(127, 0, 0, host);
        socket.bind((from, 0).into()).expect("a loopback address");
        socket.connect(self.address).await.expect("a connection")
    }

    /// A connection whose kernel takes little that its owner does not read.
    pub async fn connect_with_small_buffer(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.set_recv_buffer_size(4096).expect("an option");
        socket.connect(self.address).await.expect("a connection")
    }
}

/// Reads what the server sends until it closes the connection.
pub async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut bytes));
    read.await.expect("the server closes the connection").expect("an orderly end");
    String::from_utf8(bytes).expect("UTF-8")
}
