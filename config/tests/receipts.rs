//! Receipts of many hops: a tree that proxies write one after the other, against a naive model.
#![allow(clippy::unwrap_used, missing_docs)]

use overlane_config::route::receipt::{
    Assembled, Hop, Item, MAX_BYTES, MAX_ITEMS, Malformed, Marks, Own, assemble, parse,
};
use overlane_config::route::{Reason, Receipt, Via};
use proptest::prelude::*;

fn receipt(service: &str) -> Receipt {
    Receipt {
        service: service.parse().unwrap(),
        environment: "base".parse().unwrap(),
        via: Via::Baseline,
        reason: Reason::NotOwned,
    }
}

/// What a proxy writes that got these lists.
fn written(lists: &[&str], own: Option<(&str, u64, Marks, bool)>) -> (String, Assembled) {
    let mut out = Vec::new();
    let receipt = own.map(|(service, ..)| receipt(service));
    let own = own.zip(receipt.as_ref()).map(|((_, hop, marks, nearest), receipt)| Own {
        receipt,
        hop: Hop::new(hop),
        marks,
        nearest,
    });
    let assembled = assemble(lists.iter().map(|list| list.as_bytes()), own.as_ref(), &mut out);
    (String::from_utf8(out).unwrap(), assembled)
}

fn application(service: &str, hop: u64) -> Option<(&str, u64, Marks, bool)> {
    Some((service, hop, Marks::NONE, true))
}

fn caller_of(service: &str, hop: u64) -> Option<(&str, u64, Marks, bool)> {
    Some((service, hop, Marks::NONE, false))
}

const WEB: &str = "web;env=base;via=baseline;reason=not-owned;hop=baaaaaaa";
const PAY: &str = "pay;env=base;via=baseline;reason=not-owned;hop=caaaaaaa";

#[test]
fn who_adds_an_item_is_the_parent_of_those_without_one() {
    assert_eq!(written(&[], application("web", 1)).0, WEB);
    assert_eq!(written(&[PAY], application("web", 1)).0, format!("{PAY};parent=baaaaaaa, {WEB}"));
    let deep = format!("x;env=a;via=overlay;reason=owned;hop=q;parent=caaaaaaa, {PAY}");
    assert_eq!(written(&[&deep], application("web", 1)).0, format!("{deep};parent=baaaaaaa, {WEB}"));
}

#[test]
fn the_proxy_nearest_to_the_application_writes_the_item_and_others_only_their_marks() {
    assert_eq!(written(&[WEB], caller_of("web", 9)).0, WEB);
    let restored = written(&[WEB], Some(("web", 9, Marks::RESTORED, false)));
    assert_eq!(restored.0, format!("{WEB};restored"));
    assert_eq!(written(&[&restored.0], Some(("web", 9, Marks::RESTORED, false))).0, restored.0);
    // Two roots, or a root that is another service: the service itself has no proxy, and its calls are not seen.
    for lists in [&[WEB, PAY][..], &[PAY]] {
        let (list, assembled) = written(lists, caller_of("web", 9));
        assert_eq!(assembled.items, lists.len() + 1, "{list}");
        assert!(list.ends_with("hop=jaaaaaaa;partial"), "{list}");
    }
}

#[test]
fn a_service_that_calls_itself_is_two_hops() {
    let (list, assembled) = written(&[WEB], application("web", 2));
    assert_eq!(assembled.items, 2);
    assert!(list.starts_with(&format!("{WEB};parent=caaaaaaa, web;")), "{list}");
}

#[test]
fn a_hop_appears_once_however_it_came() {
    let (list, assembled) = written(&[PAY, PAY], application("web", 1));
    assert_eq!((list, assembled.items), (format!("{PAY};parent=baaaaaaa, {WEB}"), 2));
}

#[test]
fn a_malformed_list_is_left_out_as_a_whole_and_counted() {
    let half = format!("{PAY}, nonsense");
    let (list, assembled) = written(&[&half, "", PAY], application("web", 1));
    assert_eq!(list, format!("{PAY};parent=baaaaaaa, {WEB}"));
    assert_eq!(assembled, Assembled { items: 2, ignored: 1, truncated: false, own: true });
}

