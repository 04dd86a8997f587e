//! One PostgreSQL for the whole run, and a database of its own for each test.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use sqlx::{Connection, PgConnection};
use task_history::embedded::{Embedded, Options};
use task_history::store;
use task_history::store::DatabaseUrl;
use tempfile::TempDir;
use tokio::sync::Mutex as AsyncMutex;

/// URL of the cluster's `postgres` database.
static SERVER: OnceLock<String> = OnceLock::new();

/// Runs the tests with a server, stops it and removes its directory, also where Ctrl-C or SIGTERM ends the run.
pub fn with_cluster(run: impl FnOnce() -> ExitCode) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let directory = world_readable_directory();
    let options = Options { directory: directory.path().join("cluster"), binaries: None, durable: false };
    // On the main thread, which outlives all tests: the server stops with the thread that started it.
    let server = runtime.block_on(Embedded::start(&options)).expect("PostgreSQL starts");
    SERVER.set(server.database_url("postgres")).expect("set once");
    runtime.block_on(make_template());

    let resources = Arc::new(Mutex::new(Some((server, directory))));
    let interrupted = resources.clone();
    runtime.spawn(async move {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).expect("signal");
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = terminate.recv() => {}
        }
        let taken = interrupted.lock().expect("no panic").take();
        if let Some((server, directory)) = taken {
            let _ = server.stop().await;
            let _ = directory.close();
        }
        std::process::exit(130);
    });
    let code = run();
    let taken = resources.lock().expect("no panic").take();
    if let Some((server, directory)) = taken {
        runtime.block_on(server.stop()).expect("PostgreSQL stops");
        directory.close().expect("the directory can be removed");
    }
    code
}

/// A directory that another user, whom PostgreSQL runs as where the tests run as root, can enter.
pub fn world_readable_directory() -> TempDir {
    let directory = tempfile::Builder::new().prefix("th-test-").tempdir().expect("a temporary directory");
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).expect("own directory");
    directory
}

fn server() -> DatabaseUrl {
    DatabaseUrl::parse(SERVER.get().expect("the cluster runs")).expect("a URL")
}

/// URL of a database as text, for programs that take one.
pub fn url_of(database: &str) -> String {
    SERVER.get().expect("the cluster runs").replace("/postgres?", &format!("/{database}?"))
}

async fn make_template() {
    store::create_database(&server(), "template_migrated").await.expect("a database");
    store::migrate(&server().with_database("template_migrated")).await.expect("migrations");
}

/// A new database with this version's schema, and its name.
pub async fn migrated_database() -> String {
    create("template_migrated").await
}

/// A new database with nothing in it, and its name.
pub async fn empty_database() -> String {
    create("template0").await
}

async fn create(template: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    // One at a time: while a template is copied nobody else may use it.
    static COPYING: AsyncMutex<()> = AsyncMutex::const_new(());
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let _copying = COPYING.lock().await;
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
    sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned()))
        .execute(&mut connection)
        .await
        .expect(statements);
}

/// Waits until a statement waits for a lock.
pub async fn until_waiting(database: &str) {
    let mut connection = connect(database).await;
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting).fetch_one(&mut connection).await.expect("a count") == 0 {}
}
