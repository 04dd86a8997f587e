//! How long a connection waits for a request.
//!
//! The HTTP library has one time limit from the end of a request to the end of the next one's head.
//! An idle connection should live longer than a head takes, and an answer that is still being
//! written longer than both. So the library gets a timer that knows what the socket did.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::rt::{Sleep, Timer};

use crate::domain::Limits;

/// When the socket of a connection last did something.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Times>);

#[derive(Debug)]
struct Times {
    /// When the wait for the present request head began.
    waiting: Instant,
    /// When the first bytes arrived since then.
    first_read: Option<Instant>,
    last_write: Instant,
}

impl Activity {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self(Mutex::new(Times { waiting: now, first_read: None, last_write: now }))
    }

    /// Bytes have arrived.
    pub(super) fn read(&self) {
        self.0.lock().expect("no panic").first_read.get_or_insert_with(Instant::now);
    }

    /// The peer has taken bytes.
    pub(super) fn written(&self) {
        self.0.lock().expect("no panic").last_write = Instant::now();
    }

    fn wait_for_head(&self) {
        let mut times = self.0.lock().expect("no panic");
        times.waiting = Instant::now();
        times.first_read = None;
    }

    /// When the wait for a request head ends.
    fn deadline(&self, idle_timeout: Duration, header_timeout: Duration) -> Instant {
        let times = self.0.lock().expect("no panic");
        match times.first_read {
            Some(first_read) => first_read.max(times.last_write) + header_timeout,
            // The end of the answer before may still be on its way.
            None => times.waiting.max(times.last_write) + idle_timeout,
        }
    }
}

/// The timer of one connection. The HTTP library uses it for request heads alone.
pub(super) struct HeadTimer {
    activity: Arc<Activity>,
    idle_timeout: Duration,
    header_timeout: Duration,
}

impl HeadTimer {
    pub(super) fn new(activity: Arc<Activity>, limits: &Limits) -> Self {
        let Limits { idle_timeout, header_timeout, .. } = *limits;
        Self { activity, idle_timeout, header_timeout }
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn Sleep>> {
        self.activity.wait_for_head();
        Box::pin(HeadSleep {
            activity: self.activity.clone(),
            idle_timeout: self.idle_timeout,
            header_timeout: self.header_timeout,
            sleep: Box::pin(tokio::time::sleep_until(deadline.into())),
        })
    }
}

/// Ends when a request head has taken too long. It is polled after each read.
struct HeadSleep {
    activity: Arc<Activity>,
    idle_timeout: Duration,
    header_timeout: Duration,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl Future for HeadSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let deadline = self.activity.deadline(self.idle_timeout, self.header_timeout).into();
        if self.sleep.deadline() != deadline {
            self.sleep.as_mut().reset(deadline);
        }
        self.sleep.as_mut().poll(context)
    }
}

impl Sleep for HeadSleep {}
