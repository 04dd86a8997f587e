//! A minimal HTTP client: the harness shares the CPU with the service, so it must use little of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::statistics::percentile;

/// A client with one persistent connection.
pub(crate) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub(crate) async fn connect(port: u16) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(64 << 10) })
    }

    /// Sends a request and returns the body of the response. A status other than 2xx is an error.
    pub(crate) async fn send(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = self.read_head().await?;
        let length =
            content_length(&self.buffer[..head]).context("the response has no Content-Length")?;
        while self.buffer.len() < head + length {
            self.read_some().await?;
        }
        let body = &self.buffer[head..head + length];
        if !self.buffer.starts_with(b"HTTP/1.1 2") {
            bail!(
                "{}: {} {}",
                first_line(request),
                first_line(&self.buffer),
                String::from_utf8_lossy(body)
            );
        }
        Ok(body)
    }

    /// Sends a request and returns the status of the response, whose body is read and dropped.
    pub(crate) async fn status(&mut self, request: &[u8]) -> anyhow::Result<u16> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let head = self.read_head().await?;
        let length = content_length(&self.buffer[..head]).unwrap_or(0);
        while self.buffer.len() < head + length {
            self.read_some().await?;
        }
        let line = first_line(&self.buffer);
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.with_context(|| format!("the response begins with `{line}`"))
    }

    /// Sends a request whose response is a stream, and returns the connection to read it from.
    pub(crate) async fn open_stream(mut self, request: &[u8]) -> anyhow::Result<TcpStream> {
        self.stream.write_all(request).await?;
        self.read_head().await?;
        ensure!(
            self.buffer.starts_with(b"HTTP/1.1 2"),
            "{}: {}",
            first_line(request),
            first_line(&self.buffer)
        );
        Ok(self.stream)
    }

    /// Reads until the head of a response is complete, and returns the offset of its end.
    async fn read_head(&mut self) -> anyhow::Result<usize> {
        loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                return Ok(end + 4);
            }
            self.read_some().await?;
        }
    }

    async fn read_some(&mut self) -> anyhow::Result<()> {
        let read = self.stream.read_buf(&mut self.buffer).await?;
        ensure!(read > 0, "the service closed a connection");
        Ok(())
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then_some(value)
    })?;
    value.trim().parse().ok()
}

fn first_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned()
}

/// A GET request.
pub(crate) fn get(key: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n\r\n").into_bytes()
}

/// A request with a JSON body.
pub(crate) fn with_body(method: &str, key: &str, path: &str, body: &str) -> Vec<u8> {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The latencies of the requests that were sent in some time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    /// In milliseconds, sorted.
    latencies: Vec<f64>,
    seconds: f64,
}

impl Sample {
    pub(crate) fn requests(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "no run has 2^52 requests")]
        let requests = self.latencies.len() as f64;
        requests
    }

    /// Requests a second.
    pub(crate) fn rate(&self) -> f64 {
        self.requests() / self.seconds
    }

    /// Adds the requests of another sample, which was taken at another time.
    pub(crate) fn merge(&mut self, other: Self) {
        self.latencies.extend(other.latencies);
        self.latencies.sort_unstable_by(f64::total_cmp);
        self.seconds += other.seconds;
    }

    /// The given percentile of the latencies, in milliseconds.
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        percentile(&self.latencies, percent)
    }
}

/// Sends requests over several connections at once. A connection sends its next request when it has
/// received the response to the last one.
///
/// `requests` returns the source of requests of a connection, from the connection's number.
pub(crate) async fn load<R: FnMut() -> Vec<u8> + Send + 'static>(
    port: u16,
    connections: usize,
    duration: Duration,
    requests: impl Fn(usize) -> R,
) -> anyhow::Result<Sample> {
    let start = Arc::new(Barrier::new(connections));
    // When the set is dropped, as on an error or Ctrl-C, it aborts its tasks.
    let mut workers = tokio::task::JoinSet::new();
    for number in 0..connections {
        let mut client = Client::connect(port).await?;
        let mut next_request = requests(number);
        let start = start.clone();
        workers.spawn(async move {
            let mut latencies = Vec::new();
            start.wait().await;
            let started = Instant::now();
            let mut now = started;
            while now - started < duration {
                // The latency does not include the time to build the request.
                let request = next_request();
                let sent = Instant::now();
                client.send(&request).await?;
                now = Instant::now();
                latencies.push((now - sent).as_secs_f64() * 1e3);
            }
            anyhow::Ok((latencies, (now - started).as_secs_f64()))
        });
    }
    let mut sample = Sample::default();
    while let Some(worker) = workers.join_next().await {
        let (latencies, seconds) = worker??;
        sample.latencies.extend(latencies);
        sample.seconds = sample.seconds.max(seconds);
    }
    sample.latencies.sort_unstable_by(f64::total_cmp);
    Ok(sample)
}
