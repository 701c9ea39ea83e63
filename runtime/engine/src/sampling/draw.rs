//! Drawing a token from what temperature, min-p, top-k and top-p leave.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::{SampleError, SamplingParams};

/// A token that can be drawn, and its scaled logit, later its weight.
pub(super) type Candidate = (f32, u32);

/// How many candidates top-p sorts first; more are sorted only when these are not enough.
const FIRST_SORTED: usize = 256;

/// A number in 0..1 that depends on the seed and the place in the sequence, and on nothing else.
pub(super) fn uniform(seed: u64, position: usize) -> f64 {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(u64::try_from(position).unwrap_or(u64::MAX));
    // As many bits as a double's fraction holds.
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Draws with `uniform` from 0..1.
pub(super) fn draw(
    logits: &[f32],
    params: &SamplingParams,
    uniform: f64,
    candidates: &mut Vec<Candidate>,
) -> Result<u32, SampleError> {
    candidates.clear();
    let mut largest = f32::NEG_INFINITY;
    for (token, &logit) in (0_u32..).zip(logits) {
        if logit.is_nan() {
            return Err(SampleError::NotANumber);
        }
        if logit > f32::NEG_INFINITY {
            candidates.push((logit, token));
            largest = largest.max(logit);
        }
    }
    if candidates.is_empty() {
        return Err(SampleError::NothingLeft);
    }
    if let Some(count) = params.top_k.and_then(|count| usize::try_from(count).ok())
        && count < candidates.len()
    {
        candidates.select_nth_unstable_by(count, descending);
        candidates.truncate(count);
        // Selection leaves them in an order of its own.
        candidates.sort_unstable_by_key(|candidate| candidate.1);
    }
    for (logit, _) in candidates.iter_mut() {
        // From here on a weight: the probability over that of the best token.
        *logit = ((*logit - largest) / params.temperature).exp();
    }
    if params.min_p > 0.0 {
        candidates.retain(|(weight, _)| *weight >= params.min_p);
    }
    if params.top_p < 1.0 {
        cut_at(candidates, params.top_p);
    }
    let sum: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let mut left = uniform * sum;
    for &(weight, token) in candidates.iter() {
        left -= f64::from(weight);
        if left < 0.0 {
            return Ok(token);
        }
    }
    // Rounding can leave a rest; it belongs to the last token that has a weight.
    let last = candidates.iter().rev().find(|(weight, _)| *weight > 0.0);
    last.map(|(_, token)| *token).ok_or(SampleError::NothingLeft)
}

/// Leaves the fewest best tokens whose probabilities reach `top_p` together.
fn cut_at(candidates: &mut Vec<Candidate>, top_p: f32) {
    let sum: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let wanted = sum * f64::from(top_p);
    let mut sorted = FIRST_SORTED.min(candidates.len());
    loop {
        if sorted < candidates.len() {
            candidates.select_nth_unstable_by(sorted, descending);
        }
        let first = candidates.get_mut(..sorted).unwrap_or_default();
        first.sort_unstable_by(descending);
        let mut reached = 0.0;
        let enough = first.iter().position(|(weight, _)| {
            reached += f64::from(*weight);
            reached >= wanted
        });
        match enough {
            Some(last) => return candidates.truncate(last + 1),
            None if sorted == candidates.len() => return,
            None => sorted = sorted.saturating_mul(8).min(candidates.len()),
        }
    }
}

/// The largest first; of equal ones the smaller token id.
fn descending(left: &Candidate, right: &Candidate) -> std::cmp::Ordering {
    right.0.total_cmp(&left.0).then(left.1.cmp(&right.1))
}
