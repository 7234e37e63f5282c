//! Manifests as people have them: what is changed in them, and what stays.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use serde_yaml::Value;

use super::files::{File, written};
use super::import;
use super::inject::{Injection, inject};
use super::objects::{Port, leads_to, pod_path, selects};
use super::render::{Changed, Overlay, Rendered, render, variables};
use super::sidecar::{Amounts, Key, NAME, Sidecar, Stands, Store};
use super::{Fields, Mistake};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn fixtures() -> Vec<(String, String)> {
    let files = fs::read_dir(root().join("tests/manifests"))
        .expect("fixtures")
        .map(|file| file.expect("file").path());
    let named = files.map(|path| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("readable"))
    });
    let mut all: Vec<_> = named.collect();
    all.sort();
    assert!(all.len() >= 5, "{}", all.len());
    all
}

fn sidecar() -> Sidecar {
    let amounts = |all: &[(&str, &str)]| {
        all.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect::<Amounts>()
    };
    Sidecar {
        image: "overlane:0.1.0".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        store: Store::ConfigMap("overlane-environments".to_owned()),
        token: None,
        baseline: Some("staging".parse().expect("id")),
        environment: None,
        outbound: true,
        native: true,
        requests: amounts(&[("cpu", "50m"), ("memory", "32Mi")]),
        limits: amounts(&[("memory", "256Mi")]),
    }
}

fn of_a_hub() -> Sidecar {
    Sidecar {
        store: Store::Shared("hub:http://overlane-hub.overlane.svc:7484".to_owned()),
        token: Some(Key { secret: "overlane-hub-token".to_owned(), key: "token".to_owned() }),
        baseline: None,
        ..sidecar()
    }
}

/// Every kind of sidecar that there is.
fn sidecars() -> Vec<Sidecar> {
    let environment = Some("alice-payments".parse().expect("id"));
    vec![
        sidecar(),
        of_a_hub(),
        Sidecar { outbound: false, environment, ..sidecar() },
        Sidecar { native: false, ..sidecar() },
    ]
}

fn with(sidecar: Option<Sidecar>) -> Injection {
    Injection { sidecar, services: Vec::new(), port: None }
}

/// What becomes of a text.
fn injected(name: &str, text: &str, how: &Injection) -> Result<String, Vec<Mistake>> {
    let mut files = vec![File::read(name, text.to_owned()).map_err(|mistake| vec![mistake])?];
    inject(&mut files, how)?;
    let written = files[0].written();
    assert_eq!(written.anew, [0; 0], "{name} could not be changed in place:\n{}", written.text);
    Ok(written.text)
}

/// The first container of that name in a file.
fn container(text: &str) -> Value {
    let file = File::read("file", text.to_owned()).expect("manifests");
    let specs = file.objects().map(|(_, object)| {
        object.at("spec.template.spec").or(object.at("spec")).cloned().unwrap_or_default()
    });
    let containers = specs.flat_map(|spec| [spec.items("initContainers"), spec.items("containers")].concat());
    containers.into_iter().find(|container| container.text("name") == Some(NAME)).expect("a sidecar")
}

#[test]
fn injecting_twice_gives_the_same_bytes_whatever_was_injected_before() {
    for (name, text) in fixtures() {
        for first in sidecars() {
            let once = injected(&name, &text, &with(Some(first))).expect(&name);
            for second in sidecars() {
                let told = with(Some(second));
                let anew = injected(&name, &text, &told).expect(&name);
                assert_eq!(injected(&name, &once, &told).expect(&name), anew, "{name}");
            }
        }
    }
}

#[test]
fn taking_the_sidecar_out_gives_back_the_file_byte_by_byte() {
    for (name, text) in fixtures() {
        for sidecar in sidecars() {
            let once = injected(&name, &text, &with(Some(sidecar))).expect(&name);
            assert_ne!(once, text, "{name}");
            assert_eq!(injected(&name, &once, &with(None)).expect(&name), text, "{name}");
        }
    }
}

#[test]
fn comments_and_layout_of_what_is_not_changed_stay() {
    for (name, text) in fixtures().into_iter().filter(|(name, _)| name.ends_with(".yaml")) {
        let now = injected(&name, &text, &with(Some(sidecar()))).expect(&name);
        let mut lines = now.lines();
        // What leads to the sidecar now is written anew, and nothing else is.
        let changed = |line: &str| {
            line.contains("http")
                || line.contains("grpc")
                || line.contains("targetPort")
                || line.contains("volumes: [")
        };
        for line in text.lines().filter(|line| !changed(line)) {
            assert!(
                lines.any(|kept| kept == line),
                "{name}: `{line}` is not there any more, or not in order:\n{now}"
            );
        }
    }
}

