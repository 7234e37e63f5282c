//! Carriers on a request's whole way: read, replaced or left alone, and read again.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use common::{ALICE, NOW, STAGING, Store, file};
use overlane_config::carrier::{Arrived, Carriers, InvalidKey, Keys, PRESETS, Place, Seen};
use overlane_config::route::{Decision, Edits, FieldEdit, Listener, Request, Role, Tried, Untraced, decide};
use proptest::prelude::*;

const OWN: &str = "x-overlay-id";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

type Fields = Vec<(String, Vec<u8>)>;

fn carriers(read: &[&str], write: &[&str]) -> Carriers {
    let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    Carriers::parse(Some(&owned(read)), Some(&owned(write))).unwrap()
}

fn fields(lines: &[(&str, &str)]) -> Fields {
    lines.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
}

fn key(text: &str) -> Keys {
    Keys::parse([text.as_bytes()]).unwrap().unwrap()
}

/// What arrives, and what each carrier says that is not plain: `!` for invalid, `≠` for another key.
fn read(carriers: &Carriers, fields: &Fields) -> (Result<Arrived, InvalidKey>, String) {
    let mut said = Vec::new();
    let arrived = carriers.read(OWN, &fields[..], |carrier, seen| match seen {
        Seen::Invalid(_) => said.push(format!("!{carrier}")),
        Seen::Contradicts(_) => said.push(format!("≠{carrier}")),
        Seen::Key(_) | Seen::Same => {}
    });
    (arrived, said.join(" "))
}

/// The head that leaves, as an engine makes it.
fn apply(edits: &Edits, carriers: &Carriers, fields: &Fields) -> Fields {
    let stays = |name: &str| match name.to_ascii_lowercase().as_str() {
        OWN => !edits.removes_own(carriers),
        "baggage" => edits.baggage == FieldEdit::Untouched,
        "cookie" => edits.cookie == FieldEdit::Untouched,
        name => !edits.removes_header(carriers, name),
    };
    let mut leaving: Fields = fields.iter().filter(|(name, _)| stays(name)).cloned().collect();
    let mut lines = Vec::new();
    edits.write_lines(carriers, OWN, &mut lines);
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line = line.strip_suffix(b"\r").unwrap();
        let colon = line.iter().position(|byte| *byte == b':').unwrap();
        leaving.push((String::from_utf8(line[..colon].to_vec()).unwrap(), line[colon + 2..].to_vec()));
    }
    leaving
}

fn shown(fields: &Fields) -> Vec<String> {
    fields.iter().map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value))).collect()
}

