//! Overlays that expired and that nobody deletes: some time later they go from the store, where an engine keeps it.
//!
//! Each is removed as it is in the store then, by one compare-and-swap: what was extended or applied again meanwhile stays, and so does
//! what others inherit from. Several processes may do it side by side; each looks at moments of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use overlane_config::name::EnvironmentId;
use overlane_config::time::UnixMillis;
use tokio::time::sleep;

use crate::cli::output::CliError;
use crate::clock;
use crate::control::Control;
use crate::store::behind::Behind;
use crate::store::open::WriteError;

/// How often it is looked, at least and at most. Between these it is an eighth of the time that overlays stay.
const LOOK: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(600));

/// What one process removes.
struct Leftovers {
    control: Arc<Control>,
    behind: Behind,
    /// So long after they expired they stay.
    grace: Duration,
    /// Those that were to go when it was last looked: a clock that is wrong for a moment removes nothing.
    due: BTreeSet<EnvironmentId>,
}

/// Removes what expired longer than `grace` ago, for as long as the process lives.
pub(crate) async fn remove(control: Arc<Control>, behind: Behind, grace: Duration) {
    let mut leftovers = Leftovers { control, behind, grace, due: BTreeSet::new() };
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
        let mut removed = Vec::new();
        let mut failed = None;
        for id in both {
            let own = id.clone();
            match self.behind.write(move |open, _| open.remove_expired(&own, before)).await {
                Ok(true) => removed.push(id),
                Ok(false) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        self.control.note_removed(&removed);
        failed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
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

    /// When overlays of these tests expire.
    const END: UnixMillis = UnixMillis(1_800_000_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn overlay(id: &str, parent: &str, ends: Option<UnixMillis>) -> String {
        let ends = ends.map(|ends| format!(", expiresAt: '{ends}'")).unwrap_or_default();
        format!(
            "name: {id}\nrouting: {{mode: overlay, baselineId: {parent}{ends}}}\nservices: [{{name: web}}]\n"
        )
    }

    /// Some that look after the same store, beside each other.
    async fn beside_each_other(memory: &Memory, count: usize) -> Vec<Leftovers> {
        let mut all = Vec::new();
        for _ in 0..count {
            let store = Arc::new(memory.clone());
            let follower = SharedFollower::new(store.clone());
            let control = Arc::new(Control::new(Rules::default(), Arc::default(), Names::none()));
            let followed = Followed { mirror: follower.mirror().clone(), control: control.clone() };
            let (reloads, asked) = mpsc::channel(1);
            tokio::spawn(async move {
                follow(follower, asked, followed.control).await;
                drop(reloads);
            });
            let followed = Followed { mirror: followed.mirror, control: control.clone() };
            let behind = Behind::new(Keeper::Shared(store), followed, Handle::current());
            all.push(Leftovers { control, behind, grace: HOUR, due: BTreeSet::new() });
        }
        all
    }

    /// All of them look, at once, as soon as they know all that is in the store.
    async fn look(all: &mut [Leftovers], memory: &Memory, now: UnixMillis) {
        let known = memory.revision();
        for one in all.iter() {
            let mut revisions = one.control.revisions();
            let reached = revisions.wait_for(|now| now.as_ref().is_some_and(|now| now.is_at_least(&known)));
            timeout(Duration::from_secs(60), reached).await.expect("in time").expect("followed");
            one.control.expire(now);
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
        let memory = Memory::new();
        let put = |id: &str, text: &str| memory.put(&format!("{id}.yaml"), Some(text));
        put(
            "staging",
            "name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://h'}]\n",
        );
        put("over", &overlay("over", "staging", Some(END)));
        put("kept", &overlay("kept", "staging", None));
        put("extended", &overlay("extended", "staging", Some(END)));
        put("parent", &overlay("parent", "staging", Some(END)));
        put("child", &overlay("child", "parent", None));
        let attached = |id: &str, until: UnixMillis| {
            let head = "apiVersion: overlane.dev/v1alpha1\nkind: Attachment\n";
            let text = format!("{head}metadata: {{name: {id}}}\nspec: {{expiresAt: '{until}'}}\n");
            memory.put(&format!("{id}.attached.yaml"), Some(&text));
        };
        attached("over", END.after(HOUR / 2));
        attached("extended", END.after(HOUR * 5));
        let mut all = beside_each_other(&memory, 3).await;
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
        let memory = Memory::new();
        memory.put(
            "staging.yaml",
            Some("name: staging\nrouting: {mode: baseline}\nservices: [{name: web, url: 'http://h'}]\n"),
        );
        memory.put("again.yaml", Some(&overlay("again", "staging", Some(END))));
        let mut all = beside_each_other(&memory, 1).await;
        let later = END.after(HOUR * 2);
        look(&mut all, &memory, later).await;
        memory.put("again.yaml", Some(&overlay("again", "staging", Some(later))));
        look(&mut all, &memory, later).await;
        look(&mut all, &memory, later).await;
        assert_eq!(there(&memory), ["again"]);
    }
}
