//! Prometheus rules with their tests, and a Grafana dashboard.
//!
//! [`list`] is the one list of alerts: rules, their tests and the runbook are made from it, so a rule cannot exist
//! without its page. Metric names are those of vLLM since its V1 engine; every version that the catalog knows has them,
//! so they do not depend on the plan's version (`gpu_cache_usage_perc` and its like are gone from all of them, and
//! names that only newer versions have are not used). The bundled engine exports the same names.

use gemma4_plan::Plan;
use serde::Serialize;
use serde_json::json;

use super::signals::{KV_PAGE, KV_WARNING, Selector, has_statistics, pool_share, span, ttft_bound};
use super::{Artifact, EmitError, Service, Templates, dashboard};
use crate::words::commas;

/// Stands in a description for the value of the alert's expression.
const VALUE: &str = "VALUE";

/// A rule, its page in the runbook, and its tests.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Alert {
    /// Its name.
    pub(super) name: &'static str,
    /// Where the runbook speaks of it.
    pub(super) anchor: String,
    /// `page` wakes a person, `warning` waits for the morning.
    pub(super) severity: &'static str,
    /// The PromQL expression.
    pub(super) expr: String,
    /// How long it has to hold, in Prometheus' units; none fires at once.
    pub(super) hold: Option<String>,
    /// One line.
    pub(super) summary: String,
    /// What is the matter, with the plan's numbers.
    pub(super) description: String,
    /// What it means.
    pub(super) meaning: String,
    /// What to do, first things first.
    pub(super) actions: Vec<String>,
    /// Cases that fire, and cases that do not.
    pub(super) cases: Vec<Case>,
}

/// A case of promtool's unit tests.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Case {
    /// What it shows.
    title: String,
    /// The input.
    series: Vec<Series>,
    /// When the rule is looked at.
    at: String,
    /// The labels and the description of the alert that fires; none if it must not.
    fires: Option<Fired>,
}

#[derive(Debug, Clone, Serialize)]
struct Series {
    series: String,
    values: String,
}

#[derive(Debug, Clone, Serialize)]
struct Fired {
    labels: Vec<(String, String)>,
    summary: String,
    description: String,
}

/// Seconds between samples in the tests.
const INTERVAL: u64 = 15;
/// Seconds between evaluations in the tests; twice as often takes promtool twice as long.
const EVALUATION: u64 = 30;

/// Text that Prometheus' templates leave as it is.
fn literal(text: &str) -> String {
    text.replace("{{", "{{`{{`}}")
}

/// The alerts of a plan.
pub(super) fn list(plan: &Plan, service: &Service) -> Vec<Alert> {
    let selector = Selector::new(plan, service);
    let mut alerts = vec![no_ready_replica(service, &selector), start_overdue(service, &selector)];
    if service.image.is_some() {
        alerts.push(server_errors(service, &selector));
    }
    if has_statistics(plan) {
        alerts.extend([
            kv_cache_high(plan, &selector),
            kv_cache_full(plan, &selector),
            requests_waiting(plan, &selector),
            queue_growing(plan, &selector),
            slow_first_token(plan, &selector),
            preemptions(plan, &selector),
            request_errors(&selector),
        ]);
    }
    if plan.engine.kind == "bundled" {
        alerts.push(compiles_while_serving(plan, &selector));
    }
    for alert in &mut alerts {
        for fired in alert.cases.iter_mut().filter_map(|case| case.fires.as_mut()) {
            fired.labels.push(("severity".to_owned(), alert.severity.to_owned()));
            fired.labels.push(("service".to_owned(), service.name.clone()));
        }
    }
    alerts
}

fn alert(name: &'static str, severity: &'static str, expr: String, hold: u64) -> Alert {
    Alert {
        name,
        anchor: name.to_ascii_lowercase(),
        severity,
        expr,
        hold: (hold > 0).then(|| span(hold)),
        summary: String::new(),
        description: String::new(),
        meaning: String::new(),
        actions: Vec::new(),
        cases: Vec::new(),
    }
}

impl Alert {
    fn says(mut self, summary: String, description: String) -> Self {
        self.summary = literal(&summary);
        self.description = literal(&description);
        self
    }

