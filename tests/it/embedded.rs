//! The service's own PostgreSQL: that it starts whatever was left behind, keeps what was acknowledged, and says what
//! to do where it can't.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Uid, User};
use sqlx::{Connection, PgConnection};
use task_history::embedded::{self, EmbeddedError, EmbeddedOptions};
use tokio::process::Command;

use crate::support::program::{DataDirectory, is_alive, postmaster, text};
use crate::support::until;

fn options(directory: &Path) -> EmbeddedOptions {
    EmbeddedOptions { directory: directory.to_owned(), binaries: None, durable: true }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_durable_and_private() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    let url = embedded::running_database_url(&home.data(), "task_history").expect("it runs");
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    for (setting, value) in [
        ("fsync", "on"),
        ("synchronous_commit", "on"),
        ("full_page_writes", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("server_encoding", "UTF8"),
    ] {
        let actual: String = sqlx::query_scalar("SELECT current_setting($1)")
            .bind(setting)
            .fetch_one(&mut connection)
            .await
            .expect("a setting");
        assert_eq!(actual, value, "{setting}");
    }
    drop(connection);
    for (path, mode) in [("data", 0o700), ("run", 0o700), ("lock", 0o600)] {
        let metadata = std::fs::metadata(home.data().join(path)).expect(path);
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_with_the_service_and_reused_by_the_next() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    service.record("kept").await;
    let pid = postmaster(&home.data()).expect("it runs");
    service.stop().await;
    assert!(!is_alive(pid));
    assert_eq!(postmaster(&home.data()), None);
    let service = home.serve().await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    // Ctrl-C is as good as SIGTERM.
    service.signal(Signal::SIGINT);
    let (status, _, _) = service.ended().await;
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_is_killed() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    service.record("kept").await;
    let pid = postmaster(&home.data()).expect("it runs");
    service.signal(Signal::SIGKILL);
    let (status, _, _) = service.ended().await;
    assert!(!status.success());
    let service = home.serve().await;
    assert!(!is_alive(pid), "the old server is gone");
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_is_killed() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    service.record("kept").await;
    kill(postmaster(&home.data()).expect("it runs"), Signal::SIGKILL).expect("a signal");
    let (status, _, log) = service.ended().await;
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("PostgreSQL ended by itself"), "{log}");
    let service = home.serve().await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_are_killed() {
    let home = DataDirectory::new();
    for round in 0..3 {
        let service = home.serve().await;
        service.record(&format!("kept-{round}")).await;
        let pid = postmaster(&home.data()).expect("it runs");
        service.signal(Signal::SIGSTOP);
        kill(pid, Signal::SIGKILL).expect("a signal");
        service.signal(Signal::SIGKILL);
        service.ended().await;
        let service = home.serve().await;
        assert_eq!(service.get("/v1/agents/a/tasks").await["total"], round + 1);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_user_can_run_it() {
    let home = DataDirectory::of_ordinary_user();
    let service = home.serve().await;
    service.record("kept").await;
    service.signal(Signal::SIGKILL);
    service.ended().await;
    let service = home.serve().await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_service_on_the_directory_is_refused() {
    let home = DataDirectory::new();
    let first = home.serve().await;
    let second = home.run(&[]).await;
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains("another task-history uses") && said.contains("--data-dir"), "{said}");
    assert_eq!(first.get("/readyz").await, "ok", "the first does not notice");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_makes_the_cluster() {
    let home = DataDirectory::new();
    let is_unfinished = || {
        let entries = std::fs::read_dir(home.data()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("data.new."))
    };
    let mut child = home.command::<&str>([]).stderr(Stdio::null()).spawn().expect("it starts");
    until(|| is_unfinished().is_some_and(|path| path.join("base").exists())).await;
    child.kill().await.expect("a signal");
    assert!(!home.data().join("data").exists(), "it was not done");
    let service = home.serve().await;
    service.record("works").await;
    service.stop().await;
    assert_eq!(is_unfinished(), None, "nothing is left of the first attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_pid_file_that_names_a_stranger() {
    let home = DataDirectory::new();
    home.serve().await.stop().await;
    let data = home.data();
    let socket = data.join("run");
    let stale = format!(
        "{}\n{}\n1\n5432\n{}\n\n  1 1\nready\n",
        std::process::id(),
        data.display(),
        socket.display()
    );
    std::fs::write(data.join("data/postmaster.pid"), &stale).expect("written");
    std::fs::write(socket.join(".s.PGSQL.5432.lock"), &stale).expect("written");
    assert_eq!(embedded::running_database_url(&data, "x"), None, "a stranger is no server");
    let service = home.serve().await;
    service.record("works").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_outlived_its_service_is_replaced() {
    let home = DataDirectory::new();
    home.serve().await.stop().await;
    let data = home.data();
    // A server that nobody told to end with its parent, as on systems that can't.
    let found = std::process::Command::new("sh")
        .args(["-c", "ls /usr/lib/postgresql/*/bin/postgres /usr/libexec/postgresql*/postgres 2>/dev/null; command -v postgres"])
        .output()
        .expect("a shell");
    let program = text(&found.stdout).lines().next().expect("a postgres");
    let mut command = Command::new(program);
    command
        .arg("-D")
        .arg(data.join("data"))
        .arg("-k")
        .arg(data.join("run"))
        .args(["-c", "listen_addresses="]);
    command.current_dir("/").stdout(Stdio::null()).stderr(Stdio::null());
    if Uid::effective().is_root() {
        let user =
            ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
        let user = user.expect("a user");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut orphan = command.spawn().expect("it starts");
    until(|| embedded::running_database_url(&data, "x").is_some()).await;
    let mut service = home.serve().await;
    service.wait_for_log("stopping the PostgreSQL of a service that was killed").await;
    assert!(orphan.wait().await.expect("a child").success(), "it was stopped gently");
    service.record("works").await;
    service.stop().await;
}

/// What a power failure or a full disk may leave.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_pid_file_is_no_obstacle() {
    let home = DataDirectory::new();
    home.serve().await.stop().await;
    std::fs::write(home.data().join("data/postmaster.pid"), "").expect("written");
    home.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_directory_leaves_the_original_alone() {
    let home = DataDirectory::new();
    let original = home.data().join("d".repeat(120));
    let server = embedded::Embedded::start(&options(&original)).await.expect("it starts");
    let copy = home.directory.path().join("copy");
    let copied = Command::new("cp").arg("-a").arg(&original).arg(&copy).status().await.expect("cp");
    assert!(copied.success());
    let restored = embedded::Embedded::start(&options(&copy)).await.expect("the copy starts");
    for running in [&server, &restored] {
        let url = running.database_url("postgres");
        PgConnection::connect(&url).await.expect("both answer").close().await.expect("closed");
    }
    restored.stop().await.expect("it stops");
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_path_gets_a_short_socket() {
    let home = DataDirectory::new();
    let directory = home.data().join("d".repeat(120));
    let server = embedded::Embedded::start(&options(&directory)).await.expect("it starts");
    let url = server.database_url("postgres");
    PgConnection::connect(&url).await.expect("a connection").close().await.expect("closed");
    assert_eq!(
        embedded::running_database_url(&directory, "postgres").as_deref(),
        Some(url.as_str())
    );
    let socket = url.split("&host=").nth(1).expect("a socket").replace("%2F", "/");
    assert!(Path::new(&socket).exists());
    server.stop().await.expect("it stops");
    assert!(!Path::new(&socket).exists(), "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_another_version_is_left_alone() {
    let home = DataDirectory::new();
    home.serve().await.stop().await;
    let version = home.data().join("data/PG_VERSION");
    let real = std::fs::read_to_string(&version).expect("a version");
    std::fs::write(&version, "9\n").expect("written");
    let refused = home.run(&[]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("was made by PostgreSQL 9") && said.contains("pg_upgrade"), "{said}");
    std::fs::write(&version, real).expect("written");
    home.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_binaries_is_told_with_what_to_install() {
    let home = DataDirectory::new();
    let wrong = home.run(&["--postgres-bin-dir", "/nowhere"]).await;
    assert!(text(&wrong.stderr).contains("no programs `postgres` and `initdb` in /nowhere"));
    // A search that finds nothing says what to install; here the places are there, so the message is asked for.
    let said = &EmbeddedError::NoBinaries(Some(15)).to_string();
    for way in [
        "apt-get install",
        "dnf install",
        "apk add",
        "brew install",
        "docker compose",
        "DATABASE_URL=",
    ] {
        assert!(said.contains(way), "{said}");
    }
    assert!(!home.data().join("data").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_postgres_cannot_enter() {
    // A directory is only closed to PostgreSQL where it runs as another user than the service: under root.
    if !Uid::effective().is_root() {
        return;
    }
    let closed = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).expect("own directory");
    let directory = closed.path().join("data");
    let error = embedded::Embedded::start(&options(&directory)).await.expect_err("it can't start");
    assert!(
        matches!(&error, EmbeddedError::Unreachable { blocked, .. } if blocked == closed.path()),
        "{error}"
    );
    assert!(error.to_string().contains("--data-dir"), "{error}");
}
