//! What is attached to an environment, in a record of its own: addresses, how long they and the overlay live, and links
//! that were given away.

use std::collections::BTreeMap;
use std::sync::Arc;

use overlane_config::blueprint::{API_VERSION, Attachment, Share, hex};
use overlane_config::diagnostic::Diagnostic;
use overlane_config::name::{EnvironmentId, ServiceName};
use overlane_config::time::UnixMillis;
use overlane_config::url::Url;

use super::{Edits, OpenStore, Outcome, WriteError};
use crate::store::shared::follow::name_of;

/// How the names of these records end.
const ATTACHED: &str = ".attached.yaml";

/// Whether an entry of this name is such a record.
pub(in crate::store) fn is_attachment(entry: &str) -> bool {
    entry.ends_with(ATTACHED)
}

/// The entry of what is attached to an environment.
pub(super) fn attachment_entry(id: &EnvironmentId) -> String {
    format!("{id}{ATTACHED}")
}

/// A link that is given away.
#[derive(Debug)]
pub struct NewShare {
    /// By which it is called.
    pub id: String,
    /// The SHA-256 of its secret.
    pub hash: [u8; 32],
    /// Until when it lets anybody in.
    pub expires_at: Option<UnixMillis>,
}

/// What is attached to an environment: addresses and the ends of their leases by service, by id the hash and the end of
/// what was shared, and until when it was extended.
#[derive(Debug, Default)]
struct Attached {
    expires_at: Option<String>,
    services: BTreeMap<String, (String, Option<String>)>,
    shares: BTreeMap<String, (String, Option<String>)>,
}

/// The text of the record; none where nothing is attached.
fn attachment_text(id: &EnvironmentId, attached: &Attached) -> Option<String> {
    if attached.services.is_empty() && attached.shares.is_empty() && attached.expires_at.is_none() {
        return None;
    }
    let until = |mut value: serde_json::Value, expires_at: &Option<String>| {
        if let Some(at) = expires_at {
            value["expiresAt"] = at.as_str().into();
        }
        value
    };
    let service = |(name, (url, expires_at)): (&String, &(String, Option<String>))| {
        until(serde_json::json!({ "name": name, "url": url }), expires_at)
    };
    let share = |(id, (hash, expires_at)): (&String, &(String, Option<String>))| {
        until(serde_json::json!({ "id": id, "sha256": hash }), expires_at)
    };
    let mut spec = serde_json::Map::new();
    if let Some(at) = &attached.expires_at {
        spec.insert("expiresAt".to_owned(), at.as_str().into());
    }
    let mut add = |name: &str, list: Vec<serde_json::Value>| {
        if !list.is_empty() {
            spec.insert(name.to_owned(), list.into());
        }
    };
    add("services", attached.services.iter().map(service).collect());
    add("shares", attached.shares.iter().map(share).collect());
    let document = serde_json::json!({
        "apiVersion": API_VERSION,
        "kind": "Attachment",
        "metadata": { "name": id.as_str() },
        "spec": spec,
    });
    // Strings, lists and mappings of strings can always be written.
    Some(serde_yaml::to_string(&document).unwrap_or_default())
}

