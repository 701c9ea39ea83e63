//! Natural logarithms of probabilities.

use std::num::NonZeroUsize;
use std::thread;

use super::SampleError;
use crate::runner::Logits;

/// Rows for each thread at least: starting one takes as long as a fraction of a row of a published model's vocabulary.
const ROWS_OF_A_THREAD: usize = 2;

/// The logprob of a token that was sampled or came with a prompt, and of the best ones.
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
        let top = best(logits, count).into_iter().map(|(logit, token)| (token, logprob(logit))).collect();
        Self { logprob: logprob(own), rank, top }
    }

    /// Of tokens of a prompt, each with the row of a step's logits that it comes from and how many of the best are wanted.
    /// Each row costs a pass or more over the vocabulary, so processors share them: everybody else's next token waits.
    ///
    /// # Errors
    /// [`SampleError::NotANumber`] for each row whose logits are not all numbers.
    pub fn of_prompts(logits: &Logits, wanted: &[(usize, u32, usize)]) -> Vec<Result<Self, SampleError>> {
        let of = |&(row, token, count): &(usize, u32, usize)| {
            let logprobs = Self::of(logits.unmasked_row(row), token, count);
            // A single one makes the normalizer one, and with it everything else.
            if logprobs.logprob.is_nan() { Err(SampleError::NotANumber) } else { Ok(logprobs) }
        };
        if wanted.is_empty() {
            return Vec::new();
        }
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let share = wanted.len().div_ceil(threads).max(ROWS_OF_A_THREAD);
        let mut shares = wanted.chunks(share);
        let Some(own) = shares.next() else { return Vec::new() };
        thread::scope(|scope| {
            let others: Vec<_> =
                shares.map(|share| scope.spawn(move || share.iter().map(of).collect::<Vec<_>>())).collect();
            let mut all: Vec<_> = own.iter().map(of).collect();
            for other in others {
                all.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            all
        })
    }
}

/// The `count` largest logits with their tokens, the largest first; of equal ones the first. Takes room for a few times as
/// many, not for the vocabulary: logprobs of a prompt's tokens stay until all of them are there.
fn best(logits: &[f32], count: usize) -> Vec<(f32, u32)> {
    let order = |left: &(f32, u32), right: &(f32, u32)| right.0.total_cmp(&left.0).then(left.1.cmp(&right.1));
    let most = count.min(logits.len());
    let mut best: Vec<(f32, u32)> = Vec::with_capacity(most.saturating_mul(2));
    // What is not above it is not among the best; it rises as they are found.
    let mut floor: Option<f32> = None;
    for (&logit, token) in logits.iter().zip(0_u32..).take(if most > 0 { logits.len() } else { 0 }) {
        if floor.is_some_and(|floor| logit.total_cmp(&floor).is_le()) {
            continue;
        }
        best.push((logit, token));
        if best.len() == most.saturating_mul(2) {
            let (_, last, _) = best.select_nth_unstable_by(most - 1, order);
            floor = Some(last.0);
            best.truncate(most);
        }
    }
    best.sort_unstable_by(order);
    best.truncate(most);
    best
}
