//! What a store holds, in memory, with its recent past: what a follower knows, and what others follow through us.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::RandomState;
use overlane_config::blueprint::hex;
use overlane_config::diagnostic::Source;
use overlane_config::lineage::{Content, FileChange};
use tokio::sync::watch;
use tokio::time::timeout;

use super::cache::KeptText;
use super::shared::follow::name_of;
use super::shared::{Change, Changes, Entry, Listing, Revision};

/// The most steps that are remembered, so that whoever was away for a moment need not list everything.
const PAST: usize = 4096;
/// The most text in them, in bytes.
const PAST_BYTES: usize = 16 << 20;

/// An entry in memory; its text is the one that the lineages hold.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The text, and when it was written.
    pub source: Arc<Source>,
    /// The state in which it is.
    pub revision: Revision,
}

/// What changed at once.
pub struct Step {
    /// Entries by name; none where they are gone.
    pub changes: Vec<(Arc<str>, Option<Kept>)>,
    /// The state afterwards.
    pub revision: Revision,
    /// Whether it is all that is known of what happened since the step before: what came and went again is not in it.
    listed: bool,
    written: OnceLock<Bytes>,
}

impl Step {
    /// It as it is sent: written once for all who follow.
    pub fn written(&self, write: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.written.get_or_init(|| write(self)).clone()
    }

    fn bytes(&self) -> usize {
        let texts = self
            .changes
            .iter()
            .map(|(name, kept)| name.len() + kept.as_ref().map_or(0, |kept| kept.source.text.len()));
        texts.sum()
    }
}

/// The states of entries, by name.
pub type States = HashMap<String, Revision, RandomState>;

/// All that was in a store at once.
pub struct Everything {
    /// In the order of their names.
    pub entries: Vec<(Arc<str>, Kept)>,
    /// The state of which these are.
    pub revision: Revision,
}

/// Why nobody can follow from a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// It is over for too long, or of another store.
    Forgotten,
    /// It is yet to come here.
    Ahead,
}

struct State {
    entries: BTreeMap<Arc<str>, Kept>,
    /// None before anything was read.
    revision: Option<Revision>,
    /// Oldest first.
    past: VecDeque<Arc<Step>>,
    past_bytes: usize,
    /// The state before the oldest step.
    before: Option<Revision>,
    /// How many steps there ever were.
    steps: u64,
    /// Whether the store can be read, so that this is what it says.
    current: bool,
}

/// What a store holds, as far as it is known here.
pub struct Mirror {
    /// How entries are shown: `{prefix}/{name}`.
    prefix: String,
    /// Names the states of a store that has no names for them, such as a directory; unlike any other's.
    epoch: Option<String>,
    state: Mutex<State>,
    steps: watch::Sender<u64>,
}

impl Mirror {
    /// Of a store that says in which state it is.
    #[must_use]
    pub fn new(prefix: String) -> Self {
        let state = State {
            entries: BTreeMap::new(),
            revision: None,
            past: VecDeque::new(),
            past_bytes: 0,
            before: None,
            steps: 0,
            current: false,
        };
        Self { prefix, epoch: None, state: Mutex::new(state), steps: watch::Sender::new(0) }
    }

    /// Of a directory: states are counted here, and mean nothing elsewhere.
    #[must_use]
    pub fn counting(prefix: String) -> Self {
        Self { epoch: Some(format!("{:016x}", fastrand::u64(..))), ..Self::new(prefix) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How entries are shown.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The state that is known.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        self.state().revision.clone()
    }

    /// Whether the store can be read: what is known is what it says.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.state().current
    }

    /// Notes whether the store can be read; who waits for steps is woken where that changes.
    pub fn note_current(&self, current: bool) {
        let before = std::mem::replace(&mut self.state().current, current);
        if before != current {
            self.steps.send_modify(|_| {});
        }
    }

    /// The state of an entry.
    #[must_use]
    pub fn revision_of(&self, name: &str) -> Option<Revision> {
        self.state().entries.get(name).map(|kept| kept.revision.clone())
    }

