//! From a configuration to a running service, and its shutdown.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{self, AppState};
use crate::config::Config;
use crate::database::{Database, OpenMode};
use crate::domain::{ApiKeySecret, Clock};
use crate::server::{self, ConnectionLimits};
use crate::store::{Bootstrap, BootstrapKey, Store};

/// Exit code if the embedded PostgreSQL ended by itself too often.
const EXIT_DATABASE_DIED: u8 = 3;

/// How long the first lines on standard output may take to be written.
const BANNER_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until SIGTERM or Ctrl-C, then finishes the requests in flight.
pub async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    // From here on a signal is an event. Until the service listens, it ends the start.
    let mut stop = stop_signal()?;
    let open_files = server::raise_open_files_limit();
    // Bound first: it is the most likely failure, and must not lose a key that is shown only once.
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("cannot listen on {}; choose another address with --listen", config.listen)
    })?;
    let mut database = tokio::select! {
        database = Database::open(&config.database, OpenMode::Serve) => database?,
        _ = stop.changed() => return Ok(ExitCode::SUCCESS),
    };
    let clock = Clock::system();
    let limits = config.limits;
    let store = Store::new(&database.url, config.database_connections, &limits);
    let bootstrap = store.bootstrap(config.bootstrap_key.as_ref(), clock.now()).await?;
    log_bootstrap(&bootstrap);
    let address = listener.local_addr()?;
    tracing::info!(%address, database = %database.url, "listening");
    let print = tokio::task::spawn_blocking(move || print_banner(address, &bootstrap.key));
    // A full pipe that nobody reads must not keep the service from serving.
    let _ = tokio::time::timeout(BANNER_TIMEOUT, print).await;

    let stopping = CancellationToken::new();
    let drain_timeout = limits.drain_timeout;
    let state = AppState {
        store: store.clone(),
        clock,
        limits: limits.clone(),
        network: config.network,
        stopping: stopping.clone(),
    };
    let router = api::router(state);
    let mut serving = {
        let stopping = stopping.clone();
        let connections = ConnectionLimits::new(
            config.max_connections,
            config.max_connections_per_address,
            open_files,
        );
        tokio::spawn(async move {
            server::serve(listener, router, &limits, connections, stopping).await;
        })
    };
    // The heartbeat finds its connection closed; all others are then pinged before their next use.
    let notice_restart = async || {
        let _ = store.ready().await;
    };
    tokio::select! {
        result = &mut serving => result?,
        error = database.keep_running(notice_restart) => {
            tracing::error!(
                %error,
                "giving up; read the log of PostgreSQL in the data directory, mend the reason, and \
                 start the service again"
            );
            database.close().await?;
            return Ok(ExitCode::from(EXIT_DATABASE_DIED));
        }
        _ = stop.changed() => {
            stopping.cancel();
            tokio::select! {
                _ = &mut serving => {}
                () = tokio::time::sleep(drain_timeout) => {
                    tracing::warn!(?drain_timeout, "drain timeout, aborting requests");
                }
                _ = stop.changed() => tracing::warn!("second stop signal, aborting requests"),
            }
            serving.abort();
        }
    }
    store.close();
    database.close().await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Says which keys the start created, replaced or found unusable.
fn log_bootstrap(bootstrap: &Bootstrap) {
    let organization_id = bootstrap.organization_id;
    match &bootstrap.key {
        BootstrapKey::Created(key_id, _) | BootstrapKey::Adopted(key_id) => {
            tracing::info!(
                target: "audit", %key_id, %organization_id, by = "start", "API key created"
            );
        }
        BootstrapKey::Unchanged => {}
        // Not the end of the start: revoking a leaked key must not stop those who have another.
        BootstrapKey::Unusable => tracing::warn!(
            "the key of --bootstrap-key (TASK_HISTORY_BOOTSTRAP_KEY) is refused: it is revoked, \
             has expired, or belongs to another organization than `default`. Other keys work. Set \
             another key, or leave the setting out"
        ),
    }
    for key_id in &bootstrap.revoked {
        tracing::info!(
            target: "audit", %key_id, %organization_id, by = "start",
            "API key revoked: another --bootstrap-key (TASK_HISTORY_BOOTSTRAP_KEY) replaces it"
        );
    }
}

/// Changes when SIGTERM or SIGINT arrives.
fn stop_signal() -> anyhow::Result<watch::Receiver<()>> {
    let (sender, receiver) = watch::channel(());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sender.send(());
        }
    });
    Ok(receiver)
}

/// Prints the address, and at the first start the key and the first steps.
fn print_banner(address: SocketAddr, key: &BootstrapKey) {
    // A wildcard address cannot be opened.
    let host = if address.ip().is_unspecified() {
        "127.0.0.1".to_owned()
    } else {
        address.ip().to_string()
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let base = format!("http://{host}:{}", address.port());
    let mut text = format!("Listening on {base}, documentation at {base}/docs\n");
    if let BootstrapKey::Created(_, key) = key {
        text += &quick_start(&base, key);
    }
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

fn quick_start(base: &str, key: &ApiKeySecret) -> String {
    let key = key.expose();
    format!(
        "\nThis is the first start. Your API key, shown only this once:\n\n    {key}\n\n\
         Record a task, and list it:\n\n    \
         curl -s -H 'x-api-key: {key}' -H 'content-type: application/json' \\\n      \
         -d '{{\"input\": {{\"text\": \"Hello\"}}}}' {base}/v1/agents/my-agent/invoke/async\n    \
         curl -s -H 'x-api-key: {key}' {base}/v1/agents/my-agent/tasks\n\n"
    )
}
