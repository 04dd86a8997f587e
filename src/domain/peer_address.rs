//! Who sent a request.

use std::net::SocketAddr;

/// The address of the other end of a request's connection: of the client, or of the proxy before
/// the service.
///
/// The server puts it into the extensions of each request. An IPv4 address is in its own form, also
/// if the service listens on an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);
