//! What holds of every store and every history of its files; `model.rs` has the naive walk.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{NOW, Store, environment, file, gone, id, unreadable};
use overlane_config::carrier::Keys;
use overlane_config::diagnostic::Diagnostic;
use overlane_config::lineage::{FileChange, MAX_DEPTH, Standing};
use overlane_config::name::EnvironmentId;
use overlane_config::route::{Decision, Listener, Request, Role, Tried, Untraced, decide};
use overlane_config::table::{Environment, RoutingTable};
use proptest::prelude::*;

/// The ids of all stores here: few, so that they meet; in an order that is not that of their lineages.
const IDS: [&str; 8] = ["m", "c", "x", "a", "k", "z", "e", "p"];
const SERVICES: [&str; 5] = ["web", "pay", "ledger", "new", "old"];

/// What one environment says; a parent that is itself stands for being a baseline.
#[derive(Debug, Clone)]
struct Says {
    parent: usize,
    owns: [bool; 5],
    addressed: bool,
    expired: bool,
    fallback: bool,
    header: bool,
}

fn says() -> impl Strategy<Value = Says> {
    let rest = (
        any::<[bool; 5]>(),
        any::<bool>(),
        prop::bool::weighted(0.1),
        any::<bool>(),
        prop::bool::weighted(0.05),
    );
    (0..IDS.len(), rest).prop_map(|(parent, (owns, addressed, expired, fallback, header))| Says {
        parent,
        owns,
        addressed,
        expired,
        fallback,
        header,
    })
}

fn text(own: usize, says: &Says) -> String {
    let routing = if own == says.parent {
        "mode: baseline".to_owned()
    } else {
        format!("mode: overlay, baselineId: {}", IDS[says.parent])
    };
    let expiry = if says.expired && own != says.parent { ", expiresAt: '2020-01-01T00:00:00Z'" } else { "" };
    let fallback = if says.fallback { ", onUnavailable: fallback" } else { "" };
    let header = if says.header { ", headerName: x-team" } else { "" };
    let url = if says.addressed { format!(", url: 'http://{}'", IDS[own]) } else { String::new() };
    let owned = SERVICES.iter().zip(says.owns).filter(|(_, owns)| *owns);
    let services: Vec<_> = owned.map(|(name, _)| format!("{{name: {name}{url}}}")).collect();
    format!(
        "name: {}\nrouting: {{{routing}{expiry}{fallback}{header}}}\nservices: [{}]\n",
        IDS[own],
        services.join(", ")
    )
}

/// One edit of the file of one environment; some edits are bad, some say what is another's.
#[derive(Debug, Clone)]
enum Edit {
    Says(usize, Says),
    Gone(usize),
    Syntax(usize),
    Unreadable(usize),
    Duplicate(usize, usize, Says),
    Attached(usize, usize),
}

fn edit() -> impl Strategy<Value = Edit> {
    let own = 0..IDS.len();
    prop_oneof![
        8 => (own.clone(), says()).prop_map(|(own, says)| Edit::Says(own, says)),
        2 => own.clone().prop_map(Edit::Gone),
        1 => own.clone().prop_map(Edit::Syntax),
        1 => own.clone().prop_map(Edit::Unreadable),
        1 => (own.clone(), own.clone(), says()).prop_map(|(at, of, says)| Edit::Duplicate(at, of, says)),
        1 => (own, 0..SERVICES.len()).prop_map(|(of, service)| Edit::Attached(of, service)),
    ]
}

fn path(own: usize) -> String {
    format!("{}.yaml", IDS[own])
}

fn change(edit: &Edit) -> FileChange {
    match edit {
        Edit::Says(own, says) => environment(text(*own, says)),
        Edit::Gone(own) => gone(&path(*own)),
        Edit::Syntax(own) => file(&path(*own), "routing: ["),
        Edit::Unreadable(own) => unreadable(&path(*own)),
        Edit::Duplicate(at, of, says) => file(&path(*at), text(*of, says)),
        Edit::Attached(of, service) => {
            let services = format!("services: [{{name: {}, url: 'http://attached'}}]", SERVICES[*service]);
            let head = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\n";
            file("attached.yaml", format!("{head}metadata: {{name: {}}}\nspec: {{{services}}}\n", IDS[*of]))
        }
    }
}

/// Everything that routing depends on, as text.
fn meaning(store: &Store) -> BTreeMap<&str, String> {
    let shown = |standing: &Standing| match standing {
        Standing::Refused(_) => "refused".to_owned(),
        Standing::Resolved(r) => {
            let services: Vec<_> = r.blueprint.services.iter().map(|s| s.name.value.as_str()).collect();
            let inherited = (&r.parent, &r.baseline, r.depth, &r.header, r.policy, r.expires_at, r.propagate);
            format!("{inherited:?} {services:?} {:?}", r.urls)
        }
    };
    store.lineages.standings().map(|(id, standing)| (id.as_str(), shown(standing))).collect()
}