impl OpenStore {
    /// Attaches an address to a service of an environment, or takes it away where `url` is `None`.
    ///
    /// # Errors
    /// The environment does not own the service, or has no such address to take away.
    pub fn attach(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: Option<&Url>,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| open.attach_once(id, service, url, None, dry_run))
    }

    /// Attaches an address that is used until then, where nobody renews that.
    ///
    /// # Errors
    /// The environment does not own the service.
    pub fn lease(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: &Url,
        until: UnixMillis,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| open.attach_once(id, service, Some(url), Some(until), dry_run))
    }

    /// Has an attached address used until then, at `to` from now on; false where another one is attached by now, or none.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn renew(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: &Url,
        to: &Url,
        until: UnixMillis,
    ) -> Result<bool, WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| {
            let mut attached = open.attached(id);
            match attached.services.get_mut(service.as_str()) {
                // It may have been renewed already, by a write whose answer was lost.
                Some(own) if own.0 == url.to_string() || own.0 == to.to_string() => {
                    *own = (to.to_string(), Some(until.to_string()));
                }
                _ => return Ok(false),
            }
            open.write_attached(id, &attached)?;
            Ok(true)
        })
    }

    /// Takes an attached address away, if it is this one; whether it was.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn release(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: &Url,
    ) -> Result<bool, WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| {
            let mut attached = open.attached(id);
            if attached.services.get(service.as_str()).is_none_or(|(own, _)| *own != url.to_string()) {
                return Ok(false);
            }
            attached.services.remove(service.as_str());
            open.write_attached(id, &attached)?;
            Ok(true)
        })
    }

    /// Lets an overlay live until then at least; where it is used only if it did so `at` that time. Returns what became
    /// of it, and until when it lives by itself.
    ///
    /// # Errors
    /// It is not there, or never expires.
    pub fn extend(
        &mut self,
        id: &EnvironmentId,
        until: UnixMillis,
        used: Option<UnixMillis>,
        dry_run: bool,
    ) -> Result<(Outcome, UnixMillis), WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| {
            let Some(blueprint) = open.lineages.claims(id).next() else {
                return Err(WriteError::NotFound(format!("overlay `{id}`")));
            };
            let written = open.lineages.expiry(blueprint);
            if blueprint.ttl.is_none() && written.is_none() {
                return Err(WriteError::NeverExpires(id.clone()));
            }
            if let Some(lives) = written.filter(|at| *at >= until || used.is_some_and(|used| *at <= used)) {
                return Ok((Outcome::Unchanged, lives));
            }
            let mut attached = open.attached(id);
            attached.expires_at = Some(until.to_string());
            if !dry_run {
                open.write_attached(id, &attached)?;
            }
            Ok((Outcome::Configured, until))
        })
    }

    /// The edit that takes back by how much an overlay was extended.
    pub(super) fn without_extension(&self, id: &EnvironmentId) -> Option<(String, Option<String>)> {
        let mut attached = self.attached(id);
        attached.expires_at.take()?;
        Some((attachment_entry(id), attachment_text(id, &attached)))
    }

    fn attach_once(
        &mut self,
        id: &EnvironmentId,
        service: &ServiceName,
        url: Option<&Url>,
        until: Option<UnixMillis>,
        dry_run: bool,
    ) -> Result<Outcome, WriteError> {
        let Some(blueprint) = self.lineages.claims(id).next() else {
            return Err(WriteError::NotFound(format!("`{id}`")));
        };
        if !blueprint.services.iter().any(|known| known.name.value == *service) && url.is_some() {
            return Err(WriteError::NotFound(format!("service `{service}` of `{id}`")));
        }
        let mut attached = self.attached(id);
        let all = &mut attached.services;
        let before = all.clone();
        match url {
            Some(url) => {
                all.insert(service.to_string(), (url.to_string(), until.map(|at| at.to_string())));
            }
            None if all.remove(service.as_str()).is_none() => {
                return Err(WriteError::NotFound(format!("address attached to `{service}` of `{id}`")));
            }
            None => {}
        }
        let outcome = match (before == *all, url.is_some(), before.contains_key(service.as_str())) {
            (true, ..) => Outcome::Unchanged,
            (false, false, _) => Outcome::Deleted,
            (false, true, true) => Outcome::Configured,
            (false, true, false) => Outcome::Created,
        };
        if !dry_run && outcome != Outcome::Unchanged {
            self.write_attached(id, &attached)?;
        }
        Ok(outcome)
    }

    /// Notes a link to an overlay that is given away.
    ///
    /// # Errors
    /// The overlay is not there, or cannot be written.
    pub fn share(&mut self, id: &EnvironmentId, share: &NewShare, dry_run: bool) -> Result<(), WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| open.share_once(id, share, dry_run))
    }

    fn share_once(&mut self, id: &EnvironmentId, share: &NewShare, dry_run: bool) -> Result<(), WriteError> {
        if self.lineages.claims(id).next().is_none() {
            return Err(WriteError::NotFound(format!("`{id}`")));
        }
        let mut attached = self.attached(id);
        let expires_at = share.expires_at.map(|at| at.to_string());
        attached.shares.insert(share.id.clone(), (hex(&share.hash), expires_at));
        if dry_run { Ok(()) } else { self.write_attached(id, &attached) }
    }

    /// Takes a link back, or all links where `share` is `None`; which ones these were.
    ///
    /// # Errors
    /// There is none, it is in a file that this one did not write, or it cannot be written.
    pub fn unshare(
        &mut self,
        id: &EnvironmentId,
        share: Option<&str>,
        dry_run: bool,
    ) -> Result<Vec<String>, WriteError> {
        self.look_at(id)?;
        self.undisturbed(|open| open.unshare_once(id, share, dry_run))
    }

    fn unshare_once(
        &mut self,
        id: &EnvironmentId,
        share: Option<&str>,
        dry_run: bool,
    ) -> Result<Vec<String>, WriteError> {
        let own = self.shown(&attachment_entry(id));
        let wanted = |known: &Share| share.is_none_or(|share| share == &*known.id.value);
        let others = self.lineages.attachments(id).iter().filter(|record| *record.source.path != *own);
        if let Some(record) = others.into_iter().find(|record| record.shares.iter().any(wanted)) {
            return Err(WriteError::Shared(id.clone(), record.source.path.clone()));
        }
        let mut attached = self.attached(id);
        let taken: Vec<_> =
            attached.shares.keys().filter(|own| share.is_none_or(|share| share == *own)).cloned().collect();
        if taken.is_empty() {
            let what =
                share.map_or_else(|| "link that was shared".to_owned(), |share| format!("share `{share}`"));
            return Err(WriteError::NotFound(format!("{what} of `{id}`")));
        }
        attached.shares.retain(|own, _| !taken.contains(own));
        if !dry_run {
            self.write_attached(id, &attached)?;
        }
        Ok(taken)
    }

    /// What the command line attached to an environment.
    pub(super) fn own_attachments(&self, id: &EnvironmentId) -> impl Iterator<Item = &Arc<Attachment>> {
        let own = self.shown(&attachment_entry(id));
        self.lineages.attachments(id).iter().filter(move |attached| *attached.source.path == *own)
    }

    /// Whether there is something under the name of such a record that cannot be read, or is something else.
    pub(super) fn is_attached_in_doubt(&self, id: &EnvironmentId) -> bool {
        self.kept.revision(&attachment_entry(id)).is_some() && self.own_attachments(id).next().is_none()
    }

    fn attached(&self, id: &EnvironmentId) -> Attached {
        let mut attached = Attached::default();
        for record in self.own_attachments(id) {
            let services = record.services.iter().map(|one| {
                let until = one.expires_at.map(|at| at.to_string());
                (one.service.value.to_string(), (one.url.value.to_string(), until))
            });
            attached.services.extend(services);
            attached.expires_at = record.expires_at.map(|at| at.to_string());
            let shares = record.shares.iter().map(|share| {
                let expires_at = share.expires_at.map(|at| at.to_string());
                (share.id.value.to_string(), (hex(&share.hash), expires_at))
            });
            attached.shares.extend(shares);
        }
        attached
    }

    fn write_attached(&mut self, id: &EnvironmentId, attached: &Attached) -> Result<(), WriteError> {
        let entry = attachment_entry(id);
        // That is not what `attached` was made from: it would be lost.
        if self.is_attached_in_doubt(id) {
            let path: Arc<str> = self.shown(&entry).into();
            let error = Diagnostic::file(&path, "cannot be read, and is not overwritten");
            return Err(WriteError::Invalid(vec![error.hint("mend it, or delete it")]));
        }
        let edits = vec![(entry, attachment_text(id, attached))];
        let environment = self.lineages.claims(id).map(|known| name_of(&known.source.path).to_owned());
        let unchanged = environment.collect();
        self.commit(&Edits { edits, unchanged, alone: false })?;
        Ok(())
    }
}
