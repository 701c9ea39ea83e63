//! What the engine counts, copied when somebody asks.

use std::sync::{Arc, Mutex, PoisonError};

use gemma4_engine::engine::{STEP_TOKENS, Statistics};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{Bucket, Histogram, Metric, MetricFamily, MetricType};
use prometheus::{Counter, Gauge, GaugeVec, IntCounter};

use super::families::Families;

/// vLLM's histogram of the tokens of a step.
const STEPS: &str = "vllm:iteration_tokens_total";
const STEPS_HELP: &str = "Tokens that a step computed.";

/// The series.
pub(super) struct EngineMetrics {
    running: Gauge,
    waiting: Gauge,
    waiting_by_reason: GaugeVec,
    usage: Gauge,
    preemptions: IntCounter,
    prefix_queries: IntCounter,
    prefix_hits: IntCounter,
    compiles: IntCounter,
    cache_hits: IntCounter,
    cache_misses: IntCounter,
    padding: IntCounter,
    computed: IntCounter,
    skipped: IntCounter,
    masked: IntCounter,
    reclaimed: IntCounter,
    busy: Counter,
    device: Counter,
    steps: Arc<Mutex<Steps>>,
}

/// Steps by their tokens, and the tokens of all.
#[derive(Clone, Debug, Default)]
struct Steps {
    counts: [u64; STEP_TOKENS.len() + 1],
    tokens: u64,
}

impl EngineMetrics {
    pub(super) fn new(families: &Families, cache_config: &[(String, String)]) -> Result<Self, prometheus::Error> {
        let steps = Arc::new(Mutex::new(Steps::default()));
        let labels = families.labels().clone();
        let desc = Desc::new(STEPS.to_owned(), STEPS_HELP.to_owned(), Vec::new(), labels)?;
        families.own(Box::new(StepHistogram { desc, steps: Arc::clone(&steps) }))?;
        families.info("vllm:cache_config_info", "Settings of the KV cache.", cache_config)?;
        let waiting_by_reason = families.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Requests that wait, by what they wait for.",
            "reason",
        )?;
        waiting_by_reason.with_label_values(&["deferred"]);
        Ok(Self {
            waiting_by_reason,
            running: families.gauge("vllm:num_requests_running", "Requests that hold pages of the KV cache.")?,
            waiting: families.gauge("vllm:num_requests_waiting", "Requests that wait for pages or for a place.")?,
            usage: families.gauge("vllm:kv_cache_usage_perc", "Share of the KV pages in use; 1 means all.")?,
            preemptions: families.counter(
                "vllm:num_preemptions_total",
                "Times that a request gave its pages back, to be computed again.",
            )?,
            prefix_queries: families
                .counter("vllm:prefix_cache_queries_total", "Tokens looked for in the prefix cache.")?,
            prefix_hits: families.counter("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.")?,
            compiles: families.counter(
                "gemma4ctl:compiles_while_serving_total",
                "Programs compiled while a request waited for them; anything but 0 is a bug.",
            )?,
            cache_hits: families.counter(
                "gemma4ctl:warm_cache_hits_total",
                "Programs that came compiled from the cache at the start.",
            )?,
            cache_misses: families
                .counter("gemma4ctl:warm_cache_misses_total", "Programs that were compiled at the start.")?,
            padding: families
                .counter("gemma4ctl:padding_tokens_total", "Token rows of steps that only filled a bucket.")?,
            computed: families.counter("gemma4ctl:computed_tokens_total", "Token rows of steps that were real.")?,
            skipped: families.counter(
                "gemma4ctl:fast_prefill_skipped_tokens_total",
                "Token rows of steps that were real and that the layers which share KV did not run for.",
            )?,
            masked: families.counter(
                "gemma4ctl:masked_steps_total",
                "Steps whose logits were masked on the devices, for requests that keep to a grammar.",
            )?,
            reclaimed: families.counter(
                "gemma4ctl:window_blocks_reclaimed_total",
                "Blocks given back because they fell behind a window.",
            )?,
            busy: families.seconds(
                "gemma4ctl:busy_seconds_total",
                "Seconds in which the engine had a step to plan, run or tell of.",
            )?,
            device: families.seconds(
                "gemma4ctl:device_seconds_total",
                "Seconds of those in which a step was on the devices; the rest is the host's alone.",
            )?,
            steps,
        })
    }

    pub(super) fn copy(&self, statistics: &Statistics) {
        let load = &statistics.load;
        let pages = &load.pages;
        let all = pages.free + pages.cached + pages.used;
        self.running.set(load.running as f64);
        self.waiting.set(load.waiting as f64);
        // Nothing else is waited for: there are no grammars to compile and no transfers.
        self.waiting_by_reason.with_label_values(&["capacity"]).set(load.waiting as f64);
        self.usage.set(if all == 0 { 0.0 } else { pages.used as f64 / all as f64 });
        let totals = &load.totals;
        for (counter, total) in [
            (&self.preemptions, totals.preemptions),
            (&self.prefix_queries, totals.prefix_queries),
            (&self.prefix_hits, totals.prefix_hits),
            (&self.compiles, statistics.compiles_while_serving),
            (&self.cache_hits, statistics.warm_cache_hits),
            (&self.cache_misses, statistics.warm_cache_misses),
            (&self.padding, totals.padding_rows),
            (&self.computed, statistics.computed_tokens),
            (&self.skipped, statistics.fast_prefill_skipped_tokens),
            (&self.masked, statistics.masked_steps),
            (&self.reclaimed, totals.window_blocks_reclaimed),
        ] {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        for (counter, total) in [(&self.busy, statistics.busy), (&self.device, statistics.device)] {
            counter.inc_by((total.as_secs_f64() - counter.get()).max(0.0));
        }
        let steps = Steps { counts: statistics.step_tokens, tokens: statistics.computed_tokens };
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner) = steps;
    }
}

/// A histogram that somebody else counted.
struct StepHistogram {
    desc: Desc,
    steps: Arc<Mutex<Steps>>,
}

impl Collector for StepHistogram {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut histogram = Histogram::default();
        let mut total = 0;
        let mut buckets = Vec::with_capacity(STEP_TOKENS.len());
        for (bound, count) in STEP_TOKENS.iter().zip(steps.counts) {
            total += count;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound as f64);
            bucket.set_cumulative_count(total);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(steps.counts.iter().sum());
        histogram.set_sample_sum(steps.tokens as f64);
        let mut metric = Metric::default();
        metric.set_label(self.desc.const_label_pairs.clone());
        metric.set_histogram(histogram);
        let mut family = MetricFamily::default();
        family.set_name(STEPS.to_owned());
        family.set_help(STEPS_HELP.to_owned());
        family.set_field_type(MetricType::HISTOGRAM);
        family.set_metric(vec![metric]);
        vec![family]
    }
}
