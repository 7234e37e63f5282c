//! Lists of receipts: what is taken is a list of RFC 9651 to somebody else's reader, and so is what is assembled.

use overlane_config::route::receipt::{Hop, MAX_BYTES, MAX_ITEMS, Marks, Own, Receipt, assemble, parse};
use overlane_config::route::{Reason, Via};

/// Each line of the input is a list that came in a response, or that a call left.
///
/// # Panics
/// Where a rule is broken.
pub fn check(input: &[u8]) {
    // Our own hop is random, and nobody who sends a list can know it.
    let hop = Hop::new(7);
    if input.windows(hop.as_str().len()).any(|window| window == hop.as_str().as_bytes()) {
        return;
    }
    let lists: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
    let malformed = lists.iter().filter(|list| check_list(list).is_none()).count();
    let receipt = Receipt {
        service: "web".parse().expect("a label"),
        environment: "alice".parse().expect("a label"),
        via: Via::Overlay,
        reason: Reason::Owned,
    };
    for nearest in [false, true] {
        let own = Own { receipt: &receipt, hop, marks: Marks::RESTORED, nearest };
        for own in [None, Some(&own)] {
            let mut out = Vec::new();
            let assembled = assemble(lists.iter().copied(), own, &mut out);
            assert_eq!(assembled.ignored, malformed);
            assert!(out.len() <= MAX_BYTES && assembled.items <= MAX_ITEMS);
            let items = check_list(&out).expect("what is assembled is a list");
            assert_eq!(items, assembled.items);
            check_tree(&out, nearest && own.is_some());
            let mut again = Vec::new();
            assemble([&out[..]], None, &mut again);
            assert_eq!(again, out, "a list that passes changes no more");
        }
    }
}

/// The number of items; `None` where it is no list of receipts.
fn check_list(list: &[u8]) -> Option<usize> {
    let items = parse(list).ok()?;
    let text = std::str::from_utf8(list).expect("a list is ASCII");
    let theirs: sfv::List = sfv::Parser::new(text).parse().expect("a list of RFC 9651");
    assert_eq!(items.len(), theirs.len());
    for (ours, theirs) in items.iter().zip(&theirs) {
        let sfv::ListEntry::Item(theirs) = theirs else { panic!("an inner list") };
        assert_eq!(word(&theirs.bare_item), Some(ours.service));
        let parameter =
            |name: &str| theirs.params.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value);
        let named = |name: &str| parameter(name).and_then(word);
        assert_eq!(named("env"), Some(ours.environment));
        assert_eq!(named("via"), Some(ours.via.as_str()));
        assert_eq!(named("reason"), Some(ours.reason));
        assert_eq!((named("hop"), named("parent")), (ours.hop, ours.parent));
        for (name, mark) in [("partial", Marks::PARTIAL), ("truncated", Marks::TRUNCATED)] {
            let theirs = parameter(name).is_some_and(|value| *value == sfv::BareItem::Boolean(true));
            assert_eq!(ours.marks.any(mark), theirs, "{name}");
        }
    }
    Some(items.len())
}

/// Each hop is there once; with an item of our own every other one has a parent.
fn check_tree(list: &[u8], is_root: bool) {
    let items = parse(list).expect("a list");
    let mut hops: Vec<_> = items.iter().filter_map(|item| item.hop).collect();
    hops.sort_unstable();
    assert!(hops.windows(2).all(|two| two[0] != two[1]), "a hop is twice");
    if is_root {
        assert_eq!(items.iter().filter(|item| item.parent.is_none()).count(), 1, "one root");
    }
}

fn word(item: &sfv::BareItem) -> Option<&str> {
    match item {
        sfv::BareItem::Token(token) => Some(token.as_str()),
        sfv::BareItem::String(text) => Some(text.as_str()),
        _ => None,
    }
}
