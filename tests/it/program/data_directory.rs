//! Data directories of all kinds: unusual names work, and unsafe places are refused.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use nix::unistd::{Uid, User};

use crate::support::program::{DataDirectory, KEY, RunningService, run, text};

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("own path");
}

fn nobody() -> u32 {
    User::from_name("nobody").expect("users").expect("nobody").uid.as_raw()
}

/// Runs the service, which must refuse to start, and returns what it said.
async fn refused(directory: &DataDirectory, data: &Path) -> String {
    let mut command = directory.command(["--data-dir"]);
    command.arg(data);
    let output = run(command).await;
    let said = text(&output.stderr).to_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--data-dir"), "it says what to do: {said}");
    said
}

async fn serve(directory: &DataDirectory, data: &Path) -> RunningService {
    let mut command = directory.command(["--data-dir"]);
    command.arg(data).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    RunningService::start(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_name_can_be_used() {
    let directory = DataDirectory::new();
    let root = directory.path();
    let names = [
        root.join("a, b"),
        root.join("it's \"quoted\" \\ `x` $HOME"),
        root.join("données 数据"),
        root.join("%41+&host=x#?;"),
        root.join("n".repeat(200))
            .join("o".repeat(250))
            .join("p".repeat(250))
            .join("q".repeat(100)),
    ];
    for data in &names {
        let service = serve(&directory, data).await;
        service.record("kept").await;
        let mut keys = directory.command(["keys", "list", "--data-dir"]);
        keys.arg(data);
        let keys = run(keys).await;
        assert!(keys.status.success(), "beside it: {}", text(&keys.stderr));
        service.stop().await;
        let service = serve(&directory, data).await;
        assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending", "{data:?}");
        service.stop().await;
    }
    let said = refused(&directory, &root.join("line\nbreak")).await;
    assert!(said.contains("a line break"), "{said}");
    let long = names[4].join("r".repeat(200));
    let said = refused(&directory, &long).await;
    assert!(said.contains("the path is too long"), "{said}");
}

/// An ordinary user prepares a directory for root.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_user_is_refused() {
    // Nobody else can give a directory to another user.
    if !Uid::effective().is_root() {
        return;
    }
    let directory = DataDirectory::new();
    let victim = directory.path().join("victim");
    fs::create_dir(&victim).expect("a directory");
    set_mode(&victim, 0o755);
    fs::write(victim.join("file"), "content").expect("written");
    let data = directory.data();
    fs::create_dir(&data).expect("a directory");
    symlink(&victim, data.join("run")).expect("a link");
    symlink(victim.join("file"), data.join("postgres.log")).expect("a link");
    symlink(victim.join("new"), data.join("lock")).expect("a link");
    chown(&data, Some(nobody()), None).expect("root");
    let said = refused(&directory, &data).await;
    assert!(said.contains("belongs to the user nobody"), "{said}");

    // Neither is a directory below it, nor what a link of that user leads to.
    assert!(refused(&directory, &data.join("below")).await.contains("the user nobody"));
    assert!(!data.join("below").exists());
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).expect("a directory");
    set_mode(&shared, 0o1777);
    symlink(&victim, shared.join("link")).expect("a link");
    lchown(shared.join("link"), Some(nobody()), None).expect("root");
    assert!(refused(&directory, &shared.join("link")).await.contains("the user nobody"));

    // A cluster of that user does not change it.
    fs::create_dir(data.join("data")).expect("a directory");
    chown(data.join("data"), Some(nobody()), None).expect("root");
    assert!(refused(&directory, &data).await.contains("belongs to the user nobody"));

    let entries: Vec<_> = fs::read_dir(&victim).expect("a directory").flatten().collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(fs::read_to_string(victim.join("file")).expect("a file"), "content");
    assert_eq!(fs::metadata(&victim).expect("a directory").uid(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_and_special_files_in_the_directory_are_not_followed() {
    let directory = DataDirectory::new();
    let data = directory.data();
    fs::create_dir(&data).expect("a directory");
    set_mode(&data, 0o755);
    let victim = directory.path().join("victim");
    fs::create_dir(&victim).expect("a directory");
    fs::write(victim.join("file"), "content").expect("written");
    for (name, target) in [("run", "."), ("postgres.log", "file"), ("lock", "new")] {
        // The attempt before may have made it.
        let _ = fs::remove_file(data.join(name));
        symlink(victim.join(target), data.join(name)).expect("a link");
        let said = refused(&directory, &data).await;
        assert!(said.contains("is a symbolic link") && said.contains(name), "{said}");
        fs::remove_file(data.join(name)).expect("own link");
        assert_eq!(fs::read_dir(&victim).expect("a directory").count(), 1, "{name}");
        assert_eq!(fs::read_to_string(victim.join("file")).expect("a file"), "content");
        assert_eq!(fs::metadata(&victim).expect("metadata").uid(), Uid::effective().as_raw());
    }
    for name in ["postgres.log", "lock"] {
        let _ = fs::remove_file(data.join(name));
        let pipe = data.join(name);
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe");
        assert!(refused(&directory, &data).await.contains("a special file"), "{name}");
        fs::remove_file(pipe).expect("own pipe");
    }
    serve(&directory, &data).await.stop().await;

    // The server's user could make these.
    let pid_file = data.join("data/postmaster.pid");
    nix::unistd::mkfifo(&pid_file, nix::sys::stat::Mode::S_IRWXU).expect("a named pipe");
    serve(&directory, &data).await.stop().await;
    let version = data.join("data/PG_VERSION");
    let real = fs::read_to_string(&version).expect("a version");
    fs::remove_file(&version).expect("own file");
    symlink(victim.join("file"), &version).expect("a link");
    let output = directory.run(&[]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(!text(&output.stderr).contains("content"), "{}", text(&output.stderr));
    fs::remove_file(&version).expect("own link");
    fs::write(&version, real).expect("written");
    serve(&directory, &data).await.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_others_can_write_to_is_refused() {
    let directory = DataDirectory::new();
    let parent = directory.path().join("parent");
    let data = parent.join("data-directory");
    fs::create_dir_all(&data).expect("a directory");
    let in_parent = |path: &Path| format!("chmod go-w {}", path.display());
    for (path, mode) in [(&data, 0o777), (&data, 0o1777), (&parent, 0o777)] {
        set_mode(path, mode);
        let said = refused(&directory, &data).await;
        assert!(said.contains(&format!("{}`", in_parent(path))), "{mode:o}: {said}");
        set_mode(path, 0o755);
    }
    if Uid::effective().is_root() {
        set_mode(&data, 0o770);
        chown(&data, None, Some(nobody())).expect("root");
        assert!(refused(&directory, &data).await.contains(&in_parent(&data)), "another group");
        chown(&data, None, Some(0)).expect("root");
        set_mode(&data, 0o755);
    }
    assert_eq!(fs::read_dir(&data).expect("a directory").count(), 0, "nothing was made");
    // As in /tmp, others can make files beside the directory but cannot replace it.
    set_mode(&parent, 0o1777);
    serve(&directory, &data).await.stop().await;
}

/// Every process of `nobody` could read and change the data.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_runs_no_server_as_nobody() {
    if !Uid::effective().is_root() {
        return;
    }
    let directory = DataDirectory::new();
    directory.serve().await.stop().await;
    chown(directory.data().join("data"), Some(nobody()), None).expect("root");
    let output = directory.run(&[]).await;
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("belongs to `nobody`") && said.contains("chown -R postgres"), "{said}");
}
