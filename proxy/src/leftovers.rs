//! Overlays that expired and that nobody deletes: some time later they go from the store, where an engine keeps it.
//!
//! Each is removed as it is in the store then, by one compare-and-swap: what was extended or applied again meanwhile stays, and so does
//! what others inherit from, or may by a text that cannot be read. Several processes may do it side by side; each looks at moments of its
//! own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::name::EnvironmentId;
use overlane_config::time::{UnixMillis, written};
use tokio::time::{Instant, sleep};

use crate::cli::output::CliError;
use crate::clock;
use crate::control::Control;
use crate::store::behind::Behind;
use crate::store::open::WriteError;

/// How often it is looked, at least and at most. Between these it is an eighth of the time that overlays stay.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(600));

/// How many are removed at one look, at most.
const AT_ONCE: usize = 100;

/// How long the store is left to others after each of them, at least. A removal holds only if nobody else wrote, and where others do
/// something of that kind, theirs holds only without one.
const PAUSE: Duration = Duration::from_millis(200);

/// And as a multiple of how long it took.
const SHARE: u32 = 3;

/// When so many failed one after the other it is the store that cannot be asked.
const IN_VAIN: u32 = 3;

/// What one process removes.
struct Leftovers {
    control: Arc<Control>,
    behind: Behind,
    /// So long after they expired they stay.
    grace: Duration,
    /// Those that were to go when it was last looked: a clock that is wrong for a moment removes nothing.
    due: BTreeSet<EnvironmentId>,
    /// How long it pauses after each, at least.
    pause: Duration,
}

/// Removes what expired longer than `grace` ago, for as long as the process lives.
pub(crate) async fn remove(control: Arc<Control>, behind: Behind, grace: Duration) {
    tracing::info!("overlays are removed from the store {} after they expire", written(grace));
    let mut leftovers = Leftovers { control, behind, grace, due: BTreeSet::new(), pause: PAUSE };
    let look = (grace / 8).clamp(LOOK.0, LOOK.1);
    let mut failing = false;
    loop {
        // Of several that see the same, one comes first.
        sleep(look.mul_f64(0.5 + fastrand::f64())).await;
        match leftovers.look(clock::now()).await {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                let problem = CliError::from(error).message;
                tracing::warn!(%problem, "overlays that expired cannot be removed from here; others may do so");
                failing = true;
            }
            Err(_) => {}
        }
    }
}

impl Leftovers {
    /// Removes what was to go when it was last looked, and still is.
    async fn look(&mut self, now: UnixMillis) -> Result<(), WriteError> {
        let before = UnixMillis(now.0.saturating_sub(UnixMillis(0).after(self.grace).0));
        let due = self.control.expired(before);
        let mut both: Vec<_> = due.intersection(&self.due).cloned().collect();
        self.due = due;
        // In an order of its own, so that two do not follow each other step by step.
        fastrand::shuffle(&mut both);
        let (mut removed, mut failed) = (Vec::new(), None);
        let (mut tried, mut in_vain) = (0, 0);
        for id in both {
            let began = Instant::now();
            match self.remove(&id, before).await {
                Ok(false) => continue,
                Ok(true) => {
                    removed.push(id);
                    in_vain = 0;
                }
                Err(error) => {
                    failed = Some(error);
                    in_vain += 1;
                }
            }
            tried += 1;
            if tried == AT_ONCE || in_vain == IN_VAIN {
                break;
            }
            sleep((began.elapsed() * SHARE).max(self.pause)).await;
        }
        self.control.note_removed(&removed);
        failed.map_or(Ok(()), Err)
    }

