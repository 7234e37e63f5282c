//! `list --watch`: the rows that change, as they do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use overlane_config::name::EnvironmentId;
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use super::output::{CliError, Format, Output};
use super::show::{Kind, watched};
use crate::store::open::OpenStore;
use crate::store::shared::write::Listed;
use crate::store::shared::{Changes, Shared};
use crate::store::{Reached, StoreAddress};

/// How often a directory is looked at.
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
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let shared = match store.reach().map_err(|fault| CliError::failure(fault.to_string()))? {
        Reached::Directory(_) => None,
        Reached::Shared(shared) => Some(shared),
    };
    let mut known: BTreeMap<EnvironmentId, [String; 6]> = BTreeMap::new();
    loop {
        let open = match &shared {
            None => OpenStore::read(store)?,
            Some(shared) => OpenStore::shared(Listed::on(shared.clone(), runtime.handle().clone()))?,
        };
        let rows = watched(baseline, kind, open.lineages());
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
        known = rows;
        out.result().flush()?;
        wait(&runtime, shared.as_ref(), &open)?;
    }
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

/// Waits until there may be something new.
fn wait(runtime: &Runtime, shared: Option<&Arc<dyn Shared>>, open: &OpenStore) -> Result<(), CliError> {
    let Some((shared, state)) = shared.zip(open.state()) else {
        runtime.block_on(async { sleep(LOOK).await });
        return Ok(());
    };
    runtime.block_on(async {
        let Ok(mut watching) = shared.watch(state).await else {
            // It is listed again, which says what is wrong.
            sleep(LOOK).await;
            return;
        };
        while let Some(Ok(Changes { changes, .. })) = watching.next().await {
            if !changes.is_empty() {
                return;
            }
        }
        sleep(LOOK).await;
    });
    Ok(())
}
