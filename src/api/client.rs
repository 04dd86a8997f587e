//! Who sent a request, and from where. The request log and the brake on wrong keys read it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use uuid::Uuid;

use super::error::ApiError;
use super::failed_keys::FailedKeys;
use crate::domain::{PeerAddress, Principal, TrustedProxies};

/// The request's id in logs. It is taken from the caller or generated, and always returned.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken from a caller, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// The addresses that a request passed, as most proxies write them. The last is added last.
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// What all clients share.
pub(super) struct Clients {
    /// The proxies that are believed.
    pub(super) trusted_proxies: TrustedProxies,
    /// The addresses that sent wrong keys.
    pub(super) failed_keys: FailedKeys,
}

impl Clients {
    /// The sender of a request. Its key is not known yet.
    pub(super) fn client_of(self: &Arc<Self>, request: &Request) -> Arc<Client> {
        let peer = request.extensions().get::<PeerAddress>();
        let address =
            peer.map(|peer| client_address(peer.0.ip(), request.headers(), &self.trusted_proxies));
        let request_id = request_id(request);
        let clients = self.clone();
        Arc::new(Client {
            address,
            request_id,
            principal: OnceLock::new(),
            is_summarized: AtomicBool::new(false),
            clients,
        })
    }
}

/// The sender of a request. An extension of each request.
pub(crate) struct Client {
    /// Its address. `None` if the request did not come through a connection.
    address: Option<IpAddr>,
    request_id: HeaderValue,
    principal: OnceLock<Principal>,
    is_summarized: AtomicBool,
    clients: Arc<Clients>,
}

impl Client {
    /// The sender of a request.
    pub(super) fn of(parts: &Parts) -> Arc<Self> {
        parts.extensions.get::<Arc<Self>>().expect("the middleware names it").clone()
    }

    pub(super) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// The id of its request.
    pub(super) fn request_id(&self) -> &HeaderValue {
        &self.request_id
    }

    /// The owner of its key, once that has been looked up.
    pub(super) fn principal(&self) -> Option<&Principal> {
        self.principal.get()
    }

    /// Says that it has a valid key.
    pub(super) fn identify(&self, principal: Principal) {
        let _ = self.principal.set(principal);
    }

    /// Refuses a key that is not known if its address has tried too many wrong ones.
    pub(super) fn check_guess(&self) -> Result<(), ApiError> {
        let Some(address) = self.address else { return Ok(()) };
        self.clients.failed_keys.check_guess(address).map_err(|retry_after| {
            self.take_line(true);
            ApiError::TooManyFailedKeys { retry_after }
        })
    }

    /// Counts a key that was looked up and is wrong.
    pub(super) fn record_guess(&self) {
        if let Some(address) = self.address {
            self.clients.failed_keys.record_guess(address);
        }
    }

    /// The answer to a missing or wrong key.
    pub(super) fn refuse(&self) -> ApiError {
        self.take_line(false);
        ApiError::Unauthenticated
    }

    fn take_line(&self, is_guess: bool) {
        if let Some(address) = self.address
            && !self.clients.failed_keys.take_line(address, is_guess)
        {
            self.is_summarized.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a summary counts the request, instead of a line in the request log.
    pub(super) fn is_summarized(&self) -> bool {
        self.is_summarized.load(Ordering::Relaxed)
    }
}

fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is visible ASCII")
    })
}

/// The address of a client: the last one that no trusted proxy has, since a client can write what
/// it likes before that.
fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &TrustedProxies) -> IpAddr {
    let mut address = peer.to_canonical();
    let (name, read): (_, fn(&str) -> Option<&str>) = if headers.contains_key(X_FORWARDED_FOR) {
        (X_FORWARDED_FOR, |hop| Some(hop))
    } else {
        (header::FORWARDED, forwarded_for)
    };
    let lines = headers.get_all(name).iter().rev();
    let mut hops = lines.flat_map(|line| line.to_str().unwrap_or_default().rsplit(','));
    while trusted.contains(address) {
        // What is no address hides the client behind the proxy that wrote it.
        let Some(hop) = hops.next().and_then(read).and_then(parse_node) else { break };
        address = hop.to_canonical();
    }
    address
}

/// The value of `for` in an element of `Forwarded` (RFC 7239).
fn forwarded_for(element: &str) -> Option<&str> {
    let mut pairs = element.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| name.eq_ignore_ascii_case("for")).map(|(_, value)| value)
}

/// An address, with or without a port: `192.0.2.1`, `192.0.2.1:80`, `"[2001:db8::1]:80"`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let without_port = || text.parse::<std::net::SocketAddr>().map(|address| address.ip());
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    bare.parse().or_else(|_| without_port()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_last_address_that_is_no_trusted_proxy() {
        let trusted = TrustedProxies::parse("10.0.0.0/8, fd00::1").expect("a list");
        // X is X-Forwarded-For, F is Forwarded.
        let cases: &[(&str, &[&str], &str)] = &[
            ("192.0.2.1", &[], "192.0.2.1"),
            ("192.0.2.1", &["X 198.51.100.9"], "192.0.2.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["X 198.51.100.9"], "198.51.100.9"),
            ("::ffff:10.0.0.1", &["X ::ffff:198.51.100.9"], "198.51.100.9"),
            ("10.0.0.1", &["X 1.1.1.1, 198.51.100.9, 10.0.0.2"], "198.51.100.9"),
            ("10.0.0.1", &["X 1.1.1.1", "X 198.51.100.9,10.0.0.2"], "198.51.100.9"),
            ("10.0.0.1", &["X 198.51.100.9", "X 10.0.0.2"], "198.51.100.9"),
            ("10.0.0.1", &["X 10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["X 1.1.1.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["X 198.51.100.9:4711"], "198.51.100.9"),
            ("fd00::1", &["X [2001:db8::1]:80"], "2001:db8::1"),
            ("fd00::1", &["X 2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["F for=1.1.1.1, For=198.51.100.9;proto=http"], "198.51.100.9"),
            ("10.0.0.1", &["F proto=http;for=\"[2001:db8::1]:80\""], "2001:db8::1"),
            ("10.0.0.1", &["F for=1.1.1.1", "X 198.51.100.9"], "198.51.100.9"),
            ("10.0.0.1", &["F by=1.1.1.1"], "10.0.0.1"),
        ];
        for (peer, lines, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in *lines {
                let (name, value) = line.split_once(' ').expect("a name");
                let name = if name == "X" { X_FORWARDED_FOR } else { header::FORWARDED };
                headers.append(name, value.parse().expect("a value"));
            }
            let address = client_address(peer.parse().expect("an address"), &headers, &trusted);
            assert_eq!(address.to_string(), *expected, "{peer} {lines:?}");
        }
    }
}
