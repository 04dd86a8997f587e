//! A private PostgreSQL server in a data directory. It uses the server binaries of this machine.
//!
//! ```text
//! <directory>/
//!   lock           file lock, held while a service uses the directory; the operating system
//!                  releases it however the service ends
//!   data/          the cluster; data.new.… while initdb creates it
//!   run/           the directory of the server's socket
//!   postgres.log   the server's log; postgres.log.1 is the part before
//! ```
//!
//! Each of them is accessible to its owner only: to the server's user (`data`, `run`), or to the
//! user of the service. The service trusts no path that another user could change (`trust.rs`).
//!
//! The server is durable (fsync, checksums) and listens on its Unix socket only. It lives as long
//! as the service:
//!
//! - [`Embedded::stop`] requests a shutdown.
//! - [`Embedded::keep_running`] starts it again if it ends by itself.
//! - If the service is killed, the kernel signals the server (Linux).
//! - If the server still runs after that, the next start finds it and stops it.
//!
//! PostgreSQL refuses to run as root. When the service runs as root, it runs the server as an
//! unprivileged user.

mod binaries;
mod cluster;
mod error;
mod files;
mod log;
mod process;
mod server;
mod socket;
mod supervision;
mod trust;
mod user;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use binaries::Binaries;
use cluster::SUPERUSER;
pub use error::EmbeddedError;
use log::Log;
use process::{PidFile, Process};
use server::Server;
use socket::SocketDirectory;
use trust::Trust;

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
    server: Server,
    socket: SocketDirectory,
    /// `None` after a start that failed.
    process: Option<Process>,
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
        let trust = Trust::of_this_process();
        let (directory, run_as) = cluster::prepare_directory(&options.directory, &trust)?;
        let lock = cluster::lock(&directory, &trust).await?;
        run_as.check_reaches(&directory)?;
        let data = directory.join("data");
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
        let durable = options.durable;
        if !data.exists() {
            cluster::create_cluster(&directory, &data, &binaries, &run_as, durable).await?;
        }
        let log = Log::open(&directory, trust.clone())?;
        let socket = SocketDirectory::choose(&directory, &run_as, &trust)?;
        let server = Server { directory, data, binaries, run_as, trust, log, durable };
        let mut embedded = Self { server, socket, process: None, _lock: lock };
        if let Err(error) = embedded.restart().await {
            embedded.socket.remove();
            return Err(error);
        }
        Ok(embedded)
    }

    /// The URL of a database on this server.
    pub fn database_url(&self, database: &str) -> String {
        database_url(self.socket.path(), database)
    }

    /// The directory of the server's socket.
    pub fn socket_directory(&self) -> &Path {
        self.socket.path()
    }

    /// Stops the server and waits until it ends. Closes all connections and keeps all committed
    /// data.
    pub async fn stop(mut self) -> io::Result<()> {
        if let Some(process) = &mut self.process {
            process.stop().await?;
        }
        self.socket.remove();
        Ok(())
    }

    /// Returns how the server ended by itself.
    async fn exited(&mut self) -> String {
        match &mut self.process {
            Some(process) => match process.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            None => "it was not started".to_owned(),
        }
    }

    /// Starts the server, which does not run, in the same directories. Its URL stays the same.
    async fn restart(&mut self) -> Result<(), EmbeddedError> {
        self.server.clear_remnants().await?;
        self.socket.create(&self.server.run_as)?;
        self.server.start(self.socket.path(), &mut self.process).await
    }
}

/// The URL of a database on the server that another process runs in `directory`. `None` if no
/// server runs there.
pub fn running_database_url(directory: &Path, database: &str) -> Option<String> {
    let resolved = Trust::of_this_process().resolve(directory).ok()?;
    if !resolved.missing.is_empty() {
        return None;
    }
    let data = resolved.existing.join("data");
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
