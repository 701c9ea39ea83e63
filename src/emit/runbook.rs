//! A runbook in Markdown, of this plan and no other.
//!
//! What the template lays out is decided here: where the service runs, its figures, and the failures that are known
//! of such a service, each with the plan's own numbers. The sections on alerts come from the list that the rules come
//! from.

use gemma4_plan::{Plan, Source};
use serde::Serialize;
use serde_json::{Value, json};

use super::alerts::{self, overdue_seconds};
use super::service::{deploy_text, machine_name};
use super::signals::{KV_WARNING, Selector, has_statistics, pool_share, span, ttft_bound};
use super::{Artifact, EmitError, SecretUse, Service, Templates};
use crate::words::{commas, plural, size};

/// How the machine comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Place {
    /// A machine by `gcloud compute instances`.
    ComputeEngine,
    /// A machine by the Cloud TPU API.
    QueuedResource,
    /// Kubernetes.
    Gke,
    /// A container on a machine that is there.
    Docker,
    /// The bundled runtime on a machine that is there.
    Local,
}

impl Place {
    fn new(plan: &Plan, service: &Service) -> Self {
        if plan.engine.image.is_none() {
            return Place::Local;
        }
        if plan.hardware.hosts > 1 {
            return Place::Gke;
        }
        let gcloud = plan.deploy.contains_key("gcloud");
        if plan.deploy.contains_key("gke") && !gcloud {
            return Place::Gke;
        }
        // A machine in the cloud reads its secrets from Secret Manager, and its model from the Hub.
        if service.secrets.iter().any(|secret| secret.kind != "gcp_secret") || plan.model.fingerprint.is_some() {
            return Place::Docker;
        }
        // The profile's word, or else the first API that can create this TPU.
        let derived = plan.provenance.get("deploy.gcloud.plane").and_then(|origin| origin.value.as_str());
        match deploy_text(plan, "gcloud", "plane").as_deref().or(derived.filter(|_| is_tpu(plan))) {
            Some("compute-engine") => Place::ComputeEngine,
            Some("queued-resource") => Place::QueuedResource,
            Some("gke") => Place::Gke,
            _ => Place::Docker,
        }
    }

    /// The script that creates the machine.
    fn script(self) -> Option<&'static str> {
        match self {
            Place::ComputeEngine => Some("./compute-engine.sh"),
            Place::QueuedResource => Some("./queued-resource.sh"),
            Place::Gke | Place::Docker | Place::Local => None,
        }
    }

    /// Targets of `emit` whose files the runbook's commands need.
    fn targets(self) -> &'static [&'static str] {
        match self {
            Place::ComputeEngine | Place::QueuedResource => &["gcloud", "docker", "alerts"],
            Place::Gke => &["gke", "alerts"],
            Place::Docker => &["docker", "alerts"],
            Place::Local => &["systemd", "alerts"],
        }
    }
}

/// A failure that is known, and how to mend it.
#[derive(Debug, Serialize)]
struct Failure {
    title: &'static str,
    /// Text to look for in the log.
    lines: Vec<String>,
    cause: String,
    mend: Vec<String>,
}

/// A line of the log that means nothing.
#[derive(Debug, Serialize)]
struct Noise {
    line: &'static str,
    why: &'static str,
}

/// A row of a table.
type Row = (String, String);

fn row(name: &str, value: impl Into<String>) -> Row {
    (name.to_owned(), value.into())
}

fn is_tpu(plan: &Plan) -> bool {
    matches!(plan.hardware.family.as_str(), "v5e" | "v5p" | "v6e" | "tpu7x")
}

fn signed(bytes: i64) -> String {
    format!("{}{}", if bytes < 0 { "-" } else { "" }, size(bytes.unsigned_abs()))
}