/// The table as text, in which two that answer alike are alike.
fn compiled(table: &RoutingTable<()>) -> BTreeMap<&str, String> {
    let shown = |environment: &Environment<()>| match environment {
        Environment::Refused(_) => "refused".to_owned(),
        Environment::Overlay(overlay) => format!("{overlay:?}"),
        Environment::Baseline(baseline) => {
            let routes: BTreeMap<_, _> =
                baseline.routes().map(|route| (route.service.as_str(), route)).collect();
            format!("{routes:?} {:?} {:?} {:?}", baseline.exposures, baseline.policy, baseline.on_unknown)
        }
    };
    table.environments().map(|(id, environment)| (id.as_str(), shown(environment))).collect()
}

fn resolved(store: &Store, of: &EnvironmentId) -> Option<(Option<EnvironmentId>, EnvironmentId, usize)> {
    let resolved = store.lineages.standing(of)?.resolved()?;
    Some((resolved.parent.clone(), resolved.baseline.clone(), resolved.depth))
}

/// What must hold after every batch, whatever was in it.
fn hold_the_invariants(store: &Store) -> Result<(), TestCaseError> {
    let mut parents: BTreeSet<(EnvironmentId, EnvironmentId)> = BTreeSet::new();
    for (of, standing) in store.lineages.standings() {
        let claimed = store.lineages.claims(of).filter_map(|claim| claim.parent());
        parents.extend(claimed.map(|parent| (parent.value.clone(), of.clone())));
        if let Standing::Refused(why) = standing {
            prop_assert!(why.iter().any(Diagnostic::is_error), "{of} is refused for no reason");
        }
        let Some((parent, baseline, depth)) = resolved(store, of) else { continue };
        prop_assert!(depth <= MAX_DEPTH);
        match parent {
            None => prop_assert_eq!((&baseline, depth), (of, 0)),
            Some(parent) => {
                let above = resolved(store, &parent);
                prop_assert!(above.is_some(), "the parent `{}` of {} is not resolved", parent, of);
                let (_, same, less) = above.unwrap();
                prop_assert_eq!((&same, less + 1), (&baseline, depth), "{} over {}", of, parent);
                parents.insert((parent, of.clone()));
            }
        }
    }
    for parent in IDS {
        let expected: Vec<_> =
            parents.iter().filter(|(of, _)| of.as_str() == parent).map(|(_, id)| id).collect();
        prop_assert_eq!(
            store.lineages.children(&id(parent)).collect::<Vec<_>>(),
            expected,
            "children of {}",
            parent
        );
    }
    let all: Vec<_> = store.lineages.standings().map(|(id, _)| id.clone()).collect();
    let anew = RoutingTable::default().compile(&store.lineages, &all, |_, _, _| ());
    prop_assert_eq!(compiled(&store.table), compiled(&anew), "compiled bit by bit, and at once");
    Ok(())
}

/// The ids of which a standing, or the reason for it, may be different after files of `edits` changed.
fn assert_only_descendants_changed(
    before: &BTreeMap<String, String>,
    store: &Store,
    changed: &BTreeSet<EnvironmentId>,
) -> Result<(), TestCaseError> {
    let now = meaning(store);
    let ids: BTreeSet<&str> = before.keys().map(String::as_str).chain(now.keys().copied()).collect();
    for of in ids.into_iter().filter(|of| before.get(*of) != now.get(of)) {
        prop_assert!(changed.contains(&id(of)), "{of} is different, and not said to be");
    }
    Ok(())
}

fn listeners() -> Vec<Listener> {
    let environments = || IDS.iter().map(|of| Some(id(of))).chain([None]);
    let roles = environments().flat_map(|environment| {
        let service = "pay".parse().unwrap();
        [
            Role::Outbound { service: None, environment: environment.clone() },
            Role::Inbound { service, environment },
        ]
    });
    let roles: Vec<_> = roles.chain([Role::Gateway]).collect();
    roles
        .into_iter()
        .flat_map(|role| environments().map(move |baseline| Listener { role: role.clone(), baseline }))
        .collect()
}