    /// Removes one, if it is still to go; whether it did.
    async fn remove(&self, id: &EnvironmentId, before: UnixMillis) -> Result<bool, WriteError> {
        let (id, control) = (id.clone(), self.control.clone());
        let needed = move |id: &_| control.lineages(|known| known.may_be_needed(id));
        self.behind.write(move |open, _| open.remove_expired(&id, before, || needed(&id))).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use overlane_config::lineage::Rules;
    use tokio::runtime::Handle;
    use tokio::sync::mpsc;
    use tokio::time::timeout;

    use super::*;
    use crate::names::Names;
    use crate::store::behind::Keeper;
    use crate::store::shared::follow::{SharedFollower, follow};
    use crate::store::shared::memory::Memory;
    use crate::store::shared::write::Followed;
    use crate::store::shared::{
        Commit, CommitError, Committed, Fault, Listing, Revision, Shared, WatchError, Watching,
    };

    /// When overlays of these tests expire.
    const END: UnixMillis = UnixMillis(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn overlay(id: &str, parent: &str, ends: Option<UnixMillis>) -> String {
        let ends = ends.map(|ends| format!(", expiresAt: '{ends}'")).unwrap_or_default();
        format!(
            "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}{ends}}}\nservices: [{{name: web}}]\n"
        )
    }

    const STAGING: &str =
        "name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://h'}]\n";

    /// A store with a baseline and these entries: a name, without its end, and the text.
    fn holding(overlays: &[(&str, &str)]) -> Memory {
        let memory = Memory::new();
        memory.put("staging.yaml", Some(STAGING));
        for (id, text) in overlays {
            memory.put(&format!("{id}.yaml"), Some(text));
        }
        memory
    }

    fn attached(id: &str, until: &str) -> String {
        let head = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\n";
        format!("{head}metadata: {{name: {id}}}\nspec: {{expiresAt: '{until}'}}\n")
    }

    /// Before a write is held against the store.
    type Meddling = dyn Fn(&Memory, &Commit) -> Result<(), CommitError> + Send + Sync;

    /// A store with somebody who comes in between, or refuses.
    struct Meddled(Memory, Box<Meddling>);

    #[async_trait]
    impl Shared for Meddled {
        fn address(&self) -> String {
            self.0.address()
        }

        async fn list(&self) -> Result<Listing, Fault> {
            self.0.list().await
        }

        async fn watch(&self, after: &Revision) -> Result<Watching, WatchError> {
            self.0.watch(after).await
        }

        async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError> {
            (self.1)(&self.0, commit)?;
            self.0.commit(commit).await
        }
    }

    fn looks_after(store: Arc<dyn Shared>) -> Leftovers {
        let follower = SharedFollower::new(store.clone());
        let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
        let followed = Followed { mirror: follower.mirror().clone(), control: control.clone() };
        let (reloads, asked) = mpsc::channel(1);
        let taking = control.clone();
        tokio::spawn(async move {
            follow(follower, asked, taking).await;
            drop(reloads);
        });
        let behind = Behind::new(Keeper::Shared(store), followed, Handle::current());
        Leftovers { control, behind, grace: HOUR, due: BTreeSet::new(), pause: Duration::ZERO }
    }

    /// Some that look after the same store, beside each other.
    fn beside_each_other(memory: &Memory, count: usize) -> Vec<Leftovers> {
        (0..count).map(|_| looks_after(Arc::new(memory.clone()))).collect()
    }

    /// It knows all that is in the store, and what expired of it.
    async fn knows(one: &Leftovers, memory: &Memory, now: UnixMillis) {
        let known = memory.revision();
        let mut revisions = one.control.revisions();
        let reached = revisions.wait_for(|now| now.as_ref().is_some_and(|now| now.is_at_least(&known)));
        timeout(Duration::from_secs(60), reached).await.expect("in time").expect("followed");
        one.control.expire(now);
    }

    /// All of them look, at once, as soon as they know all that is in the store.
    async fn look(all: &mut [Leftovers], memory: &Memory, now: UnixMillis) {
        for one in all.iter() {
            knows(one, memory, now).await;
        }
        let looks = all.iter_mut().map(|one| one.look(now));
        for looked in futures_util::future::join_all(looks).await {
            looked.expect("looked");
        }
    }

    fn there(memory: &Memory) -> Vec<&'static str> {
        let names = ["over", "kept", "extended", "parent", "child", "again"];
        names.into_iter().filter(|name| memory.text(&format!("{name}.yaml")).is_some()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_expired_goes_after_its_grace_and_what_lives_or_is_inherited_from_stays() {
        let memory = holding(&[
            ("over", &overlay("over", "staging", Some(END))),
            ("kept", &overlay("kept", "staging", None)),
            ("extended", &overlay("extended", "staging", Some(END))),
            ("parent", &overlay("parent", "staging", Some(END))),
            ("child", &overlay("child", "parent", None)),
            ("over.attached", &attached("over", &END.after(HOUR / 2).to_string())),
            ("extended.attached", &attached("extended", &END.after(HOUR * 5).to_string())),
        ]);
        let mut all = beside_each_other(&memory, 3);
        let all_there = there(&memory);

        look(&mut all, &memory, END.after(HOUR)).await;
        look(&mut all, &memory, END.after(HOUR)).await;
        assert_eq!(there(&memory), all_there, "it was extended by half an hour, from when its grace counts");
        let later = END.after(HOUR * 2);
        look(&mut all, &memory, later).await;
        look(&mut all, &memory, END).await;
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), all_there, "the clock jumped");
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), ["kept", "extended", "parent", "child"]);
        assert_eq!(memory.text("over.attached.yaml"), None, "it goes with the overlay");
        let removed: u64 = all.iter().map(|one| one.control.figures().removed).sum();
        assert_eq!(removed, 1, "it is counted by the one that did it");

