//! What became of drafts, copied when somebody asks.

use gemma4_engine::speculation::SpeculationTotals;
use prometheus::{IntCounter, IntCounterVec};

use super::families::Families;

/// The series.
pub(super) struct SpeculationMetrics {
    drafts: IntCounter,
    draft_tokens: IntCounter,
    accepted_tokens: IntCounter,
    accepted_per_position: IntCounterVec,
    declined_tokens: IntCounter,
}

impl SpeculationMetrics {
    pub(super) fn new(families: &Families, totals: &SpeculationTotals) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            drafts: families
                .counter("vllm:spec_decode_num_drafts_total", "Drafts that were computed, one a sequence and step.")?,
            draft_tokens: families.counter("vllm:spec_decode_num_draft_tokens_total", "Tokens of drafts.")?,
            accepted_tokens: families
                .counter("vllm:spec_decode_num_accepted_tokens_total", "Draft tokens that were kept.")?,
            accepted_per_position: families.counters(
                "vllm:spec_decode_num_accepted_tokens_per_pos_total",
                "Draft tokens that were kept, by their place in the draft.",
                "position",
            )?,
            declined_tokens: families.counter(
                "gemma4ctl:declined_draft_tokens_total",
                "Draft tokens that were looked up and not computed: they would not have paid, or had no room.",
            )?,
        };
        // All positions are there from the start.
        metrics.copy(totals);
        Ok(metrics)
    }

    pub(super) fn copy(&self, totals: &SpeculationTotals) {
        let raise = |counter: &IntCounter, total: u64| counter.inc_by(total.saturating_sub(counter.get()));
        raise(&self.drafts, totals.drafts);
        raise(&self.draft_tokens, totals.draft_tokens);
        raise(&self.accepted_tokens, totals.accepted_tokens);
        raise(&self.declined_tokens, totals.declined_tokens);
        for (position, &total) in totals.accepted_per_position.iter().enumerate() {
            raise(&self.accepted_per_position.with_label_values(&[position.to_string().as_str()]), total);
        }
    }
}