fn request<'r>(authority: &'r str, keys: Option<&'r Keys>) -> Request<'r> {
    Request {
        authority,
        path: "/",
        preview: None,
        by_browser: false,
        keys,
        untrusted: false,
        hop: None,
        require: "",
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn after_any_history_every_lineage_ends_at_a_baseline_and_the_table_says_the_same(
        batches in prop::collection::vec(prop::collection::vec(edit(), 1..6), 1..8),
    ) {
        let mut store = Store::default();
        for batch in batches {
            let before = meaning(&store).into_iter().map(|(id, meaning)| (id.to_owned(), meaning)).collect();
            let applied = store.apply(batch.iter().map(change).collect::<Vec<_>>());
            assert_only_descendants_changed(&before, &store, &applied.changed)?;
            hold_the_invariants(&store)?;
        }
    }

    #[test]
    fn once_all_files_are_good_no_history_shows(
        history in prop::collection::vec(prop::collection::vec(edit(), 1..6), 0..6),
        last in prop::collection::vec(prop::option::weighted(0.8, says()), IDS.len()),
        batch in 1usize..9,
        shuffle in any::<u64>(),
    ) {
        // Parents that are there, lineages without cycles, no other headers: nothing of the end is frozen.
        let rank = |own: usize| (shuffle >> (own * 4)) % 16;
        let there: Vec<bool> = last.iter().map(Option::is_some).collect();
        let last: Vec<_> = last.into_iter().enumerate().map(|(own, says)| match says {
            None => Edit::Gone(own),
            Some(says) => {
                let fine = there[says.parent] && rank(says.parent) < rank(own);
                let parent = if fine { says.parent } else { own };
                Edit::Says(own, Says { parent, header: false, ..says })
            }
        }).collect();
        let cold = Store::of(last.iter().map(change).collect::<Vec<_>>());

        let mut warm = Store::default();
        for batch in history {
            warm.apply(batch.iter().map(change).collect::<Vec<_>>());
        }
        warm.apply([gone("attached.yaml")]);
        let mut order: Vec<_> = last.iter().map(change).collect();
        order.rotate_left((shuffle % IDS.len() as u64) as usize);
        for batch in order.chunks(batch) {
            warm.apply(batch.to_vec());
        }
        prop_assert_eq!(meaning(&warm), meaning(&cold));
        prop_assert_eq!(compiled(&warm.table), compiled(&cold.table));
        let text = |store: &Store| store.lineages.diagnostics().iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        prop_assert_eq!(text(&warm), text(&cold));
    }

    #[test]
    fn the_order_of_the_files_in_a_batch_does_not_matter(
        history in prop::collection::vec(edit(), 0..12),
        batch in prop::collection::btree_map(0..IDS.len(), says(), 1..8),
        by in 0usize..8,
    ) {
        let mut one = Store::of(history.iter().map(change).collect::<Vec<_>>());
        let mut other = Store::of(history.iter().map(change).collect::<Vec<_>>());
        let mut files: Vec<_> = batch.iter().map(|(own, says)| environment(text(*own, says))).collect();
        one.apply(files.clone());
        files.rotate_left(by % batch.len());
        other.apply(files);
        prop_assert_eq!(meaning(&one), meaning(&other));
    }

    #[test]
    fn no_request_leaves_the_lineages_of_its_keys_at_any_listener(
        edits in prop::collection::vec(edit(), 4..16),
        keys in prop::collection::vec(prop::sample::select(&IDS[..]), 0..4),
        tried in prop::collection::vec(prop::sample::select(&IDS[..]), 0..4),
    ) {
        let store = Store::of(edits.iter().map(change).collect::<Vec<_>>());
        let keys = Keys::parse([keys.join(",").as_bytes()]).unwrap();
        let because = Some(overlane_config::route::Reason::Unhealthy);
        let tried = Tried { unavailable: tried.into_iter().map(id).collect(), because };
        for listener in listeners() {
            let Some(baseline) = store.table.baseline(listener.baseline.as_ref()) else { continue };
            let own = match &listener.role {
                Role::Gateway => None,
                Role::Outbound { environment, .. } | Role::Inbound { environment, .. } => environment.as_ref(),
            };
            for service in SERVICES {
                let decision = decide(&store.table, &listener, &request(service, keys.as_ref()), NOW, &tried, &mut Untraced);
                let Decision::Serve(served) = decision else { continue };
                let delivered = matches!(served.to, overlane_config::route::To::Application);
                let named: Vec<_> = keys.iter().flat_map(Keys::iter).map(id).chain(own.filter(|_| keys.is_none()).cloned()).collect();
                let within = named.iter().any(|key| match store.table.environment(key.as_str()) {
                    Some(Environment::Overlay(overlay)) => {
                        overlay.baseline == baseline.id && (overlay.id == *served.environment || overlay.ancestors.contains(served.environment))
                    }
                    _ => false,
                });
                let its_own = delivered && served.environment == own.unwrap_or(&baseline.id);
                prop_assert!(
                    within || its_own || *served.environment == baseline.id,
                    "{:?}: {} is sideways of {:?}", listener, served.environment, named
                );
                prop_assert!(!delivered || its_own);
            }
        }
    }

    #[test]
    fn no_text_makes_the_decision_panic(
        authority in prop_oneof![".{0,300}", "[a-z.:\\[\\]0-9]{0,300}"],
        path in ".{0,80}",
        hop in prop::option::of(".{0,40}"),
        require in ".{0,40}",
        untrusted in any::<bool>(),
        key in "[a-z0-9]{1,63}",
        edits in prop::collection::vec(edit(), 1..8),
    ) {
        let store = Store::of(edits.iter().map(change).collect::<Vec<_>>());
        let keys = Keys::parse([key.as_bytes()]).unwrap();
        let request = Request { path: &path, hop: hop.as_deref(), require: &require, untrusted, ..request(&authority, keys.as_ref()) };
        for listener in listeners() {
            decide(&store.table, &listener, &request, NOW, &Tried::default(), &mut Vec::new());
        }
    }
}