    /// The states of the entries that these files are, and of these others, as far as they are there; none where another text than
    /// in a file is known, or an entry that is no file.
    #[must_use]
    pub fn states_of(&self, files: &[FileChange], others: &[String]) -> Option<States> {
        let state = self.state();
        let mut states = States::default();
        for file in files {
            let (Content::Text(source) | Content::Parsed(source, _)) = &file.content else { return None };
            let known = state.entries.get(name_of(&file.path))?;
            if !Arc::ptr_eq(&known.source, source) && known.source.text != source.text {
                return None;
            }
            states.insert(name_of(&file.path).to_owned(), known.revision.clone());
        }
        let unknown =
            |name: &&String| state.entries.contains_key(name.as_str()) && !states.contains_key(*name);
        others.iter().find(unknown).is_none().then_some(states)
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state().entries.is_empty()
    }

    fn source(
        &self,
        name: &str,
        text: String,
        modified: Option<overlane_config::time::UnixMillis>,
    ) -> Arc<Source> {
        Arc::new(Source::new(format!("{}/{name}", self.prefix).into(), text, modified))
    }

    /// Takes in what another process last read of the store. Returns it as changes, to be applied one list after the
    /// other.
    pub fn remember(&self, lists: Vec<Vec<KeptText>>) -> Vec<Vec<FileChange>> {
        // Unlike that of any other process, whose cache may be another one.
        let unknown = Revision::new(format!("kept-{:016x}", fastrand::u64(..)));
        let mut state = self.state();
        let mut change = |KeptText { name, text, modified }: KeptText| {
            let source = self.source(&name, text, modified);
            state.entries.insert(name.into(), Kept { source: source.clone(), revision: unknown.clone() });
            FileChange { path: source.path.clone(), content: Content::Text(source) }
        };
        let changes = lists.into_iter().map(|list| list.into_iter().map(&mut change).collect()).collect();
        (state.before, state.revision) = (Some(unknown.clone()), Some(unknown));
        changes
    }

    /// Takes in a listing; what is different.
    pub fn replace(&self, listing: Listing) -> Vec<FileChange> {
        let mut state = self.state();
        let backwards = state
            .revision
            .as_ref()
            .is_some_and(|known| listing.revision != *known && known.is_at_least(&listing.revision));
        let mut gone: BTreeMap<Arc<str>, ()> = state.entries.keys().map(|name| (name.clone(), ())).collect();
        let (mut files, mut steps) = (Vec::new(), Vec::new());
        for entry in listing.entries {
            gone.remove(&*entry.name);
            self.put(&mut state, entry, &mut files, &mut steps);
        }
        for (name, ()) in gone {
            Self::drop_entry(&mut state, &name, &mut files, &mut steps);
        }
        if backwards {
            // The store was restored from a backup: its older states are others than those that were known.
            state.forget();
        }
        self.step(state, steps, listing.revision, true);
        files
    }

    /// Takes in what changed; what is different.
    pub fn take(&self, changes: Changes) -> Vec<FileChange> {
        let mut state = self.state();
        let (mut files, mut steps) = (Vec::new(), Vec::new());
        for change in changes.changes {
            match change {
                Change::Put(entry) => self.put(&mut state, entry, &mut files, &mut steps),
                Change::Gone(name) => Self::drop_entry(&mut state, &name, &mut files, &mut steps),
            }
        }
        self.step(state, steps, changes.revision, false);
        files
    }

    /// Takes in files of a directory. What cannot be read stays as it was.
    pub fn take_files(&self, changes: &[FileChange]) {
        let mut state = self.state();
        let mut steps = Vec::new();
        for change in changes {
            let name: Arc<str> = name_of(&change.path).into();
            match &change.content {
                Content::Text(source) | Content::Parsed(source, _) => {
                    let kept = Kept { source: source.clone(), revision: revision_of(&source.text) };
                    state.entries.insert(name.clone(), kept.clone());
                    steps.push((name, Some(kept)));
                }
                Content::Gone => {
                    if state.entries.remove(&name).is_some() {
                        steps.push((name, None));
                    }
                }
                Content::Unreadable(_) => {}
            }
        }
        if steps.is_empty() && state.revision.is_some() {
            return;
        }
        let epoch = self.epoch.as_deref().unwrap_or_default();
        let revision = Revision::new(format!("{epoch}.{}", state.steps + 1));
        self.step(state, steps, revision, false);
    }

