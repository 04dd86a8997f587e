//! One PostgreSQL server for all test processes, and a database of its own for each test.
//!
//! The first process that needs the server starts a keeper: this test binary again, with
//! [`keeper`] as its only test. The keeper owns the server. Every process that uses the server
//! holds a connection to the keeper's socket, which the kernel closes however the process ends. The
//! keeper stops the server and removes its directory after [`IDLE_TIMEOUT`] without a connection.
//! So `cargo test` runs all tests on one server, and so do cargo-nextest (a process for each test)
//! and an editor (one test at a time).
//!
//! If the keeper is killed, the kernel ends its server; the next keeper removes what is left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use task_history::embedded::{Embedded, EmbeddedOptions};
use task_history::store;
use task_history::store::DatabaseUrl;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

use super::TIMEOUT;

/// Tells a process of this binary that it is the keeper; its value is the directory.
const KEEPER_DIRECTORY: &str = "TASK_HISTORY_TEST_KEEPER";

/// Tells the keeper its idle timeout, in milliseconds.
const KEEPER_IDLE_MS: &str = "TASK_HISTORY_TEST_KEEPER_IDLE_MS";

/// How long the server stays without users, so that the next run finds it warm.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The database that new ones are copied from.
const TEMPLATE: &str = "template_migrated";

/// The files of a shared cluster.
struct ClusterFiles(PathBuf);

impl ClusterFiles {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).expect("a directory");
        // PostgreSQL runs as another user if root runs the tests.
        fs::set_permissions(&directory, Permissions::from_mode(0o755)).expect("own directory");
        Self(directory)
    }

    /// Takes an exclusive lock, which is freed when the file is dropped.
    fn lock(&self, name: &str) -> File {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.open(self.0.join(name)).expect("a lock file");
        file.lock().expect("a lock");
        file
    }

    /// Held by the process that looks for the keeper or starts it.
    fn lock_start(&self) -> File {
        self.lock("start.lock")
    }

    /// Held by the keeper as long as it lives.
    fn lock_keeper(&self) -> File {
        self.lock("keeper.lock")
    }

    fn socket(&self) -> PathBuf {
        self.0.join("keeper.sock")
    }

    fn cluster(&self) -> PathBuf {
        self.0.join("cluster")
    }

    fn log(&self) -> PathBuf {
        self.0.join("keeper.log")
    }
}

/// The cluster of this checkout and this user.
fn shared_files() -> ClusterFiles {
    let mut hasher = DefaultHasher::new();
    env!("CARGO_MANIFEST_DIR").hash(&mut hasher);
    let name =
        format!("task-history-tests-{}-{:x}", nix::unistd::Uid::effective(), hasher.finish());
    ClusterFiles::new(std::env::temp_dir().join(name))
}

/// URL of the server's `postgres` database. Starts the server if none runs.
fn server_url() -> &'static str {
    static SERVER: OnceLock<(String, UnixStream)> = OnceLock::new();
    // The connection is held as long as the process lives.
    &SERVER.get_or_init(|| use_server(&shared_files(), IDLE_TIMEOUT)).0
}

/// Finds or starts the server, and returns its URL with the connection that keeps it.
fn use_server(files: &ClusterFiles, idle_timeout: Duration) -> (String, UnixStream) {
    let _start = files.lock_start();
    if let Ok(connection) = UnixStream::connect(files.socket())
        && let Some(url) = read_url(&connection)
    {
        return (url, connection);
    }
    // None, or one that is stopping. The keeper's standard input is its first connection.
    let (connection, keepers_end) = UnixStream::pair().expect("two sockets");
    let log = File::create(files.log()).expect("a log");
    let mut keeper = Command::new(std::env::current_exe().expect("this program"));
    keeper
        .args(["support::cluster::keeper", "--exact", "--nocapture"])
        .env(KEEPER_DIRECTORY, &files.0)
        .env(KEEPER_IDLE_MS, idle_timeout.as_millis().to_string())
        .stdin(OwnedFd::from(keepers_end))
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        // Ctrl-C in the terminal ends the tests; the keeper then stops the server by itself.
        .process_group(0);
    #[expect(clippy::zombie_processes, reason = "the keeper outlives this process")]
    keeper.spawn().expect("the keeper starts");
    // This end would keep the connection open if the keeper failed.
    drop(keeper);
    let url = read_url(&connection).unwrap_or_else(|| {
        let log = fs::read_to_string(files.log()).unwrap_or_default();
        panic!("the keeper gave no server: {log}")
    });
    (url, connection)
}

/// The line that a keeper sends once its server can be used; `None` if it ends or takes too long.
fn read_url(connection: &UnixStream) -> Option<String> {
    connection.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).ok()?;
    line.strip_suffix('\n').map(str::to_owned)
}

/// The keeper's work, if this process is one; otherwise a test of a keeper.
#[test]
fn keeper() {
    let Some(directory) = std::env::var_os(KEEPER_DIRECTORY) else {
        return the_server_ends_after_its_last_user();
    };
    let idle = std::env::var_os(KEEPER_IDLE_MS).and_then(|text| text.into_string().ok());
    let idle = idle.and_then(|text| text.parse().ok()).expect("a number");
    let files = ClusterFiles::new(PathBuf::from(directory));
    let first = std::io::stdin().as_fd().try_clone_to_owned().expect("standard input");
    // So that this process has one end of the connection only, which closes with the task below.
    let null = File::open("/dev/null").expect("a file");
    nix::unistd::dup2_stdin(null).expect("standard input");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let keep = keep(&files, UnixStream::from(first), Duration::from_millis(idle));
    runtime.expect("a runtime").block_on(keep);
}

