//! One PostgreSQL server for all test processes, and a database of its own for each test.
//!
//! The first process that needs the server starts a keeper: this test binary again, with
//! [`keeper`] as its only test. The keeper owns the server. Every process that uses the server
//! holds a shared lock on a file. The keeper stops the server and removes its directory once the
//! lock has been free for [`IDLE_TIMEOUT`]. So `cargo test` runs all tests on one server, and so do
//! cargo-nextest (a process for each test) and an editor (one test at a time).
//!
//! If the keeper is killed, the kernel ends its server; the next keeper removes what is left.

use std::fs::{self, File, OpenOptions, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use task_history::embedded::{Embedded, EmbeddedOptions};
use task_history::store;
use task_history::store::DatabaseUrl;
use tempfile::TempDir;

use super::TIMEOUT;

/// Tells a process of this binary that it is the keeper; its value is the directory.
const KEEPER_DIRECTORY: &str = "TASK_HISTORY_TEST_KEEPER";

/// Tells the keeper its idle timeout, in milliseconds.
const KEEPER_IDLE_MS: &str = "TASK_HISTORY_TEST_KEEPER_IDLE_MS";

/// How long the server stays without users, so that the next run finds it warm.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// How often the keeper looks for users.
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(200);

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

    /// Locked, shared, by every process that uses the server.
    fn users(&self) -> File {
        self.open("users.lock")
    }

    /// Locked, exclusively, by the process that looks for the server or starts it.
    fn start(&self) -> File {
        self.open("start.lock")
    }

    fn open(&self, name: &str) -> File {
        let path = self.0.join(name);
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).open(path).expect("a lock file")
    }

    /// Holds the URL of the server's `postgres` database once it can be used.
    fn url(&self) -> PathBuf {
        self.0.join("url")
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
    static SERVER: OnceLock<(String, File)> = OnceLock::new();
    // The lock is held as long as the process lives.
    &SERVER.get_or_init(|| use_server(&shared_files(), IDLE_TIMEOUT)).0
}

/// Finds or starts the server, and returns its URL with the lock that keeps it.
fn use_server(files: &ClusterFiles, idle_timeout: Duration) -> (String, File) {
    // Waits for a keeper that is stopping its server.
    let users = files.users();
    users.lock_shared().expect("a lock");
    let start = files.start();
    start.lock().expect("a lock");
    if let Some(url) = running(files) {
        return (url, users);
    }
    let _ = fs::remove_file(files.url());
    let log = File::create(files.log()).expect("a log");
    let mut keeper = Command::new(std::env::current_exe().expect("this program"));
    keeper
        .args(["support::cluster::keeper", "--exact", "--nocapture"])
        .env(KEEPER_DIRECTORY, &files.0)
        .env(KEEPER_IDLE_MS, idle_timeout.as_millis().to_string())
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log"))
        .stderr(log)
        // Ctrl-C in the terminal ends the tests; the keeper then stops the server by itself.
        .process_group(0);
    #[expect(clippy::zombie_processes, reason = "the keeper outlives this process")]
    let mut keeper = keeper.spawn().expect("the keeper starts");
    let started = Instant::now();
    loop {
        if let Some(url) = running(files) {
            return (url, users);
        }
        let ended = keeper.try_wait().expect("a child");
        let is_late = started.elapsed() > TIMEOUT;
        assert!(
            ended.is_none() && !is_late,
            "the keeper gave no server ({ended:?}): {}",
            fs::read_to_string(files.log()).unwrap_or_default()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The URL of a server that runs.
fn running(files: &ClusterFiles) -> Option<String> {
    let url = fs::read_to_string(files.url()).ok()?;
    task_history::embedded::running_database_url(&files.cluster(), "postgres")
        .filter(|running| *running == url)
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(keep(&files, Duration::from_millis(idle)));
}

async fn keep(files: &ClusterFiles, idle_timeout: Duration) {
    // What a keeper left that was killed.
    let _ = fs::remove_dir_all(files.cluster());
    let options = EmbeddedOptions { directory: files.cluster(), binaries: None, durable: false };
    let server = Embedded::start(&options).await.expect("PostgreSQL starts");
    let url = server.database_url("postgres");
    let database = DatabaseUrl::parse(&url).expect("a URL");
    store::create_database(&database, TEMPLATE).await.expect("a database");
    store::migrate(&database.with_database(TEMPLATE)).await.expect("migrations");
    // Renamed into place: a reader sees all of it or nothing.
    let unfinished = files.0.join("url.new");
    let mut file = File::create(&unfinished).expect("a file");
    file.write_all(url.as_bytes()).expect("written");
    fs::rename(unfinished, files.url()).expect("renamed");

    let users = files.users();
    let mut idle_since = None;
    loop {
        tokio::time::sleep(IDLE_POLL_INTERVAL).await;
        if users.try_lock().is_err() {
            idle_since = None;
            continue;
        }
        if idle_since.get_or_insert_with(Instant::now).elapsed() >= idle_timeout {
            break;
        }
        users.unlock().expect("unlocked");
    }
    // The exclusive lock is held until the end: a new user waits, and then starts a new keeper.
    let _ = fs::remove_file(files.url());
    server.stop().await.expect("PostgreSQL stops");
    let _ = fs::remove_dir_all(files.cluster());
}

fn the_server_ends_after_its_last_user() {
    let directory = world_readable_directory();
    let files = ClusterFiles::new(directory.path().join("shared"));
    let (url, first) = use_server(&files, Duration::from_millis(300));
    let (found, second) = use_server(&files, Duration::from_millis(300));
    assert_eq!(url, found, "the second user finds the server of the first");
    drop(first);
    std::thread::sleep(Duration::from_secs(1));
    assert!(running(&files).is_some(), "the second user still keeps it");
    drop(second);
    let started = Instant::now();
    while files.cluster().exists() {
        assert!(started.elapsed() < TIMEOUT, "the server is not removed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(running(&files), None);
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

/// Polls a count until it is as wanted. For what the server does not announce.
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
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
