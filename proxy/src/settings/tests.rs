//! What is refused, and what goes before what.

use std::io::Write;

use super::*;
use crate::hub::tokens::Right;
use crate::plane::trust::Trust;
use crate::tls::ClientSettings;
use crate::tls::certificates::Pair;

fn merge(flags: RunArgs) -> Result<Settings, SettingsError> {
    Settings::merge(flags, None)
}

#[test]
fn who_only_serves_its_store_to_others_opens_no_gateway() {
    let hub = Some(([127, 0, 0, 1], 0).into());
    assert!(merge(RunArgs { hub, ..RunArgs::default() }).expect("settings").listeners.is_empty());
    let gateway = "127.0.0.1:0".parse().ok();
    assert_eq!(merge(RunArgs { hub, gateway, ..RunArgs::default() }).expect("settings").listeners.len(), 1);
}

#[test]
fn without_any_flag_there_is_a_gateway_on_loopback() {
    let settings = merge(RunArgs::default()).expect("defaults");
    let gateway = &settings.listeners[0];
    assert_eq!((gateway.address.to_string().as_str(), &gateway.trust), (DEFAULT_GATEWAY, &Trust::Any));
    assert_eq!(settings.admin.to_string(), DEFAULT_ADMIN);
}

#[test]
fn an_edge_on_any_other_address_needs_an_explicit_trust() {
    let open = RunArgs { gateway: "0.0.0.0:0".parse().ok(), ..RunArgs::default() };
    assert!(merge(open.clone()).expect_err("refused").hint.expect("hint").contains("--trust"));
    assert!(merge(RunArgs { trust: Some(Trust::Nobody), ..open }).is_ok());
}

#[test]
fn only_who_can_be_reached_from_elsewhere_is_a_lame_duck_unless_told() {
    let with = |gateway: &str, text: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(text.as_bytes()).expect("write");
        let (gateway, config) = (gateway.parse().ok(), Some(file.path().to_owned()));
        merge(RunArgs { gateway, config, ..RunArgs::default() }).expect("settings").limits.lame_duck
    };
    let told = "timeouts: {lameDuck: 7s}";
    let never = "trust: any\ntimeouts: {lameDuck: 0s}";
    let cases = [("127.0.0.1:0", "", 0), ("127.0.0.1:0", told, 7), ("unix:/run/a.sock", "", 0)];
    for (gateway, text, seconds) in
        [("0.0.0.0:0", "trust: any", 5), ("0.0.0.0:0", never, 0)].into_iter().chain(cases)
    {
        assert_eq!(with(gateway, text).as_secs(), seconds, "{gateway} {text}");
    }
}

#[test]
fn an_admin_listener_on_any_other_address_needs_a_token() {
    let open = RunArgs { admin: "0.0.0.0:0".parse().ok(), ..RunArgs::default() };
    assert!(merge(open.clone()).is_err());
    assert!(merge(RunArgs { admin_token: Some("t".to_owned()), ..open }).is_ok());
}

#[test]
fn an_inbound_listener_needs_its_application_and_service() {
    let inbound = RunArgs { inbound: "127.0.0.1:0".parse().ok(), ..RunArgs::default() };
    assert!(merge(inbound.clone()).is_err());
    let app = "http://127.0.0.1:1".parse().ok();
    assert!(merge(RunArgs { app, ..inbound.clone() }).is_err());
    let app = "http://127.0.0.1:1".parse().ok();
    let whole = merge(RunArgs { app, service: "web".parse().ok(), ..inbound }).expect("whole");
    assert_eq!(whole.listeners.len(), 1, "a sidecar opens no gateway by itself");
}