async fn keep(files: &ClusterFiles, first: UnixStream, idle_timeout: Duration) {
    // Waits for a keeper that is stopping its server.
    let _lock = files.lock_keeper();
    // What a keeper left that was killed.
    let _ = fs::remove_dir_all(files.cluster());
    let _ = fs::remove_file(files.socket());
    let options = EmbeddedOptions { directory: files.cluster(), binaries: None, durable: false };
    let server = Embedded::start(&options).await.expect("PostgreSQL starts");
    let url = server.database_url("postgres");
    let database = DatabaseUrl::parse(&url).expect("a URL");
    store::create_database(&database, TEMPLATE).await.expect("a database");
    store::migrate(&database.with_database(TEMPLATE)).await.expect("migrations");

    let listener = UnixListener::bind(files.socket()).expect("a socket");
    first.set_nonblocking(true).expect("a socket");
    let first = tokio::net::UnixStream::from_std(first).expect("a socket");
    let mut users = JoinSet::new();
    users.spawn(serve_user(first, url.clone()));
    loop {
        let accepted = if users.is_empty() {
            match tokio::time::timeout(idle_timeout, listener.accept()).await {
                Ok(accepted) => accepted,
                Err(_) => break,
            }
        } else {
            tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = users.join_next() => continue,
            }
        };
        users.spawn(serve_user(accepted.expect("a connection").0, url.clone()));
    }
    // A process that has just connected reads the end of its connection, and starts a new keeper.
    drop(listener);
    let _ = fs::remove_file(files.socket());
    server.stop().await.expect("PostgreSQL stops");
    let _ = fs::remove_dir_all(files.cluster());
}

/// Sends the URL to a user, and returns when the user has gone.
async fn serve_user(mut connection: tokio::net::UnixStream, url: String) {
    let line = format!("{url}\n");
    if connection.write_all(line.as_bytes()).await.is_ok() {
        let _ = connection.read(&mut [0]).await;
    }
}

fn the_server_ends_after_its_last_user() {
    let directory = world_readable_directory();
    let files = ClusterFiles::new(directory.path().join("shared"));
    // Without patience, so that a keeper that miscounts its users ends at once.
    let (url, first) = use_server(&files, Duration::ZERO);
    let (found, second) = use_server(&files, Duration::ZERO);
    assert_eq!(url, found, "the second user finds the server of the first");
    // The keeper closes its end once it has noticed that the user has gone.
    first.shutdown(Shutdown::Write).expect("an end");
    assert_eq!((&first).read(&mut [0]).expect("an end"), 0);
    // If it had ended, this would start another keeper, which waits for the end of the first.
    let (_, third) = use_server(&files, Duration::ZERO);
    second.set_nonblocking(true).expect("a socket");
    let kept = (&second).read(&mut [0]).expect_err("nothing to read, and no end");
    assert_eq!(kept.kind(), std::io::ErrorKind::WouldBlock, "the second user still keeps it");
    assert!(files.cluster().exists());

    drop((second, third));
    let cluster = files.cluster();
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(files.lock_keeper()));
    let _lock = ended.recv_timeout(TIMEOUT).expect("the keeper ends");
    assert!(!cluster.exists(), "nothing is left of the server");
}

/// A directory that another user, for example PostgreSQL's, can enter.
pub fn world_readable_directory() -> TempDir {
    let directory =
        tempfile::Builder::new().prefix("th-test-").tempdir().expect("a temporary directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("own directory");
    directory
}

/// URL of a database as text, for programs that take one.
pub fn url_of(database: &str) -> String {
    server_url().replace("/postgres?", &format!("/{database}?"))
}

/// A new database with this version's schema, and its name.
pub async fn migrated_database() -> String {
    create(TEMPLATE).await
}

/// A new database with nothing in it, and its name.
pub async fn empty_database() -> String {
    create("template0").await
}

async fn create(template: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("test_{}_{number}", std::process::id());
    execute("postgres", &format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
    name
}

/// A connection of the test's own, past the service.
pub async fn connect(database: &str) -> PgConnection {
    PgConnection::connect(&url_of(database)).await.expect("a connection")
}

/// Runs statements past the service.
pub async fn execute(database: &str, statements: &str) {
    let mut connection = connect(database).await;
    let sql = AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(sql).execute(&mut connection).await.expect(statements);
}

/// Waits until a statement waits for a lock.
pub async fn until_waiting(database: &str) {
    let mut connection = connect(database).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until_count(&mut connection, waiting, |count| count > 0).await;
}

/// Asks for a count until it is as wanted, one round trip after the other. For the state of other
/// sessions, which the server does not announce.
pub async fn until_count(
    connection: &mut PgConnection,
    statement: &'static str,
    is_wanted: impl Fn(i64) -> bool,
) {
    let started = Instant::now();
    loop {
        let count: i64 =
            sqlx::query_scalar(statement).fetch_one(&mut *connection).await.expect("a count");
        if is_wanted(count) {
            return;
        }
        assert!(started.elapsed() < TIMEOUT, "{statement} stays {count}");
    }
}
