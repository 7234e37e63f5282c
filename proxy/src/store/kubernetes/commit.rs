//! Writes. What concerns one object and nothing else is one compare-and-swap by its resource version. What depends on others
//! (on its parents, or on nobody else having written) goes through a journal: a ConfigMap that holds what is being
//! written. Whoever writes notes it there in place of nothing, which is the moment at which it is decided, then writes the objects, and
//! takes the note away. Conditions are looked at while nothing is noted, and the note is refused where another one came in
//! between. Who finds a note that stays finishes what it says: what was decided is done, all of it, also where its writer died.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::connection::{ANSWER, Call, Failure, Resource};
use super::object::{self, Kind, Named, Object, Part, Wanted};
use super::{Cluster, States};
use crate::pauses::Pauses;
use crate::store::shared::{Commit, CommitError, Committed, Fault, Revision, Write};

/// The ConfigMap.
const JOURNAL: &str = "overlane-journal";
/// Its key under which it is noted what is being written.
const NOTE: &str = "writing";
/// A note that stays for so long has been left behind.
const LEFT_BEHIND: Duration = Duration::from_secs(1);
/// What is noted is written within this time; a break of the connection in it is overcome.
const FINISH: Duration = Duration::from_secs(5);
/// Others are waited for so long.
const TURN: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// What is being written.
#[derive(Serialize, Deserialize)]
struct Note {
    /// Unlike that of any other.
    id: String,
    writes: Vec<Write>,
}

/// What becomes of one part of an object.
#[derive(Clone)]
enum Next {
    /// It only must be as it is known.
    Kept,
    Text(String),
    Gone,
}

/// The state in which a part must be, and what becomes of it.
#[derive(Clone)]
struct Edit {
    known: Option<Revision>,
    next: Next,
}

/// All that a commit does to one object.
#[derive(Clone, Default)]
struct Edits {
    environment: Option<Edit>,
    attached: Option<Edit>,
}

impl Edits {
    fn of(&self, part: Part) -> Option<&Edit> {
        match part {
            Part::Environment => self.environment.as_ref(),
            Part::Attached => self.attached.as_ref(),
        }
    }

    fn set(&mut self, part: Part, edit: Edit) {
        match part {
            Part::Environment => self.environment = Some(edit),
            Part::Attached => self.attached = Some(edit),
        }
    }

    /// Whether both parts are as they are known.
    fn stand(&self, name: &str, now: &Named) -> bool {
        [Part::Environment, Part::Attached].into_iter().all(|part| {
            let state = || now.entry(name, part).map(|entry| entry.revision);
            self.of(part).is_none_or(|edit| edit.known == state())
        })
    }

    /// Whether all is as it is to become.
    fn done(&self, name: &str, now: &Named) -> bool {
        [Part::Environment, Part::Attached].into_iter().all(|part| {
            let text = || now.entry(name, part).map(|entry| entry.text);
            match self.of(part).map(|edit| &edit.next) {
                None | Some(Next::Kept) => true,
                Some(Next::Gone) => text().is_none(),
                Some(Next::Text(next)) => {
                    text().is_some_and(|text| text == *next || part == Part::Attached && same(&text, next))
                }
            }
        })
    }
}