#[test]
fn the_sidecar_is_that_of_the_chart() {
    for (case, sidecar) in [("sidecar.yaml", sidecar()), ("sidecar-of-a-hub.yaml", of_a_hub())] {
        let rendered =
            fs::read_to_string(root().join("../deploy/kubernetes/rendered").join(case)).expect(case);
        let stands = Stands {
            service: &"payments-api".parse().expect("name"),
            inbound: 8080,
            port_name: "http",
            app: &"http://127.0.0.1:3000".parse().expect("url"),
        };
        assert_eq!(sidecar.container(&stands), container(&rendered), "{case}");
        // The chart's example is one that was injected: what comes with the sidecar is the same as well.
        let again = injected(case, &rendered, &with(Some(sidecar))).expect(case);
        let without_ports =
            |text: &str| text.replace("0.0.0.0:8080", "INBOUND").replace("0.0.0.0:7485", "INBOUND");
        assert_eq!(
            without_ports(&again).matches("INBOUND").count(),
            without_ports(&rendered).matches("INBOUND").count(),
            "{case}"
        );
    }
}

#[test]
fn probes_stay_with_the_application_and_ask_at_its_port() {
    let (name, text) = fixtures().into_iter().find(|(name, _)| name == "indented.yaml").expect("fixture");
    let now = injected(&name, &text, &with(Some(sidecar()))).expect("injected");
    for asked in [
        "livenessProbe: {tcpSocket: {port: app-grpc}}",
        "httpGet: {path: /drain, port: app-grpc}",
        "{containerPort: 50051, name: app-grpc}",
    ] {
        assert!(now.contains(asked), "{asked}:\n{now}");
    }
    assert!(now.contains("--app=h2c://127.0.0.1:50051"), "{now}");
    assert_eq!(container(&now).at("ports").and_then(|ports| ports.get(0)?.text("name")), Some("grpc"));
}

const WORKLOAD: &str = "
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: web, image: web, ports: [{name: http, containerPort: 3000}]}]
---
";

/// A workload and its Service.
fn pair(service: &str) -> String {
    format!("{WORKLOAD}kind: Service\nmetadata: {{name: web}}\nspec: {service}\n")
}

#[test]
fn what_cannot_be_injected_is_said_with_file_document_and_remedy() {
    let of = |selector: &str, more: &str| pair(&format!("{{selector: {{app: {selector}}}, {more}}}"));
    let web = of("web", "ports: [{port: 80, targetPort: http}]");
    for (text, message, hint) in [
        ("a: [".to_owned(), "f.yaml: document 1 cannot be read", "indentation"),
        ("- a".to_owned(), "document 1 is no mapping", "one Kubernetes object"),
        (
            WORKLOAD.to_owned(),
            "f.yaml: document 1 (Deployment web): no Service of these files leads to it",
            "-f service.yaml",
        ),
        (of("other", "ports: [{port: 80}]"), "no Service of these files leads to it", "selector"),
        ("kind: ConfigMap\nmetadata: {name: x}".to_owned(), "no workload in it", "Deployment"),
        (
            of("web", "clusterIP: None, ports: [{port: 80}]"),
            "the Service web is headless",
            "an address of its own",
        ),
        (
            of("web", "ports: [{port: 80, targetPort: htp}]"),
            "leads to a port `htp`, and no container has one",
            "`ports`",
        ),
        (
            of("web", "ports: [{port: 443, name: https}]"),
            "document 2 (Service web): its application speaks TLS",
            "appProtocol",
        ),
        (of("web", "ports: [{port: 5432}]"), "none of its ports speaks HTTP", "--port"),
        (
            of("web", "ports: [{port: 53, protocol: UDP, name: http}]"),
            "none of its ports speaks HTTP",
            "--port",
        ),
        (
            of("web", "ports: [{port: 80, name: a}, {port: 81, name: b}]"),
            "several of its ports may speak HTTP",
            "--port 80",
        ),
        (
            format!(
                "{web}---\n{}",
                web.split("---\n").last().expect("service").replace("name: web", "name: www")
            ),
            "several Services lead to it: web, www",
            "--service web",
        ),
        (
            web.replace("    spec:\n", "    spec:\n      hostNetwork: true\n"),
            "`hostNetwork: true`",
            "without",
        ),
        (web.replace("3000", "7482"), "a container listens on port 7482", "another port"),
        (
            web.replace("name: web, image", "name: overlane, image"),
            "a container `overlane` that is no sidecar",
            "rename",
        ),
        (
            web.replace("name: web}\nspec: {sel", "name: Web}\nspec: {sel"),
            "`Web` is no name of a service",
            "overlane.dev/service",
        ),
    ] {
        let mistakes = injected("f.yaml", &text, &with(Some(sidecar()))).expect_err(&text);
        assert!(mistakes.iter().all(|mistake| mistake.message.starts_with("f.yaml")), "{mistakes:?}");
        assert!(mistakes[0].message.contains(message), "{message}: {mistakes:?}");
        assert!(mistakes[0].hint.contains(hint), "{hint}: {mistakes:?}");
    }
    assert!(injected("f.yaml", &web, &with(Some(sidecar()))).is_ok());
}

