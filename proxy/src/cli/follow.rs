//! `list --watch`: the rows that change, as they do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use overlane_config::lineage::Lineages;
use overlane_config::name::EnvironmentId;
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::output::{CliError, Format, Output};
use super::show::{Kind, watched};
use crate::clock;
use crate::store::mirror::Mirror;
use crate::store::open::{OpenStore, rules};
use crate::store::shared::Shared;
use crate::store::{Reached, StoreAddress};

/// How often a directory is looked at, and a store that cannot be asked is tried again.
const LOOK: Duration = Duration::from_millis(500);

/// Shows all, and then what changes, until the reader goes away.
///
/// # Errors
/// The store cannot be read.
pub(super) fn follow(
    baseline: Option<&EnvironmentId>,
    kind: Kind,
    format: Format,
    store: &StoreAddress,
    out: &mut Output<'_>,
) -> Result<(), CliError> {
    let mut known = BTreeMap::new();
    let tell = |lineages: &Lineages| tell(watched(baseline, kind, lineages), &mut known, format, out);
    match store.reach().map_err(|fault| CliError::failure(fault.to_string()))? {
        Reached::Directory(_) => follow_directory(store, tell),
        Reached::Shared(shared) => {
            // Its connections live on a thread of their own, since telling may wait for the reader.
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            runtime.block_on(follow_shared(shared, tell))
        }
    }
}

fn follow_directory(
    store: &StoreAddress,
    mut tell: impl FnMut(&Lineages) -> Result<(), CliError>,
) -> Result<(), CliError> {
    loop {
        tell(OpenStore::read(store)?.lineages())?;
        std::thread::sleep(LOOK);
    }
}

/// One listing, and one watch from there on: both anew only where the watch ended, or did not begin.
async fn follow_shared(
    shared: Arc<dyn Shared>,
    mut tell: impl FnMut(&Lineages) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let (mirror, mut lineages) = (Mirror::new(shared.address()), Lineages::new(rules()));
    loop {
        // Where it cannot be asked, this says why.
        let listing = shared.list().await.map_err(|fault| CliError::failure(fault.to_string()))?;
        let from = listing.revision.clone();
        lineages.apply_at(mirror.replace(listing), clock::now());
        tell(&lineages)?;
        if let Ok(mut watching) = shared.watch(&from).await {
            while let Some(Ok(changes)) = watching.next().await {
                // Also where nothing changed: what expired meanwhile is shown so.
                lineages.apply_at(mirror.take(changes), clock::now());
                tell(&lineages)?;
            }
        }
        sleep(LOOK).await;
    }
}

type Rows = BTreeMap<EnvironmentId, [String; 6]>;

/// Shows the rows that are not as they are known, and knows them.
fn tell(rows: Rows, known: &mut Rows, format: Format, out: &mut Output<'_>) -> Result<(), CliError> {
    for (id, row) in &rows {
        if known.get(id) != Some(row) {
            show(row, format, known.is_empty() && rows.keys().next() == Some(id), out)?;
        }
    }
    for id in known.keys().filter(|id| !rows.contains_key(*id)) {
        let mut gone = ["-"; 6].map(str::to_owned);
        (gone[0], gone[5]) = (id.to_string(), "DELETED".to_owned());
        show(&gone, format, false, out)?;
    }
    *known = rows;
    Ok(out.result().flush()?)
}

/// Columns wide enough for most, since what is to come is not known.
fn show(row: &[String; 6], format: Format, first: bool, out: &mut Output<'_>) -> Result<(), CliError> {
    let line = |row: [&str; 6]| {
        let [id, baseline, parent, services, expires, status] = row;
        format!("{id:<24} {baseline:<16} {parent:<16} {services:<24} {expires:<22} {status}")
    };
    if format == Format::Name {
        return out.line(&row[0]);
    }
    if first {
        out.line(line(["ID", "BASELINE", "PARENT", "SERVICES", "EXPIRES", "STATUS"]))?;
    }
    out.line(line(row.each_ref().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::shared::memory::Memory;

    fn overlay(number: usize) -> String {
        format!(
            "name: o{number}\nrouting: {{mode: overlay, baselineId: staging}}\nservices: [{{name: web}}]\n"
        )
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_is_listed_and_watched_once_however_much_changes_and_anew_where_the_watch_ends() {
        let memory = Memory::new();
        memory
            .put("staging.yaml", Some("name: staging\nrouting: {mode: baseline}\nservices: [{name: web}]\n"));
        let (store, mut told) = (memory.clone(), Vec::new());
        let tell = |lineages: &Lineages| {
            told.push(lineages.standings().count());
            match told.len() {
                // Each is told before the next one comes.
                number @ ..=5 => memory.put(&format!("o{number}.yaml"), Some(&overlay(number))),
                6 => {
                    assert_eq!((memory.listings(), memory.watches()), (1, 1));
                    memory.put("o1.yaml", None);
                    memory.cut();
                }
                _ => return Err(CliError::failure("enough")),
            }
            Ok(())
        };
        assert_eq!(follow_shared(Arc::new(store), tell).await.expect_err("enough").message, "enough");
        assert_eq!(told, [1, 2, 3, 4, 5, 6, 5]);
        assert_eq!(memory.listings(), 2);
    }
}