    /// Takes in an entry. What is known of its text stays, and with it the only copy.
    fn put(
        &self,
        state: &mut State,
        entry: Entry,
        files: &mut Vec<FileChange>,
        steps: &mut Vec<(Arc<str>, Option<Kept>)>,
    ) {
        let Entry { name, text, modified, revision } = entry;
        let (name, same) = match state.entries.get_key_value(&*name) {
            Some((name, known)) => {
                // Of a store that was put back, the same state is not the same text; and of a directory the same text
                // may be written anew, from when a ttl counts.
                let same = known.source.text == text && known.source.modified == modified;
                if same && known.revision == revision {
                    return;
                }
                (name.clone(), same.then(|| known.source.clone()))
            }
            None => (name.into(), None),
        };
        let source = same.unwrap_or_else(|| {
            let source = self.source(&name, text, modified);
            files.push(FileChange { path: source.path.clone(), content: Content::Text(source.clone()) });
            source
        });
        let kept = Kept { source, revision };
        state.entries.insert(name.clone(), kept.clone());
        steps.push((name, Some(kept)));
    }

    fn drop_entry(
        state: &mut State,
        name: &str,
        files: &mut Vec<FileChange>,
        steps: &mut Vec<(Arc<str>, Option<Kept>)>,
    ) {
        if let Some((name, kept)) = state.entries.remove_entry(name) {
            files.push(FileChange { path: kept.source.path.clone(), content: Content::Gone });
            steps.push((name, None));
        }
    }

    fn step(
        &self,
        mut state: MutexGuard<'_, State>,
        changes: Vec<(Arc<str>, Option<Kept>)>,
        revision: Revision,
        listed: bool,
    ) {
        if changes.is_empty() && state.revision.as_ref() == Some(&revision) {
            return;
        }
        // What is known at first is no step: nobody follows from nothing.
        match state.revision.is_some() {
            true => {
                let (revision, written) = (revision.clone(), OnceLock::new());
                state.remember(Step { changes, revision, listed, written });
            }
            false => state.before = Some(revision.clone()),
        }
        state.steps += 1;
        state.revision = Some(revision);
        let steps = state.steps;
        drop(state);
        self.steps.send_replace(steps);
    }

    /// All that is known; nothing before anything was read.
    #[must_use]
    pub fn everything(&self) -> Option<Everything> {
        let state = self.state();
        let entries = state.entries.iter().map(|(name, kept)| (name.clone(), kept.clone())).collect();
        Some(Everything { entries, revision: state.revision.clone()? })
    }

    /// Where in the history a state is, to go on [since](Mirror::since) then.
    ///
    /// # Errors
    /// It is not in it.
    pub fn after(&self, revision: &Revision) -> Result<u64, Unknown> {
        let state = self.state();
        let Some(now) = &state.revision else { return Err(Unknown::Forgotten) };
        if now == revision {
            return Ok(state.steps);
        }
        if !now.is_at_least(revision) && revision.is_at_least(now) {
            return Err(Unknown::Ahead);
        }
        let reached = state.past.iter().rposition(|step| revision.is_at_least(&step.revision));
        let next = reached.map_or(0, |at| at + 1);
        let before = next.checked_sub(1).map_or(state.before.as_ref(), |at| Some(&state.past[at].revision));
        let follows = before.is_some_and(|before| match state.past.get(next) {
            // Who knows a state in between may know what came and went again.
            Some(step) if step.listed => revision == before,
            _ => revision.is_at_least(before),
        });
        let first = state.steps - state.past.len() as u64;
        if follows { Ok(first + next as u64) } else { Err(Unknown::Forgotten) }
    }

