//! Which requests have spans: OpenTelemetry's samplers, by the names that its variables have for them.

use overlane_config::carrier::trace::Span;

/// Decides by the low half of a trace's id, as every SDK does, so that all of them take the same traces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sampler {
    /// Whether what the caller decided counts, where it has.
    pub follows_callers: bool,
    /// How many of 2^63 ids are taken.
    taken: u64,
}

/// How many there are: the lowest bit does not count.
const ALL: u64 = 1 << 63;

impl Default for Sampler {
    /// `parentbased_always_on`.
    fn default() -> Self {
        Self { follows_callers: true, taken: ALL }
    }
}

impl Sampler {
    /// The names of all.
    pub const NAMES: [&str; 6] = [
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ];

    /// The sampler with this name; `ratio` counts for those that have one.
    #[must_use]
    pub fn named(name: &str, ratio: f64) -> Option<Self> {
        let (follows_callers, root) = match name.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, name),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => ratio,
            _ => return None,
        };
        // Between 0 and 2^63: nothing is lost but what a float cannot say.
        Some(Self { follows_callers, taken: (ratio.clamp(0.0, 1.0) * ALL as f64) as u64 })
    }

    /// Whether a trace whose id ends with these 64 bits is taken, where nobody has decided that.
    #[must_use]
    pub fn takes(self, low: u64) -> bool {
        low >> 1 < self.taken
    }

    /// Whether a request is taken that a span of somebody else's sends.
    #[must_use]
    pub fn takes_call(self, caller: &Span) -> bool {
        match self.follows_callers {
            true => caller.is_sampled(),
            // The low half.
            false => self.takes(caller.trace as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_of_the_convention_is_a_sampler_and_no_other_is() {
        for name in Sampler::NAMES {
            assert!(Sampler::named(name, 0.5).is_some(), "{name}");
        }
        assert_eq!(Sampler::named("parentbased_always_on", 0.0), Some(Sampler::default()));
        for name in ["", "always", "parentbased_", "jaeger_remote"] {
            assert_eq!(Sampler::named(name, 1.0), None, "{name}");
        }
    }

    #[test]
    fn a_ratio_takes_so_many_of_all_ids() {
        let sampler = |ratio| Sampler::named("traceidratio", ratio).expect("a sampler");
        let ids = [1, u64::MAX / 4 - 1, u64::MAX / 4 + 2, u64::MAX];
        let taken = |ratio| ids.map(|id| sampler(ratio).takes(id));
        assert_eq!(taken(0.0), [false; 4]);
        assert_eq!(taken(0.25), [true, true, false, false]);
        assert_eq!(taken(1.0), [true; 4]);
    }

    #[test]
    fn what_a_caller_decided_counts_where_it_is_followed() {
        let call = |flags, trace| Span { trace, span: 1, flags };
        let followed = Sampler::named("parentbased_always_off", 0.0).expect("a sampler");
        assert!(followed.takes_call(&call(1, 5)) && !followed.takes_call(&call(0, 5)));
        let own = Sampler::named("traceidratio", 0.5).expect("a sampler");
        assert!(own.takes_call(&call(0, 5)) && !own.takes_call(&call(1, u128::from(u64::MAX))));
    }
}
