//! Event streams through nginx with its defaults: it buffers answers, and asks with HTTP/1.0.

use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use task_history::domain::Limits;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

use super::ends::read_until;
use super::{events_request, patient_limits, push_chunks};
use crate::support::files::until_created;
use crate::support::tcp_server::TcpServer;
use crate::support::test_app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_event_arrives_at_once_through_nginx() {
    let app = TestApp::start_with(patient_limits()).await;
    let server = TcpServer::of_app(&app, Limits::default()).await;
    let address = server.address();
    let directory = tempfile::tempdir().expect("a directory");
    let _nginx = start_nginx(directory.path(), &address.to_string());
    // Written once nginx listens.
    until_created(directory.path().to_owned(), "nginx.pid").await;
    let socket = directory.path().join("nginx.sock");
    for id in ["finished", "deleted"] {
        app.invoke("a", json!({ "id": id, "input": {} })).await.ok();
        let mut connection = UnixStream::connect(&socket).await.expect("a connection");
        connection.write_all(events_request(&app, id).as_bytes()).await.expect("sent");
        let mut received = String::new();
        read_until(&mut connection, &mut received, "task_created").await;
        assert!(received.starts_with("HTTP/1.1 200 OK\r\nServer: nginx"), "{received}");
        assert!(!received.to_lowercase().contains("content-encoding"), "{received}");
        for n in 0..3 {
            push_chunks(&app, id, [format!("chunk number {n}")]).await;
            read_until(&mut connection, &mut received, &format!("chunk number {n}")).await;
        }
        let end = if id == "finished" {
            app.report(id, json!({ "status": "completed" })).await.ok();
            "task_finished"
        } else {
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await;
            "The task was deleted"
        };
        read_until(&mut connection, &mut received, end).await;
    }
}

/// Starts nginx before a server. It ends when it is dropped.
fn start_nginx(directory: &Path, upstream: &str) -> Child {
    let path = directory.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {path}/{name};"))
        .concat();
    let configuration = format!(
        "daemon off; master_process off; pid {path}/nginx.pid; error_log stderr;
         events {{}}
         http {{
             access_log off; {temporary}
             server {{
                 listen unix:{path}/nginx.sock;
                 location / {{ proxy_pass http://{upstream}; }}
             }}
         }}"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, configuration).expect("a file");
    // Debian has it where ordinary users do not look.
    let debian = Path::new("/usr/sbin/nginx");
    let program = if debian.exists() { debian } else { Path::new("nginx") };
    Command::new(program)
        .args(["-c".as_ref(), file.as_os_str(), "-e".as_ref(), "stderr".as_ref()])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("nginx does not start ({error}): install nginx-light"))
}