/// What runs.
fn what(plan: &Plan, service: &Service, selector: &Selector) -> Vec<Row> {
    let hardware = &plan.hardware;
    let model = &plan.model;
    let mut rows = vec![row(
        "Model",
        format!(
            "`{}`, {} parameters, {}{}",
            model.id,
            commas(model.parameters),
            model.dtype,
            model.quantization.as_deref().map(|name| format!(", quantized: {name}")).unwrap_or_default()
        ),
    )];
    if selector.model() != model.id {
        rows.push(row("Name in requests", format!("`{}`", selector.model())));
    }
    rows.push(row("Revision", model.revision.as_deref().map_or("not pinned".to_owned(), |text| format!("`{text}`"))));
    let machine = hardware.machine_type.as_deref().map(|machine| format!(", {} x `{machine}`", hardware.hosts));
    rows.push(row(
        "Hardware",
        format!(
            "{}, {}{}",
            hardware.accelerator,
            plural(hardware.devices as usize, "device"),
            machine.unwrap_or_default()
        ),
    ));
    rows.push(row("Engine", format!("{} {}", plan.engine.kind, plan.engine.version)));
    if let Some(image) = &service.image {
        let pinned = if image.contains("@sha256:") { "" } else { " (a tag, which can move)" };
        rows.push(row("Image", format!("`{image}`{pinned}")));
    }
    let mesh = plan.sharding.mesh;
    rows.push(row("Sharding", format!("tensor {} x data {}", mesh.model, mesh.data)));
    if let Some(speculative) = &plan.speculative {
        rows.push(row(
            "Speculation",
            format!("{}, {} draft tokens a step", speculative.method, speculative.num_tokens),
        ));
    }
    rows.push(row("Listens on", format!("{}:{}", plan.server.host, plan.server.port)));
    rows.push(row("Plan", format!("`{}`", plan.digest)));
    rows
}

/// Bytes on one device.
fn budget(plan: &Plan) -> Vec<Row> {
    let memory = &plan.memory;
    let device = &memory.per_device;
    let mut rows = vec![
        row("Usable", size(device.usable)),
        row(&format!("Weights and KV cache may take ({:.0} %)", memory.utilization * 100.0), size(device.limit)),
        row("Weights", size(device.weights)),
        row("KV cache", size(device.kv)),
        row("Programs, as far as measured or proved", size(device.programs)),
        row("Left", signed(device.free)),
    ];
    if memory.expected_programs > 0 {
        rows.push(row("More programs, expected but not proved", size(memory.expected_programs)));
    }
    rows
}

/// Figures of a healthy service.
fn normal(plan: &Plan, service: &Service) -> Vec<Row> {
    let mut rows = Vec::new();
    if let Some(graphs) = plan.buckets.graphs {
        rows.push(row("Programs compiled at a start", commas(graphs)));
    }
    let compile = match plan.buckets.compile_seconds {
        Some(seconds) => format!("about {} s to compile, besides downloading and loading", commas(seconds)),
        None => "not measured for this kind of model".to_owned(),
    };
    rows.push(row("Cold start", compile));
    let cached = match &plan.compile_cache.path {
        Some(path) => format!("compiled programs come from `{path}`"),
        None => "the engine's own cache folder, gone with its container".to_owned(),
    };
    let warm = if plan.engine.kind == "vllm-tpu" {
        "; those that compile in under a second are not kept. measured for E2B on v5e: 497 s instead of 857"
    } else {
        ""
    };
    rows.push(row("Warm start", format!("{cached}{warm}")));
    rows.push(row("A start is overdue after", format!("{} (page)", span(overdue_seconds(service)))));
    rows.push(row("Requests running", format!("up to {}", commas(plan.scheduler.max_num_seqs))));
    rows.push(row("Requests waiting", "0; more for half a minute is a warning"));
    rows.push(row("KV cache in use", format!("below 85 %, {} tokens", commas(pool_share(plan, KV_WARNING)))));
    let (bound, why) = ttft_bound(plan);
    rows.push(row("Time to first token, p95", format!("below {bound} s: {why}")));
    rows.push(row("Preemptions", "0"));
    if plan.engine.kind == "bundled" {
        rows.push(row("Programs compiled while serving", "0"));
    }
    rows
}

/// The step that is padded most, as the tokens it holds and those it computes.
fn worst_padding(plan: &Plan) -> Option<(u64, u64)> {
    plan.buckets.tokens.windows(2).map(|pair| (pair[0] + 1, pair[1])).max_by_key(|(from, to)| to - from)
}