#[test]
fn a_service_or_a_port_can_be_chosen() {
    let text = pair(
        "{selector: {app: web}, ports: [{port: 80, name: a, targetPort: 3000}, {port: 81, name: b, targetPort: 3001}]}",
    );
    for port in ["b", "81"] {
        let how = Injection { port: Some(port.parse::<Port>().expect("port")), ..with(Some(sidecar())) };
        let now = injected("f.yaml", &text, &how).expect("injected");
        assert!(now.contains("--app=http://127.0.0.1:3001"), "{now}");
        assert!(
            now.contains("{port: 80, name: a, targetPort: 3000}, {port: 81, name: b, targetPort: 7485}"),
            "{now}"
        );
    }
    let how = Injection { services: vec!["wbe".to_owned()], ..with(Some(sidecar())) };
    let mistakes = injected("f.yaml", &text, &how).expect_err("no such Service");
    assert_eq!(mistakes[0].message, "--service: no Service `wbe` is in these files");
    assert!(mistakes[0].hint.contains("web"));
}

#[test]
fn a_workload_that_says_so_is_left_alone() {
    let text = pair("{selector: {app: web}, ports: [{port: 80}]}")
        .replace("labels: {app: web}", "labels: {app: web}, annotations: {overlane.dev/inject: \"false\"}");
    let mut files = vec![File::read("f.yaml", text.clone()).expect("manifests")];
    let mistakes = inject(&mut files, &with(Some(sidecar()))).expect_err("nothing is left to do");
    assert_eq!(files[0].written().text, text);
    assert_eq!(mistakes.len(), 1);
}

#[test]
fn who_is_led_to_the_sidecar_besides_and_what_ends_too_soon_is_said() {
    let text = pair("{selector: {app: web}, ports: [{port: 80, targetPort: http}]}")
        .replace("    spec:\n", "    spec:\n      terminationGracePeriodSeconds: 10\n");
    let other = text.split("---\n").last().expect("a Service").replace("name: web", "name: www");
    let mut files = vec![File::read("f.yaml", format!("{text}---\n{other}")).expect("manifests")];
    let how = Injection { services: vec!["web".to_owned()], ..with(Some(sidecar())) };
    let notes = inject(&mut files, &how).expect("injected");
    let said = |what: &str| notes.iter().filter(|note| note.contains(what)).count();
    assert_eq!(
        said("Service www leads to port `http` as well, and so to the sidecar of web"),
        1,
        "{notes:?}"
    );
    assert_eq!(said("killed after 10 s"), 1, "{notes:?}");
}

#[test]
fn variables_that_lead_elsewhere_are_left_and_said() {
    let text = pair("{selector: {app: web}, ports: [{port: 80}]}")
        .replace("image: web,", "image: web, env: [{name: http_proxy, value: \"http://proxy:3128\"}],");
    let mut files = vec![File::read("f.yaml", text).expect("manifests")];
    let notes = inject(&mut files, &with(Some(sidecar()))).expect("injected");
    assert!(notes.iter().any(|note| note.contains("container web has http_proxy already")), "{notes:?}");
    assert!(!files[0].written().text.contains("NO_PROXY"));
}

