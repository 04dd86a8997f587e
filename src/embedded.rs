//! A private PostgreSQL in a data directory, started from the server binaries on this machine.
//!
//! ```text
//! <directory>/
//!   lock           held while a service uses the directory; the system frees it however the service ends
//!   data/          the cluster; data.new.… while initdb makes it
//!   run/           the server's socket, for its own user only
//!   postgres.log   what the server says
//! ```
//!
//! The server is durable (fsync, checksums), listens on nothing but its socket, and stops with the service: asked to
//! by [`Embedded::stop`], told to by the kernel where the service is killed (Linux), or found and stopped by the
//! next start. It refuses to run as root, so a service of root's runs it as an unprivileged user.

mod binaries;
mod process;
mod user;

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use binaries::Binaries;
use process::PidFile;
use user::RunAs;

/// How long a start waits for a predecessor that was just killed to let go of the directory.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// How long the server gets to stop: it finishes its checkpoint. After that it is stopped the hard way, and recovers
/// at the next start.
const STOP_PATIENCE: Duration = Duration::from_secs(30);

/// How long processes of a killed server may hold its shared memory before a start gives up.
const REMNANT_PATIENCE: Duration = Duration::from_secs(20);

/// How long a start may take before it is explained.
const SILENT_START: Duration = Duration::from_secs(5);

/// How often a state that can't be waited for is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Longest path of a socket directory, in bytes: 107 (103 on macOS) less the socket's own name.
const MAX_SOCKET_DIRECTORY_BYTES: usize = 103 - "/.s.PGSQL.5432.lock".len();

/// Largest log that is added to; a larger one is set aside at the next start.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// Name of the database superuser, who is the only user.
const SUPERUSER: &str = "postgres";

/// How to run the server.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data directory; made if it is missing.
    pub directory: PathBuf,
    /// Where `postgres` and `initdb` are; `None` searches the usual places.
    pub binaries: Option<PathBuf>,
    /// Whether what is committed survives a power failure. Tests do without.
    pub durable: bool,
}

/// Why the server could not be started. Each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another service uses the directory.
    #[error("another task-history uses {0}; stop it, or choose another directory with --data-dir")]
    InUse(PathBuf),
    /// There are no server binaries.
    #[error("{}", binaries::missing_message(.0))]
    NoBinaries(Option<u32>),
    /// There are no server binaries where they were said to be.
    #[error(
        "there are no programs `postgres` and `initdb` in {0}; without --postgres-bin-dir they are searched for"
    )]
    NoBinariesHere(PathBuf),
    /// There are binaries, but of another major version than the cluster.
    #[error(
        "the database in {directory} was made by PostgreSQL {cluster}, but the binaries in {found} are of version \
         {binaries}; install PostgreSQL {cluster}, or move the data with pg_upgrade"
    )]
    OtherMajor {
        /// The data directory.
        directory: PathBuf,
        /// The cluster's major version.
        cluster: u32,
        /// Where the binaries are.
        found: PathBuf,
        /// Their major version.
        binaries: u32,
    },
    /// The user that runs the server can't get at the directory.
    #[error(
        "PostgreSQL does not run as root, and the user {user} that it runs as can't enter {blocked}; choose a \
         directory that every user can get to with --data-dir, /var/lib/task-history for example"
    )]
    Unreachable {
        /// The user.
        user: String,
        /// The directory on the way that is closed.
        blocked: PathBuf,
    },
    /// There is no user to run the server as.
    #[error(
        "PostgreSQL needs a user with a name, and not root: {0}; run task-history as an ordinary user, or set \
         DATABASE_URL to use a server that runs already"
    )]
    NoUser(String),
    /// Something in the directory can't be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A program could not be run, or failed.
    #[error("{program} failed: {detail}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it said.
        detail: String,
    },
    /// A server of a killed service still runs, and does not stop.
    #[error(
        "process {0} is a PostgreSQL that uses {1} and does not stop; end it with `kill {0}`, then start again"
    )]
    Orphan(i32, PathBuf),
}

/// A running server. Dropping it without [`Embedded::stop`] tells the server to stop and does not wait.
#[derive(Debug)]
pub struct Embedded {
    child: Child,
    socket_directory: PathBuf,
    /// Whether the socket has a directory of its own, to be removed with it.
    short_directory: bool,
    /// Held for as long as this lives.
    _lock: File,
}