/// The head that leaves towards a service of ours, from a sender that is trusted or not.
fn onward(carriers: &Carriers, fields: &Fields, untrusted: bool) -> Fields {
    let store = Store::of([file("staging.yaml", STAGING), file("alice.yaml", ALICE)]);
    let arrived = if untrusted { Arrived::default() } else { read(carriers, fields).0.unwrap() };
    let listener = Listener { role: Role::Outbound { service: None, environment: None }, baseline: None };
    let request = Request {
        authority: "ledger",
        path: "/",
        preview: None,
        by_browser: false,
        keys: arrived.keys.as_ref(),
        untrusted,
        hop: None,
        require: "",
    };
    match decide(&store.table, &listener, &request, NOW, &Tried::default(), &mut Untraced) {
        Decision::Serve(served) => {
            apply(&Edits::serve(&served, carriers, &fields[..], untrusted), carriers, fields)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_dialect_of_the_field_is_read_by_its_preset() {
    for (preset, lines, expected) in [
        ("microstax", &[("X-MSX-Env", "alice")][..], "alice"),
        ("signadot", &[("baggage", "a=1,sd-routing-key=k,sd-sandbox=k")], "k"),
        ("signadot", &[("traceparent", PARENT), ("tracestate", "a=1,sd-routing-key=k,sd-sandbox=k")], "k"),
        ("signadot", &[("tracestate", "sd-routing-key=k")], ""),
        ("signadot", &[("ot-baggage-sd-routing-key", "k"), ("ot-baggage-sd-sandbox", "k")], "k"),
        ("signadot", &[("uberctx-sd-sandbox", "%6b")], "k"),
        ("okteto", &[("baggage", "okteto-divert=alice-ns")], "alice-ns"),
        ("mirrord", &[("baggage", "mirrord-session=alice")], "alice"),
        ("sandboxmesh", &[("baggage", "sandbox=b_a_b")], "b, a"),
        ("bridge", &[("kubernetes-route-as", "alice")], "alice"),
        ("bridge", &[("azds-route-as", "alice")], "alice"),
        ("ktenv", &[("X-Virtual-Env", "a.b.c")], "a-b-c, a-b, a"),
        ("asm", &[("x-asm-prefer-tag", "alice")], "alice"),
        ("mse", &[("x-mse-tag", "alice")], "alice"),
        ("opensergo", &[("x-opensergo-traffic", "alice")], "alice"),
        ("opentracing", &[("ot-baggage-overlay-id", "alice")], "alice"),
        ("opentracing", &[("uberctx-overlay-id", "a%2Cb")], "a, b"),
        ("cookie:overlay", &[("cookie", "a=1"), ("Cookie", "overlay=alice; b=2")], "alice"),
        ("baggage:tenant", &[("baggage", "tenant=a;p=1")], "a"),
        ("header:x-lane", &[("x-lane", "a"), ("x-lane", "b")], "a, b"),
        ("tracestate:lane", &[("traceparent", PARENT), ("tracestate", "lane=a")], "a"),
    ] {
        let (arrived, said) = read(&carriers(&["header", preset], &["header"]), &fields(lines));
        let arrived = arrived.unwrap();
        assert_eq!(
            (arrived.keys.as_ref().map_or("", Keys::as_str), arrived.contradicted),
            (expected, false),
            "{lines:?}"
        );
        assert_eq!(said, "", "{lines:?}");
    }
}

#[test]
fn the_first_carrier_in_order_with_a_valid_key_wins_and_another_key_is_a_contradiction() {
    let both = fields(&[("baggage", "overlay-id=b"), ("x-lane", "a"), ("cookie", "o=a")]);
    for (order, expected, said) in [
        (["header", "header:x-lane", "cookie:o", "baggage"], "a", "≠baggage"),
        (["header", "baggage", "header:x-lane", "cookie:o"], "b", "≠header:x-lane ≠cookie:o"),
    ] {
        let (arrived, told) = read(&carriers(&order, &["header"]), &both);
        let arrived = arrived.unwrap();
        assert_eq!((arrived.keys.unwrap().as_str(), arrived.contradicted, &*told), (expected, true, said));
    }
    let agreed = fields(&[("x-overlay-id", "a, b"), ("baggage", "overlay-id=a%2Cb")]);
    assert!(!read(&Carriers::default(), &agreed).0.unwrap().contradicted);
}

#[test]
fn what_cannot_be_mapped_is_told_and_travels_on_and_the_next_carrier_counts() {
    let carriers = carriers(&["header:x-lane", "ktenv", "header"], &["header", "header:x-lane", "ktenv"]);
    let nothing = fields(&[("X-Lane", "Not An Id"), ("x-virtual-env", "a..b"), ("x-other", "1")]);
    let (arrived, said) = read(&carriers, &nothing);
    assert_eq!((arrived.unwrap(), &*said), (Arrived::default(), "!header:x-lane !header:x-virtual-env"));
    assert_eq!(onward(&carriers, &nothing, false), nothing, "byte for byte");
    let keyed = fields(&[("x-lane", "Not An Id"), ("x-overlay-id", "a-b, a")]);
    let expected = ["x-overlay-id: a-b, a", "x-lane: a-b, a", "x-virtual-env: a.b"];
    assert_eq!(shown(&onward(&carriers, &keyed, false)), expected, "what is written is replaced by the key");
}

#[test]
fn the_own_header_is_strict_wherever_it_stands_in_the_order() {
    let carriers = carriers(&["baggage", "header"], &["header"]);
    let wrong = fields(&[("baggage", "overlay-id=a"), ("x-overlay-id", "Not An Id")]);
    assert!(read(&carriers, &wrong).0.is_err());
}

#[test]
fn what_is_written_leaves_on_one_line_and_what_is_only_read_stays() {
    let carriers = carriers(&["header", "signadot", "cookie:o"], &["header", "baggage", "signadot"]);
    let arriving = fields(&[
        ("traceparent", PARENT),
        ("tracestate", "sd-sandbox=k,b=2"),
        ("cookie", "a=1; o=k"),
        ("baggage", "x=%20;p , sd-sandbox=k"),
        ("baggage", "y==z,sd-routing-key=k;q"),
        ("OT-Baggage-sd-sandbox", "k"),
        ("ot-baggage-sd-sandbox", "k"),
        ("accept", "*/*"),
    ]);
    assert_eq!(
        shown(&onward(&carriers, &arriving, false)),
        [
            &*format!("traceparent: {PARENT}"),
            "tracestate: sd-sandbox=k,b=2",
            "cookie: a=1; o=k",
            "accept: */*",
            "x-overlay-id: k",
            "ot-baggage-sd-routing-key: k",
            "ot-baggage-sd-sandbox: k",
            "uberctx-sd-routing-key: k",
            "uberctx-sd-sandbox: k",
            "baggage: x=%20;p,y==z,overlay-id=k,sd-routing-key=k,sd-sandbox=k",
        ]
    );
}

#[test]
fn of_the_untrusted_nothing_travels_on_that_any_carrier_could_read() {
    let carriers = carriers(&["header", "cookie:o", "header:x-lane", "okteto", "signadot"], &["baggage"]);
    let arriving = fields(&[
        ("x-overlay-id", "k"),
        ("cookie", "a=1; o=k"),
        ("cookie", "b=2"),
        ("x-lane", "k"),
        ("baggage", "okteto-divert=k,x=1,overlay-id=NOT"),
        ("ot-baggage-sd-sandbox", "k"),
        ("accept", "*/*"),
    ]);
    assert!(carriers.any(OWN, &arriving[..]));
    let leaving = onward(&carriers, &arriving, true);
    assert_eq!(shown(&leaving), ["accept: */*", "baggage: x=1", "cookie: a=1; b=2"]);
    assert!(!carriers.any(OWN, &leaving[..]));
}

#[test]
fn what_leaves_the_mesh_has_nothing_of_ours_and_a_kept_host_gets_the_key() {
    let carriers = carriers(&["header", "header:x-read"], &["header", "sandboxmesh", "microstax"]);
    let arriving = fields(&[
        ("x-overlay-id", "a, b"),
        ("x-msx-env", "Not An Id"),
        ("baggage", "sandbox=old,x=1,overlay-id=c"),
        ("x-read", "a"),
    ]);
    let outside = apply(&Edits::pass_through(&carriers, &arriving[..], false), &carriers, &arriving);
    assert_eq!(shown(&outside), ["x-read: a", "baggage: x=1"]);
    let kept = Edits::keep(Some(key("a, b")), &carriers, &arriving[..], false);
    assert_eq!(
        shown(&apply(&kept, &carriers, &arriving)),
        ["x-read: a", "x-overlay-id: a, b", "x-msx-env: a, b", "baggage: x=1,overlay-id=c,sandbox=a_b"]
    );
}

#[test]
fn a_foreign_header_that_is_also_the_own_one_leaves_once() {
    let carriers = carriers(&["header", "header:x-overlay-id"], &["header", "header:x-overlay-id"]);
    let leaving = onward(&carriers, &fields(&[("x-overlay-id", "a")]), false);
    assert_eq!(shown(&leaving), ["x-overlay-id: a"]);
}

#[test]
fn a_carrier_that_cannot_be_is_refused_with_its_place_and_what_to_write() {
    for (read, write, place, hint) in [
        (&["header", "sigandot"][..], &["header"][..], "read[1]", "did you mean `signadot`?"),
        (&["header:Host"], &["header"], "read[0]", "nothing but the key"),
        (&["header:x-overlay-hop"], &["header"], "read[0]", "nothing but the key"),
        (&["header:Connection"], &["header"], "read[0]", "nothing but the key"),
        (&["header:transfer-encoding"], &["header"], "read[0]", "nothing but the key"),
        (&["header:x-b3-traceid"], &["header"], "read[0]", "nothing but the key"),
        (&["header:x-forwarded-for"], &["header"], "read[0]", "nothing but the key"),
        (&["header:Baggage"], &["header"], "read[0]", "`baggage:MEMBER`"),
        (&["header:cookie"], &["header"], "read[0]", "`cookie:NAME`"),
        (&["header:a b"], &["header"], "read[0]", "nothing but the key"),
        (&["cookie"], &["header"], "read[0]", "`cookie:NAME`"),
        (&["baggage:a,b"], &["header"], "read[0]", "`baggage:NAME`"),
        (&["tracestate:Upper"], &["header"], "read[0]", "`tracestate:NAME`"),
        (&[], &["header"], "read", "leave it out"),
        (&["header"], &["header", "cookie:a"], "write[1]", "leave it out of `write`"),
        (&["header"], &["tracestate:a"], "write[0]", "leave it out of `write`"),
        (&["header"], &[], "write", "leave it out"),
    ] {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let wrong = Carriers::parse(Some(&owned(read)), Some(&owned(write))).unwrap_err();
        assert_eq!(wrong.place, place, "{wrong:?}");
        assert!(wrong.hint.contains(hint), "{wrong:?}");
    }
    let many: Vec<_> = (0..65).map(|number| format!("header:x-{number}")).collect();
    assert_eq!(Carriers::parse(Some(&many), None).unwrap_err().place, "read");
}

#[test]
fn all_presets_together_are_read_and_written() {
    let names: Vec<_> = PRESETS.iter().map(|preset| preset.name).collect();
    let all = carriers(&names, &names);
    assert!(all.read_list().len() > all.written().len(), "what is only read is not written");
    assert!(
        all.written()
            .iter()
            .all(|carrier| !matches!(carrier.place(), Place::Tracestate(_) | Place::Cookie(_)))
    );
}

/// Bytes as a field's value can have them, of what carriers are made of and anything else.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just("overlay-id="),
        Just("sandbox="),
        Just("sd-sandbox="),
        Just("a"),
        Just("b-c"),
        Just(","),
        Just(";"),
        Just("="),
        Just("%2C"),
        Just("%"),
        Just("_"),
        Just("."),
        Just(" "),
        Just("\""),
        Just("o=")
    ];
    let raw = prop::collection::vec(prop_oneof![Just(9), 32_u8..127, 128_u8..=255], 0..6);
    let piece = prop_oneof![4 => word.prop_map(|word| word.as_bytes().to_vec()), 1 => raw];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// A head with lines of every carrier's header, in any order.
fn head() -> impl Strategy<Value = Fields> {
    const NAMES: [&str; 9] = [
        "baggage",
        "Baggage",
        "cookie",
        "tracestate",
        "x-msx-env",
        "x-virtual-env",
        "uberctx-sd-sandbox",
        "x-other",
        "accept",
    ];
    let line = (prop::sample::select(&NAMES[..]), value());
    prop::collection::vec(line.prop_map(|(name, value)| (name.to_owned(), value)), 0..6).prop_map(
        |mut lines| {
            lines.push(("traceparent".to_owned(), PARENT.as_bytes().to_vec()));
            lines
        },
    )
}

fn ids() -> impl Strategy<Value = Keys> {
    prop::collection::vec("[a-c](-?[a-c]){0,3}", 1..8).prop_map(|ids| key(&ids.join(",")))
}

/// The members of `baggage` whose key is none of these, as they stand.
fn foreign_members(fields: &Fields, ours: &[&str]) -> Vec<Vec<u8>> {
    let lines = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("baggage"));
    let members = lines.flat_map(|(_, value)| value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii));
    let is_ours = |member: &[u8]| {
        let key = member.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        member.contains(&b'=') && ours.iter().any(|name| name.as_bytes() == key)
    };
    members.filter(|member| !member.is_empty() && !is_ours(member)).map(<[u8]>::to_vec).collect()
}