#[test]
fn what_is_below_an_alias_is_written_anew_and_said() {
    let merging = "
kind: Deployment
metadata: {name: web}
base: &base {metadata: {labels: {app: web}}}
spec:
  template:
    <<: *base
    spec: {containers: [{name: web, image: web}]}
---
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
";
    let mut files = vec![File::read("f.yaml", merging.to_owned()).expect("manifests")];
    inject(&mut files, &with(Some(sidecar()))).expect("injected");
    let written = files[0].written();
    assert_eq!(written.anew, [1]);
    assert!(written.text.ends_with("---\nkind: Service\nmetadata: {name: web}\nspec: {selector: {app: web}, ports: [{port: 80, targetPort: 7485}]}\n"));
    let again = File::read("f.yaml", written.text).expect("manifests");
    let objects = |file: &File| file.objects().map(|(_, object)| object.clone()).collect::<Vec<_>>();
    assert_eq!(objects(&again), objects(&files[0]));
}

#[test]
fn edits_say_the_new_value_and_keep_the_rest() {
    let cases: [(&str, &str, &str); 12] = [
        ("a: 1 # one\nb: 2\n", "{a: 2, b: 2}", "a: 2 # one\nb: 2\n"),
        ("a: 1\n# of c\nc: 3\n", "{a: 1, b: {x: [1]}, c: 3}", "a: 1\nb:\n  x:\n    - 1\n# of c\nc: 3\n"),
        ("a: 1\nb: 2", "{a: 1, b: 2, c: 3}", "a: 1\nb: 2\nc: 3"),
        ("a: {x: 1}\n", "{a: {x: 1, y: [p, 'q,r']}}", "a: {x: 1, y: [p, \"q,r\"]}\n"),
        ("a: {}\nb: []\n", "{a: {x: 1}, b: [1]}", "a:\n  x: 1\nb:\n  - 1\n"),
        ("a:\nb: 2\n", "{a: 5, b: 2}", "a: 5\nb: 2\n"),
        ("a:\nb: 2\n", "{a: {x: 1}, b: 2}", "a:\n  x: 1\nb: 2\n"),
        ("a:\n- x\n- y # two\nb: 2\n", "{a: [w, x, y, z], b: 2}", "a:\n- w\n- x\n- y # two\n- z\nb: 2\n"),
        ("a:\n  - name: x\n    v: 1\n  - name: y\n", "{a: [{name: y, v: 2}]}", "a:\n  - name: y\n    v: 2\n"),
        ("a: [1, 2, 3]\n", "{a: [1, 3]}", "a: [1, 3]\n"),
        (
            "a: |\n  # text\n  more\nb: 1\n",
            "{a: \"# text\\nmore\\n\", b: 2, c: x}",
            "a: |\n  # text\n  more\nb: 2\nc: x\n",
        ),
        (
            "{\"a\": [1], \"é\": \"ü\"}\n",
            "{a: [1, 2], é: ü, c: x}",
            "{\"a\": [1, 2], \"é\": \"ü\", \"c\": \"x\"}\n",
        ),
    ];
    for (text, wanted, expected) in cases {
        let mut file = File::read("f", text.to_owned()).expect(text);
        let (at, _) = file.objects().next().expect("a document");
        *file.object_mut(at) = serde_yaml::from_str(wanted).expect(wanted);
        let written = file.written();
        assert_eq!((written.text.as_str(), &written.anew[..]), (expected, &[][..]), "{text}");
    }
}

