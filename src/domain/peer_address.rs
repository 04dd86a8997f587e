//! Who sent a request.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address of the other end of a request's connection: of the client, or of the proxy before
/// the service.
///
/// The server puts it into the extensions of each request. An IPv4 address is in its own form, also
/// if the service listens on an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

/// What counts as one address where addresses have limits: an IPv6 client chooses among all
/// addresses of its network of 64 bits.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}
