//! The families of series that requests fill.

use std::collections::HashMap;

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry,
};

/// vLLM's bounds for whole requests and their phases, in seconds.
const REQUEST_SECONDS: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// vLLM's bounds for the time to the first token, in seconds.
const FIRST_TOKEN_SECONDS: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// vLLM's bounds for the time between tokens, in seconds.
const TOKEN_SECONDS: [f64; 19] =
    [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// vLLM's bounds for answers to one prompt.
const ANSWERS: [f64; 5] = [1.0, 2.0, 5.0, 10.0, 20.0];

/// Where series are registered, and the labels that all of vLLM's have.
pub(super) struct Families {
    pub(super) registry: Registry,
    labels: HashMap<String, String>,
}

impl Families {
    pub(super) fn new(model: &str) -> Self {
        let labels = [("model_name", model), ("engine", "0")];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self { registry: Registry::new(), labels: labels.into() }
    }

    fn opts(&self, name: &str, help: &str) -> Opts {
        Opts::new(name, help).const_labels(self.labels.clone())
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::with_opts(self.opts(name, help))?)
    }

    pub(super) fn seconds(&self, name: &str, help: &str) -> Result<Counter, prometheus::Error> {
        self.add(Counter::with_opts(self.opts(name, help))?)
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.add(Gauge::with_opts(self.opts(name, help))?)
    }

    /// A series whose labels say something and whose value is 1.
    pub(super) fn info(&self, name: &str, help: &str, labels: &[(String, String)]) -> Result<(), prometheus::Error> {
        let mut opts = self.opts(name, help);
        opts.const_labels.extend(labels.iter().cloned());
        self.add(Gauge::with_opts(opts)?)?.set(1.0);
        Ok(())
    }

    pub(super) fn gauges(&self, name: &str, help: &str, label: &str) -> Result<GaugeVec, prometheus::Error> {
        self.add(GaugeVec::new(self.opts(name, help), &[label])?)
    }

    pub(super) fn counters(&self, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(self.opts(name, help), &[label])?)
    }

    fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram, prometheus::Error> {
        let opts = HistogramOpts { common_opts: self.opts(name, help), buckets: bounds.to_vec() };
        self.add(Histogram::with_opts(opts)?)
    }

    /// A collector that makes its families itself.
    pub(super) fn own(&self, collector: Box<dyn Collector>) -> Result<(), prometheus::Error> {
        self.registry.register(collector)
    }

    /// The labels that all of vLLM's series have.
    pub(super) const fn labels(&self) -> &HashMap<String, String> {
        &self.labels
    }
}

/// What requests fill.
pub(super) struct RequestMetrics {
    pub(super) http_requests: CounterVec,
    pub(super) http_seconds: HistogramVec,
    pub(super) prompt_tokens: IntCounter,
    pub(super) prompt_tokens_cached: IntCounter,
    pub(super) prompt_tokens_by_source: IntCounterVec,
    pub(super) generation_tokens: IntCounter,
    pub(super) success: IntCounterVec,
    pub(super) first_token: Histogram,
    pub(super) inter_token: Histogram,
    pub(super) per_output_token: Histogram,
    pub(super) e2e: Histogram,
    pub(super) queue: Histogram,
    pub(super) inference: Histogram,
    pub(super) prefill: Histogram,
    pub(super) decode: Histogram,
    pub(super) request_prompt_tokens: Histogram,
    pub(super) request_generation_tokens: Histogram,
    pub(super) request_max_generation_tokens: Histogram,
    pub(super) request_computed_tokens: Histogram,
    pub(super) params_n: Histogram,
    pub(super) params_max_tokens: Histogram,
}

/// 1, 2, 5, 10, 20, 50, ... up to the longest sequence, as vLLM has them.
fn token_bounds(longest: usize) -> Vec<f64> {
    let longest = longest as f64;
    let decades = (0..).map(|power| 10_f64.powi(power)).take_while(|decade| *decade <= longest);
    let bounds = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade));
    bounds.filter(|bound| *bound <= longest).collect()
}

