//! Prompt lookup: what followed the last time that the text ended like this.
//!
//! The longest n-gram that ends the sequence and occurred before decides, as in vLLM. Of several occurrences the latest is
//! taken (vLLM takes the earliest): text repeats what is near, an edited passage more likely its newest form. A draft that
//! reaches the end of the sequence goes on with its own beginning, so that a repetition that is shorter than a draft
//! still gives a whole one.
//!
//! The index grows by the tokens that came since the last look, so a look costs the same however long the sequence is.

use std::collections::HashMap;

/// Where each n-gram of a sequence ended last.
#[derive(Clone, Debug)]
pub struct NgramIndex {
    min: usize,
    max: usize,
    /// From the hash of an n-gram, its length included, to where its follower stands. A hash may lie; a look checks.
    followers: HashMap<u64, u32>,
    /// Ends of n-grams below this are in.
    covered: usize,
}

impl NgramIndex {
    /// An index of n-grams of `min` to `max` tokens.
    #[must_use]
    pub fn new(min: usize, max: usize) -> Self {
        Self { min: min.max(1), max, followers: HashMap::new(), covered: 1 }
    }

    /// Writes up to `limit` tokens that may follow `tokens` into `draft`, none if nothing matches. `tokens` is always the
    /// same sequence, as it was at the last look or longer.
    pub fn propose(&mut self, tokens: &[u32], limit: usize, draft: &mut Vec<u32>) {
        draft.clear();
        self.cover(tokens);
        if limit == 0 {
            return;
        }
        let Some(follower) = (self.min..=self.max.min(tokens.len())).rev().find_map(|length| self.find(tokens, length))
        else {
            return;
        };
        let period = tokens.get(follower..).unwrap_or_default();
        draft.extend(period.iter().cycle().take(limit));
    }

    /// Takes in the n-grams that have a follower.
    fn cover(&mut self, tokens: &[u32]) {
        for end in self.covered..tokens.len() {
            let Ok(follower) = u32::try_from(end) else { return };
            for length in self.min..=self.max.min(end) {
                let ngram = tokens.get(end - length..end).unwrap_or_default();
                self.followers.insert(hash(ngram), follower);
            }
        }
        self.covered = self.covered.max(tokens.len());
    }

    /// The follower of the last earlier occurrence of the last `length` tokens.
    fn find(&self, tokens: &[u32], length: usize) -> Option<usize> {
        let ngram = tokens.get(tokens.len().checked_sub(length)?..)?;
        let follower = usize::try_from(*self.followers.get(&hash(ngram))?).ok()?;
        let found = tokens.get(follower.checked_sub(length)?..follower)?;
        (found == ngram).then_some(follower)
    }
}

/// FNV-1a over whole tokens; the map hashes again, with keys that nobody knows.
fn hash(ngram: &[u32]) -> u64 {
    let length = u64::try_from(ngram.len()).unwrap_or(u64::MAX);
    ngram.iter().fold(length ^ 0xCBF2_9CE4_8422_2325, |hash, token| {
        (hash ^ u64::from(*token)).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(23)
    })
}

#[cfg(test)]
mod tests {
    use super::NgramIndex;

    const NOTHING: [u32; 0] = [];

    fn propose(tokens: &[u32], min: usize, max: usize, limit: usize) -> Vec<u32> {
        let mut draft = Vec::new();
        NgramIndex::new(min, max).propose(tokens, limit, &mut draft);
        draft
    }

    #[test]
    fn the_longest_match_wins_over_a_later_shorter_one() {
        // "2 3" was followed by 4; the later "3" by 9.
        assert_eq!(propose(&[1, 2, 3, 4, 5, 3, 9, 2, 3], 1, 3, 2), [4, 5]);
        assert_eq!(propose(&[1, 2, 3, 4, 5, 3, 9, 2, 3], 1, 1, 2), [9, 2]);
        assert_eq!(propose(&[1, 2, 3, 4, 5, 3, 9, 2, 3], 3, 3, 2), NOTHING);
    }

    #[test]
    fn of_equal_matches_the_latest_wins() {
        assert_eq!(propose(&[7, 1, 7, 2, 7], 1, 1, 1), [2]);
    }

    #[test]
    fn a_draft_goes_on_with_its_own_beginning() {
        assert_eq!(propose(&[4, 4, 4], 1, 2, 5), [4; 5]);
        assert_eq!(propose(&[1, 2, 3, 1, 2, 3, 1], 2, 4, 7), [2, 3, 1, 2, 3, 1, 2]);
    }

    #[test]
    fn without_a_match_there_is_no_draft() {
        assert_eq!(propose(&[], 1, 5, 3), NOTHING);
        assert_eq!(propose(&[1], 1, 5, 3), NOTHING);
        assert_eq!(propose(&[1, 2, 3], 1, 5, 3), NOTHING);
        assert_eq!(propose(&[1, 1], 1, 5, 0), NOTHING);
        assert_eq!(propose(&[1, 1], 5, 5, 3), NOTHING);
    }

    /// A scan of the whole sequence at each look.
    fn scan(tokens: &[u32], min: usize, max: usize, limit: usize) -> Vec<u32> {
        for length in (min..=max).rev() {
            for start in (0..tokens.len().saturating_sub(length)).rev() {
                if tokens[start..start + length] == tokens[tokens.len() - length..] {
                    let mut grown = tokens.to_vec();
                    for at in 0..limit {
                        grown.push(grown[start + length + at]);
                    }
                    return grown.split_off(tokens.len());
                }
            }
        }
        Vec::new()
    }

    #[test]
    fn a_growing_index_finds_what_a_scan_finds() {
        for (min, max, vocabulary) in [(1, 3, 4), (2, 5, 3), (4, 4, 2), (1, 1, 9)] {
            let (mut state, mut tokens, mut draft) = (17_u64, Vec::new(), Vec::new());
            let mut index = NgramIndex::new(min, max);
            for _ in 0..400 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                tokens.push(u32::try_from((state >> 33) % vocabulary).unwrap_or_default());
                // Not every length is looked at.
                if state >> 62 > 0 {
                    index.propose(&tokens, 4, &mut draft);
                    assert_eq!(draft, scan(&tokens, min, max, 4), "{min} to {max} in {tokens:?}");
                }
            }
        }
    }
}
