//! A store that is written to again and again.

use super::{OpenStore, WriteError};
use crate::store::StoreAddress;

/// A store that one process writes to again and again. Nobody waits for it in between: of a directory only what changed is
/// read each time, and what several machines share is only read anew where somebody else came before.
pub struct Reopened {
    again: Box<dyn Fn() -> Result<OpenStore, WriteError> + Send>,
    open: Option<OpenStore>,
}

impl Reopened {
    /// It is not opened yet.
    #[must_use]
    pub fn new(address: StoreAddress) -> Self {
        Self::by(move || OpenStore::change(&address))
    }

    /// The same, where it is opened otherwise.
    pub(super) fn by(again: impl Fn() -> Result<OpenStore, WriteError> + Send + 'static) -> Self {
        Self { again: Box::new(again), open: None }
    }

    /// Does something in the store.
    ///
    /// # Errors
    /// It cannot be opened, or what `with` says.
    pub fn with<T>(
        &mut self,
        mut with: impl FnMut(&mut OpenStore) -> Result<T, WriteError>,
    ) -> Result<T, WriteError> {
        if let Some(mut open) = self.open.take()
            && let Ok(done) = open.enter().and_then(|()| with(&mut open))
        {
            self.keep(open);
            return Ok(done);
        }
        // Of what was kept open, the connection may be gone by now.
        let mut open = (self.again)()?;
        let done = with(&mut open)?;
        self.keep(open);
        Ok(done)
    }

    fn keep(&mut self, mut open: OpenStore) {
        open.leave();
        self.open = Some(open);
    }
}
