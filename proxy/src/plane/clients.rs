//! How many connections each client has at a gateway, on one worker.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

use foldhash::fast::RandomState;

thread_local! {
    /// Clients that have connections, and how many.
    static CLIENTS: RefCell<HashMap<IpAddr, u32, RandomState>> = RefCell::default();
}

/// A place for a connection of a client; given back when it is dropped.
#[derive(Debug)]
pub struct Place(Option<IpAddr>);

impl Place {
    /// Takes one of `most` places of the client at `address`; any number where there is no limit. `None` where none
    /// is left.
    #[must_use]
    pub fn take(address: IpAddr, most: Option<u32>) -> Option<Self> {
        let Some(most) = most else {
            return Some(Self(None));
        };
        let client = client_of(address);
        CLIENTS.with_borrow_mut(|clients| {
            let taken = clients.entry(client).or_default();
            (*taken < most).then(|| {
                *taken += 1;
                Self(Some(client))
            })
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some(client) = self.0 else { return };
        // At the end of the thread they may be gone already.
        let _ = CLIENTS.try_with(|clients| {
            let mut clients = clients.borrow_mut();
            match clients.get_mut(&client) {
                Some(taken) if *taken > 1 => *taken -= 1,
                _ => drop(clients.remove(&client)),
            }
        });
    }
}

/// Who it is that has this address: whoever has one of IPv6 has a /64 of them (RFC 6177, section 2), and an address of IPv4
/// that is mapped into it is that of IPv4.
fn client_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    #[test]
    fn a_client_has_as_many_places_as_it_may_and_each_comes_back() {
        let taken: Vec<_> = (0..2).map(|_| Place::take(at("192.0.2.1"), Some(2)).expect("free")).collect();
        assert!(Place::take(at("192.0.2.1"), Some(2)).is_none());
        assert!(Place::take(at("::ffff:192.0.2.1"), Some(2)).is_none(), "the same address");
        assert!(Place::take(at("192.0.2.2"), Some(2)).is_some(), "another client");
        assert!(Place::take(at("192.0.2.1"), None).is_some(), "no limit");
        drop(taken);
        CLIENTS.with_borrow(|clients| assert!(clients.is_empty(), "{clients:?}"));
    }

    #[test]
    fn of_ipv6_a_client_has_a_whole_network() {
        let _one = Place::take(at("2001:db8::1"), Some(1)).expect("free");
        assert!(Place::take(at("2001:db8::ffff:2"), Some(1)).is_none());
        assert!(Place::take(at("2001:db8:0:1::1"), Some(1)).is_some());
    }
}
