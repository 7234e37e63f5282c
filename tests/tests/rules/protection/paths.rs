//! Paths that are used against routing; all of them are in `config/tests/paths.rs`.

use overlane::plane::trust::Trust;
use overlane_config::route::Role;
use overlane_tests::stage;

use super::{ENGINES, ask, baseline, service};

#[test]
fn a_path_on_which_readers_disagree_reaches_nobody_and_any_other_goes_on_as_it_came() {
    for engine in ENGINES {
        let (open, opened) = service("open");
        let (shut, shut_heads) = service("shut");
        let exposed = baseline(&[("open", open, ", path: /public"), ("shut", shut, ", path: /private")]);
        let gateway = stage::listener(Role::Gateway, "", None, Trust::Any);
        let gateway = overlane::plane::ListenerSettings {
            listener: overlane_config::route::Listener { baseline: None, ..gateway.listener },
            ..gateway
        };
        let running = stage::start(engine, vec![gateway], vec![exposed]);
        let get = |target: &str| {
            let head = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            ask(running.addresses()[0], head)
        };
        for path in [
            "/%70ublic",
            "/public/..%2fprivate",
            "/public/../private",
            "/public/..;/private",
            "/public/..\\private",
        ] {
            let answer = get(path);
            assert!(
                answer.starts_with("HTTP/1.1 400") && answer.contains("(malformed)"),
                "{engine:?} {path}: {answer}"
            );
            let absolute = get(&format!("http://x{path}?q"));
            assert!(absolute.starts_with("HTTP/1.1 400"), "{engine:?} {path}: {absolute}");
        }
        for target in ["/public/a%2Fb;c/./d//e?f=/../%2e", "/public/%7Euser", "/public?/../private"] {
            assert!(get(target).ends_with("open"), "{engine:?} {target}");
            let arrived = opened.try_recv().unwrap();
            assert!(arrived.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{engine:?}: {arrived}");
        }
        assert!(shut_heads.try_recv().is_err() && opened.try_recv().is_err(), "{engine:?}");
    }
}