#[test]
fn flags_for_tls_take_the_place_of_the_certificates_in_the_file() {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(
        b"tls: {certificates: [{certificate: a, key: b}, {certificate: c, key: d}], clientCa: ca, minVersion: 1.3}\n",
    )
    .expect("write");
    let config = Some(file.path().to_owned());
    let of_file = merge(RunArgs { config: config.clone(), ..RunArgs::default() }).expect("file").tls;
    let pair = |certificate: &str, key: &str| Pair { certificate: certificate.into(), key: key.into() };
    let expected = TlsSettings {
        certificates: vec![pair("a", "b"), pair("c", "d")],
        clients: Some(ClientSettings { ca: "ca".into(), required: true }),
        only_13: true,
        roles: vec!["gateway"],
    };
    assert_eq!(of_file, Some(expected.clone()));
    let flags = RunArgs { tls_cert: Some("x".into()), tls_key: Some("y".into()), ..RunArgs::default() };
    let both = merge(RunArgs { config, ..flags.clone() }).expect("both").tls;
    assert_eq!(both, Some(TlsSettings { certificates: vec![pair("x", "y")], ..expected }));
    assert!(merge(RunArgs { tls_key: None, ..flags.clone() }).is_err());
    assert!(merge(RunArgs { tls_cert: None, ..flags.clone() }).is_err());
    let outbound = "127.0.0.1:0".parse().ok();
    let refused = merge(RunArgs { outbound, ..flags }).expect_err("nobody speaks it");
    assert!(refused.message.contains("no listener that speaks TLS"), "{refused}");
}

#[test]
fn carriers_and_the_hosts_that_get_the_key_come_from_the_file() {
    let mut file = tempfile::NamedTempFile::new().expect("file");
    file.write_all(b"carriers: {read: [header, signadot, cookie:overlay]}\nkeepFor: ['*.partner.example']\n")
        .expect("write");
    let carriers = carriers_of(Some(file.path())).expect("carriers");
    let names =
        |list: &[overlane_config::carrier::Carrier]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let read = names(carriers.read_list());
    assert_eq!((read.len(), &*read[0], &*read[9]), (10, "header", "cookie:overlay"));
    assert_eq!(names(carriers.written()), ["header", "baggage"]);
    assert!(carriers.keep_for.has("pay.partner.example") && !carriers.keep_for.has("partner.example"));
    assert_eq!(carriers_of(None), Ok(Carriers::default()));
}

#[test]
fn flags_win_over_the_file_and_its_mistakes_are_errors() {
    let with = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        file.write_all(text.as_bytes()).expect("write");
        let flags = RunArgs { config: Some(file.path().to_owned()), workers: Some(3), ..RunArgs::default() };
        merge(flags)
    };
    let settings =
        with("workers: 2\ntimeouts: {head: 3s}\nminRates: {body: 0}\ngateway: 127.0.0.1:1\nstore: /tmp/x\n")
            .expect("file");
    assert_eq!((settings.workers, settings.limits.head), (3, Duration::from_secs(3)));
    assert_eq!((settings.limits.body_rate, settings.limits.write_rate), (0, 240));
    for (text, word) in [
        ("worker: 2", "worker"),
        ("timeouts: {head: 0s}", "head"),
        ("timeouts: {lameDuck: soon}", "timeouts.lameDuck"),
        ("timeouts: {head: soon}", "soon"),
        ("minRates: {read: 5}", "read"),
        ("maxRequests: 0", "`maxRequests` is 0"),
        ("maxUpstreamRequests: 0", "`maxUpstreamRequests` is 0"),
        ("maxHeld: 0", "`maxHeld` is 0"),
        ("maxConnectionsPerClient: 0", "`maxConnectionsPerClient` is 0"),
        ("maxBodyBytes: -1", "maxBodyBytes"),
        ("timeouts: {request: 0s}", "`timeouts.request` is zero"),
        ("baseline: A", "baseline"),
        ("store: redis:x", "store"),
        ("carriers: {read: [header, sigandot]}", "`carriers.read[1]`: `sigandot` is no carrier"),
        (
            "carriers: {write: [\"header:x-overlay-hop\"]}",
            "`carriers.write[0]`: `x-overlay-hop` has a meaning",
        ),
        ("carriers: {wirte: [header]}", "wirte"),
        ("keepFor: [\"shop.example.com:80\"]", "`keepFor[0]`"),
        ("tls: {}", "TLS without a certificate"),
        ("tls: {certificates: [{certificate: a}]}", "key"),
        ("tls: {certificates: [{certificate: a, key: a}, {certificate: a, key: b}]}", "names a twice"),
        ("tls: {certificates: [{certificate: a, key: b}], minVersion: 1.1}", "`tls.minVersion` is `1.1`"),
        ("tls: {certificates: [{certificate: a, key: b}], clients: optional}", "`tls.clientCa`"),
        ("tls: {certificates: [{certificate: a, key: b}], listeners: [inbound]}", "names `inbound`"),
        ("tls: {certificates: [{certificate: a, key: b}], listeners: []}", "no listener that speaks TLS"),
        ("trustedHops: [10.0.0.0/33]", "`trustedHops: 10.0.0.0/33` is no network"),
        ("forwarded: x-real-ip", "forwarded"),
        ("trustedHops: [10.0.0.1]\noutbound: 127.0.0.1:1", "`trustedHops` without a gateway"),
        ("tokens: {keys: [a]}", "without an audience"),
        ("tokens: {audience: a}", "without a key"),
        ("tokens: {key: a}", "key"),
        ("authorizer: {url: 'https://a/b'}", "`authorizer.url`: only `http://`"),
        ("authorizer: {url: 'http://'}", "`authorizer.url`"),
        ("authorizer: {url: 'http://a/ b'}", "is no path"),
        ("authorizer: {url: 'http://a', timeout: 0s}", "`authorizer.timeout` is zero"),
        ("authorizer: {url: 'http://a', atOnce: 0}", "`authorizer.atOnce` is 0"),
        ("authorizer: {url: 'http://a', copyHeaders: [Host]}", "`authorizer.copyHeaders`"),
        ("authorizer: {url: 'http://a'}\noutbound: 127.0.0.1:1", "`authorizer` without a gateway"),
        ("tokens: {keys: [a], audience: b}\noutbound: 127.0.0.1:1", "`tokens` without a gateway"),
        ("traces: {endpoint: 'a:4318'}", "begins neither with"),
        ("traces: {endpoint: 'http://a', ratio: 2}", "the share of traces is 2"),
        ("traces: {url: 'http://a'}", "url"),
        ("trust: 'identity:spiffe://mesh/web'", "names identities"),
        ("tls: {certificates: [{certificate: a, key: b}]}\ntrust: 'identity:*'", "names identities"),
    ] {
        let refused = with(text).expect_err(text);
        assert!(refused.message.contains(word), "{text}: {refused}");
    }
}