    fn means(mut self, meaning: String, actions: Vec<String>) -> Self {
        self.meaning = meaning;
        self.actions = actions;
        self
    }

    /// Lets the description name the value; `shown` is what the cases that fire expect to read.
    fn value(mut self, template: &str, shown: &str) -> Self {
        for fired in self.cases.iter_mut().filter_map(|case| case.fires.as_mut()) {
            fired.description = fired.description.replace(VALUE, shown);
        }
        self.description = self.description.replace(VALUE, template);
        self
    }

    fn fires(self, title: &str, series: Vec<(String, String)>, at: u64, labels: Vec<(String, String)>) -> Self {
        // What Prometheus prints is the text with its templates carried out.
        let shown = |text: &str| text.replace("{{`{{`}}", "{{");
        let (summary, description) = (shown(&self.summary), shown(&self.description));
        self.case(title, series, at, Some(Fired { labels, summary, description }))
    }

    fn silent(self, title: &str, series: Vec<(String, String)>, at: u64) -> Self {
        self.case(title, series, at, None)
    }

    fn case(mut self, title: &str, series: Vec<(String, String)>, at: u64, fires: Option<Fired>) -> Self {
        let title = format!("{}: {title}", self.name);
        let series = series.into_iter().map(|(series, values)| Series { series, values }).collect();
        self.cases.push(Case { title, series, at: span(at), fires });
        self
    }
}

/// Seconds after which a start is overdue, in whole minutes.
pub(super) fn overdue_seconds(service: &Service) -> u64 {
    service.ready_seconds.div_ceil(60) * 60
}

/// Samples of one value for so many seconds.
fn steady(value: &str, seconds: u64) -> String {
    format!("{value}+0x{}", seconds / INTERVAL)
}

/// Samples of a value that grows by `step` each interval, for so many seconds.
fn growing(step: &str, seconds: u64) -> String {
    format!("0+{step}x{}", seconds / INTERVAL)
}

/// Replicas that answer the scrape, zero if nothing is scraped. An engine answers only once it is ready.
fn replicas(selector: &Selector) -> String {
    format!("(sum({}) or vector(0))", selector.job("up", ""))
}

