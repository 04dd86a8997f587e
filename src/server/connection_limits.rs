//! How many connections there may be, in all and from one address.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use crate::domain::network_of;

/// The default of the most connections. A connection has one open file and about 20 KB of memory.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// Open files that connections leave for the connections to PostgreSQL, those that are refused
/// just now, and what the process itself needs.
const RESERVED_FILES: usize = 160;

/// How many connections the server accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// The most connections at a time.
    pub total: usize,
    /// The most connections at a time from one IPv4 address, or from one IPv6 network of 64 bits.
    pub per_address: usize,
}

impl ConnectionLimits {
    /// The limits of the settings. By default, one address has half of all connections.
    ///
    /// The limit on open files bounds them all, and a setting beyond it is logged.
    pub fn new(total: Option<usize>, per_address: Option<usize>, open_files: usize) -> Self {
        let most = open_files.saturating_sub(RESERVED_FILES).max(open_files / 2);
        let total = total.unwrap_or(most.min(DEFAULT_MAX_CONNECTIONS));
        if total > most {
            tracing::warn!(
                open_files,
                max_connections = most,
                "--max-connections is more than the limit on open files allows; raise that limit \
                 (ulimit -n, LimitNOFILE)"
            );
        }
        let total = total.min(most);
        let per_address = per_address.unwrap_or((total / 2).max(1)).min(total);
        Self { total, per_address }
    }
}

/// Why there is no slot for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// All are taken.
    Total,
    /// Its address has all that it may have.
    Address,
}

/// Counts the open connections.
pub(super) struct ConnectionSlots {
    limits: ConnectionLimits,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// The slot of an open connection. Dropping it makes room.
pub(super) struct ConnectionSlot {
    address: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl ConnectionSlots {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self { limits, taken: Arc::default() }
    }

    /// A slot for a connection from this address.
    pub(super) fn take(&self, address: IpAddr) -> Result<ConnectionSlot, Full> {
        let address = network_of(address);
        let mut taken = self.taken.lock().expect("no panic");
        if taken.total >= self.limits.total {
            return Err(Full::Total);
        }
        let of_address = taken.by_address.get(&address).copied().unwrap_or_default();
        if of_address >= self.limits.per_address {
            return Err(Full::Address);
        }
        taken.total += 1;
        taken.by_address.insert(address, of_address + 1);
        Ok(ConnectionSlot { address, taken: self.taken.clone() })
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().expect("no panic");
        taken.total -= 1;
        if let Entry::Occupied(mut of_address) = taken.by_address.entry(self.address) {
            *of_address.get_mut() -= 1;
            if *of_address.get() == 0 {
                of_address.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_from_the_settings_and_the_open_files() {
        for ((total, per_address, open_files), expected) in [
            ((None, None, 1_048_576), (10_000, 5_000)),
            ((None, None, 1024), (864, 432)),
            ((None, None, 2), (1, 1)),
            ((Some(100), None, 1024), (100, 50)),
            ((Some(100), Some(100), 1024), (100, 100)),
            ((Some(1), Some(9), 1024), (1, 1)),
            ((Some(5_000), None, 1024), (864, 432)),
        ] {
            let limits = ConnectionLimits::new(total, per_address, open_files);
            let case = (total, per_address, open_files);
            assert_eq!((limits.total, limits.per_address), expected, "{case:?}");
        }
    }

    #[test]
    fn addresses_of_one_ipv6_network_share_their_slots() {
        let slots = ConnectionSlots::new(ConnectionLimits { total: 9, per_address: 1 });
        let take = |address: &str| slots.take(address.parse().expect("an address"));
        let _first = take("2001:db8::1").expect("a slot");
        assert_eq!(take("2001:db8::ffff:1").err(), Some(Full::Address));
        let _other = take("2001:db8:0:1::1").expect("a slot");
        let _first = take("192.0.2.1").expect("a slot");
        let _other = take("192.0.2.2").expect("a slot");
    }
}