impl Embedded {
    /// Starts the server, after making its cluster where there is none, and returns when it takes connections. That
    /// may take long: it recovers first what a crash left behind.
    ///
    /// Call it on a thread that lives as long as the server shall: on Linux the kernel stops the server when the
    /// thread that started it ends.
    pub async fn start(options: &Options) -> Result<Self, EmbeddedError> {
        let directory = prepare_directory(&options.directory)?;
        let lock = lock(&directory).await?;
        let data = directory.join("data");
        let run_as = RunAs::choose(&data)?;
        run_as.check_reaches(&directory)?;
        let binaries = Binaries::find(options.binaries.as_deref(), cluster_major(&data)?)?;
        if let Some(cluster) = cluster_major(&data)?
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
            create_cluster(&directory, &data, &binaries, &run_as, options.durable).await?;
        }
        let mut server = Server { directory: &directory, data: &data, binaries: &binaries, run_as: &run_as };
        server.clear_remnants().await?;
        let (socket_directory, short_directory) = server.prepare_socket_directory()?;
        let child = server.start(&socket_directory, options.durable).await?;
        Ok(Self { child, socket_directory, short_directory, _lock: lock })
    }

    /// URL of one of its databases.
    pub fn database_url(&self, database: &str) -> String {
        database_url(&self.socket_directory, database)
    }

    /// Returns when the server has ended, which nobody asked it to.
    pub async fn exited(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Stops the server and waits for its end. Connections are ended, what they committed is kept.
    pub async fn stop(mut self) -> io::Result<ExitStatus> {
        // Fast shutdown, then an immediate one, then none: see "Shutting Down the Server" in PostgreSQL's manual.
        for (signal, patience) in [(Signal::SIGINT, STOP_PATIENCE), (Signal::SIGQUIT, Duration::from_secs(5))]
        {
            self.signal(signal);
            if let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await {
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
            // A child that has not been waited for still owns its number, so no stranger is hit.
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

/// URL of a database of the server that another process runs in the directory; `None` where none runs.
pub fn running_database_url(directory: &Path, database: &str) -> Option<String> {
    let data = fs::canonicalize(directory).ok()?.join("data");
    let file = PidFile::read(&data)?;
    let alive = file.is_ready && process::is_postgres(file.pid, &data);
    alive.then(|| database_url(&file.socket_directory, database))
}

fn database_url(socket_directory: &Path, database: &str) -> String {
    let host =
        form_urlencoded::byte_serialize(socket_directory.as_os_str().as_encoded_bytes()).collect::<String>();
    // Said here, so that PGPORT and PGSSLMODE in the environment don't.
    // A URL's query is decoded with `+` for a space by some and not by others; `%20` is one for all.
    format!(
        "postgres://{SUPERUSER}@localhost:5432/{database}?sslmode=disable&host={}",
        host.replace('+', "%20")
    )
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError + '_ {
    move |source| EmbeddedError::File { path: path.to_owned(), source }
}

fn prepare_directory(directory: &Path) -> Result<PathBuf, EmbeddedError> {
    if !directory.exists() {
        DirBuilder::new().recursive(true).create(directory).map_err(at(directory))?;
        // Whatever the umask says: another user, whom the server may run as, has to get through.
        fs::set_permissions(directory, Permissions::from_mode(0o755)).map_err(at(directory))?;
    }
    fs::canonicalize(directory).map_err(at(directory))
}

async fn lock(directory: &Path) -> Result<File, EmbeddedError> {
    let path = directory.join("lock");
    // For its owner only: whoever can open a file can lock it.
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(at(&path))?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_PATIENCE => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(TryLockError::WouldBlock) => return Err(EmbeddedError::InUse(directory.to_owned())),
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
    }
}

/// The major version that made the cluster; `None` where there is no cluster.
fn cluster_major(data: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = data.join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            at(&path)(io::Error::new(io::ErrorKind::InvalidData, format!("`{}` is no version", text.trim())))
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(at(&path)(error)),
    }
}

/// Makes the cluster under another name and renames it when it is whole: a start that is killed half way leaves
/// nothing that could be taken for a cluster.
async fn create_cluster(
    directory: &Path,
    data: &Path,
    binaries: &Binaries,
    run_as: &RunAs,
    durable: bool,
) -> Result<(), EmbeddedError> {
    tracing::info!(directory = %directory.display(), version = binaries.major, "creating a database cluster");
    // A name of its own: the initdb of a start that was killed may still be at work under another.
    for entry in fs::read_dir(directory).map_err(at(directory))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("data.new.") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let unfinished = directory.join(format!("data.new.{}", uuid::Uuid::now_v7()));
    run_as.create_directory(&unfinished)?;
    let mut initdb =
        process::command(&binaries.initdb, directory, run_as.switch.then_some((run_as.uid, run_as.gid)));
    initdb.arg("--pgdata").arg(&unfinished);
    initdb.args(["--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C", "--data-checksums"]);
    initdb.args(["--auth-local", "trust", "--auth-host", "reject"]);
    if !durable {
        initdb.arg("--no-sync");
    }
    let output = initdb.output().await.map_err(at(&binaries.initdb))?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(EmbeddedError::Program { program: "initdb", detail });
    }
    fs::rename(&unfinished, data).map_err(at(data))?;
    // The new name must be on the disk before anything that is acknowledged is under it.
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(at(directory))
}

struct Server<'a> {
    directory: &'a Path,
    data: &'a Path,
    binaries: &'a Binaries,
    run_as: &'a RunAs,
}

