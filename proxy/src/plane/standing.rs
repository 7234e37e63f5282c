//! Who asks, and what it may: the standing of a request's sender.
//!
//! A connection has one from its beginning, and so have the requests on it that say nothing more. All rights
//! are put together in [`of_request`], before anything reads what a request chooses.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arrayvec::ArrayString;
use overlane_config::carrier::Keys;
use overlane_config::name::EnvironmentId;
use overlane_config::route::Role;

use super::bearer::{self, Bearer};
use super::forwarded::Said;
use super::trust::Trust;
use super::{Gate, Plane};
use crate::h1::request::Head;

/// Who asks, and what it may.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The client's address.
    pub address: IpAddr,
    /// The address as text.
    pub text: ArrayString<45>,
    /// Whether the request came encrypted.
    pub secure: bool,
    /// Who it is, by a certificate that was verified.
    pub identity: Option<Box<str>>,
    /// Which overlays it may choose.
    pub right: Right,
    /// Where its connection was meant to go, if it was intercepted.
    pub meant: Option<SocketAddr>,
    /// How the request came from there to the peer, where that is a trusted hop.
    pub passed: Option<Box<Passed>>,
    /// What its token comes to, where the request has one.
    pub bearer: Option<Box<Bearer>>,
}

/// What trusted hops say of a request's way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// The hops after the client, in its order; the last one is the peer.
    pub hops: Vec<IpAddr>,
    /// The authority that the client asked, where one of them says.
    pub host: Option<Box<str>>,
}

/// Which overlays somebody may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    /// Any: it is trusted, and so is all that it says of a request's way (hop marks, hop counts, traces, receipts).
    Any,
    /// These. Requirements of such a sender count; what it says of the way does not.
    These(Arc<[EnvironmentId]>),
    /// None.
    Nobody,
}

impl Right {
    /// Whether it covers every overlay, and all else that our headers say.
    #[must_use]
    pub fn is_any(&self) -> bool {
        matches!(self, Self::Any)
    }

    /// Whether whoever has it may choose the overlay `id`, be there one or not.
    #[must_use]
    pub fn may_choose(&self, id: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(ids) => ids.iter().any(|own| own.as_str() == id),
            Self::Nobody => false,
        }
    }

    /// Whether whoever has it may choose all of these: a key counts as a whole.
    #[must_use]
    pub fn may_choose_all(&self, keys: &Keys) -> bool {
        self.is_any() || keys.iter().all(|id| self.may_choose(id))
    }

    /// What both give together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Any, _) | (_, Self::Any) => Self::Any,
            (Self::Nobody, right) | (right, Self::Nobody) => right,
            (Self::These(own), Self::These(more)) => {
                Self::These(own.iter().chain(more.iter().filter(|id| !own.contains(id))).cloned().collect())
            }
        }
    }
}

impl Standing {
    /// That of the peer at `address`.
    #[must_use]
    pub fn of_peer(address: IpAddr, trust: &Trust) -> Arc<Self> {
        Arc::new(Self::at(address, trust, false, None))
    }

    /// That of the peer at `address`, over an encrypted connection.
    #[must_use]
    pub fn over_tls(address: IpAddr, trust: &Trust, identity: Option<Box<str>>) -> Arc<Self> {
        Arc::new(Self::at(address, trust, true, identity))
    }

    /// That of the peer at `address`, whose connection was meant to go somewhere else.
    #[must_use]
    pub fn intercepted(address: IpAddr, trust: &Trust, meant: SocketAddr) -> Arc<Self> {
        Arc::new(Self { meant: Some(meant), ..Self::at(address, trust, false, None) })
    }

    fn at(address: IpAddr, trust: &Trust, secure: bool, identity: Option<Box<str>>) -> Self {
        let right = match trust.covers(address, identity.as_deref()) {
            true => Right::Any,
            false => Right::Nobody,
        };
        Self {
            address,
            text: shown(address),
            secure,
            identity,
            right,
            meant: None,
            passed: None,
            bearer: None,
        }
    }

    /// The same with more right.
    #[must_use]
    pub fn with(&self, right: Right) -> Arc<Self> {
        Arc::new(Self { right: self.right.clone().and(right), ..self.clone() })
    }

    /// That of whom this hop asks for, as it says: whether it is trusted is told by its address, never by the
    /// hop's own. A hop that names nobody vouches for nobody.
    fn behind(&self, said: Said, trust: &Trust) -> Self {
        let covered = match said.client {
            Some(client) => trust.covers(client, None),
            None => *trust == Trust::Any,
        };
        let (address, hops) = match said.client {
            Some(client) => (client, said.hops.into_iter().chain([self.address]).collect()),
            None => (self.address, Vec::new()),
        };
        Self {
            address,
            text: shown(address),
            secure: said.secure.unwrap_or(self.secure),
            identity: None,
            right: if covered { Right::Any } else { Right::Nobody },
            meant: self.meant,
            passed: Some(Box::new(Passed { hops, host: said.host })),
            bearer: None,
        }
    }
}

fn shown(address: IpAddr) -> ArrayString<45> {
    let mut text = ArrayString::new();
    // The longest address has 45 characters.
    let _ = write!(text, "{address}");
    text
}

/// The standing of the sender of a request with this head, on a connection of `peer`.
#[must_use]
pub fn of_request(plane: &Plane, gate: &Gate, peer: &Arc<Standing>, head: &Head<'_>) -> Arc<Standing> {
    // Sidecars have no hops before them but each other, and what a token gives is given where it comes in.
    if !matches!(gate.listener.role, Role::Gateway) {
        return peer.clone();
    }
    let hop = plane.forwarding.believes(peer.address);
    let token = plane.tokens.as_ref().and_then(|tokens| bearer::read(tokens, head));
    if !hop && token.is_none() {
        return peer.clone();
    }
    let mut standing = match hop {
        true => peer.behind(plane.forwarding.read(head), &gate.trust),
        false => (**peer).clone(),
    };
    if let Some((right, bearer)) = token {
        standing.right = standing.right.and(right);
        standing.bearer = Some(Box::new(bearer));
    }
    Arc::new(standing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn these(ids: &[&str]) -> Right {
        Right::These(ids.iter().map(|id| id.parse().expect("id")).collect())
    }

    #[test]
    fn a_key_may_be_chosen_where_each_of_its_ids_may() {
        let keys = |text: &str| Keys::parse([text.as_bytes()]).expect("valid").expect("some");
        for (right, text, may) in [
            (Right::Any, "alice, bob", true),
            (Right::Nobody, "alice", false),
            (these(&["alice"]), "alice", true),
            (these(&["alice"]), "alice, bob", false),
            (these(&["alice"]), "bob, alice", false),
            (these(&["alice"]), "alic", false),
            (these(&["bob", "alice"]), "alice, bob", true),
            (these(&[]), "alice", false),
        ] {
            assert_eq!(right.may_choose_all(&keys(text)), may, "{right:?} {text}");
        }
    }

    #[test]
    fn rights_add_up() {
        assert_eq!(Right::Nobody.and(these(&["a"])), these(&["a"]));
        assert_eq!(these(&["a"]).and(Right::Nobody), these(&["a"]));
        assert_eq!(these(&["a", "b"]).and(these(&["b", "c"])), these(&["a", "b", "c"]));
        assert_eq!(these(&["a"]).and(Right::Any), Right::Any);
        assert_eq!(Right::Nobody.and(Right::Nobody), Right::Nobody);
    }
}
