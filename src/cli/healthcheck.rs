//! Asking a running service whether it is ready: `task-history healthcheck`.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::output::print;

/// How long the answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the readiness probe at `url`.
pub(super) async fn run(url: &str) -> anyhow::Result<()> {
    let uri = url.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
    let uri = uri.with_context(|| format!("`{url}` is not an http:// URL"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = async {
        let response = client.get(uri).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (status, body) = tokio::time::timeout(TIMEOUT, answer)
        .await
        .with_context(|| format!("{url} did not respond within {} s", TIMEOUT.as_secs()))?
        .with_context(|| format!("{url} cannot be reached"))?;
    if !status.is_success() {
        bail!("{url} answered {status}: {body}");
    }
    print(&format!("{url} answered {status}"));
    Ok(())
}