impl RequestMetrics {
    pub(super) fn new(families: &Families, longest: usize) -> Result<Self, prometheus::Error> {
        let tokens = token_bounds(longest);
        let seconds = |name: &str, help: &str, bounds: &[f64]| families.histogram(name, help, bounds);
        let lengths = |name: &str, help: &str| families.histogram(name, help, &tokens);
        let http_seconds =
            HistogramOpts::new("http_request_duration_seconds", "Seconds from a request's headers to its last byte.")
                .buckets(REQUEST_SECONDS.to_vec());
        let success = families.counters(
            "vllm:request_success_total",
            "Requests that ended, by the reason.",
            "finished_reason",
        )?;
        for reason in ["stop", "length", "abort", "error", "repetition"] {
            success.with_label_values(&[reason]);
        }
        let by_source = families.counters(
            "vllm:prompt_tokens_by_source_total",
            "Prompt tokens, by where their keys and values came from.",
            "source",
        )?;
        for source in ["local_compute", "local_cache_hit", "external_kv_transfer"] {
            by_source.with_label_values(&[source]);
        }
        Ok(Self {
            http_requests: families.add(CounterVec::new(
                Opts::new("http_requests_total", "Requests, by handler, method and class of status."),
                &["handler", "method", "status"],
            )?)?,
            http_seconds: families.add(HistogramVec::new(http_seconds, &["handler", "method"])?)?,
            prompt_tokens: families.counter("vllm:prompt_tokens_total", "Prompt tokens of requests that began.")?,
            prompt_tokens_cached: families
                .counter("vllm:prompt_tokens_cached_total", "Those of them that were in the cache.")?,
            prompt_tokens_by_source: by_source,
            generation_tokens: families.counter("vllm:generation_tokens_total", "Tokens that were generated.")?,
            success,
            first_token: seconds(
                "vllm:time_to_first_token_seconds",
                "Seconds from a request's arrival to its first token.",
                &FIRST_TOKEN_SECONDS,
            )?,
            inter_token: seconds(
                "vllm:inter_token_latency_seconds",
                "Seconds between a token and the next one of its request.",
                &TOKEN_SECONDS,
            )?,
            per_output_token: seconds(
                "vllm:request_time_per_output_token_seconds",
                "Mean seconds between tokens of a request.",
                &TOKEN_SECONDS,
            )?,
            e2e: seconds(
                "vllm:e2e_request_latency_seconds",
                "Seconds from a request's arrival to its end.",
                &REQUEST_SECONDS,
            )?,
            queue: seconds(
                "vllm:request_queue_time_seconds",
                "Seconds from a request's arrival to its first step.",
                &REQUEST_SECONDS,
            )?,
            inference: seconds(
                "vllm:request_inference_time_seconds",
                "Seconds from a request's first step to its last token.",
                &REQUEST_SECONDS,
            )?,
            prefill: seconds(
                "vllm:request_prefill_time_seconds",
                "Seconds from a request's first step to its first token.",
                &REQUEST_SECONDS,
            )?,
            decode: seconds(
                "vllm:request_decode_time_seconds",
                "Seconds from a request's first token to its last.",
                &REQUEST_SECONDS,
            )?,
            request_prompt_tokens: lengths("vllm:request_prompt_tokens", "Prompt tokens of a request.")?,
            request_generation_tokens: lengths("vllm:request_generation_tokens", "Tokens of an answer.")?,
            request_max_generation_tokens: lengths(
                "vllm:request_max_num_generation_tokens",
                "Tokens of the longest answer to a prompt.",
            )?,
            request_computed_tokens: lengths(
                "vllm:request_prefill_kv_computed_tokens",
                "Prompt tokens of a request that were not in the cache.",
            )?,
            params_n: families.histogram("vllm:request_params_n", "Answers asked for.", &ANSWERS)?,
            params_max_tokens: lengths("vllm:request_params_max_tokens", "Bound on tokens, where a client gave one.")?,
        })
    }
}