/// Failures that such a service is known for.
fn failures(plan: &Plan, place: Place) -> Vec<Failure> {
    let scheduler = &plan.scheduler;
    let device = &plan.memory.per_device;
    let rest = device.usable.saturating_sub(device.weights).saturating_sub(device.kv);
    let percent = plan.memory.utilization * 100.0;
    let (seqs, budget, longest) =
        (commas(scheduler.max_num_seqs), commas(scheduler.max_num_batched_tokens), commas(scheduler.max_model_len));
    let mut failures = Vec::new();
    if is_tpu(plan) {
        failures.push(Failure {
            title: "Compile-time out of memory",
            lines: vec!["RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom".to_owned(), "exceeds available HBM".to_owned()],
            cause: format!(
                "One program needs more memory than a device of {} has, its arguments included: weights of {} and a KV \
                 cache of {} leave {} for its temporaries. It shows while starting, in the first large program.",
                size(device.usable),
                size(device.weights),
                size(device.kv),
                size(rest)
            ),
            mend: vec![
                format!("Halve `scheduler.max_num_batched_tokens` (now {budget}); temporaries grow with it."),
                format!("Then halve `scheduler.max_num_seqs` (now {seqs}); it decides the sampling programs."),
                format!("Only then lower `memory.hbm_utilization` (now {percent:.0} %), which costs tokens."),
            ],
        });
        let speculation = match &plan.speculative {
            Some(speculative) if plan.engine.kind == "vllm-tpu" => format!(
                " Speculation ({}, {} draft tokens) adds programs and their dummies, which grow with the square of \
                 {seqs} sequences; their bytes are not in the budget.",
                speculative.method, speculative.num_tokens
            ),
            _ => String::new(),
        };
        failures.push(Failure {
            title: "Program allocation failure",
            lines: vec![
                "RESOURCE_EXHAUSTED".to_owned(),
                "Attempting to reserve".to_owned(),
                "Attempting to allocate".to_owned(),
            ],
            cause: format!(
                "Minutes after the start, a compiled program finds no room to be loaded. {percent:.0} % of {} leaves {} on \
                 a device for all programs; {} are known to be needed and {} more expected.{speculation}",
                size(device.usable),
                size(device.usable.saturating_sub(device.limit)),
                size(device.programs),
                size(plan.memory.expected_programs)
            ),
            mend: vec![
                format!("Halve `scheduler.max_num_seqs` (now {seqs}): the largest programs shrink with it, the pool does not."),
                format!("Or lower `memory.hbm_utilization` (now {percent:.0} %) by what the message lacks, and a margin."),
                "Never restart unchanged: it fails at the same program again, after the same minutes.".to_owned(),
            ],
        });
    }
    if plan.engine.kind != "bundled" {
        let needed = scheduler.max_model_len.div_ceil(plan.kv_cache.block_size.max(1));
        failures.push(Failure {
            title: "No room for one request",
            lines: vec!["To serve at least one request with the models's max seq len".to_owned()],
            cause: format!(
                "A sequence of {longest} tokens needs {} blocks of {}, and the pool came out smaller. This plan has {} \
                 blocks, so the weights take more than planned or another process holds memory of the device.",
                commas(needed),
                plan.kv_cache.block_size,
                commas(plan.kv_cache.blocks)
            ),
            mend: vec![
                format!(
                    "Compare the log's bytes after loading with the plan's {} of weights on a device; see that nothing \
                     else runs on the devices.",
                    size(device.weights)
                ),
                format!(
                    "If they are right, lower `scheduler.max_model_len` (now {longest}) to what the message offers."
                ),
            ],
        });
    }
    // A limit that is not said is not zero.
    let allowed = |limit: Option<u64>| limit != Some(0);
    let media = &plan.multimodal;
    let largest = match (allowed(media.video), allowed(media.image), allowed(media.audio)) {
        (true, ..) => Some("a video of 2,496 tokens"),
        (false, true, _) => Some("an image: 280 tokens unless the processor is told otherwise"),
        (false, false, true) => Some("an audio clip"),
        (false, false, false) => None,
    };
    if let Some(largest) = largest
        && plan.engine.kind != "bundled"
        && !scheduler.chunked_mm_input
    {
        let enough = !allowed(media.video) || scheduler.max_num_batched_tokens >= 2496;
        failures.push(Failure {
            title: "A media item does not fit into a step",
            lines: vec!["Chunked MM input disabled but max_tokens_per_mm_item".to_owned()],
            cause: format!(
                "With `chunked_mm_input = false` the largest media item ({largest}) has to fit into one step, and a step \
                 holds {budget} tokens. The server refuses to start."
            ),
            mend: vec![if enough {
                format!("{budget} is enough, so what runs is not this plan: start the emitted files.")
            } else {
                "Raise `scheduler.max_num_batched_tokens` to 4096, or set `multimodal.video = 0`.".to_owned()
            }],
        });
    }
    if let Some((tokens, bucket)) = worst_padding(plan) {
        let skipped = plan.engine.env.get("SKIP_JAX_PRECOMPILE").is_some_and(|value| value == "1" || value == "true");
        let images = plan.engine.kind == "vllm-tpu" && plan.multimodal.image != Some(0);
        let compiled = if skipped {
            "This plan compiles nothing beforehand (`SKIP_JAX_PRECOMPILE`), so each new shape stops everyone for as long \
             as a compile takes."
        } else if images {
            "A shape that was not compiled beforehand stops everyone for as long as a compile takes: of this plan only \
             the vision encoder's, at the first image after a start."
        } else {
            "A shape that was not compiled beforehand would stop everyone for as long as a compile takes; all shapes of \
             this plan are compiled."
        };
        let padded = plan.engine.kind == "bundled";
        failures.push(Failure {
            title: "Padding spike",
            lines: Vec::new(),
            cause: format!(
                "Latency jumps while the load hardly changes. A step runs in the next larger of {} token buckets, up to \
                 {}: at worst {} tokens take the bucket of {}{}. {compiled}",
                plan.buckets.tokens.len(),
                commas(plan.buckets.tokens.last().copied().unwrap_or_default()),
                commas(tokens),
                commas(bucket),
                if padded { "; attention skips the padding, the rest does not" } else { "" }
            ),
            mend: vec![
                match scheduler.bucket_padding_gap {
                    0 => "If steps are padded (buckets are powers of two), set `scheduler.bucket_padding_gap`: more buckets, \
                          and a longer cold start."
                        .to_owned(),
                    gap => format!(
                        "If steps are padded, plan with a smaller `scheduler.bucket_padding_gap` (now {gap}): more \
                         buckets, and a longer cold start."
                    ),
                },
                if plan.engine.kind == "bundled" {
                    "If a program is compiled, `gemma4ctl:compiles_while_serving_total` counts it \
                     ([what then](#gemma4compileswhileserving))."
                        .to_owned()
                } else {
                    "To tell the two apart, start a replica with `VLLM_XLA_CHECK_RECOMPILATION=1`: a compile while serving \
                     then raises an error that names the program."
                        .to_owned()
                },
            ],
        });
    }
    failures.push(Failure {
        title: "Queue saturation",
        lines: Vec::new(),
        cause: format!(
            "`vllm:num_requests_waiting` stays above 0. Either {seqs} requests run (`scheduler.max_num_seqs`), or the {} \
             tokens of the pool are taken.",
            commas(plan.kv_cache.tokens)
        ),
        mend: vec![
            "Another replica, or less load: nothing inside one replica makes it faster.".to_owned(),
            format!(
                "If {seqs} run and the pool is half empty, plan with more sequences; if the pool is full and fewer run, \
                 plan with a larger pool."
            ),
        ],
    });
    if plan.sharding.mesh.data > 1 && plan.engine.kind != "bundled" {
        failures.push(Failure {
            title: "The front end gives up on the engine",
            lines: vec!["VLLM_ENGINE_READY_TIMEOUT_S".to_owned()],
            cause:
                "With several copies of the model the front end waits 600 s for the engines, less than a cold compile \
                    may take."
                    .to_owned(),
            mend: vec!["Set `VLLM_ENGINE_READY_TIMEOUT_S = \"1800\"` in `engine.env`.".to_owned()],
        });
    }
    if plan.engine.kind == "bundled" {
        failures.push(Failure {
            title: "The plan is refused",
            lines: vec!["the plan was changed after it was written".to_owned(), "and this gemma4ctl reads".to_owned()],
            cause: "The runtime reads only a plan file that nobody has edited, of the format of its own version."
                .to_owned(),
            mend: vec!["Make the plan again with the gemma4ctl that serves it.".to_owned()],
        });
    }
    if matches!(place, Place::ComputeEngine | Place::QueuedResource) {
        failures.push(Failure {
            title: "The machine does not come",
            lines: vec!["stockout".to_owned(), "WAITING_FOR_RESOURCES".to_owned()],
            cause:
                "No quota and no capacity look the same from outside: the request waits. A running machine is not a \
                    ready model either; only /health says that."
                    .to_owned(),
            mend: vec![
                "Look at the quota first, then at another zone. Leave a request in PROVISIONING alone: its capacity is \
                 already granted."
                    .to_owned(),
            ],
        });
    }
    failures
}