impl Edits {
    /// Fails where a text cannot become an object.
    fn readable(&self, name: &str) -> Result<(), Fault> {
        for part in [Part::Environment, Part::Attached] {
            match (part, self.of(part).map(|edit| &edit.next)) {
                (Part::Environment, Some(Next::Text(text))) => drop(object::wanted(name, text)?),
                (Part::Attached, Some(Next::Text(text))) => drop(object::attached(name, text)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether one of two objects is what the environment is to become.
    fn done_by_one(&self, now: &Named) -> bool {
        let Some(Edit { next: Next::Text(next), .. }) = &self.environment else { return false };
        now.all().any(|object| object.text() == *next)
    }
}

/// Whether two records of what is attached say the same.
fn same(one: &str, other: &str) -> bool {
    let said = |text: &str| object::attached("", text).ok();
    said(one).is_some_and(|one| said(other) == Some(one))
}

type ByName = BTreeMap<String, Edits>;

/// What a commit does to each object.
fn by_name(writes: &[Write]) -> Result<ByName, Fault> {
    let mut all = ByName::new();
    for write in writes {
        let (name, part) =
            object::part(&write.name).filter(|(name, _)| object::is_name(name)).ok_or_else(|| {
                Fault(format!(
                    "Kubernetes keeps no entry called `{}`: an environment is `ID.yaml`",
                    write.name
                ))
            })?;
        let next = write.text.clone().map_or(Next::Gone, Next::Text);
        all.entry(name.to_owned()).or_default().set(part, Edit { known: write.known.clone(), next });
    }
    Ok(all)
}

/// How writing an object ended.
enum Ended {
    /// It is as it was to become.
    Done(Named),
    /// Somebody else came before, and nothing was written.
    Overtaken,
    /// Somebody else came before or after what was sent and not answered.
    Unsure,
}

/// What there is of each object.
type Known = BTreeMap<String, Named>;
/// What is there of each object after a write; none of those whose state is not known any more.
type Written = BTreeMap<String, Option<Named>>;

impl Cluster {
    pub(super) async fn commit(&self, commit: &Commit) -> Result<Committed, CommitError> {
        let mut all = by_name(&commit.writes)?;
        let written = match self.alone(commit, &mut all) {
            Some(name) => {
                let ended = self.write(&name, &all[&name], false, None).await;
                match ended.map_err(|failure| self.commit_error(&failure, failure.is_ambiguous()))? {
                    Ended::Done(named) => Written::from([(name, Some(named))]),
                    Ended::Overtaken => return Err(CommitError::Conflict),
                    Ended::Unsure => {
                        let why = format!("others changed `{name}` while the connection was broken");
                        return Err(self.commit_error(&Failure::Broken(why), true));
                    }
                }
            }
            None => self.write_by_note(commit, &all).await?,
        };
        let revision = self.state_after(commit, &written);
        let entries = commit.writes.iter().map(|write| {
            let (name, part) = object::part(&write.name)?;
            match written.get(name)? {
                Some(named) => Some(named.entry(name, part)?.revision),
                // Somebody came after: it is in none of the states that can be known.
                None => write.text.as_ref().map(|_| Revision::new("overtaken")),
            }
        });
        Ok(Committed { revision, entries: entries.collect() })
    }

    /// The object, where it concerns what is attached to one and nothing else: nobody's conditions are about that. What
    /// must not change beside it is of the same object then, and is held with it.
    fn alone(&self, commit: &Commit, all: &mut ByName) -> Option<String> {
        let [write] = &commit.writes[..] else { return None };
        let (name, Part::Attached) = object::part(&write.name)? else { return None };
        let own = |(entry, _): &(String, Revision)| object::part(entry) == Some((name, Part::Environment));
        if commit.alone_since.is_some() || !commit.unchanged.iter().all(own) {
            return None;
        }
        if let Some((_, known)) = commit.unchanged.first() {
            let kept = Edit { known: Some(known.clone()), next: Next::Kept };
            all.entry(name.to_owned()).or_default().set(Part::Environment, kept);
        }
        Some(name.to_owned())
    }

    /// The state of the store after a write, as far as it is known.
    fn state_after(&self, commit: &Commit, written: &Written) -> Revision {
        let mut states = commit.alone_since.as_ref().and_then(States::read).unwrap_or_else(States::unknown);
        let number = |state: &str| state.parse::<u64>().unwrap_or(0);
        for object in written.values().flatten().filter_map(Named::only) {
            if number(object.resource_version()) > number(states.of(object.kind)) {
                states.set(object.kind, object.resource_version());
            }
        }
        states.revision()
    }

    async fn write_by_note(&self, commit: &Commit, all: &ByName) -> Result<Written, CommitError> {
        // What cannot be written is not noted.
        for (name, edits) in all {
            edits.readable(name)?;
        }
        if all.len() > 1 {
            self.refused(all).await?;
        }
        let note = Note { id: format!("{:016x}", fastrand::u64(..)), writes: commit.writes.clone() };
        let (journal, mut known) = self.note(&note, commit, all).await?;
        // It is decided.
        let (began, mut pauses) = (Instant::now(), Pauses::new(PAUSE, LONGEST_PAUSE));
        let mut written = Written::new();
        loop {
            let failure = match self.write_all(&note.id, all, &mut known, &mut written).await {
                Ok(ended) => {
                    // Whoever writes next takes it away, where this one cannot.
                    let _ = self.clear(&journal).await;
                    return ended.map(|()| written);
                }
                Err(failure) => failure,
            };
            if !failure.is_transient() {
                let _ = self.clear(&journal).await;
                return Err(self.commit_error(&failure, false));
            }
            if began.elapsed() > FINISH {
                return Err(self.commit_error(&failure, true));
            }
            sleep(pauses.next()).await;
        }
    }

    /// Writes what is noted, from where it is.
    async fn write_all(
        &self,
        id: &str,
        all: &ByName,
        known: &mut Known,
        written: &mut Written,
    ) -> Result<Result<(), CommitError>, Failure> {
        for (name, edits) in all {
            if written.contains_key(name) {
                continue;
            }
            let ended = match self.write(name, edits, true, known.remove(name)).await? {
                Ended::Done(named) => Some(named),
                // Others finished it, and went on from there.
                _ if !self.is_noted(id).await? => None,
                _ if written.is_empty() => return Ok(Err(CommitError::Conflict)),
                _ => {
                    let done: Vec<_> = written.keys().map(String::as_str).collect();
                    let why = format!(
                        "{}: somebody changed `{name}` meanwhile, by `kubectl` perhaps; {} was written, the rest was not: apply it again",
                        self.address,
                        done.join(", "),
                    );
                    return Ok(Err(CommitError::Fault(Fault(why))));
                }
            };
            written.insert(name.clone(), ended);
        }
        Ok(Ok(()))
    }

    /// Notes what is about to be written, on its conditions, when nothing else is noted.
    async fn note(&self, note: &Note, commit: &Commit, all: &ByName) -> Result<(Value, Known), CommitError> {
        let (began, mut pauses) = (Instant::now(), Pauses::new(PAUSE, LONGEST_PAUSE));
        let text = serde_json::to_string(note).unwrap_or_default();
        // Whether it was sent and not answered: it may be noted, and others may have finished it.
        let mut sent = None;
        loop {
            match self.note_once(note, &text, commit, all).await {
                Ok(Some(noted)) => return Ok(noted),
                Ok(None) => {
                    return Err(
                        sent.map_or(CommitError::Conflict, |failure| self.commit_error(&failure, true))
                    );
                }
                Err(failure) if failure.is_ambiguous() && began.elapsed() < FINISH => sent = Some(failure),
                // Another one came in between: look again at the conditions.
                Err(failure) if failure.is_conflict() && began.elapsed() < TURN => {}
                Err(failure) if failure.is_conflict() && sent.is_none() => return Err(CommitError::Conflict),
                Err(failure) if sent.is_some() && failure.is_transient() && began.elapsed() < FINISH => {}
                Err(failure) => {
                    return Err(self.commit_error(&failure, sent.is_some() || failure.is_ambiguous()));
                }
            }
            sleep(pauses.next()).await;
        }
    }

    /// The journal with the note in it, and what there is; none where it is not as whoever writes knows it.
    async fn note_once(
        &self,
        note: &Note,
        text: &str,
        commit: &Commit,
        all: &ByName,
    ) -> Result<Option<(Value, Known)>, Failure> {
        // Reading changes nothing, whatever becomes of it.
        let journal = self.quiet_journal(Some(&note.id)).await.map_err(Failure::sure)?;
        if noted_in(&journal).is_some() {
            // It was noted, and nobody could say so.
            return Ok(Some((journal, Known::new())));
        }
        let Some(known) = self.as_known(commit, all).await.map_err(Failure::sure)? else { return Ok(None) };
        let mut noted = journal;
        noted["data"] = json!({ NOTE: text });
        let call = Call { name: JOURNAL, body: Some(&noted), ..Call::new("update", Resource::ConfigMaps) };
        Ok(Some((self.connection.ask(call, ANSWER).await?, known)))
    }

    /// What there is now, where all is as whoever writes knows it.
    async fn as_known(&self, commit: &Commit, all: &ByName) -> Result<Option<Known>, Failure> {
        let mut wanted = all.clone();
        for (entry, known) in &commit.unchanged {
            let Some((name, part)) = object::part(entry).filter(|(name, _)| object::is_name(name)) else {
                return Ok(None);
            };
            let edits = wanted.entry(name.to_owned()).or_default();
            if edits.of(part).is_none() {
                edits.set(part, Edit { known: Some(known.clone()), next: Next::Kept });
            }
        }
        let found = wanted.keys().map(async |name| Ok((name.clone(), self.named(name).await?)));
        let found: Known = try_join_all(found).await?.into_iter().collect();
        let stand = wanted.iter().all(|(name, edits)| edits.stand(name, &found[name]));
        let alone = match &commit.alone_since {
            Some(since) if stand => self.nobody_wrote_since(since).await?,
            _ => true,
        };
        Ok((stand && alone).then_some(found))
    }

    /// Whether no object that there is was written after a state. Versions are numbers that grow, of one kind at least:
    /// <https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions>.
    async fn nobody_wrote_since(&self, since: &Revision) -> Result<bool, Failure> {
        let Some(since) = States::read(since) else { return Ok(false) };
        let (baselines, overlays) =
            tokio::try_join!(self.pages(Kind::Baseline, true), self.pages(Kind::Overlay, true))?;
        let before = |object: &Object| {
            let since = since.of(object.kind).parse::<u64>();
            matches!((object.resource_version().parse::<u64>(), since), (Ok(version), Ok(since)) if version <= since)
        };
        Ok(baselines.0.iter().chain(&overlays.0).all(before))
    }

    /// The journal, once nothing is noted in it, or nothing but `own`.
    async fn quiet_journal(&self, own: Option<&str>) -> Result<Value, Failure> {
        let mut seen: Option<(String, Instant)> = None;
        let (began, mut pauses) = (Instant::now(), Pauses::new(PAUSE, LONGEST_PAUSE));
        while began.elapsed() < TURN {
            let Some(journal) = self.journal().await? else {
                self.make_journal().await?;
                continue;
            };
            let Some(note) = noted_in(&journal).filter(|note| Some(note.id.as_str()) != own) else {
                return Ok(journal);
            };
            match &seen {
                Some((id, since)) if *id == note.id => {
                    if since.elapsed() > LEFT_BEHIND {
                        self.finish_note(&note, &journal).await?;
                    }
                }
                _ => seen = Some((note.id.clone(), Instant::now())),
            }
            sleep(pauses.next()).await;
        }
        Err(Failure::Unsent(format!(
            "others write all the time: ConfigMap {JOURNAL} is never free for {} s",
            TURN.as_secs()
        )))
    }

    /// Finishes what somebody noted and left behind, where anything is, and where we may.
    pub(super) async fn finish(&self) {
        if let Ok(Some(journal)) = self.journal().await
            && noted_in(&journal).is_some()
            && let Err(failure) = self.quiet_journal(None).await
        {
            tracing::debug!(why = %self.fault(&failure), "what is noted in {JOURNAL} is left to others");
        }
    }

    async fn finish_note(&self, note: &Note, journal: &Value) -> Result<(), Failure> {
        // What no commit can say was noted by nobody: there is nothing to finish.
        for (name, edits) in by_name(&note.writes).unwrap_or_default() {
            match self.write(&name, &edits, true, None).await {
                // What the API server does not take is not to be had: its writer was told so, if it lived.
                Err(failure) if failure.is_transient() || failure.is_forbidden() => return Err(failure),
                _ => {}
            }
        }
        match self.clear(journal).await {
            Err(failure) if !failure.is_conflict() => Err(failure),
            _ => Ok(()),
        }
    }

    async fn journal(&self) -> Result<Option<Value>, Failure> {
        match self
            .connection
            .ask(Call { name: JOURNAL, ..Call::new("get", Resource::ConfigMaps) }, ANSWER)
            .await
        {
            Ok(journal) => Ok(Some(journal)),
            Err(failure) if failure.is_absent() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    async fn make_journal(&self) -> Result<(), Failure> {
        let journal = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": JOURNAL, "labels": { "app.kubernetes.io/managed-by": "overlane" } },
        });
        match self
            .connection
            .ask(Call { body: Some(&journal), ..Call::new("create", Resource::ConfigMaps) }, ANSWER)
            .await
        {
            Err(failure) if !failure.is_conflict() => Err(failure),
            _ => Ok(()),
        }
    }

    async fn is_noted(&self, id: &str) -> Result<bool, Failure> {
        Ok(self.journal().await?.as_ref().and_then(noted_in).is_some_and(|note| note.id == id))
    }

    /// Takes the note out of the journal, if that is still the one that is known.
    async fn clear(&self, journal: &Value) -> Result<(), Failure> {
        let mut quiet = journal.clone();
        quiet["data"] = json!({});
        let call = Call { name: JOURNAL, body: Some(&quiet), ..Call::new("update", Resource::ConfigMaps) };
        self.connection.ask(call, ANSWER).await.map(drop)
    }

    /// All objects of a name.
    pub(super) async fn named(&self, name: &str) -> Result<Named, Failure> {
        let get = |kind| self.connection.get(kind, name);
        let (baseline, overlay) = tokio::try_join!(get(Kind::Baseline), get(Kind::Overlay))?;
        Ok(Named { baseline, overlay })
    }

    /// Asks the API server whether it would take what is to be written, before it is noted: its schema, quotas and what is
    /// admitted are its own.
    async fn refused(&self, all: &ByName) -> Result<(), CommitError> {
        for (name, edits) in all {
            let Some(Edit { known, next: Next::Text(text) }) = &edits.environment else { continue };
            let wanted = object::wanted(name, text)?;
            let now = match known {
                Some(_) => {
                    let get = self.connection.get(wanted.kind, name).await;
                    get.map_err(|failure| self.commit_error(&failure, false))?
                }
                None => None,
            };
            let object = wanted.object(&self.connection.namespace, name, now.as_ref());
            match self.put(&object, now.as_ref(), "fieldManager=overlane&dryRun=All").await {
                Err(failure) if !failure.is_conflict() => return Err(self.commit_error(&failure, false)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Writes an object, again where only what does not matter here was changed by others in between. Of what is `noted`,
    /// it is enough that it is there, whoever wrote it.
    async fn write(
        &self,
        name: &str,
        edits: &Edits,
        noted: bool,
        mut known: Option<Named>,
    ) -> Result<Ended, Failure> {
        let (began, mut pauses) = (Instant::now(), Pauses::new(PAUSE, LONGEST_PAUSE));
        // What was sent and not answered may be what is there.
        let mut sent = noted;
        loop {
            let failure = match self.step(name, edits, noted, sent, known.take()).await {
                Ok(Some(ended)) => return Ok(ended),
                Ok(None) => continue,
                Err(failure) => failure,
            };
            let overtaken = failure.is_conflict() || failure.is_absent();
            let again = overtaken || !noted && (failure.is_ambiguous() || sent && failure.is_transient());
            sent |= failure.is_ambiguous();
            if !again || began.elapsed() > FINISH {
                return Err(if sent && !noted { failure.unsure() } else { failure });
            }
            sleep(pauses.next()).await;
        }
    }

    /// One attempt; none where the next one is due at once.
    async fn step(
        &self,
        name: &str,
        edits: &Edits,
        noted: bool,
        sent: bool,
        known: Option<Named>,
    ) -> Result<Option<Ended>, Failure> {
        let now = match known {
            Some(known) => known,
            None => self.named(name).await.map_err(Failure::sure)?,
        };
        if sent && edits.done(name, &now) {
            return Ok(Some(Ended::Done(now)));
        }
        // One of another kind was made, and the old one is still to go.
        let turned = noted && now.is_twofold() && edits.done_by_one(&now);
        if turned || edits.stand(name, &now) {
            return Ok(self.write_once(name, edits, now).await?.map(Ended::Done));
        }
        Ok(Some(if sent && !noted { Ended::Unsure } else { Ended::Overtaken }))
    }

    /// One step; what is there now, where it was the last one.
    async fn write_once(&self, name: &str, edits: &Edits, now: Named) -> Result<Option<Named>, Failure> {
        let refused = |Fault(why)| Failure::Unsent(why);
        let wanted = match edits.environment.as_ref().map(|edit| &edit.next) {
            Some(Next::Gone) => {
                for kind in Kind::ALL {
                    if let Some(object) = now.of(kind) {
                        self.delete(object).await?;
                    }
                }
                return Ok(Some(Named::default()));
            }
            Some(Next::Text(text)) => Some(object::wanted(name, text).map_err(refused)?),
            None | Some(Next::Kept) => None,
        };
        let kind = wanted.as_ref().map(|wanted| wanted.kind).or(now.only().map(|object| object.kind));
        let Some(kind) = kind else {
            return match edits.attached.as_ref().map(|edit| &edit.next) {
                // Nothing can be attached to what is not there.
                Some(Next::Text(_)) => Err(Failure::Unsent(format!("there is no environment `{name}`"))),
                _ => Ok(Some(now)),
            };
        };
        let (known, other) = (now.of(kind), now.of(kind.other()));
        if let (Some(_), Some(other)) = (known, other) {
            self.delete(other).await?;
            return Ok(None);
        }
        let object = self.object(name, edits, wanted.as_ref(), known.or(other)).map_err(refused)?;
        // Who attaches does not write the environment: when that was written last is told by who wrote it.
        let query = if wanted.is_some() { "fieldManager=overlane" } else { "fieldManager=overlane-attach" };
        let value = self.put(&object, known, query).await?;
        let mut written = Named::default();
        written.set(kind, Some(Object { kind, value }));
        Ok(other.is_none().then_some(written))
    }

    /// The object as it is to become.
    fn object(
        &self,
        name: &str,
        edits: &Edits,
        wanted: Option<&Wanted>,
        now: Option<&Object>,
    ) -> Result<Object, Fault> {
        let mut object = match (wanted, now) {
            (Some(wanted), now) => wanted.object(&self.connection.namespace, name, now),
            (None, Some(now)) => now.clone(),
            (None, None) => return Err(Fault(format!("there is no environment `{name}`"))),
        };
        match edits.attached.as_ref().map(|edit| &edit.next) {
            Some(Next::Text(text)) => object.value["attached"] = object::attached(name, text)?,
            Some(Next::Gone) => {
                if let Some(fields) = object.value.as_object_mut() {
                    fields.remove("attached");
                }
            }
            None | Some(Next::Kept) => {}
        }
        Ok(object)
    }

    /// Writes an object in place of the one that is known, or of none.
    async fn put(&self, object: &Object, known: Option<&Object>, query: &str) -> Result<Value, Failure> {
        let resource = Resource::Kind(object.kind);
        let mut body = object.value.clone();
        if known.is_none()
            && let Some(metadata) = body["metadata"].as_object_mut()
        {
            // Of one of the other kind.
            metadata
                .retain(|field, _| ["name", "namespace", "labels", "annotations"].contains(&field.as_str()));
        }
        let call = match known {
            Some(known) => Call { name: known.name(), ..Call::new("update", resource) },
            None => Call::new("create", resource),
        };
        self.connection.ask(Call { body: Some(&body), query, ..call }, ANSWER).await
    }

    /// Removes an object in the state in which it is known.
    async fn delete(&self, object: &Object) -> Result<(), Failure> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": { "uid": object.uid(), "resourceVersion": object.resource_version() },
        });
        let call = Call {
            name: object.name(),
            body: Some(&body),
            ..Call::new("delete", Resource::Kind(object.kind))
        };
        self.connection.ask(call, ANSWER).await.map(drop)
    }

    /// Why it was not written, or that it is not known whether it was.
    fn commit_error(&self, failure: &Failure, may_be_done: bool) -> CommitError {
        match may_be_done {
            true => CommitError::Unsure(self.fault(failure)),
            false => CommitError::Fault(self.fault(failure)),
        }
    }
}

/// What is noted in the journal.
fn noted_in(journal: &Value) -> Option<Note> {
    serde_json::from_str(journal["data"][NOTE].as_str()?).ok()
}
