//! A private PostgreSQL server in a data directory. It uses the server binaries of this machine.
//!
//! ```text
//! <directory>/
//!   lock           file lock, held while a service uses the directory; the operating system
//!                  releases it however the service ends
//!   data/          the cluster; data.new.… while initdb creates it
//!   run/           the directory of the server's socket, accessible to the server's user only
//!   postgres.log   the server's log
//! ```
//!
//! The server is durable (fsync, checksums) and listens on its Unix socket only. It stops with the
//! service:
//!
//! - [`Embedded::stop`] requests a shutdown.
//! - If the service is killed, the kernel signals the server (Linux).
//! - If the server still runs after that, the next start finds it and stops it.
//!
//! PostgreSQL refuses to run as root. When the service runs as root, it runs the server as an
//! unprivileged user.

mod binaries;
mod cluster;
mod error;
mod process;
mod server;
mod user;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use nix::sys::signal::Signal;
use tokio::process::Child;

use binaries::Binaries;
use cluster::SUPERUSER;
pub use error::EmbeddedError;
use process::{PidFile, SHUTDOWN_SEQUENCE};
use server::Server;
use user::RunAs;

/// How to run the server.
#[derive(Debug, Clone)]
pub struct EmbeddedOptions {
    /// The data directory. It is created if it is missing.
    pub directory: PathBuf,
    /// The directory of `postgres` and `initdb`. `None` searches the usual directories.
    pub binaries: Option<PathBuf>,
    /// Whether committed data survives a power failure. Tests turn it off.
    pub durable: bool,
}

/// A running server. Dropping it without [`Embedded::stop`] signals the server to stop and does not
/// wait.
#[derive(Debug)]
pub struct Embedded {
    child: Child,
    socket_directory: PathBuf,
    /// Whether the socket directory is outside the data directory and must be removed at the end.
    short_directory: bool,
    /// Locked while this value exists.
    _lock: File,
}

impl Embedded {
    /// Starts the server and returns when it accepts connections. Creates the cluster first if
    /// there is none. After a crash the start can take long, because the server recovers first.
    ///
    /// The calling thread must live as long as the server is needed. On Linux the kernel stops the
    /// server when the thread that started it ends.
    pub async fn start(options: &EmbeddedOptions) -> Result<Self, EmbeddedError> {
        let directory = cluster::prepare_directory(&options.directory)?;
        let lock = cluster::lock(&directory).await?;
        let data = directory.join("data");
        let run_as = RunAs::choose(&data)?;
        run_as.check_reaches(&directory)?;
        let cluster_major = cluster::cluster_major(&data)?;
        let binaries = Binaries::find(options.binaries.as_deref(), cluster_major)?;
        if let Some(cluster) = cluster_major
            && cluster != binaries.major
        {
            return Err(EmbeddedError::OtherMajor {
                directory,
                cluster,
                found: binaries.directory,
                binaries: binaries.major,
            });
        }
        if !data.exists() {
            cluster::create_cluster(&directory, &data, &binaries, &run_as, options.durable).await?;
        }
        let server =
            Server { directory: &directory, data: &data, binaries: &binaries, run_as: &run_as };
        server.clear_remnants().await?;
        let (socket_directory, short_directory) = server.prepare_socket_directory()?;
        let child = server.start(&socket_directory, options.durable).await?;
        Ok(Self { child, socket_directory, short_directory, _lock: lock })
    }

    /// The URL of a database on this server.
    pub fn database_url(&self, database: &str) -> String {
        database_url(&self.socket_directory, database)
    }

    /// Returns when the server ends without a call to [`Embedded::stop`].
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Stops the server and waits until it ends. Closes all connections and keeps all committed
    /// data.
    pub async fn stop(mut self) -> io::Result<ExitStatus> {
        for (signal, timeout) in SHUTDOWN_SEQUENCE {
            self.signal(signal);
            if let Ok(status) = tokio::time::timeout(timeout, self.child.wait()).await {
                self.remove_short_directory();
                return status;
            }
        }
        self.child.start_kill()?;
        let status = self.child.wait().await;
        self.remove_short_directory();
        status
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // A child keeps its process id until it is waited for, so no other process has this id.
            let _ = process::send(pid, signal);
        }
    }

    fn remove_short_directory(&self) {
        if self.short_directory {
            let _ = fs::remove_dir_all(&self.socket_directory);
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// The URL of a database on the server that another process runs in `directory`. `None` if no
/// server runs there.
pub fn running_database_url(directory: &Path, database: &str) -> Option<String> {
    let data = fs::canonicalize(directory).ok()?.join("data");
    let file = PidFile::read(&data)?;
    let alive = file.is_ready && process::is_postgres(file.pid, &data);
    alive.then(|| database_url(&file.socket_directory, database))
}

fn database_url(socket_directory: &Path, database: &str) -> String {
    let host = form_urlencoded::byte_serialize(socket_directory.as_os_str().as_encoded_bytes())
        .collect::<String>();
    // The explicit port and sslmode override PGPORT and PGSSLMODE of the environment. Some URL
    // parsers decode `+` in a query as a space, and others do not. All decode `%20` as one.
    format!(
        "postgres://{SUPERUSER}@localhost:5432/{database}?sslmode=disable&host={}",
        host.replace('+', "%20")
    )
}
