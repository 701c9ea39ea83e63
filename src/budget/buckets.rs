//! The shapes that are compiled: token counts, sequence counts, logits rows.
//!
//! The rules are those of tpu-inference (`runner/utils.py`: `get_token_paddings`, `build_token_paddings`,
//! `get_req_paddings`), the same in 0.20 to 0.32 but for the cap since 0.30. The bundled engine uses the newer form.

use gemma4_engine::steps::draft_buckets;
use gemma4_plan::Buckets;

use crate::catalog::Version;
use crate::profile::EngineKind;
use crate::resolve::Resolved;

/// Smallest token bucket, `MIN_TOKEN_BUCKET` of tpu-inference.
pub const MIN_TOKENS: u64 = 16;

/// Smallest request bucket, `MIN_NUM_SEQS` of tpu-inference.
pub const MIN_REQUESTS: u64 = 8;

/// Most buckets that are listed; `padding-gap-shape` reports a finer ladder.
pub const MAX_BUCKETS: usize = 1 << 14;

/// The ladder from `smallest` to at least `largest`: powers of two up to `gap`, then steps of `gap`; powers of two
/// throughout for a gap of 0.
pub fn ladder(smallest: u64, largest: u64, gap: u64) -> Vec<u64> {
    let smallest = smallest.max(1);
    let mut buckets = Vec::new();
    if gap == 0 {
        let mut value = smallest;
        loop {
            buckets.push(value);
            if value >= largest {
                return buckets;
            }
            value = value.saturating_mul(2);
        }
    }
    let mut value = smallest;
    while value <= gap && buckets.len() < MAX_BUCKETS {
        buckets.push(value);
        value = value.saturating_mul(2);
    }
    let mut value = buckets.last().copied().unwrap_or(smallest / 2);
    while value < largest && buckets.len() < MAX_BUCKETS {
        value += gap;
        buckets.push(value);
    }
    buckets
}

/// Token buckets. Up to 0.29 the last bucket may exceed the budget; since 0.30 the budget itself is the last.
pub fn tokens(smallest: u64, budget: u64, gap: u64, capped: bool) -> Vec<u64> {
    let mut buckets = ladder(smallest, budget, gap);
    if capped {
        let budget = budget.div_ceil(smallest) * smallest;
        buckets.retain(|&bucket| bucket <= budget);
        buckets.push(budget);
    }
    buckets.sort_unstable();
    buckets.dedup();
    buckets
}

/// Request buckets for at most `max_num_seqs` sequences.
pub fn requests(max_num_seqs: u64) -> Vec<u64> {
    let largest = max_num_seqs.max(MIN_REQUESTS);
    let mut buckets = vec![MIN_REQUESTS];
    let mut current = MIN_REQUESTS;
    while current < largest {
        current = (current + 1).next_power_of_two().min(largest);
        buckets.push(current);
    }
    buckets
}

/// Rows of the logits of tpu-inference under speculation with `drafts` tokens a step.
pub fn logits(max_num_seqs: u64, drafts: u64) -> Vec<u64> {
    ladder(MIN_REQUESTS, max_num_seqs.max(MIN_REQUESTS).saturating_mul(drafts + 1), 0)
}

/// Programs that tpu-inference compiles at start-up (`compilation_manager.py`: `capture_model`).
///
/// The figure for a budget of 4,096 tokens, 256 sequences and no gap, 199, is that of a real boot.
pub fn programs(tokens: &[u64], requests: &[u64], multimodal: bool, asynchronous: bool) -> u64 {
    let (t, r) = (tokens.len() as u64, requests.len() as u64);
    let prompt_logprobs = tokens.iter().filter(|&&bucket| bucket <= 1024).count() as u64;
    let mut union: Vec<u64> = tokens.iter().chain(requests).copied().collect();
    union.sort_unstable();
    union.dedup();
    let substitute = if asynchronous { union.len() as u64 * (1 + r) } else { 0 };
    let select =
        tokens.iter().map(|&bucket| requests.iter().filter(|&&request| request <= bucket).count() as u64).sum::<u64>();
    let media = if multimodal { 3 * t } else { 0 };
    4 * r + r + prompt_logprobs + t + media + substitute + select + r + r
}

/// Whether programs are compiled when a request first needs them rather than before the service is ready.
pub fn skips_compilation(resolved: &Resolved) -> bool {
    let skip = resolved.env.get("SKIP_JAX_PRECOMPILE").map(String::as_str);
    matches!(skip, Some("1" | "true" | "True" | "TRUE"))
        || resolved.extra_args.iter().any(|argument| argument == "--enforce-eager")
}

/// Programs compiled before the service is ready, and the seconds that a start takes when nothing is cached.
///
/// The number is left out under speculation, whose own programs are not counted here. The seconds are scaled by layers
/// from one measured start, and never below a start that was observed with this model and slice.
fn cold_start(resolved: &Resolved, tokens: &[u64], requests: &[u64]) -> (Option<u64>, Option<u64>) {
    if skips_compilation(resolved) {
        return (None, None);
    }
    let speculative = resolved.speculative.is_some();
    let observed = resolved.engine.starts.iter().find(|start| {
        start.family == resolved.accelerator.family
            && start.size == resolved.model.size
            && start.tensor == u64::from(resolved.tensor)
            && start.speculative == speculative
    });
    let multimodal = resolved.is_multimodal() && !resolved.text_only();
    // N-gram speculation switches asynchronous scheduling off.
    let asynchronous = resolved.limits.async_scheduling != Some(false) && !speculative;
    let graphs = programs(tokens, requests, multimodal, asynchronous);
    let estimate = resolved.engine.compile.map(|times| {
        let backbone = tokens.len() as f64;
        let others = graphs as f64 - backbone * if multimodal { 2.0 } else { 1.0 };
        let media = if multimodal { times.seconds_per_media_bucket } else { 0.0 };
        let layers = resolved.model.config.text.layers.len() as f64 / times.layers.max(1) as f64;
        (backbone * (times.seconds_per_token_bucket + media) * layers + others * times.seconds_per_program) as u64
    });
    ((!speculative).then_some(graphs), estimate.max(observed.map(|start| start.seconds)))
}