#[cfg(feature = "etcd")]
#[test]
fn what_expired_is_removed_from_an_engine_by_hubs_and_by_who_is_told_to() {
    let merged = |store: &str, flags: RunArgs| {
        let settings = Settings::merge(flags, Some(store.parse().expect("store")));
        settings.map(|settings| settings.remove_expired.map(|after| after.as_secs() / 3600))
    };
    let at = Some(([127, 0, 0, 1], 0).into());
    let removed = |store: &str, hub: bool, told: Option<&str>| {
        let hub = at.filter(|_| hub);
        merged(store, RunArgs { hub, remove_expired: told.map(str::to_owned), ..RunArgs::default() })
    };
    let file = || Some("tokens".into());
    let (etcd, directory) = ("etcd:127.0.0.1:1", "/tmp/x");
    assert_eq!(removed(etcd, true, None), Ok(Some(24)));
    assert_eq!(removed(etcd, true, Some("never")), Ok(None));
    assert_eq!(removed(etcd, false, None), Ok(None));
    assert_eq!(removed(etcd, false, Some("2h")), Ok(Some(2)));
    assert!(removed(etcd, true, Some("0s")).is_err());
    let readers = [
        RunArgs { hub: at, hub_read_tokens: file(), ..RunArgs::default() },
        RunArgs { hub: at, hub_open: Some(Right::Read), ..RunArgs::default() },
    ];
    for readers in readers {
        assert_eq!(merged(etcd, readers), Ok(None), "nobody writes there");
    }
    let writers = RunArgs { hub: at, hub_tokens: file(), hub_open: Some(Right::Read), ..RunArgs::default() };
    assert_eq!(merged(etcd, writers), Ok(Some(24)));
    for store in [directory, "hub:http://127.0.0.1:1"] {
        assert_eq!(removed(store, true, None), Ok(None));
        assert_eq!(removed(store, true, Some("never")), Ok(None));
        let refused = removed(store, true, Some("2h")).expect_err(store);
        assert!(refused.message.contains(store), "{refused}");
    }
}