        memory.put("child.yaml", None);
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), ["kept", "extended"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_applied_again_before_it_goes_stays() {
        let memory = holding(&[("again", &overlay("again", "staging", Some(END)))]);
        let mut all = beside_each_other(&memory, 1);
        let later = END.after(HOUR * 2);
        look(&mut all, &memory, later).await;
        memory.put("again.yaml", Some(&overlay("again", "staging", Some(later))));
        look(&mut all, &memory, later).await;
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), ["again"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_applied_or_extended_between_the_look_and_the_removal_stays() {
        let later = END.after(HOUR * 2);
        let again = ("again.yaml", overlay("again", "staging", Some(later)));
        let extended = ("again.attached.yaml", attached("again", &later.to_string()));
        for (entry, text) in [again, extended] {
            let memory = holding(&[("again", &overlay("again", "staging", Some(END)))]);
            let between = move |memory: &Memory, _: &Commit| {
                if memory.text(entry).as_ref() != Some(&text) {
                    memory.put(entry, Some(&text));
                }
                Ok(())
            };
            let mut all = [looks_after(Arc::new(Meddled(memory.clone(), Box::new(between))))];
            look(&mut all, &memory, later).await;
            assert_eq!(memory.text("again.yaml"), Some(overlay("again", "staging", Some(END))));
            look(&mut all, &memory, later).await;
            assert!(memory.text(entry).is_some_and(|text| text.contains(&later.to_string())), "{entry}");
            assert_eq!(there(&memory), ["again"], "{entry}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_be_inherited_from_by_a_text_that_cannot_be_read_stays() {
        let memory = holding(&[
            ("parent", &overlay("parent", "staging", Some(END))),
            ("child", &overlay("child", "parent", None)),
        ]);
        let later = END.after(HOUR * 2);
        let mut all = beside_each_other(&memory, 1);
        knows(&all[0], &memory, later).await;
        memory.put("child.yaml", Some(&overlay("child", "parent", None).replace("]", "")));
        look(&mut all, &memory, later).await;
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), ["parent", "child"], "the child stands by what was last good of it");

        let mut anew = beside_each_other(&memory, 1);
        look(&mut anew, &memory, later).await;
        look(&mut anew, &memory, later).await;
        assert_eq!(there(&memory), ["parent", "child"], "elsewhere it may stand by that");

        memory.put("child.yaml", Some(&overlay("child", "staging", None)));
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), ["child"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_may_be_extended_by_a_text_that_cannot_be_read_stays() {
        let later = END.after(HOUR * 2);
        for bad in [attached("over", "soon"), "kind: [".to_owned()] {
            let memory = holding(&[
                ("over", &overlay("over", "staging", Some(END))),
                ("over.attached", &attached("over", &END.after(HOUR * 5).to_string())),
                ("over.attached", &bad),
            ]);
            let mut all = beside_each_other(&memory, 1);
            look(&mut all, &memory, later).await;
            look(&mut all, &memory, later).await;
            assert_eq!(there(&memory), ["over"], "{bad}");
            memory.put("over.attached.yaml", None);
            look(&mut all, &memory, later).await;
            assert!(there(&memory).is_empty(), "{bad}");
        }
    }

    /// So many that expired, by name.
    fn many(count: usize) -> Memory {
        let overlays: Vec<_> = (0..count)
            .map(|at| (format!("o{at}"), overlay(&format!("o{at}"), "staging", Some(END))))
            .collect();
        let overlays: Vec<_> = overlays.iter().map(|(id, text)| (id.as_str(), text.as_str())).collect();
        holding(&overlays)
    }

    fn left(memory: &Memory, count: usize) -> usize {
        (0..count).filter(|at| memory.text(&format!("o{at}.yaml")).is_some()).count()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn at_one_look_only_so_many_are_removed() {
        let (memory, later) = (many(AT_ONCE + 3), END.after(HOUR * 2));
        let mut all = beside_each_other(&memory, 1);
        look(&mut all, &memory, later).await;
        look(&mut all, &memory, later).await;
        assert_eq!(left(&memory, AT_ONCE + 3), 3);
        look(&mut all, &memory, later).await;
        assert_eq!(left(&memory, AT_ONCE + 3), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_cannot_be_removed_keeps_none_of_the_others() {
        let (memory, later) = (many(8), END.after(HOUR * 2));
        let refuse =
            |_: &Memory, commit: &Commit| match commit.writes.iter().any(|write| write.name == "o3.yaml") {
                true => Err(CommitError::Fault(Fault("refused".to_owned()))),
                false => Ok(()),
            };
        let mut all = [looks_after(Arc::new(Meddled(memory.clone(), Box::new(refuse))))];
        look(&mut all, &memory, later).await;
        assert!(all[0].look(later).await.is_err());
        assert_eq!(left(&memory, 8), 1);
        assert!(memory.text("o3.yaml").is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_store_that_cannot_be_asked_is_left_alone_until_the_next_look() {
        let (memory, later) = (many(8), END.after(HOUR * 2));
        let asked = Arc::new(AtomicU32::new(0));
        let counting = asked.clone();
        let refuse = move |_: &Memory, _: &Commit| {
            counting.fetch_add(1, Ordering::Relaxed);
            Err(CommitError::Fault(Fault("away".to_owned())))
        };
        let mut all = [looks_after(Arc::new(Meddled(memory.clone(), Box::new(refuse))))];
        look(&mut all, &memory, later).await;
        assert!(all[0].look(later).await.is_err());
        assert_eq!(asked.load(Ordering::Relaxed), IN_VAIN);
    }
}