/// Lines of vLLM on TPUs that look bad and are not.
fn noise(plan: &Plan) -> Vec<Noise> {
    if plan.engine.kind != "vllm-tpu" {
        return Vec::new();
    }
    vec![
        Noise {
            line: "Automatically using fp8_e5m2 for FP8 KV cache on TPU",
            why: "printed whatever the cache's type is; `regular_attn_dtype=` tells the truth",
        },
        Noise { line: "forcing TRITON_ATTN", why: "the TPU's own attention replaces it a moment later" },
        Noise { line: "regular_attn_shape=", why: "the shape of the first layer only; others have their own" },
        Noise { line: "Model Runner V2", why: "reported to be harmless on TPUs" },
        Noise { line: "GPU", why: "messages about GPU blocks or GPU memory mean the TPU's" },
    ]
}

/// A request that any client may copy.
fn completion(plan: &Plan, selector: &Selector) -> (String, String) {
    if plan.engine.kind == "bundled" {
        let body = json!({ "model": selector.model(), "prompt": "1 2 3", "max_tokens": 8 });
        return ("/v1/completions".to_owned(), body.to_string());
    }
    let message = json!([{ "role": "user", "content": "Say hello." }]);
    let body = json!({ "model": selector.model(), "messages": message, "max_tokens": 16 });
    ("/v1/chat/completions".to_owned(), body.to_string())
}

