//! What alerts, dashboard and runbook agree on: how series are named, and at which of the plan's numbers to worry.

use gemma4_plan::Plan;

use super::Service;
use crate::words::{commas, plural};

/// Share of the KV pool above which requests will soon wait.
pub(super) const KV_WARNING: f64 = 0.85;
/// Share of the KV pool above which running requests are about to be preempted.
pub(super) const KV_PAGE: f64 = 0.97;
/// What a step with a full bucket is allowed to take, in seconds: an assumption, generous for every accelerator of the
/// catalog, since no figure of the plan says it.
const STEP_SECONDS: f64 = 0.5;
/// vLLM's histogram bounds of the time to the first token: a quantile is exact only at a bound.
const TTFT_BOUNDS: [f64; 9] = [2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0];
/// How rules name the series of this service.
#[derive(Debug, Clone)]
pub(super) struct Selector {
    /// Value of the label `model_name`.
    model: String,
    /// Value of the label `job`, which the scrape configuration gives.
    pub(super) job: String,
}

impl Selector {
    /// Reads a plan.
    pub(super) fn new(plan: &Plan, service: &Service) -> Self {
        let served = plan.engine.argv.iter().position(|word| word == "--served-model-name");
        let served = served.and_then(|at| plan.engine.argv.get(at + 1));
        Selector { model: served.unwrap_or(&plan.model.id).clone(), job: service.name.clone() }
    }

    /// The model's name as clients say it.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// A series of the engine, with more matchers.
    pub(super) fn engine(&self, metric: &str, more: &str) -> String {
        format!("{metric}{{model_name={}{more}}}", quoted(&self.model))
    }

    /// A series of the scrape or of the HTTP server, which know nothing of models.
    pub(super) fn job(&self, metric: &str, more: &str) -> String {
        format!("{metric}{{job={}{more}}}", quoted(&self.job))
    }

    /// A series in a test as an engine exports it.
    pub(super) fn sample(&self, metric: &str, more: &str) -> String {
        format!(r#"{metric}{{model_name={},engine="0"{more}}}"#, quoted(&self.model))
    }

    /// The labels that such a series leaves on an alert.
    pub(super) fn sample_labels(&self) -> Vec<(String, String)> {
        vec![("engine".to_owned(), "0".to_owned()), ("model_name".to_owned(), self.model.clone())]
    }
}

/// A PromQL string.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// Seconds in Prometheus' units.
pub(super) fn span(seconds: u64) -> String {
    if seconds > 0 && seconds.is_multiple_of(60) { format!("{}m", seconds / 60) } else { format!("{seconds}s") }
}

/// Whether the engine's own series are exported.
pub(super) fn has_statistics(plan: &Plan) -> bool {
    !plan.engine.argv.iter().any(|word| word == "--disable-log-stats")
}

/// Tokens of the pool of one model copy at a share of it.
pub(super) fn pool_share(plan: &Plan, share: f64) -> u64 {
    (plan.kv_cache.tokens as f64 * share) as u64
}

/// The bound for the 95th percentile of the time to the first token, and how it came about.
///
/// Prompt tokens that stand in front of the last token of the last prompt, in steps of the token budget, at
/// [`STEP_SECONDS`] a step, rounded up to a bound of the histogram.
pub(super) fn ttft_bound(plan: &Plan) -> (f64, String) {
    let budget = plan.scheduler.max_num_batched_tokens.max(1);
    let sized = plan.workload.as_ref().and_then(|workload| Some((workload.concurrency?, workload.input_tokens?)));
    let (tokens, whose) = match sized {
        Some((users, input)) => (
            users.saturating_mul(input),
            format!("the last of the workload's {} prompts of {} tokens at once", commas(users), commas(input)),
        ),
        None => {
            let longest = plan.scheduler.max_model_len;
            (longest.saturating_mul(2), format!("a prompt of {} tokens behind another such prompt", commas(longest)))
        }
    };
    let steps = tokens.div_ceil(budget);
    let seconds = steps as f64 * STEP_SECONDS;
    let bound = TTFT_BOUNDS.into_iter().find(|bound| *bound >= seconds).unwrap_or(640.0);
    let why = format!(
        "{whose} takes {} of at most {} tokens; at {STEP_SECONDS} s a step that is {seconds} s, and {bound} s is the \
         histogram's next bound",
        plural(steps as usize, "step"),
        commas(budget)
    );
    (bound, why)
}
