//! The embedded PostgreSQL server: it starts after a crash, keeps acknowledged writes, and reports
//! what to do if it cannot start.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Uid, User};
use sqlx::{Connection, PgConnection};
use task_history::embedded::{self, EmbeddedError, EmbeddedOptions};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::TIMEOUT;
use crate::support::files::until_created;
use crate::support::program::{DataDirectory, is_alive, postmaster, text};

fn options(directory: &Path) -> EmbeddedOptions {
    EmbeddedOptions { directory: directory.to_owned(), binaries: None, durable: true }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_durable_and_private() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
    let url = embedded::running_database_url(&directory.data(), "task_history").expect("it runs");
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
    // Root's server runs as another user, who must pass through the directory.
    let own = if Uid::effective().is_root() { 0o710 } else { 0o700 };
    let modes =
        [("", own), ("data", 0o700), ("run", 0o700), ("lock", 0o600), ("postgres.log", 0o600)];
    for (path, mode) in modes {
        let metadata = std::fs::metadata(directory.data().join(path)).expect(path);
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_with_the_service_and_reused_by_the_next() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
    service.record("kept").await;
    let pid = postmaster(&directory.data()).expect("it runs");
    service.stop().await;
    assert!(!is_alive(pid));
    assert_eq!(postmaster(&directory.data()), None);
    let service = directory.serve().await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    // SIGINT (Ctrl-C) has the same effect as SIGTERM.
    service.signal(Signal::SIGINT);
    let (status, _, _) = service.ended().await;
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_is_killed() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
    service.record("kept").await;
    let pid = postmaster(&directory.data()).expect("it runs");
    service.signal(Signal::SIGKILL);
    let (status, _, _) = service.ended().await;
    assert!(!status.success());
    let service = directory.serve().await;
    assert!(!is_alive(pid), "the old server is gone");
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_are_killed() {
    let directory = DataDirectory::new();
    for round in 0..3 {
        let service = directory.serve().await;
        service.record(&format!("kept-{round}")).await;
        let pid = postmaster(&directory.data()).expect("it runs");
        service.signal(Signal::SIGSTOP);
        kill(pid, Signal::SIGKILL).expect("a signal");
        service.signal(Signal::SIGKILL);
        service.ended().await;
        let service = directory.serve().await;
        assert_eq!(service.get("/v1/agents/a/tasks").await["total"], round + 1);
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_user_can_run_it() {
    let directory = DataDirectory::of_ordinary_user();
    let service = directory.serve().await;
    service.record("kept").await;
    service.signal(Signal::SIGKILL);
    service.ended().await;
    let service = directory.serve().await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_service_on_the_directory_is_refused() {
    let directory = DataDirectory::new();
    let first = directory.serve().await;
    let second = directory.run(&[]).await;
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains("another task-history uses") && said.contains("--data-dir"), "{said}");
    assert_eq!(first.get("/readyz").await, "ok", "the first does not notice");
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_it_makes_the_cluster() {
    let directory = DataDirectory::new();
    std::fs::create_dir(directory.data()).expect("a directory");
    let mut child = directory.command::<&str>([]).stderr(Stdio::null()).spawn().expect("it starts");
    let unfinished = until_created(directory.data(), "data.new.").await;
    until_created(unfinished.clone(), "base").await;
    child.kill().await.expect("a signal");
    assert!(!directory.data().join("data").exists(), "it was not done");
    let service = directory.serve().await;
    service.record("works").await;
    service.stop().await;
    assert!(!unfinished.exists(), "nothing is left of the first attempt");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_pid_file_that_names_a_stranger() {
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    let data = directory.data();
    let socket = data.join("run");
    let stale = format!(
        "{}\n{}\n1\n5432\n{}\n\n  1 1\nready\n",
        std::process::id(),
        data.display(),
        socket.display()
    );
    std::fs::write(data.join("data/postmaster.pid"), &stale).expect("written");
    std::fs::write(socket.join(".s.PGSQL.5432.lock"), &stale).expect("written");
    assert_eq!(embedded::running_database_url(&data, "x"), None, "another process is no server");
    let service = directory.serve().await;
    service.record("works").await;
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_outlived_its_service_is_replaced() {
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    let data = directory.data();
    // A server without a parent-death signal, as on systems that do not have one.
    let found = std::process::Command::new("sh")
        .args([
            "-c",
            "ls /usr/lib/postgresql/*/bin/postgres /usr/libexec/postgresql*/postgres 2>/dev/null
             command -v postgres",
        ])
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
    command.current_dir("/").env("LC_ALL", "C").stdout(Stdio::null()).stderr(Stdio::piped());
    if Uid::effective().is_root() {
        let user =
            ["postgres", "nobody"].iter().find_map(|name| User::from_name(name).ok().flatten());
        let user = user.expect("a user");
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut orphan = command.spawn().expect("it starts");
    let mut log = BufReader::new(orphan.stderr.take().expect("piped")).lines();
    let ready = async {
        while let Some(line) = log.next_line().await.expect("a pipe") {
            if line.contains("ready to accept connections") {
                return;
            }
        }
        panic!("it ended");
    };
    tokio::time::timeout(TIMEOUT, ready).await.expect("it starts");
    let mut service = directory.serve().await;
    service.wait_for_log("stopping the PostgreSQL of a service that was killed").await;
    assert!(orphan.wait().await.expect("a child").success(), "it was stopped gently");
    service.record("works").await;
    service.stop().await;
}

/// A power failure or a full disk can leave an empty file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_pid_file_is_no_obstacle() {
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    std::fs::write(directory.data().join("data/postmaster.pid"), "").expect("written");
    directory.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_directory_leaves_the_original_alone() {
    let directory = DataDirectory::new();
    let original = directory.data().join("d".repeat(120));
    let server = embedded::Embedded::start(&options(&original)).await.expect("it starts");
    let copy = directory.path().join("copy");
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
    let directory = DataDirectory::new();
    let long = directory.data().join("d".repeat(120));
    let server = embedded::Embedded::start(&options(&long)).await.expect("it starts");
    let url = server.database_url("postgres");
    PgConnection::connect(&url).await.expect("a connection").close().await.expect("closed");
    assert_eq!(embedded::running_database_url(&long, "postgres").as_deref(), Some(url.as_str()));
    let socket = url.split("&host=").nth(1).expect("a socket").replace("%2F", "/");
    assert!(Path::new(&socket).exists());
    server.stop().await.expect("it stops");
    assert!(!Path::new(&socket).exists(), "nothing is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_another_version_is_left_alone() {
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    let version = directory.data().join("data/PG_VERSION");
    let real = std::fs::read_to_string(&version).expect("a version");
    std::fs::write(&version, "9\n").expect("written");
    let refused = directory.run(&[]).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("was made by PostgreSQL 9") && said.contains("pg_upgrade"), "{said}");
    std::fs::write(&version, real).expect("written");
    directory.serve().await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_binaries_is_told_with_what_to_install() {
    let directory = DataDirectory::new();
    let wrong = directory.run(&["--postgres-bin-dir", "/nowhere"]).await;
    assert!(text(&wrong.stderr).contains("no programs `postgres` and `initdb` in /nowhere"));
    // A search without a result names the packages to install. Where tests run, the search finds
    // the programs, so the message is made here.
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
    assert!(!directory.data().join("data").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_postgres_cannot_enter() {
    // PostgreSQL runs as another user than the service only if root runs the service.
    if !Uid::effective().is_root() {
        return;
    }
    let closed = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(closed.path(), Permissions::from_mode(0o700)).expect("own directory");
    let directory = closed.path().join("data");
    let error = embedded::Embedded::start(&options(&directory)).await.expect_err("it cannot start");
    assert!(
        matches!(&error, EmbeddedError::Unreachable { blocked, .. } if blocked == closed.path()),
        "{error}"
    );
    assert!(error.to_string().contains("--data-dir"), "{error}");
}
