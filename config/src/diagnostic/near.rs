//! "Did you mean": which of several names is nearest to a word.
//!
//! Requests with an unknown key ask for it, so strangers choose the word: the distance is found with a
//! bit per letter of the word, without allocation, and given up as soon as it is too great.

/// The longest word for which a similar one is looked for, in bytes: a letter each in a machine word, and
/// the length of a label. What is longer is no misspelt name.
const MAX_WORD: usize = 64;

/// The candidate that `word` was probably meant to be; of several as near, the first by name.
#[must_use]
pub fn did_you_mean<'c>(word: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let word = Word::new(word)?;
    let most = |candidate: &str| (1 + candidate.len() / 4).min(candidate.len().saturating_sub(1));
    candidates
        .into_iter()
        .filter_map(|candidate| Some((word.distance(candidate, most(candidate))?, candidate)))
        .min()
        .map(|(_, candidate)| candidate)
}

/// A word, prepared to be held against many.
struct Word {
    length: usize,
    /// For each letter, a bit for each of its places in the word.
    places: [u64; 256],
}

impl Word {
    fn new(word: &str) -> Option<Self> {
        let length = Some(word.len()).filter(|length| *length <= MAX_WORD)?;
        let mut places = [0; 256];
        for (at, letter) in word.bytes().enumerate() {
            places[usize::from(letter.to_ascii_lowercase())] |= 1 << at;
        }
        Some(Self { length, places })
    }

    /// How many letters must be added, left out, changed or swapped with their neighbour, if `most` will do.
    ///
    /// The columns of the usual matrix as bit vectors of their differences: H. Hyyrö, "A bit-vector
    /// algorithm for computing Levenshtein and Damerau edit distances" (2003).
    fn distance(&self, other: &str, most: usize) -> Option<usize> {
        if self.length == 0 || self.length.abs_diff(other.len()) > most {
            return Some(other.len()).filter(|_| self.length == 0 && other.len() <= most);
        }
        let last = 1_u64 << (self.length - 1);
        let (mut more, mut less, mut diagonal) = (u64::MAX, 0_u64, 0_u64);
        let (mut distance, mut places_before) = (self.length, 0);
        for (at, letter) in other.bytes().enumerate() {
            let places = self.places[usize::from(letter.to_ascii_lowercase())];
            let swapped = ((!diagonal & places) << 1) & places_before;
            diagonal = ((places & more).wrapping_add(more) ^ more) | places | less | swapped;
            let (right_more, right_less) = (less | !(diagonal | more), diagonal & more);
            distance += usize::from(right_more & last != 0);
            distance -= usize::from(right_less & last != 0);
            // Each letter that is left can make it less by one.
            if distance > most + (other.len() - at - 1) {
                return None;
            }
            let right_more = (right_more << 1) | 1;
            more = (right_less << 1) | !(diagonal | right_more);
            less = right_more & diagonal;
            places_before = places;
        }
        Some(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_meant_is_near_and_the_same_in_any_order() {
        for (word, candidates, expected) in [
            ("rutes", &["routes", "name"][..], Some("routes")),
            ("Routing", &["routing"], Some("routing")),
            ("baselineid", &["baselineId"], Some("baselineId")),
            ("env-02", &["env-12", "env-01", "env-03"], Some("env-01")),
            ("env-02", &["env-03", "env-12", "env-01"], Some("env-01")),
            ("payments", &["ledger", "web"], None),
            ("a", &["b", "c"], None),
            ("", &["a"], None),
            ("x", &[], None),
        ] {
            assert_eq!(did_you_mean(word, candidates.iter().copied()), expected, "{word}");
        }
        let long = "a".repeat(MAX_WORD + 1);
        assert_eq!(did_you_mean(&long, [&long[1..]]), None, "no search for what is no name");
        assert_eq!(did_you_mean(&long[1..], [&*long]), Some(&*long));
    }

    proptest! {
        #[test]
        fn the_distance_is_that_of_the_usual_matrix(word in "[ab-]{0,64}", other in "[ab-]{0,70}", most in 0_usize..70) {
            let expected = strsim::osa_distance(&word, &other);
            let found = Word::new(&word).expect("short").distance(&other, most);
            prop_assert_eq!(found, Some(expected).filter(|distance| *distance <= most));
        }
    }
}