/// The buckets of a resolved profile.
pub fn compute(resolved: &Resolved) -> Buckets {
    let budget = resolved.limits.max_num_batched_tokens;
    let drafts = resolved.speculative.as_ref().map(|speculative| speculative.num_tokens);
    match resolved.kind {
        EngineKind::VllmGpu => Buckets {
            tokens: Vec::new(),
            requests: Vec::new(),
            logits: Vec::new(),
            graphs: None,
            compile_seconds: None,
        },
        EngineKind::Bundled => {
            let tokens = tokens(MIN_TOKENS, budget, resolved.limits.padding_gap, true);
            let requests = requests(resolved.limits.max_num_seqs);
            let drafts = drafts.map(|drafts| draft_buckets(&tokens, &requests, drafts)).unwrap_or_default();
            let graphs = tokens.len() as u64 * requests.len() as u64 + drafts.len() as u64;
            let mut logits: Vec<u64> = drafts.iter().map(|bucket| bucket.rows).collect();
            logits.sort_unstable();
            logits.dedup();
            Buckets { tokens, requests, logits, graphs: Some(graphs), compile_seconds: None }
        }
        EngineKind::VllmTpu => {
            // An 8-bit cache packs four entries into a row, a 16-bit one two.
            let packing = 32 / resolved.memory.kv_dtype.bits().clamp(1, 32);
            let configured = resolved
                .env
                .get("MIN_TOKEN_BUCKET")
                .filter(|_| resolved.version >= Version::new(0, 25))
                .and_then(|text| text.parse::<u64>().ok())
                .filter(|value| value.is_power_of_two());
            let smallest = configured.unwrap_or(MIN_TOKENS).max(packing);
            let tokens = tokens(smallest, budget, resolved.limits.padding_gap, resolved.version >= Version::new(0, 30));
            let requests = requests(resolved.limits.max_num_seqs);
            let (graphs, compile_seconds) = cold_start(resolved, &tokens, &requests);
            let logits = drafts.map(|drafts| logits(resolved.limits.max_num_seqs, drafts)).unwrap_or_default();
            Buckets { tokens, requests, logits, graphs, compile_seconds }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ladders_are_those_of_tpu_inference() {
        assert_eq!(tokens(16, 4096, 512, false), [16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096]);
        let expected = [
            (2048, [8, 34, 19, 12, 9]),
            (4096, [9, 66, 35, 20, 13]),
            (8192, [10, 130, 67, 36, 21]),
            (16384, [11, 258, 131, 68, 37]),
        ];
        for (budget, lengths) in expected {
            for (gap, length) in [0, 64, 128, 256, 512].into_iter().zip(lengths) {
                assert_eq!(tokens(16, budget, gap, false).len(), length, "budget {budget}, gap {gap}");
            }
        }
        assert_eq!(tokens(16, 2496, 0, false).last(), Some(&4096));
        assert_eq!(tokens(16, 2496, 0, true).last(), Some(&2496));
        assert_eq!(tokens(16, 2496, 512, false).last(), Some(&2560));
        assert_eq!(tokens(16, 2048, 100, false).len(), 23);
        assert_eq!(tokens(16, 2048, 100, true).last(), Some(&2048));
        assert_eq!(tokens(16, 2048, 4096, false).len(), 9);
        assert_eq!(tokens(16, 2048, 4096, true).len(), 8);
        assert_eq!(tokens(16, 2048, 8, false)[..3], [16, 24, 32]);
        assert_eq!(tokens(16, 8192, 8, false).len(), 1023);
    }

    #[test]
    fn request_buckets_double_up_to_the_limit() {
        assert_eq!(requests(4), [8]);
        assert_eq!(requests(16), [8, 16]);
        assert_eq!(requests(100), [8, 16, 32, 64, 100]);
        assert_eq!(requests(256), [8, 16, 32, 64, 128, 256]);
        assert_eq!(requests(1024).len(), 8);
    }

    #[test]
    fn program_counts_equal_the_observed_boot() {
        let cases = [
            (512, 0, 16, 77, 59),
            (4096, 0, 16, 105, 78),
            (2048, 0, 256, 182, 158),
            (4096, 0, 256, 199, 172),
            (4096, 512, 256, 267, 228),
            (4096, 64, 256, 1178, 980),
            (8192, 64, 256, 2266, 1876),
        ];
        for (budget, gap, seqs, media, text) in cases {
            let (tokens, requests) = (tokens(16, budget, gap, false), requests(seqs));
            assert_eq!(programs(&tokens, &requests, true, true), media, "budget {budget}, gap {gap}");
            assert_eq!(programs(&tokens, &requests, false, true), text, "budget {budget}, gap {gap}");
        }
    }

    #[test]
    fn logits_rows_grow_with_drafts() {
        assert_eq!(logits(256, 3).len(), 8);
        assert_eq!(logits(256, 5).last(), Some(&2048));
        assert_eq!(logits(16, 3), [8, 16, 32, 64]);
    }
}
