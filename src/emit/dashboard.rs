//! The panels of the Grafana dashboard.

use gemma4_plan::Plan;
use serde::Serialize;

use super::Service;
use super::signals::{KV_PAGE, KV_WARNING, Selector, has_statistics, pool_share, ttft_bound};
use crate::words::commas;

/// A graph over time.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Panel {
    /// Number in the dashboard.
    id: usize,
    /// Its title.
    title: String,
    /// What to look for, with the plan's numbers.
    description: String,
    /// Grafana's unit.
    unit: &'static str,
    /// Upper end of the axis, where there is one.
    max: Option<f64>,
    /// Lines that mark a bound: value and colour.
    lines: Vec<(f64, &'static str)>,
    /// The curves.
    targets: Vec<Target>,
    /// Place, in Grafana's 24 columns.
    x: usize,
    /// Place, in rows.
    y: usize,
}

#[derive(Debug, Clone, Serialize)]
struct Target {
    /// `A`, `B`, `C`.
    id: char,
    expr: String,
    legend: String,
}

/// Collects panels two in a row.
struct Grid(Vec<Panel>);

impl Grid {
    fn add(
        &mut self,
        title: &str,
        unit: &'static str,
        description: String,
        targets: Vec<(String, &str)>,
    ) -> &mut Panel {
        let index = self.0.len();
        let targets = targets
            .into_iter()
            .zip('A'..)
            .map(|((expr, legend), id)| Target { id, expr, legend: legend.to_owned() })
            .collect();
        self.0.push(Panel {
            id: index + 1,
            title: title.to_owned(),
            description,
            unit,
            max: None,
            lines: Vec::new(),
            targets,
            x: index % 2 * 12,
            y: index / 2 * 8,
        });
        &mut self.0[index]
    }
}

/// The panels of a plan.
pub(super) fn panels(plan: &Plan, service: &Service) -> Vec<Panel> {
    let selector = Selector::new(plan, service);
    let sum = |metric: &str| format!("sum({})", selector.engine(metric, ""));
    let rate = |metric: &str| format!("sum(rate({}[$__rate_interval]))", selector.engine(metric, ""));
    let ratio = |part: &str, whole: &str| format!("{} / {}", rate(part), rate(whole));
    let quantiles = |metric: &str| {
        [("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99")]
            .map(|(quantile, legend)| {
                let bucket = selector.engine(&format!("{metric}_bucket"), "");
                let sum = format!("sum by (le) (rate({bucket}[$__rate_interval]))");
                (format!("histogram_quantile({quantile}, {sum})"), legend)
            })
            .to_vec()
    };
    let mut grid = Grid(Vec::new());
    grid.add(
        "Replicas that answer",
        "short",
        format!(
            "A replica answers when every program is compiled; a start may take {} s.",
            commas(service.ready_seconds)
        ),
        vec![(format!("sum({}) or vector(0)", selector.job("up", "")), "replicas")],
    );
    if !has_statistics(plan) {
        return grid.0;
    }
    grid.add(
        "Requests",
        "short",
        format!("At most {} run at once on one replica; the rest wait.", commas(plan.scheduler.max_num_seqs)),
        vec![(sum("vllm:num_requests_running"), "running"), (sum("vllm:num_requests_waiting"), "waiting")],
    );
    let kv = grid.add(
        "KV cache in use",
        "percentunit",
        format!(
            "The pool holds {} tokens in {} blocks: {:.2} sequences of {} tokens. The lines stand at 85 % ({} tokens) and \
             97 % ({} tokens), where alerts fire.",
            commas(plan.kv_cache.tokens),
            commas(plan.kv_cache.blocks),
            plan.kv_cache.max_concurrency,
            commas(plan.scheduler.max_model_len),
            commas(pool_share(plan, KV_WARNING)),
            commas(pool_share(plan, KV_PAGE))
        ),
        vec![(selector.engine("vllm:kv_cache_usage_perc", ""), "{{instance}} engine {{engine}}")],
    );
    kv.max = Some(1.0);
    kv.lines = vec![(KV_WARNING, "orange"), (KV_PAGE, "red")];
    grid.add(
        "Preemptions",
        "ops",
        "Requests thrown out of the full pool and computed again; zero when the plan suits the load.".to_owned(),
        vec![(rate("vllm:num_preemptions_total"), "preemptions")],
    );
    let (bound, why) = ttft_bound(plan);
    let first = grid.add(
        "Time to first token",
        "s",
        format!("The line is the alert's bound, {bound} s: {why}."),
        quantiles("vllm:time_to_first_token_seconds"),
    );
    first.lines = vec![(bound, "orange")];
    grid.add(
        "Time between tokens",
        "s",
        "What a reader feels once text flows; prefills of others push it up.".to_owned(),
        quantiles("vllm:inter_token_latency_seconds"),
    );
    grid.add(
        "Whole requests",
        "s",
        "From arrival to the last token, queue included.".to_owned(),
        quantiles("vllm:e2e_request_latency_seconds"),
    );
    grid.add(
        "Time in the queue",
        "s",
        "What the time to first token holds beside computing.".to_owned(),
        quantiles("vllm:request_queue_time_seconds"),
    );
    grid.add(
        "Tokens a second",
        "short",
        format!("A step takes {} tokens at most.", commas(plan.scheduler.max_num_batched_tokens)),
        vec![(rate("vllm:prompt_tokens_total"), "prompt"), (rate("vllm:generation_tokens_total"), "generation")],
    );
    if plan.scheduler.prefix_caching {
        grid.add(
            "Prefix cache, hit ratio",
            "percentunit",
            "Share of prompt tokens that were found in the pool.".to_owned(),
            vec![(ratio("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"), "hits")],
        )
        .max = Some(1.0);
    }
    if let Some(speculative) = &plan.speculative {
        grid.add(
            "Draft tokens accepted",
            "percentunit",
            format!(
                "Method {}, {} draft tokens a step. A share near zero means that speculation only costs.",
                speculative.method, speculative.num_tokens
            ),
            vec![(
                ratio("vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_draft_tokens_total"),
                "accepted",
            )],
        )
        .max = Some(1.0);
        grid.add(
            "Tokens a step under speculation",
            "short",
            format!("One by the model itself and those that were accepted; at most {}.", speculative.num_tokens + 1),
            vec![(
                format!(
                    "1 + {}",
                    ratio("vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_drafts_total")
                ),
                "mean length",
            )],
        );
    }
    if plan.engine.kind == "bundled" {
        grid.add(
            "Programs compiled while serving",
            "short",
            format!(
                "Stays at zero: all {} programs are compiled before the service is ready.",
                commas(plan.buckets.graphs.unwrap_or_default())
            ),
            vec![(
                format!(
                    "sum(increase({}[$__rate_interval]))",
                    selector.job("gemma4ctl:compiles_while_serving_total", "")
                ),
                "compiles",
            )],
        );
    }
    grid.0
}
