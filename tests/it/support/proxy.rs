//! A TCP proxy before the shared server, which can lose its connections without a word.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use super::cluster;

/// Forwards TCP connections to the shared server.
pub struct Proxy {
    port: u16,
    /// Canceled when the connections that are established fall silent.
    established: Arc<Mutex<CancellationToken>>,
}

impl Proxy {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let established = Arc::<Mutex<CancellationToken>>::default();
        tokio::spawn(accept(listener, server_socket(), established.clone()));
        Self { port, established }
    }

    /// URL of a database through the proxy.
    pub fn url_of(&self, database: &str) -> String {
        let url = cluster::url_of(database);
        let (user, _) = url.split_once("@localhost").expect("a URL of a local server");
        format!("{user}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// From now on, established connections swallow everything and say nothing, as after the
    /// failover of an address. New ones work.
    pub fn fall_silent(&self) {
        std::mem::take(&mut *self.established.lock().expect("no panic")).cancel();
    }
}

/// The server's socket, from the URL that names its directory.
fn server_socket() -> PathBuf {
    let url = cluster::url_of("postgres");
    let (_, query) = url.split_once('?').expect("a query");
    let host = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "host");
    PathBuf::from(host.expect("a directory").1.into_owned()).join(".s.PGSQL.5432")
}

async fn accept(
    listener: TcpListener,
    socket: PathBuf,
    established: Arc<Mutex<CancellationToken>>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let server = UnixStream::connect(&socket).await.expect("the server");
        let silent = established.lock().expect("no panic").clone();
        tokio::spawn(forward(client, server, silent));
    }
}

async fn forward(mut client: TcpStream, mut server: UnixStream, silent: CancellationToken) {
    tokio::select! {
        biased;
        () = silent.cancelled() => {}
        _ = copy_bidirectional(&mut client, &mut server) => return,
    }
    // Both connections stay open, until the client closes its own.
    let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    drop(server);
}
