//! Natural logarithms of probabilities.

/// The logprob of a token that was sampled, and of the best ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// Its place among all tokens, the best is 1.
    pub rank: usize,
    /// The best tokens with theirs, the best first.
    pub top: Vec<(u32, f32)>,
}

impl Logprobs {
    /// Of `token` and the `count` best ones.
    pub(super) fn of(logits: &[f32], token: u32, count: usize) -> Self {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        let normalizer = f64::from(largest) + sum.ln();
        let logprob = |logit: f32| (f64::from(logit) - normalizer) as f32;
        let own = usize::try_from(token).ok().and_then(|token| logits.get(token)).copied();
        let own = own.unwrap_or(f32::NEG_INFINITY);
        let rank = 1 + logits.iter().filter(|logit| **logit > own).count();
        let mut all: Vec<(f32, u32)> = Vec::new();
        if count > 0 {
            all.extend(logits.iter().copied().zip(0_u32..));
            let order = |left: &(f32, u32), right: &(f32, u32)| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1));
            if count < all.len() {
                all.select_nth_unstable_by(count, order);
                all.truncate(count);
            }
            all.sort_unstable_by(order);
        }
        let top = all.into_iter().map(|(logit, token)| (token, logprob(logit))).collect();
        Self { logprob: logprob(own), rank, top }
    }
}