fn no_ready_replica(service: &Service, selector: &Selector) -> Alert {
    let up = selector.job("up", r#",instance="a""#);
    let other = selector.job("up", r#",instance="b""#);
    // Longer than a start may take, so that `Gemma4StartOverdue` has taken over when this one ends.
    let memory = overdue_seconds(service) + 600;
    let served = format!("max(max_over_time({}[{}]))", selector.job("up", ""), span(memory));
    alert("Gemma4NoReadyReplica", "page", format!("{} == 0 and on () {served} == 1", replicas(selector)), 120)
        .says(
            format!("{}: no replica answers", service.name),
            format!(
                "A replica answered within the last {}, and for 2m none does. A first start, which loads and compiles, \
                 does not fire this: see Gemma4StartOverdue.",
                span(memory)
            ),
        )
        .means(
            format!(
                "The service was there and is gone: the process died, the machine was taken back, or Prometheus no longer \
                 reaches port {}. A planned restart looks the same, so silence this alert for one.",
                service.port
            ),
            vec![
                "Look whether the machine is still there, then whether the process runs, then at its last lines \
                 ([check](#check))."
                    .to_owned(),
                "If the process ended by itself, match its last lines with the [known failures](#known-failures) before \
                 it is started again; the restart policy is probably doing that already."
                    .to_owned(),
                format!(
                    "If everything runs, the scrape is at fault: the job must be named `{}` and reach port {}.",
                    service.name, service.port
                ),
            ],
        )
        .fires(
            "the last replica is gone",
            vec![(up.clone(), "1+0x40 0+0x20".to_owned()), (other.clone(), "0+0x60".to_owned())],
            840,
            Vec::new(),
        )
        .fires("the series is gone", vec![(up.clone(), "1+0x40 stale".to_owned())], 840, Vec::new())
        .silent(
            "one of two replicas is left",
            vec![(up.clone(), "1+0x40 0+0x20".to_owned()), (other, "1+0x60".to_owned())],
            840,
        )
        .silent("a first start", vec![(up, steady("0", 900))], 840)
}

fn start_overdue(service: &Service, selector: &Selector) -> Alert {
    let up = selector.job("up", "");
    let ready = overdue_seconds(service);
    alert("Gemma4StartOverdue", "page", format!("{} == 0", replicas(selector)), ready)
        .says(
            format!("{}: still not ready", service.name),
            format!(
                "No replica has answered for {}, longer than downloading, loading and a cold compile of this plan may \
                 take.",
                span(ready)
            ),
        )
        .means(
            format!(
                "The engine opens its port only when every program is compiled, so a start looks like an outage. This \
                 alert waits {}, what this plan allows a cold start; after that it is not coming up by itself.",
                span(ready)
            ),
            vec![
                "Read the log ([check](#check)): it either still moves (a slow download, more programs than planned) or \
                 stands at one of the [known failures](#known-failures)."
                    .to_owned(),
                "A restart loop shows as the same first lines again and again: stop it, and start the previous plan \
                 ([roll back](#roll-back))."
                    .to_owned(),
                "If the machine never came, capacity is what is missing; nothing in the service helps.".to_owned(),
            ],
        )
        .fires("nothing answers", vec![(up.clone(), steady("0", ready + 300))], ready + 120, Vec::new())
        .fires(
            "nothing is scraped",
            vec![(r#"up{job="another"}"#.to_owned(), steady("1", ready + 300))],
            ready + 120,
            Vec::new(),
        )
        .silent("a start within its time", vec![(up.clone(), steady("0", ready - 60))], ready - 60)
        .silent("a replica answers", vec![(up, steady("1", ready + 300))], ready + 120)
}

fn server_errors(service: &Service, selector: &Selector) -> Alert {
    let failed = selector.job("http_requests_total", r#",status=~"5..""#);
    let all = selector.job("http_requests_total", "");
    let good = selector.job("http_requests_total", r#",status="2xx""#);
    let bad = selector.job("http_requests_total", r#",status="5xx""#);
    alert("Gemma4ServerErrors", "page", format!("sum(rate({failed}[5m])) / sum(rate({all}[5m])) > 0.05"), 300)
        .says(
            format!("{}: requests fail", service.name),
            "More than 5 % of the HTTP requests of the last five minutes were answered with a 5xx status.".to_owned(),
        )
        .means(
            "The HTTP side is up and the engine behind it is not well: it died, or each step fails.".to_owned(),
            vec![
                "Look at the log for the first traceback; what follows it is the echo. Match it with the \
             [known failures](#known-failures)."
                    .to_owned(),
                "An engine that died does not come back inside its process: [restart warm](#restart-warm).".to_owned(),
            ],
        )
        .fires(
            "one request in ten fails",
            vec![(good.clone(), growing("90", 1200)), (bad.clone(), growing("10", 1200))],
            1080,
            Vec::new(),
        )
        .silent(
            "one request in a hundred fails",
            vec![(good.clone(), growing("99", 1200)), (bad, growing("1", 1200))],
            1080,
        )
        .silent("no request fails", vec![(good, growing("90", 1200))], 1080)
}

const KV_USAGE: &str = "vllm:kv_cache_usage_perc";

fn kv_cache_high(plan: &Plan, selector: &Selector) -> Alert {
    let usage = selector.engine(KV_USAGE, "");
    let sample = selector.sample(KV_USAGE, "");
    alert("Gemma4KvCacheHigh", "warning", format!("{usage} > {KV_WARNING}"), 300)
        .says(
            format!("{}: the KV cache fills up", selector.model()),
            format!(
                "VALUE of the pool is in use for 5m. The pool holds {} tokens; 85 % are {}.",
                commas(plan.kv_cache.tokens),
                commas(pool_share(plan, KV_WARNING))
            ),
        )
        .means(
            format!(
                "Running requests hold more than {} of {} tokens. Nothing is wrong yet; the next long prompts will wait.",
                commas(pool_share(plan, KV_WARNING)),
                commas(plan.kv_cache.tokens)
            ),
            vec![
                format!(
                    "Compare prompt lengths with the plan: the pool holds {:.2} sequences of {} tokens at once, many more \
                     short ones ([capacity](#budget)).",
                    plan.kv_cache.max_concurrency,
                    commas(plan.scheduler.max_model_len)
                ),
                "If it stays, the load has outgrown the plan: add a replica, or bound prompt lengths at the gateway."
                    .to_owned(),
                "A larger pool needs another plan (more devices, a smaller KV data type), never a hand-edited flag: any \
                 change of the number of blocks also compiles everything again."
                    .to_owned(),
            ],
        )
        .fires("nine tenths are in use", vec![(sample.clone(), steady("0.9", 600))], 420, selector.sample_labels())
        .silent("four fifths are in use", vec![(sample.clone(), steady("0.8", 600))], 420)
        .silent("a peak of three minutes", vec![(sample, "0.9+0x12 0.5+0x30".to_owned())], 180)
        .value("{{ $value | humanizePercentage }}", "90%")
}

fn kv_cache_full(plan: &Plan, selector: &Selector) -> Alert {
    let usage = selector.engine(KV_USAGE, "");
    let sample = selector.sample(KV_USAGE, "");
    alert("Gemma4KvCacheFull", "page", format!("{usage} > {KV_PAGE}"), 300)
        .says(
            format!("{}: the KV cache is full", selector.model()),
            format!(
                "VALUE of the {} tokens that the pool holds are in use for 5m: requests wait or are preempted.",
                commas(plan.kv_cache.tokens)
            ),
        )
        .means(
            "The pool is full. New requests wait, and when running ones grow, some are thrown out and computed again: \
             latency multiplies while throughput falls."
                .to_owned(),
            vec![
                "Shed load at the gateway now; waiting makes it worse.".to_owned(),
                format!(
                    "Look at `vllm:num_requests_running`: near {} means long prompts (so many of {} tokens fill the pool), \
                     far more means many short ones.",
                    commas(plan.kv_cache.max_concurrency as u64),
                    commas(plan.scheduler.max_model_len)
                ),
                "Then as for [Gemma4KvCacheHigh](#gemma4kvcachehigh).".to_owned(),
            ],
        )
        .fires("the pool is full", vec![(sample.clone(), steady("0.98", 600))], 420, selector.sample_labels())
        .silent("nine tenths are in use", vec![(sample.clone(), steady("0.9", 600))], 420)
        .silent("full for two minutes", vec![(sample, "0.98+0x8 0.5+0x30".to_owned())], 120)
        .value("{{ $value | humanizePercentage }}", "98%")
}

const WAITING: &str = "vllm:num_requests_waiting";

fn requests_waiting(plan: &Plan, selector: &Selector) -> Alert {
    let sample = selector.sample(WAITING, "");
    alert("Gemma4RequestsWaiting", "warning", format!("{} > 0", selector.engine(WAITING, "")), 30)
        .says(
            format!("{}: requests wait", selector.model()),
            format!(
                "VALUE requests have not been started for 30s: {} run at most, in a pool of {} tokens.",
                commas(plan.scheduler.max_num_seqs),
                commas(plan.kv_cache.tokens)
            ),
        )
        .means(
            "More requests come than are finished. Short queues are how a batch stays full; a queue that stands for half \
             a minute is the first sign of saturation."
                .to_owned(),
            vec![
                format!(
                    "Look at what is scarce: `vllm:num_requests_running` near {} means sequences, \
                     `vllm:kv_cache_usage_perc` near 1 means the pool, neither means prompts longer than a step of {} \
                     tokens digests.",
                    commas(plan.scheduler.max_num_seqs),
                    commas(plan.scheduler.max_num_batched_tokens)
                ),
                "Add a replica, or let the gateway refuse earlier.".to_owned(),
            ],
        )
        .fires("five wait", vec![(sample.clone(), steady("5", 600))], 120, selector.sample_labels())
        .silent("none waits", vec![(sample.clone(), steady("0", 600))], 120)
        .silent("one sample of a queue", vec![(sample, "0+0x5 5 0+0x30".to_owned())], 90)
        .value("{{ $value }}", "5")
}

fn queue_growing(plan: &Plan, selector: &Selector) -> Alert {
    let waiting = selector.engine(WAITING, "");
    let sample = selector.sample(WAITING, "");
    alert("Gemma4QueueGrowing", "page", format!("deriv({waiting}[5m]) > 0 and {waiting} > 0"), 600)
        .says(
            format!("{}: the queue grows", selector.model()),
            format!(
                "The queue has grown for 10m without a pause: this service finishes fewer requests than come, with {} at \
                 once at most.",
                commas(plan.scheduler.max_num_seqs)
            ),
        )
        .means(
            "Demand is above capacity, and each minute adds to every client's wait. It does not mend itself unless demand \
             falls."
                .to_owned(),
            vec![
                "Shed load, or add a replica; a cold one takes as long as a [start](#start), so begin now.".to_owned(),
                "If demand did not rise, capacity fell: look at preemptions, at the time between tokens, and for a \
                 replica that is missing."
                    .to_owned(),
            ],
        )
        .fires("it grows", vec![(sample.clone(), growing("1", 1500))], 1200, selector.sample_labels())
        .silent("it is long but does not grow", vec![(sample.clone(), steady("50", 1500))], 1200)
        .silent("it shrinks", vec![(sample, format!("500-2x{}", 1500 / INTERVAL))], 1200)
}

fn slow_first_token(plan: &Plan, selector: &Selector) -> Alert {
    let (bound, why) = ttft_bound(plan);
    let name = "vllm:time_to_first_token_seconds_bucket";
    let bucket = selector.engine(name, "");
    let at = |bound: &str| selector.sample(name, &format!(r#",le="{bound}""#));
    // Prometheus keeps the text of the bound: vLLM writes 5.0, not 5.
    let bound_text = format!("{bound:?}");
    let slow = vec![
        (at(&bound_text), steady("0", 1200)),
        (at("2560.0"), growing("10", 1200)),
        (at("+Inf"), growing("10", 1200)),
    ];
    let fast = vec![
        (at(&bound_text), growing("10", 1200)),
        (at("2560.0"), growing("10", 1200)),
        (at("+Inf"), growing("10", 1200)),
    ];
    let idle =
        vec![(at(&bound_text), steady("0", 1200)), (at("2560.0"), steady("0", 1200)), (at("+Inf"), steady("0", 1200))];
    alert(
        "Gemma4SlowFirstToken",
        "warning",
        format!("histogram_quantile(0.95, sum by (le) (rate({bucket}[5m]))) > {bound}"),
        300,
    )
    .says(
        format!("{}: the first token is late", selector.model()),
        format!("One request in twenty waits longer than {bound} s for its first token. The bound: {why}."),
    )
    .means(
        format!("The bound is no promise but what this plan could need at worst: {why}."),
        vec![
            "If requests wait, it is [the queue](#gemma4requestswaiting).".to_owned(),
            "If none waits, steps are slow: a shape that is compiled while serving, or larger buckets than the load \
             needs ([padding](#padding-spike))."
                .to_owned(),
            "Look at the hit ratio of the prefix cache: a changed system prompt turns every prefill into a full one."
                .to_owned(),
        ],
    )
    .fires("all are late", slow, 900, Vec::new())
    .silent("all are in time", fast, 900)
    .silent("no request comes", idle, 900)
}

fn preemptions(plan: &Plan, selector: &Selector) -> Alert {
    let name = "vllm:num_preemptions_total";
    let sample = selector.sample(name, "");
    alert("Gemma4Preemptions", "warning", format!("rate({}[2m]) > 0", selector.engine(name, "")), 300)
        .says(
            format!("{}: requests are preempted", selector.model()),
            format!(
                "Requests are thrown out of the pool of {} tokens and computed again, for 5m.",
                commas(plan.kv_cache.tokens)
            ),
        )
        .means(
            format!(
                "More sequences were admitted than the pool can finish: {} may run at once, and the pool holds {:.2} of \
                 {} tokens. Each preemption computes its tokens a second time.",
                commas(plan.scheduler.max_num_seqs),
                plan.kv_cache.max_concurrency,
                commas(plan.scheduler.max_model_len)
            ),
            vec![
                "Bound the load (fewer requests at once, or shorter ones); that costs less than the work done twice."
                    .to_owned(),
                "If it comes back daily, plan with a smaller `scheduler.max_num_seqs`: requests then wait in the queue, \
                 where they cost nothing."
                    .to_owned(),
            ],
        )
        .fires("a steady rate", vec![(sample.clone(), growing("1", 900))], 600, selector.sample_labels())
        .silent("none", vec![(sample.clone(), steady("7", 900))], 600)
        .silent("a single one, just now", vec![(sample.clone(), "0+0x20 1+0x40".to_owned())], 360)
        .silent("a single one, a while ago", vec![(sample, "0+0x20 1+0x40".to_owned())], 720)
}

fn request_errors(selector: &Selector) -> Alert {
    let name = "vllm:request_success_total";
    let errors = selector.engine(name, r#",finished_reason="error""#);
    let error = selector.sample(name, r#",finished_reason="error""#);
    let stop = selector.sample(name, r#",finished_reason="stop""#);
    alert("Gemma4RequestErrors", "warning", format!("sum(rate({errors}[2m])) > 0"), 300)
        .says(
            format!("{}: requests end in errors", selector.model()),
            "Requests that the engine had accepted end with an error, for 5m.".to_owned(),
        )
        .means(
            "The engine gave up on requests that it had accepted. Clients see a broken stream or a 500; mistakes of \
             clients (4xx) are not counted."
                .to_owned(),
            vec![
                "Find the first error in the log and match it with the [known failures](#known-failures).".to_owned(),
                "If it is tied to one kind of request (a grammar, an image), refuse that kind at the gateway and report \
                 it with the plan's digest."
                    .to_owned(),
            ],
        )
        .fires(
            "errors keep coming",
            vec![(error.clone(), growing("1", 900)), (stop.clone(), growing("20", 900))],
            600,
            Vec::new(),
        )
        .silent("a single one, just now", vec![(error.clone(), "0+0x20 1+0x40".to_owned())], 360)
        .silent(
            "a single one, a while ago",
            vec![(error, "0+0x20 1+0x40".to_owned()), (stop.clone(), growing("20", 900))],
            720,
        )
        .silent("all end well", vec![(stop, growing("20", 900))], 600)
}

fn compiles_while_serving(plan: &Plan, selector: &Selector) -> Alert {
    let name = "gemma4ctl:compiles_while_serving_total";
    let series = selector.job(name, "");
    let sample = selector.job(name, r#",instance="a""#);
    let labels = vec![("instance".to_owned(), "a".to_owned()), ("job".to_owned(), selector.job.clone())];
    let programs = plan.buckets.graphs.unwrap_or_default();
    alert("Gemma4CompilesWhileServing", "warning", format!("increase({series}[15m]) > 0"), 0)
        .says(
            format!("{}: a program was compiled while serving", selector.model()),
            format!(
                "All {} programs are compiled before the service is ready; one more was compiled within the last 15m, and \
                 every request waited for it.",
                commas(programs)
            ),
        )
        .means(
            format!(
                "A step had a shape that is not among the {} programs of the plan. That is a bug of the engine, not of \
                 the load.",
                commas(programs)
            ),
            vec![
                "Keep the log from the start of the process and the plan file; the log names the shape.".to_owned(),
                "Report both. A restart does not help: the shape is compiled again when it comes again.".to_owned(),
            ],
        )
        .fires("one more", vec![(sample.clone(), "0+0x20 1+0x40".to_owned())], 600, labels)
        .silent("none", vec![(sample.clone(), steady("0", 900))], 600)
        .silent("one, long ago", vec![(sample, "0+0x4 1+0x100".to_owned())], 1320)
}

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let service = Service::new(plan);
    let alerts = list(plan, &service);
    let context = json!({
        "plan": plan,
        "service": service,
        "alerts": alerts,
        "interval": span(INTERVAL),
        "evaluation": span(EVALUATION),
        "statistics": has_statistics(plan),
        "uid": service.name.chars().take(40).collect::<String>(),
        "panels": dashboard::panels(plan, &service),
    });
    let render = |template: &str| templates.render(template, &context);
    Ok(vec![
        Artifact::file("rules.yaml", render("rules.yaml.j2")?),
        Artifact::file("rules.test.yaml", render("rules.test.yaml.j2")?),
        Artifact::file("dashboard.json", render("dashboard.json.j2")?),
    ])
}