#[test]
fn what_is_no_list_of_receipts_is_refused() {
    let long = format!("{WEB}, {}", "x".repeat(MAX_BYTES));
    let many = vec![WEB; MAX_ITEMS + 1].join(", ");
    for list in [
        "web",
        "web;env=base;via=baseline",
        "web;env=base;via=sideways;reason=owned",
        "Web;env=base;via=baseline;reason=owned",
        "web;env=;via=baseline;reason=owned",
        "web;env=base;via=baseline;reason=owned,",
        ",web;env=base;via=baseline;reason=owned",
        "web;env=base;via=baseline;reason=owned;partial=1",
        "web;env=base;via=baseline;reason=owned;hop",
        "web;env=base;via=baseline;reason=owned;hop=\"",
        "web;env=base;via=baseline;reason=owned;hop=\"a\\x\"",
        "web;env=base;via=baseline;reason=owned;x=1234567890123456",
        "web;env=base;via=baseline;reason=owned;x=1.2345",
        "web;env=base;via=baseline;reason=owned;x=%\"%4\"",
        "web;env=base;via=baseline;reason=owned;x=%\"%c1%bc\"",
        "web;env=base;via=baseline;reason=owned;x=%\"%c3f\"",
        "web;env=base;via=baseline;reason=owned;x=%\"%c3\"",
        "web;env=base;via=baseline;reason=owned;x=?2",
        "web;env=base;via=baseline;reason=owned;X=1",
        "web ;env=base;via=baseline;reason=owned",
        "(web);env=base;via=baseline;reason=owned",
        "wéb;env=base;via=baseline;reason=owned",
        &long,
        &many,
    ] {
        assert_eq!(parse(list.as_bytes()), Err(Malformed), "{list}");
    }
    assert_eq!(parse(b"\xff"), Err(Malformed));
}

#[test]
fn parameters_that_nobody_knows_stay_and_the_last_of_two_counts() {
    let list = "\"3scale\"; env=\"1a\";via=overlay;reason=new-reason;hop=x;partial=?0;a;b=1.5;c=\"q\\\"\\\\\";d=:YQ==:;e=@-1;f=%\"%c3%a9\";restored;env=b \t,\tweb;env=base;via=baseline;reason=owned;*=*";
    let items = parse(list.as_bytes()).unwrap();
    let first = &items[0];
    assert_eq!((first.service, first.environment, first.reason), ("3scale", "b", "new-reason"));
    assert_eq!((first.hop, first.parent, first.marks), (Some("x"), None, Marks::RESTORED));
    assert_eq!(items.len(), 2);
    let (passed, _) = written(&[list], None);
    assert_eq!(passed, list.replace(" \t,\t", ", "));
}

#[test]
fn a_list_is_cut_from_the_front_so_that_every_item_keeps_its_parent() {
    let calls: Vec<String> = (1..300).map(|hop| written(&[], application("pay", hop)).0).collect();
    let lists: Vec<&str> = calls.iter().map(String::as_str).collect();
    let (list, assembled) = written(&lists, application("web", 0));
    assert!(assembled.truncated && list.len() <= MAX_BYTES && list.ends_with(";truncated"), "{list}");
    let items = parse(list.as_bytes()).unwrap();
    // 77 bytes each with the comma: the bytes are the bound.
    assert_eq!((items.len(), assembled.items), (items.len(), items.len()));
    assert!(items.len() > 100 && items.iter().rev().skip(1).all(|item| item.parent == Some("aaaaaaaa")));
    let last_call = parse(calls.last().unwrap().as_bytes()).unwrap();
    assert_eq!(items[items.len() - 2].hop, last_call[0].hop);
    // Nothing more is cut from what fits, and nobody else says that something was.
    let (again, assembled) = written(&[&list], caller_of("web", 1));
    assert_eq!((again, assembled.truncated), (list, false));
}

#[test]
fn a_list_has_128_items_at_most() {
    let calls: Vec<String> =
        (1..200).map(|hop| format!("a;env=b;via=overlay;reason=owned;hop=h{hop}")).collect();
    let lists: Vec<&str> = calls.iter().map(String::as_str).collect();
    let (list, assembled) = written(&lists, application("web", 0));
    assert_eq!((assembled.items, parse(list.as_bytes()).unwrap().len()), (MAX_ITEMS, MAX_ITEMS));
    assert!(list.starts_with("a;env=b;via=overlay;reason=owned;hop=h73;parent="), "{list}");
}

/// A service that is called, as somebody who sees everything would draw it.
#[derive(Debug, Clone)]
struct Called {
    /// Whether a proxy stands before and behind it.
    sidecar: bool,
    /// Whether it hands on the receipts of its calls' answers, as a plain HTTP proxy does.
    hands_on: bool,
    calls: Vec<Called>,
}

/// A tree of hops as they were read: the name of the service, and its calls in order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen(String, Vec<Seen>);

fn called() -> impl Strategy<Value = Called> {
    let leaf = (prop::bool::weighted(0.7), prop::bool::weighted(0.3))
        .prop_map(|(sidecar, hands_on)| Called { sidecar, hands_on, calls: Vec::new() });
    leaf.prop_recursive(5, 40, 4, |inner| {
        (prop::bool::weighted(0.7), prop::bool::weighted(0.3), prop::collection::vec(inner, 0..4))
            .prop_map(|(sidecar, hands_on, calls)| Called { sidecar, hands_on, calls })
    })
}