    /// What happened after the first `steps` steps, how many there are now, and the state after them; `None` where that is
    /// forgotten.
    #[must_use]
    pub fn since(&self, steps: u64) -> Option<(Vec<Arc<Step>>, u64, Revision)> {
        let state = self.state();
        let first = state.steps - state.past.len() as u64;
        let skipped = usize::try_from(steps.checked_sub(first)?).ok()?;
        let new = state.past.iter().skip(skipped).cloned().collect();
        Some((new, state.steps, state.revision.clone()?))
    }

    /// How many steps there were: a level, not an edge.
    #[must_use]
    pub fn steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }

    /// Waits until something holds of what is known, for so long at most; says whether it does.
    pub async fn until(&self, patience: Duration, holds: impl Fn(&Self) -> bool) -> bool {
        let mut steps = self.steps();
        let waited = async {
            loop {
                steps.borrow_and_update();
                if holds(self) || steps.changed().await.is_err() {
                    return;
                }
            }
        };
        timeout(patience, waited).await.is_ok()
    }
}

impl State {
    fn remember(&mut self, step: Step) {
        self.past_bytes += step.bytes();
        self.past.push_back(Arc::new(step));
        while self.past.len() > PAST || (self.past_bytes > PAST_BYTES && self.past.len() > 1) {
            if let Some(oldest) = self.past.pop_front() {
                self.past_bytes -= oldest.bytes();
                self.before = Some(oldest.revision.clone());
            }
        }
    }

    /// Nobody can follow from any state until now.
    fn forget(&mut self) {
        self.past.clear();
        self.past_bytes = 0;
        self.before = None;
    }
}

