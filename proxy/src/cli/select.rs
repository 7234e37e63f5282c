//! Which environments a command is about, by their labels and their owner.

use clap::Args;
use overlane_config::blueprint::Blueprint;
use overlane_config::selector::Selector;

/// `-l` and `--owner`.
#[derive(Debug, Clone, Default, Args)]
pub struct Selection {
    /// Only those whose labels are so: a=b, c!=d, e, !f, g in (h,i), j notin (k); all that are joined by commas
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<Selector>,
    /// Only those of this owner
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
}

impl Selection {
    /// Whether it says anything.
    pub(super) fn is_given(&self) -> bool {
        self.selector.as_ref().is_some_and(|selector| !selector.is_empty()) || self.owner.is_some()
    }

    /// Whether an environment is one of them.
    pub(super) fn selects(&self, blueprint: &Blueprint) -> bool {
        let labelled =
            self.selector.as_ref().is_none_or(|selector| selector.selects(|key| blueprint.label(key)));
        labelled && (self.owner.is_none() || self.owner.as_deref() == blueprint.owner.as_deref())
    }
}