/// What can be known of a call: with `by_proxy` it is made through one.
fn visible(call: &Called, name: &str, by_proxy: bool) -> Vec<Seen> {
    let of_calls = |by_proxy| -> Vec<Seen> {
        let calls = call.calls.iter().enumerate();
        calls.flat_map(|(at, inner)| visible(inner, &format!("{name}-{at}"), by_proxy)).collect()
    };
    match (call.sidecar, by_proxy) {
        (true, _) => vec![Seen(name.to_owned(), of_calls(true))],
        (false, true) => {
            vec![Seen(name.to_owned(), if call.hands_on { of_calls(false) } else { Vec::new() })]
        }
        (false, false) if call.hands_on => of_calls(false),
        (false, false) => Vec::new(),
    }
}

/// The lists that come back from a call, each proxy on the way having had its turn.
fn travels(call: &Called, name: &str, by_proxy: bool, hops: &mut u64) -> Vec<String> {
    let mut in_head = Vec::new();
    let mut left = Vec::new();
    for (at, inner) in call.calls.iter().enumerate() {
        let answer = travels(inner, &format!("{name}-{at}"), call.sidecar, hops);
        if call.hands_on {
            in_head.extend(answer.clone());
        }
        if call.sidecar {
            left.extend(answer);
        }
    }
    let mut through = |lists: Vec<String>, nearest: bool| {
        *hops += 1;
        let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
        let (list, assembled) = written(&lists, Some((name, *hops, Marks::NONE, nearest)));
        assert_eq!((assembled.ignored, assembled.truncated), (0, false));
        vec![list]
    };
    if call.sidecar {
        in_head.extend(left);
        in_head = through(in_head, true);
    }
    if by_proxy { through(in_head, false) } else { in_head }
}

fn below(parent: Option<&str>, items: &[Item<'_>]) -> Vec<Seen> {
    let children = items.iter().filter(|item| item.parent == parent);
    children.map(|item| Seen(item.service.to_owned(), below(item.hop, items))).collect()
}

proptest! {
    /// The edge reads the tree of all hops that proxies saw, each once, in the order of the calls.
    #[test]
    fn the_edge_reads_the_tree_as_it_was(call in called()) {
        let lists = travels(&call, "s", true, &mut 0);
        prop_assert_eq!(lists.len(), 1);
        let items = parse(lists[0].as_bytes()).unwrap();
        prop_assert_eq!(below(None, &items), visible(&call, "s", true));
        // And what we wrote is a list of RFC 9651 in the eyes of somebody else.
        let list: sfv::List = sfv::Parser::new(&lists[0]).parse().unwrap();
        prop_assert_eq!(list.len(), items.len());
    }

    #[test]
    fn garbage_is_refused_and_changes_nothing(
        bytes in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b";=,\" :?%@\\(a1-."[..])], 0..60),
        at in 0..WEB.len(),
    ) {
        let garbled = [&WEB.as_bytes()[..at], &bytes, &WEB.as_bytes()[at..]].concat();
        let mut out = Vec::new();
        let assembled = assemble([&garbled[..]], None, &mut out);
        match parse(&garbled) {
            Err(Malformed) => prop_assert_eq!((assembled.ignored, out.len()), (1, 0)),
            Ok(items) => {
                prop_assert_eq!(assembled.ignored, 0);
                let again = parse(&out).unwrap();
                prop_assert!(again.iter().all(|item| items.contains(item)));
                // Whatever we take for a list is one.
                let garbled = String::from_utf8(garbled.clone()).unwrap();
                let theirs: Result<sfv::List, _> = sfv::Parser::new(&garbled).parse();
                prop_assert!(theirs.is_ok(), "{}: {:?}", garbled, theirs);
            }
        }
    }

    /// Whoever else writes such a list is understood.
    #[test]
    fn lists_of_others_are_read(values in prop::collection::vec(
        (prop::sample::select(&["\"3a\"", "web", "a-b"][..]), "[a-z*][a-z0-9_.*-]{0,8}", prop::sample::select(&[
            "1", "-12.5", "tok/en:x", "\"a \\\" b\"", ":YWJj:", "?1", "?0", "@1659578233", "%\"f%c3%bc\"",
        ][..])), 1..8)
    ) {
        let list: Vec<_> = values.iter()
            .map(|(service, key, value)| format!("{service};env=e;via=overlay;reason=owned;x-{key}={value}"))
            .collect();
        let list = list.join(",");
        let theirs: Result<sfv::List, _> = sfv::Parser::new(&list).parse();
        prop_assert_eq!(theirs.is_ok(), parse(list.as_bytes()).is_ok());
        prop_assert!(theirs.is_ok());
    }
}