const WRITTEN: [&str; 6] = ["header", "baggage", "microstax", "ktenv", "sandboxmesh", "signadot"];
const MEMBERS: [&str; 4] = ["overlay-id", "sandbox", "sd-routing-key", "sd-sandbox"];

proptest! {
    /// Parse → write → parse: each carrier that was written alone gives the key back.
    #[test]
    fn what_is_written_is_read_again_from_each_carrier(arriving in head(), keys in ids(), preset in prop::sample::select(&WRITTEN[..])) {
        let all = carriers(&[preset], &[preset]);
        let leaving = apply(&Edits::keep(Some(keys.clone()), &all, &arriving[..], false), &all, &arriving);
        for carrier in all.written() {
            prop_assert_eq!(carrier.read(OWN, &leaving[..]).unwrap(), Some(keys.clone()), "{} {:?}", carrier, shown(&leaving));
        }
    }

    /// Foreign members and lines stay byte for byte and in order, and `baggage` is one line.
    #[test]
    fn what_is_not_ours_is_left_alone(arriving in head(), keys in prop::option::of(ids())) {
        let all = carriers(&["header"], &WRITTEN);
        let leaving = apply(&Edits::keep(keys.clone(), &all, &arriving[..], false), &all, &arriving);
        let others = |fields: &Fields| {
            let plain = |name: &str| ["accept", "x-other", "traceparent", "tracestate", "cookie"].contains(&name);
            fields.iter().filter(|(name, _)| plain(name)).cloned().collect::<Fields>()
        };
        prop_assert_eq!(others(&arriving), others(&leaving));
        prop_assert_eq!(foreign_members(&arriving, &MEMBERS), foreign_members(&leaving, &MEMBERS));
        if keys.is_some() {
            prop_assert_eq!(leaving.iter().filter(|(name, _)| name.eq_ignore_ascii_case("baggage")).count(), 1);
        }
    }

    /// Whatever the bytes: an answer, and after the untrusted nothing is left to read.
    #[test]
    fn of_the_untrusted_nothing_is_left_to_read(arriving in head()) {
        let mut all = WRITTEN.to_vec();
        all.extend(["cookie:o", "cookie:overlay-id"]);
        let all = carriers(&all, &["header", "baggage"]);
        let leaving = apply(&Edits::pass_through(&all, &arriving[..], true), &all, &arriving);
        let untraced: Fields = leaving.into_iter().filter(|(name, _)| name != "tracestate").collect();
        prop_assert!(!all.any(OWN, &untraced[..]), "{:?}", shown(&untraced));
        prop_assert_eq!(read(&all, &untraced).0.unwrap().keys, None);
    }

    /// What leaves the mesh has no carrier that is written.
    #[test]
    fn what_leaves_the_mesh_names_no_overlay_where_we_would_write_it(arriving in head()) {
        let all = carriers(&["header"], &WRITTEN);
        let leaving = apply(&Edits::pass_through(&all, &arriving[..], false), &all, &arriving);
        for carrier in all.written() {
            prop_assert_eq!(carrier.read(OWN, &leaving[..]), Ok(None), "{}", carrier);
        }
    }
}