/// The state of an entry of which nobody counts states: the beginning of its text's SHA-256.
#[must_use]
pub fn revision_of(text: &str) -> Revision {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    Revision::new(hex(&digest.as_ref()[..8]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: &str, text: &str, revision: u64) -> Entry {
        Entry {
            name: name.to_owned(),
            text: text.to_owned(),
            modified: None,
            revision: Revision::new(revision),
        }
    }

    fn put(name: &str, text: &str, revision: u64) -> Changes {
        Changes { changes: vec![Change::Put(entry(name, text, revision))], revision: Revision::new(revision) }
    }

    fn listing(entries: Vec<Entry>, revision: u64) -> Listing {
        Listing { entries, revision: Revision::new(revision) }
    }

    fn texts(mirror: &Mirror) -> BTreeMap<String, String> {
        let all = mirror.everything().map(|all| all.entries).unwrap_or_default();
        all.into_iter().map(|(name, kept)| (name.to_string(), kept.source.text.clone())).collect()
    }

    /// What who follows from a state ends up with.
    fn followed(
        mirror: &Mirror,
        mut known: BTreeMap<String, String>,
        from: &Revision,
    ) -> Result<BTreeMap<String, String>, Unknown> {
        let (new, ..) = mirror.since(mirror.after(from)?).ok_or(Unknown::Forgotten)?;
        for (name, kept) in new.iter().flat_map(|step| &step.changes) {
            match kept {
                Some(kept) => known.insert(name.to_string(), kept.source.text.clone()),
                None => known.remove(&**name),
            };
        }
        Ok(known)
    }

    #[test]
    fn a_state_of_another_store_is_not_known_and_one_to_come_is_ahead() {
        let mirror = Mirror::new("x:".to_owned());
        assert_eq!(mirror.after(&Revision::new(1)), Err(Unknown::Forgotten));
        mirror.replace(listing(vec![entry("a.yaml", "1", 5)], 5));
        mirror.take(put("a.yaml", "2", 9));
        let after = |revision: &str| mirror.after(&Revision::new(revision));
        assert_eq!(after("4"), Err(Unknown::Forgotten));
        // States between two steps are as the first.
        assert_eq!([after("5"), after("7"), after("9")], [Ok(1), Ok(1), Ok(2)]);
        assert_eq!(after("10"), Err(Unknown::Ahead));
        assert_eq!(after("else.9"), Err(Unknown::Forgotten));
    }

    #[test]
    fn what_went_back_in_time_is_listed_anew() {
        let mirror = Mirror::new("x:".to_owned());
        mirror.replace(listing(vec![entry("a.yaml", "1", 5)], 5));
        mirror.take(put("a.yaml", "2", 9));
        mirror.replace(listing(vec![entry("a.yaml", "1", 3)], 7));
        assert_eq!(mirror.after(&Revision::new(5)), Err(Unknown::Forgotten));
        assert_eq!(mirror.after(&Revision::new(9)), Err(Unknown::Ahead));
        assert_eq!(texts(&mirror)["a.yaml"], "1");
    }

    #[test]
    fn who_knows_a_state_that_a_listing_skipped_lists_anew() {
        let mirror = Mirror::new("x:".to_owned());
        mirror.replace(listing(vec![entry("a.yaml", "1", 5)], 5));
        // Another hub told of `b.yaml` at 7; it was gone at 9, when this one came back to its store.
        mirror.replace(listing(vec![entry("a.yaml", "1", 5)], 9));
        mirror.take(put("a.yaml", "2", 12));
        let after = |revision: u64| mirror.after(&Revision::new(revision));
        assert_eq!([after(5), after(7), after(9), after(10)], [Ok(1), Err(Unknown::Forgotten), Ok(2), Ok(2)]);
    }

    #[test]
    fn the_past_is_bounded_in_steps_and_in_bytes() {
        let mirror = Mirror::new("x:".to_owned());
        mirror.replace(listing(Vec::new(), 1));
        for revision in 2..=(PAST as u64 + 10) {
            mirror.take(put("a.yaml", "text", revision));
        }
        assert_eq!(mirror.after(&Revision::new(9)), Err(Unknown::Forgotten));
        assert!(mirror.after(&Revision::new(10)).is_ok());
        let large = "x".repeat(PAST_BYTES / 2 + 1);
        (0..3).for_each(|n| mirror.take(put("a.yaml", &large, 10_000 + n)).clear());
        assert_eq!(mirror.state().past.len(), 1);
    }

    #[test]
    fn what_is_kept_of_another_process_can_be_followed_until_the_store_is_read() {
        let mirror = Mirror::new("x:".to_owned());
        let kept = KeptText { name: "a.yaml".to_owned(), text: "1".to_owned(), modified: None };
        mirror.remember(vec![vec![kept]]);
        let (known, revision) = (texts(&mirror), mirror.revision().expect("one"));
        assert!(
            mirror.replace(listing(vec![entry("a.yaml", "1", 5), entry("b.yaml", "2", 6)], 6)).len() == 1
        );
        assert_eq!(followed(&mirror, known, &revision), Ok(texts(&mirror)));
        assert_eq!(mirror.revision_of("a.yaml"), Some(Revision::new(5)), "the engine's own from now on");
    }

    proptest! {
        /// Whoever follows from any state that is known ends up with what there is, or lists everything.
        #[test]
        fn who_follows_from_any_state_knows_what_there_is(
            steps in proptest::collection::vec((0..5u8, 0..4u8, 0..3u8), 1..40)
        ) {
            let mirror = Mirror::new("x:".to_owned());
            mirror.replace(listing(Vec::new(), 1));
            let mut states = vec![(Revision::new(1), BTreeMap::new())];
            for (at, (what, name, text)) in steps.into_iter().enumerate() {
                let revision = at as u64 + 2;
                let (name, text) = (format!("{name}.yaml"), text.to_string());
                match what {
                    0 | 1 => drop(mirror.take(put(&name, &text, revision))),
                    2 => drop(mirror.take(Changes {
                        changes: vec![Change::Gone(name)],
                        revision: Revision::new(revision),
                    })),
                    3 => drop(mirror.take(Changes { changes: Vec::new(), revision: Revision::new(revision) })),
                    _ => drop(mirror.replace(listing(vec![entry(&name, &text, revision)], revision))),
                }
                states.push((Revision::new(revision), texts(&mirror)));
            }
            for (revision, known) in states {
                prop_assert_eq!(followed(&mirror, known, &revision), Ok(texts(&mirror)));
            }
        }
    }
}