impl Server<'_> {
    /// Stops the server of a service that was killed, and removes what a killed server left behind.
    async fn clear_remnants(&mut self) -> Result<(), EmbeddedError> {
        let pid_file = self.data.join("postmaster.pid");
        let Some(file) = PidFile::read(self.data) else {
            // None; or one that a full disk or a power failure has left empty, which PostgreSQL would not touch.
            return remove_if_there(&pid_file);
        };
        if process::is_postgres(file.pid, self.data) {
            tracing::warn!(pid = file.pid, "stopping the PostgreSQL of a service that was killed");
            for (signal, patience) in
                [(Signal::SIGINT, STOP_PATIENCE), (Signal::SIGQUIT, Duration::from_secs(5))]
            {
                let _ = process::send(file.pid, signal);
                let started = Instant::now();
                while process::is_postgres(file.pid, self.data) && started.elapsed() < patience {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
            if process::is_postgres(file.pid, self.data) {
                return Err(EmbeddedError::Orphan(file.pid, self.directory.to_owned()));
            }
        }
        // The number in the file is nobody's now, or a stranger's, or that of a process that is dead but not yet
        // buried. PostgreSQL can't tell the last two from its own and would refuse to start.
        remove_if_there(&pid_file)?;
        remove_if_there(&self.directory.join("run/.s.PGSQL.5432.lock"))?;
        // In a copy of a directory the file names the original's socket, which is not ours to remove.
        if file.data == self.data && is_short_directory(&file.socket_directory) {
            let _ = fs::remove_dir_all(&file.socket_directory);
        }
        Ok(())
    }

    /// The directory for the socket, and whether it is not the usual one: a socket's path must be short.
    fn prepare_socket_directory(&self) -> Result<(PathBuf, bool), EmbeddedError> {
        let usual = self.directory.join("run");
        let fits = usual.as_os_str().len() <= MAX_SOCKET_DIRECTORY_BYTES;
        let path = if fits {
            usual
        } else {
            std::env::temp_dir().join(format!("{SHORT_PREFIX}{}", uuid::Uuid::now_v7()))
        };
        self.run_as.create_directory(&path)?;
        Ok((path, !fits))
    }

    /// Starts the server and waits until it takes connections.
    async fn start(&self, socket_directory: &Path, durable: bool) -> Result<Child, EmbeddedError> {
        let started = Instant::now();
        let mut is_said = false;
        loop {
            let log_path = self.directory.join("postgres.log");
            let log = open_log(&log_path)?;
            let log_start = log.metadata().map_err(at(&log_path))?.len();
            let mut child =
                self.command(socket_directory, durable, log)?.spawn().map_err(at(&self.binaries.postgres))?;
            let pid = child.id();
            let status = loop {
                if let Some(status) = child.try_wait().map_err(at(&self.binaries.postgres))? {
                    break status;
                }
                let ready = PidFile::read(self.data)
                    .is_some_and(|file| file.is_ready && u32::try_from(file.pid).ok() == pid);
                if ready {
                    return Ok(child);
                }
                if !is_said && started.elapsed() > SILENT_START {
                    is_said = true;
                    tracing::info!(log = %log_path.display(), "PostgreSQL is still starting: it recovers, see its log");
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            };
            let said = read_log_from(&log_path, log_start);
            // The children of a server that was killed need a moment to notice.
            if said.contains("pre-existing shared memory block") && started.elapsed() < REMNANT_PATIENCE {
                tokio::time::sleep(POLL_INTERVAL * 5).await;
                continue;
            }
            let detail = format!("{status}\n{}\n(from {})", said.trim(), log_path.display());
            return Err(EmbeddedError::Program { program: "postgres", detail });
        }
    }

    fn command(&self, socket_directory: &Path, durable: bool, log: File) -> Result<Command, EmbeddedError> {
        let switch = self.run_as.switch.then_some((self.run_as.uid, self.run_as.gid));
        let mut postgres = process::command(&self.binaries.postgres, self.directory, switch);
        postgres.arg("-D").arg(self.data).arg("-k").arg(socket_directory).args(["-p", "5432"]);
        let mut settings = vec![
            "listen_addresses=",
            "unix_socket_permissions=0700",
            "max_connections=64",
            "shared_buffers=256MB",
            // Statements here are short; compiling them never pays.
            "jit=off",
            "timezone=UTC",
            "log_timezone=UTC",
        ];
        if cfg!(target_os = "linux") && self.binaries.major >= 14 {
            // After a crash: one call a file system instead of one a file.
            settings.push("recovery_init_sync_method=syncfs");
        }
        if !durable {
            settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"]);
        }
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        postgres.stdout(log.try_clone().map_err(at(self.directory))?).stderr(log).stdin(Stdio::null());
        Ok(postgres)
    }
}

fn remove_if_there(path: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// How the names of socket directories outside the data directory begin.
const SHORT_PREFIX: &str = "task-history-";

fn is_short_directory(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(SHORT_PREFIX))
}

fn open_log(path: &Path) -> Result<File, EmbeddedError> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_LOG_BYTES) {
        fs::rename(path, path.with_extension("log.1")).map_err(at(path))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(at(path))
}

fn read_log_from(path: &Path, start: u64) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or_default().min(bytes.len());
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