#[test]
fn line_ends_of_windows_stay() {
    let (_, text) = fixtures().into_iter().find(|(name, _)| name == "named.yaml").expect("fixture");
    let windows = injected("f.yaml", &text.replace('\n', "\r\n"), &with(Some(sidecar()))).expect("injected");
    assert_eq!(
        windows,
        injected("f.yaml", &text, &with(Some(sidecar()))).expect("injected").replace('\n', "\r\n")
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_text_of_any_kind_is_refused_or_says_what_was_changed(text in "([-a:{}\\[\\]#&*!|>'\"%?, \n\té0]|<<: |- a|\nb: ){0,30}") {
        let Ok(mut file) = File::read("f", text) else { return Ok(()) };
        let objects: Vec<_> = file.objects().map(|(at, _)| at).collect();
        for at in objects {
            file.object_mut(at)["added"] = Value::from(1);
        }
        let written = file.written().text;
        let read = File::read("f", written.clone()).map_err(|why| TestCaseError::fail(format!("{why:?}: {written}")))?;
        let (meant, says): (Vec<_>, Vec<_>) = (file.objects().map(|(_, object)| object.clone()).collect(), read.objects().map(|(_, object)| object.clone()).collect());
        prop_assert_eq!(meant, says);
    }
}

/// What an overlay's services are made to be of a file's.
fn rendered(files: &[File], changed: Changed) -> Result<Rendered, Vec<Mistake>> {
    let id = "alice-payments".parse().expect("id");
    let sidecar = &Sidecar { environment: Some("alice-payments".parse().expect("id")), ..of_a_hub() };
    render(files, &Overlay { id: &id, services: vec![changed], namespace: None, sidecar })
}

fn changed(name: &str, url: Option<&str>) -> Changed {
    Changed {
        name: name.parse().expect("name"),
        place: "alice.yaml:4".to_owned(),
        url: url.map(|url| url.parse().expect("url")),
        image: Some("my-org/changed:2".to_owned()),
        env: variables(&serde_yaml::from_str("{REFUNDS: new, PORT: 3001}").expect("yaml")),
        fields: vec![("args", serde_yaml::from_str("[serve]").expect("yaml"))],
    }
}

/// The baseline's services that an overlay can have instances of.
fn services() -> Vec<(File, String)> {
    let files = fixtures().into_iter().map(|(name, text)| File::read(name, text).expect("manifests"));
    let service = |file: &File| {
        let names = ["payments-api", "ledger", "web"];
        names
            .into_iter()
            .find(|name| file.objects().any(|(_, object)| object.text("metadata.name") == Some(name)))
    };
    let all: Vec<_> =
        files.filter_map(|file| service(&file).map(str::to_owned).map(|name| (file, name))).collect();
    assert!(all.len() >= 4);
    all
}

#[test]
fn only_the_overlays_own_service_leads_to_its_pods() {
    for (file, service) in services() {
        for url in
            [None, Some("http://own-name:8081"), Some("http://own-name.elsewhere.svc.cluster.local:80")]
        {
            let made =
                rendered(std::slice::from_ref(&file), changed(&service, url)).expect(&file.name).objects;
            let [.., workload, own] = &made[..] else { panic!("{made:?}") };
            assert!(leads_to(own, workload), "{made:?}");
            let labels = |object: &Value| {
                object.at(&format!("{}.metadata.labels", pod_path(object).expect("pods"))).cloned()
            };
            for (_, other) in file.objects().filter(|(_, other)| other.text("kind") == Some("Service")) {
                assert!(!selects(other, labels(workload).as_ref()), "{other:?} leads to {workload:?}");
            }
            for (_, other) in file.objects().filter(|(_, other)| pod_path(other).is_some()) {
                assert!(!selects(own, labels(other).as_ref()), "{own:?} leads to {other:?}");
                assert_ne!(other.at("spec.selector"), workload.at("spec.selector"));
            }
            let port =
                url.map_or(80, |url: &str| url.parse::<overlane_config::url::Url>().expect("url").port);
            let ports = own.items("spec.ports");
            assert!(
                url.is_none()
                    || ports.iter().any(|had| had.at("port").and_then(Value::as_u64) == Some(port.into())),
                "{own:?}"
            );
        }
    }
}

#[test]
fn a_copy_has_the_changes_and_nothing_that_only_the_original_can_have() {
    for (file, service) in services() {
        let made = rendered(std::slice::from_ref(&file), changed(&service, None)).expect(&file.name).objects;
        let text = written(&made);
        for gone in [
            "status:",
            "uid:",
            "resourceVersion",
            "creationTimestamp",
            "generation:",
            "clusterIP",
            "nodePort",
            "LoadBalancer",
            "NodePort",
            "external-dns",
            "meta.helm.sh",
            "Helm",
            "last-applied",
            "restartedAt",
            "managedFields",
        ] {
            assert!(!text.contains(gone), "{gone}:\n{text}");
        }
        for there in [
            "image: my-org/changed:2",
            "name: REFUNDS",
            "- serve",
            "value: '3001'",
            "replicas: 1",
            "--environment=alice-payments",
            &format!("--service={service}"),
            "--store=hub:http",
        ] {
            assert!(text.contains(there), "{there}:\n{text}");
        }
        assert_eq!(text.matches("name: PORT\n").count(), 1, "a variable is there once:\n{text}");
        // What was rendered is injected, with all that it is told by itself.
        let how = with(Some(of_a_hub()));
        assert_eq!(injected("rendered.yaml", &text, &how).expect("injected"), text);
    }
}

#[test]
fn a_baseline_that_is_injected_renders_as_one_that_is_not() {
    for (file, service) in services() {
        let now = injected(&file.name, file.text(), &with(Some(sidecar()))).expect("injected");
        let again = File::read(file.name.clone(), now).expect("manifests");
        let made = |file: &File| {
            rendered(std::slice::from_ref(file), changed(&service, None)).expect("rendered").objects
        };
        assert_eq!(made(&again), made(&file), "{}", file.name);
    }
}

#[test]
fn labels_that_other_services_select_by_are_changed_as_well() {
    let text = pair("{selector: {app: web}, ports: [{port: 80}]}")
        + "---\nkind: Service\nmetadata: {name: all}\nspec: {selector: {tier: front}, ports: [{port: 80}]}\n";
    let other = "---\nkind: Deployment\nmetadata: {name: other}\nspec: {template: {metadata: {labels: {tier: front}}}}\n";
    let text = text.replace("{app: web}}\n    spec", "{app: web, tier: front}}\n    spec") + other;
    let files = [File::read("f.yaml", text).expect("manifests")];
    let made =
        rendered(&files, changed("web", None)).expect("every label that a Service asks for is another one");
    assert!(!written(&made.objects).contains("tier: front"));
}

#[test]
fn drafts_of_baselines_are_right() {
    for (name, text) in fixtures() {
        let file = File::read(name.clone(), text).expect("manifests");
        let draft = import::kubernetes(&[file], &"staging".parse().expect("id"), "shop");
        let source = overlane_config::diagnostic::Source::new("draft".into(), draft.clone(), None);
        let parsed = overlane_config::blueprint::parse(&source.into());
        assert!(parsed.diagnostics.is_empty(), "{name}: {:?}\n{draft}", parsed.diagnostics);
        assert!(draft.contains("\n  - name: "), "{draft}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_draft_of_any_services_is_right(
        services in prop::collection::vec(("[a-z]{1,8}|[a-z-]{0,70}|on|123|é#", "[a-z0-9.*/ #:${}]{0,12}", prop::option::of("/[a-z/*.%]{0,8}"), 0u32..70000, any::<bool>()), 0..5)
    ) {
        let mut compose = String::from("services:\n");
        let mut objects = String::new();
        for (name, image, path, port, outside) in services {
            let quoted = |text: &str| serde_json::to_string(text).expect("text");
            compose += &format!("  {}: {{image: {}, ports: [{port}], depends_on: [{}]}}\n", quoted(&format!("{name}{port}")), quoted(&image), quoted(&image));
            let kind = if outside { "NodePort" } else { "ClusterIP" };
            objects += &format!("---\nkind: Service\nmetadata: {{name: {}}}\nspec: {{type: {kind}, ports: [{{port: {port}}}]}}\n", quoted(&name));
            if let Some(path) = path {
                objects += &format!(
                    "---\nkind: Ingress\nspec: {{rules: [{{host: {}, http: {{paths: [{{path: {}, backend: {{service: {{name: {}}}}}}}]}}}}]}}\n",
                    quoted(&image), quoted(&path), quoted(&name)
                );
            }
        }
        let id = "staging".parse().expect("id");
        for draft in [
            File::read("f", objects).map(|file| import::kubernetes(&[file], &id, "shop")),
            File::read("f", compose).map(|file| import::compose(&[file], &id)),
        ].into_iter().flatten() {
            let source = overlane_config::diagnostic::Source::new("draft".into(), draft.clone(), None);
            let content = overlane_config::lineage::Content::Text(source.into());
            let change = overlane_config::lineage::FileChange { path: "draft".into(), content };
            let applied = overlane_config::lineage::Lineages::new(Default::default()).apply(vec![change]);
            let wrong: Vec<_> = applied.diagnostics.iter().filter(|one| one.severity == overlane_config::diagnostic::Severity::Error).collect();
            prop_assert!(wrong.is_empty(), "{:?}\n{}", wrong, draft);
        }
    }
}

#[test]
fn overlane_run_takes_what_the_sidecar_is_started_with() {
    for sidecar in sidecars() {
        let stands = Stands {
            service: &"payments-api".parse().expect("name"),
            inbound: 7485,
            port_name: "http",
            app: &"h2c://127.0.0.1:3000".parse().expect("url"),
        };
        let container = sidecar.container(&stands);
        let args: Vec<_> =
            container.items("args").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let store = args[1].strip_prefix("--store=").expect("a store");
        store.parse::<crate::store::StoreAddress>().expect(store);
        let command = <crate::settings::RunArgs as clap::Args>::augment_args(clap::Command::new("run"));
        let taken =
            command.try_get_matches_from(std::iter::once("run").chain(args[2..].iter().map(String::as_str)));
        assert!(taken.is_ok(), "{args:?}: {}", taken.expect_err("refused"));
        assert_eq!(args[0], "run");
    }
}
