//! What the embedded PostgreSQL gets from the service, and what it leaves behind: its environment,
//! its log and its temporary directories.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

use nix::unistd::{Uid, User};
use sqlx::{Connection, PgConnection};
use task_history::embedded;

use crate::support::program::{DataDirectory, KEY, RunningService, children, postmaster, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_in_the_environment_of_postgres() {
    let directory = DataDirectory::new();
    // Programs that write down their environment, and then run the real ones.
    let real = std::process::Command::new("sh")
        .args([
            "-c",
            "for p in $(command -v postgres) /usr/lib/postgresql/*/bin/postgres \
             /usr/libexec/postgresql*/postgres; do [ -x $p ] && dirname $(realpath $p); done",
        ])
        .output()
        .expect("a shell");
    let real = text(&real.stdout).lines().next().expect("an installation").to_owned();
    let programs = directory.path().join("bin");
    fs::create_dir(&programs).expect("a directory");
    fs::set_permissions(&programs, Permissions::from_mode(0o777)).expect("own directory");
    for name in ["postgres", "initdb"] {
        let script = format!(
            "#!/bin/sh\nenv > {0}/{name}.env.$$\nchmod 644 {0}/{name}.env.$$\n\
             exec {real}/{name} \"$@\"\n",
            programs.display()
        );
        fs::write(programs.join(name), script).expect("written");
        fs::set_permissions(programs.join(name), Permissions::from_mode(0o755)).expect("own file");
    }
    let mut command = directory.command(["--postgres-bin-dir"]);
    command.arg(&programs).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    command.env("OTHER_SECRET", "hunter2").env("PGPORT", "1").env("TZ", "Asia/Tokyo");
    let service = RunningService::start(command).await;

    let mut written = Vec::new();
    for entry in fs::read_dir(&programs).expect("a directory").map(|entry| entry.expect("entry")) {
        if entry.file_name().to_string_lossy().contains(".env.") {
            written.push(fs::read_to_string(entry.path()).expect("a file"));
        }
    }
    assert!(written.len() >= 3, "the version, initdb and the server");
    let server = postmaster(&directory.data()).expect("it runs");
    let processes = children(server).into_iter().map(|(pid, _)| pid).chain([server]);
    for pid in processes {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        written.push(String::from_utf8_lossy(&environment).replace('\0', "\n"));
    }
    for environment in &written {
        for absent in ["TASK_HISTORY", KEY, "hunter2", "PGPORT", "Tokyo"] {
            assert!(!environment.contains(absent), "{absent} in {environment}");
        }
    }
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_private_and_bounded() {
    const FILE_BYTES: u64 = 8 << 20;
    let directory = DataDirectory::new();
    let log = directory.data().join("postgres.log");
    fs::create_dir(directory.data()).expect("a directory");
    fs::set_permissions(directory.data(), Permissions::from_mode(0o755)).expect("own directory");
    fs::write(&log, "old\n").expect("written");
    fs::set_permissions(&log, Permissions::from_mode(0o644)).expect("own file");
    let service = directory.serve().await;
    let url = embedded::running_database_url(&directory.data(), "task_history").expect("it runs");
    let mut connection = PgConnection::connect(&url).await.expect("a connection");
    // The log quotes statements that fail.
    let statement = format!("nonsense {}", "x".repeat(1 << 20));
    for _ in 0..40 {
        let failed = sqlx::raw_sql(sqlx::AssertSqlSafe(statement.clone()));
        failed.execute(&mut connection).await.expect_err("no such statement");
    }
    drop(connection);
    service.stop().await;
    for path in [&log, &log.with_extension("log.1")] {
        let metadata = fs::metadata(path).expect("a log");
        assert!((1..=FILE_BYTES).contains(&metadata.len()), "{} bytes", metadata.len());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    let files = fs::read_dir(directory.data()).expect("a directory").flatten();
    let logs = files.filter(|file| file.file_name().to_string_lossy().contains(".log"));
    assert_eq!(logs.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_start_shows_what_postgres_said() {
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    // The first is noticed before the server has its memory, the second after.
    for (file, content, words) in [
        ("postgresql.auto.conf", "no_such_setting = 1\n", "unrecognized configuration parameter"),
        ("pg_hba.conf", "nonsense\n", "invalid connection type"),
    ] {
        let path = directory.data().join("data").join(file);
        let before = fs::read(&path).expect("a file");
        fs::write(&path, content).expect("written");
        let failed = directory.run(&[]).await;
        assert_eq!(failed.status.code(), Some(1));
        let said = text(&failed.stderr);
        assert!(said.contains(words) && said.contains("postgres.log)"), "{said}");
        let log = fs::read_to_string(directory.data().join("postgres.log")).expect("a log");
        assert!(log.contains(words), "{log}");
        fs::write(&path, before).expect("written");
    }
    directory.serve().await.stop().await;
}

/// Only directories that a service made for its server are removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pid_file_cannot_have_other_directories_removed() {
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    let data = directory.data();
    let temporary = fs::canonicalize("/tmp").expect("a directory");
    let name = || format!("task-history-{}", uuid::Uuid::new_v4());
    let in_another_place = directory.path().join(name());
    let of_another_user = temporary.join(name());
    let not_made_by_it = temporary.join(format!("task-history-victim-{}", std::process::id()));
    let not_empty = temporary.join(name());
    let left = temporary.join(name());
    let all = [&in_another_place, &of_another_user, &not_made_by_it, &not_empty, &left];
    for path in all {
        fs::create_dir(path).expect("a directory");
        fs::write(path.join(".s.PGSQL.5432"), "").expect("written");
        if Uid::effective().is_root() && path != &of_another_user {
            let user = User::from_name("postgres").expect("users").expect("postgres");
            chown(path, Some(user.uid.as_raw()), None).expect("root");
        }
    }
    fs::write(not_empty.join("precious"), "").expect("written");
    for path in all {
        let stale = format!(
            "999999999\n{}\n1\n5432\n{}\n\n  1 1\nready\n",
            data.join("data").display(),
            path.display()
        );
        fs::write(data.join("data/postmaster.pid"), &stale).expect("written");
        directory.serve().await.stop().await;
    }
    assert!(!left.exists(), "what a killed service left is removed");
    let mut kept = vec![in_another_place, not_made_by_it];
    if Uid::effective().is_root() {
        kept.push(of_another_user);
    }
    for path in &kept {
        assert!(path.join(".s.PGSQL.5432").exists(), "{}", path.display());
    }
    assert!(not_empty.join("precious").exists());
    kept.push(not_empty);
    for path in kept {
        fs::remove_dir_all(path).expect("own directory");
    }
}