/// One line of Markdown.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn findings(plan: &Plan) -> Vec<Value> {
    let finding = |finding: &gemma4_plan::Diagnostic| {
        json!({
            "code": finding.code,
            "severity": finding.severity.as_str(),
            "message": one_line(&finding.message),
            "help": finding.help.as_deref().map(one_line),
            "place": format!("{}:{}", finding.file, finding.line),
        })
    };
    plan.diagnostics.iter().map(finding).collect()
}

/// A value as TOML on one line.
fn toml(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Object(table) => {
            let pairs: Vec<String> = table.iter().map(|(key, value)| format!("{key} = {}", toml(value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        plain => plain.to_string(),
    }
}

/// What `--set` said when the plan was made.
fn settings(plan: &Plan) -> Vec<String> {
    let set = plan.provenance.iter().filter(|(_, origin)| origin.source == Source::Set);
    set.map(|(key, origin)| format!("{key}={}", toml(&origin.value))).collect()
}

fn variable<'a>(service: &'a Service, name: &str) -> Option<&'a SecretUse> {
    service.secrets.iter().find(|secret| secret.name == name)
}

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let service = Service::new(plan);
    let selector = Selector::new(plan, &service);
    let place = Place::new(plan, &service);
    let (completion_path, completion_body) = completion(plan, &selector);
    let device = &plan.memory.per_device;
    let capacity: Vec<[String; 3]> = plan
        .kv_cache
        .capacity
        .iter()
        .map(|row| [commas(row.sequence_tokens), commas(row.sequences), commas(row.tokens)])
        .collect();
    let context = json!({
        "plan": plan,
        "service": service,
        "place": place,
        "script": place.script(),
        "targets": place.targets(),
        "settings": settings(plan),
        "folder": format!("{}-{}", service.name, plan.digest.trim_start_matches("sha256:").chars().take(12).collect::<String>()),
        "container": service.image.is_some() && place != Place::Gke,
        "pinned": service.image.as_deref().is_none_or(|image| image.contains("@sha256:")),
        "workload_kind": if plan.hardware.hosts > 1 { "leaderworkerset" } else { "deployment" },
        "namespace": deploy_text(plan, "gke", "namespace").unwrap_or_else(|| "gemma4".to_owned()),
        "machine_name": machine_name(plan),
        "zone": deploy_text(plan, "gcloud", "zone"),
        "external_ip": deploy_text(plan, "gcloud", "external_ip").as_deref() != Some("false"),
        "project": deploy_text(plan, "gcloud", "project"),
        "max_run_duration": deploy_text(plan, "gcloud", "max_run_duration"),
        "what": what(plan, &service, &selector),
        "budget": budget(plan),
        "unlimited": size(device.usable.saturating_sub(device.limit)),
        "tokens": commas(plan.kv_cache.tokens),
        "blocks": commas(plan.kv_cache.blocks),
        "longest": commas(plan.scheduler.max_model_len),
        "concurrency": format!("{:.2}", plan.kv_cache.max_concurrency),
        "capacity": capacity,
        "normal": normal(plan, &service),
        "statistics": has_statistics(plan),
        "completion_url": format!("{}{completion_path}", service.base_url),
        "completion_body": completion_body,
        "api_key": variable(&service, "api_key"),
        "alerts": alerts::list(plan, &service),
        "failures": failures(plan, place),
        "noise": noise(plan),
        "findings": findings(plan),
        "volatile": plan.compile_cache.path.as_deref().is_some_and(|path| path.starts_with("/dev/shm") || path.starts_with("/tmp")),
    });
    let text = templates.render("runbook.md.j2", &context)?;
    Ok(vec![Artifact::file("RUNBOOK.md", text)])
}
