//! How often a draft token is right, given that those before it were.
//!
//! Every draft that was looked up is held against the tokens that came, whether it was computed or not. So the estimate goes
//! on while drafts do not pay, and notices for free when text begins to repeat itself.

/// A running estimate; what happened long ago fades.
#[derive(Clone, Copy, Debug)]
pub struct Acceptance {
    right: f64,
    seen: f64,
    /// What remains of older tokens with each new one.
    keep: f64,
}

/// For how many tokens the estimate from elsewhere counts.
const PRIOR_WEIGHT: f64 = 2.0;

impl Acceptance {
    /// An estimate that remembers about `memory` tokens.
    #[must_use]
    pub fn new(memory: u32) -> Self {
        Self { right: 0.0, seen: 0.0, keep: 1.0 - 1.0 / f64::from(memory.max(1)) }
    }

    /// Takes in a draft of which the first `right` tokens came true, and the next, if `wrong`, did not.
    pub fn observe(&mut self, right: usize, wrong: bool) {
        for hit in std::iter::repeat_n(1.0, right).chain(wrong.then_some(0.0)) {
            self.right = self.right * self.keep + hit;
            self.seen = self.seen * self.keep + 1.0;
        }
    }

    /// The share of tokens that are right, in 0..1; near `prior` while little was seen.
    #[must_use]
    pub fn share(&self, prior: f64) -> f64 {
        (self.right + prior * PRIOR_WEIGHT) / (self.seen + PRIOR_WEIGHT)
    }
}

#[cfg(test)]
mod tests {
    use super::Acceptance;

    #[test]
    fn it_begins_at_the_prior_and_follows_what_happens() {
        let mut acceptance = Acceptance::new(16);
        assert!((acceptance.share(0.5) - 0.5).abs() < 1e-9);
        (0..20).for_each(|_| acceptance.observe(3, false));
        assert!(acceptance.share(0.5) > 0.9);
        (0..60).for_each(|_| acceptance.observe(0, true));
        assert!(acceptance.share(0.5) < 0.1);
        assert!(acceptance.share(0.5) > 0.0);
    }
}
