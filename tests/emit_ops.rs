//! Alert rules, dashboard and runbook, made by the real binary and read by the tools of those who run a service.

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use insta::{assert_snapshot, with_settings};
use serde_json::Value;

use common::{profiles_in, root, tool};

/// Names of all shipped profiles.
fn profiles() -> Vec<String> {
    let names = profiles_in("profiles").into_iter().map(|path| path.file_stem().expect("a name").to_owned());
    names.map(|name| name.into_string().expect("UTF-8")).collect()
}

/// The files of both targets in a folder of their own.
struct Emitted {
    folder: tempfile::TempDir,
}

impl Emitted {
    fn new(profile: &str) -> Self {
        Self::with(profile, &[])
    }

    fn with(profile: &str, settings: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for target in ["alerts", "runbook"] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"));
            command.args(["emit", profile, "--target", target, "--out-dir"]).arg(folder.path());
            for setting in settings {
                command.args(["--set", setting]);
            }
            let home = folder.path();
            command.current_dir(root()).env_clear().env("HOME", home).env("GEMMA4CTL_CONFIG_DIR", home.join("config"));
            let output = command.stdin(Stdio::null()).output().expect("the binary");
            assert!(output.status.success(), "{profile}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Emitted { folder }
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).expect("a file")
    }

    fn runbook(&self) -> String {
        self.read("RUNBOOK.md")
    }

    /// Names of the alerts, in order.
    fn alerts(&self) -> Vec<String> {
        self.read("rules.yaml")
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("- alert: "))
            .map(str::to_owned)
            .collect()
    }

    /// The expressions of all rules.
    fn rules(&self) -> Vec<String> {
        let rules = self.read("rules.yaml");
        let lines = rules.lines().filter_map(|line| line.trim_start().strip_prefix("expr: "));
        lines.map(|expr| serde_json::from_str(expr).expect("a quoted expression")).collect()
    }

    fn dashboard(&self) -> Value {
        serde_json::from_str(&self.read("dashboard.json")).expect("JSON")
    }

    /// The expressions of all panels.
    fn panels(&self) -> Vec<String> {
        let dashboard = self.dashboard();
        let panels = dashboard["panels"].as_array().expect("panels");
        let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().expect("targets"));
        targets.map(|target| target["expr"].as_str().expect("an expression").to_owned()).collect()
    }

    /// Runs promtool in the folder; `None` if it is not installed.
    fn promtool(&self, arguments: &[&str]) -> Option<(bool, String)> {
        let output = Command::new(tool("promtool")?)
            .args(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("promtool");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Some((output.status.success(), text))
    }
}

/// A served name that would break out of careless quotes.
const HOSTILE: &str = r#"engine.extra_args=["--served-model-name", "it's \"{{ $value }}\" $(x) VALUE"]"#;

#[test]
fn rules_pass_promtool() {
    if tool("promtool").is_none() {
        return;
    }
    for profile in profiles() {
        let (passes, text) = Emitted::new(&profile).promtool(&["check", "rules", "rules.yaml"]).expect("promtool");
        assert!(passes, "{profile}: {text}");
    }
    // One of each kind: unit tests take promtool seconds.
    for (profile, settings) in [("smoke", &[][..]), ("e4b-b200", &[]), ("31b-v6e-8", &[HOSTILE])] {
        let emitted = Emitted::with(profile, settings);
        for arguments in [["check", "rules", "rules.yaml"], ["test", "rules", "rules.test.yaml"]] {
            let (passes, text) = emitted.promtool(&arguments).expect("promtool");
            assert!(passes, "{profile}: {text}");
        }
    }
}

#[test]
fn every_bound_and_duration_is_tested() {
    if tool("promtool").is_none() {
        return;
    }
    let changes = [
        ("Gemma4NoReadyReplica", "[73m]", "[1m]"),
        ("Gemma4NoReadyReplica", "for: 2m", "for: 10m"),
        ("Gemma4StartOverdue", "for: 63m", "for: 66m"),
        ("Gemma4StartOverdue", "for: 63m", "for: 2m"),
        ("Gemma4StartOverdue", " or vector(0)", ""),
        ("Gemma4ServerErrors", "> 0.05", "> 0.5"),
        ("Gemma4ServerErrors", "> 0.05", "> 0.001"),
        ("Gemma4KvCacheHigh", "> 0.85", "> 0.95"),
        ("Gemma4KvCacheHigh", "> 0.85", "> 0.75"),
        ("Gemma4KvCacheHigh", "for: 5m", "for: 10m"),
        ("Gemma4KvCacheHigh", "for: 5m", "for: 0m"),
        ("Gemma4KvCacheFull", "> 0.97", "> 0.99"),
        ("Gemma4KvCacheFull", "> 0.97", "> 0.87"),
        ("Gemma4RequestsWaiting", "for: 30s", "for: 10m"),
        ("Gemma4RequestsWaiting", "for: 30s", "for: 0s"),
        ("Gemma4QueueGrowing", "]) > 0 and", "]) > -9 and"),
        ("Gemma4QueueGrowing", "for: 10m", "for: 60m"),
        ("Gemma4SlowFirstToken", "(0.95", "(0.0"),
        ("Gemma4Preemptions", "[2m]", "[30m]"),
        ("Gemma4Preemptions", "for: 5m", "for: 0m"),
        ("Gemma4Preemptions", "> 0", "> 1"),
        ("Gemma4RequestErrors", "\\\"error\\\"", "\\\"stop\\\""),
        ("Gemma4RequestErrors", "for: 5m", "for: 0m"),
    ];
    let emitted = Emitted::new("turbo-stable");
    let part = |text: &str, start: &str, alert: &str| -> String {
        let separator = format!("\n{start}");
        let mut parts = text.split(separator.as_str());
        let head = parts.next().expect("a head").to_owned();
        parts.filter(|part| part.contains(alert)).fold(head, |text, part| format!("{text}{separator}{part}"))
    };
    let (rules, tests) = (emitted.read("rules.yaml"), emitted.read("rules.test.yaml"));
    for alert in emitted.alerts() {
        assert!(changes.iter().any(|(changed, ..)| *changed == alert), "{alert} is not tried");
    }
    for (alert, from, to) in changes {
        let rules = part(&rules, "      - alert: ", &format!("{alert}\n"));
        let changed = rules.replace(from, to);
        assert!(changed != rules, "{from} is not in the rule {alert}");
        let write = |name: &str, text: &str| std::fs::write(emitted.folder.path().join(name), text).expect("a file");
        write("rules.test.yaml", &part(&tests, "  - name: ", &format!("alertname: {alert}\n")));
        for (rules, expected) in [(&rules, true), (&changed, false)] {
            write("rules.yaml", rules);
            let (passes, text) = emitted.promtool(&["test", "rules", "rules.test.yaml"]).expect("promtool");
            assert_eq!(passes, expected, "{alert}, {from} -> {to}: {text}");
        }
    }
}

#[test]
fn every_alert_has_cases_that_fire_and_cases_that_do_not() {
    for profile in ["turbo-stable", "smoke", "e4b-b200"] {
        let emitted = Emitted::new(profile);
        let tests = emitted.read("rules.test.yaml");
        let cases: Vec<&str> = tests.split("\n  - name: ").skip(1).collect();
        for alert in emitted.alerts() {
            let own: Vec<_> = cases.iter().filter(|case| case.contains(&format!("alertname: {alert}\n"))).collect();
            assert!(own.iter().any(|case| case.contains("exp_labels")), "{profile}: {alert} never fires");
            assert!(own.iter().any(|case| case.contains("exp_alerts: []")), "{profile}: {alert} always fires");
        }
    }
}

/// Metric names in a PromQL expression: what is left when strings, matchers, ranges, functions and groupings are gone.
fn metrics(expr: &str) -> BTreeSet<String> {
    let mut plain = String::new();
    let (mut quoted, mut escaped, mut depth) = (false, false, 0);
    for c in expr.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ if depth > 0 => {}
            _ => plain.push(c),
        }
    }
    for grouping in ["by (le)", "on ()"] {
        plain = plain.replace(grouping, "");
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut names = BTreeSet::new();
    let mut rest = plain.as_str();
    while let Some(start) = rest.find(|c: char| is_name(c) && !c.is_ascii_digit()) {
        let before = rest[..start].chars().next_back();
        let end = rest[start..].find(|c| !is_name(c)).map_or(rest.len(), |length| start + length);
        let name = &rest[start..end];
        let number = before.is_some_and(|c| c.is_ascii_digit() || c == '.');
        if !number && !rest[end..].trim_start().starts_with('(') && !["and", "or", "unless"].contains(&name) {
            names.insert(name.to_owned());
        }
        rest = &rest[end..];
    }
    names
}

#[test]
fn metric_names_are_found_in_expressions() {
    let expr =
        r#"histogram_quantile(0.95, sum by (le) (rate(a:b_bucket{x="c{d",le=~"e"}[5m]))) > 5 or vector(0) and on () f"#;
    assert_eq!(metrics(expr), BTreeSet::from(["a:b_bucket".to_owned(), "f".to_owned()]));
}

fn known_metrics(file: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("tests/fixtures/metrics").join(file)).expect("the list");
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn rules_and_panels_use_series_that_engines_export() {
    let vllm = known_metrics("vllm.txt");
    let own = known_metrics("gemma4ctl.txt");
    for profile in profiles() {
        let emitted = Emitted::new(&profile);
        let used: BTreeSet<String> =
            emitted.rules().iter().chain(&emitted.panels()).flat_map(|expr| metrics(expr)).collect();
        assert!(used.contains("up"));
        let bundled = profile == "smoke" || profile == "cpu-e2b";
        for metric in used.iter().filter(|metric| *metric != "up") {
            let known = vllm.contains(metric) || bundled && own.contains(metric);
            assert!(known, "{profile}: nothing exports {metric}");
            assert!(!bundled || !metric.starts_with("http_"), "{profile}: {metric} is not the bundled engine's");
        }
        let compiles = used.contains("gemma4ctl:compiles_while_serving_total");
        assert_eq!(compiles, bundled, "{profile}");
    }
}

#[test]
fn the_dashboard_is_one_that_grafana_reads() {
    let emitted = Emitted::new("turbo-stable");
    let dashboard = emitted.dashboard();
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
    assert!(dashboard["uid"].as_str().is_some_and(|uid| uid.len() <= 40));
    let panels = dashboard["panels"].as_array().expect("panels");
    let mut ids = BTreeSet::new();
    let mut places = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")));
        let place = &panel["gridPos"];
        assert!(places.insert((place["x"].as_u64(), place["y"].as_u64())), "two panels in one place");
        assert!(place["x"].as_u64().expect("x") + place["w"].as_u64().expect("w") <= 24);
        assert_eq!(panel["datasource"]["uid"], "${datasource}");
        assert!(panel["description"].as_str().is_some_and(|text| !text.is_empty()));
    }
    let kv = panels.iter().find(|panel| panel["title"] == "KV cache in use").expect("the KV panel");
    assert_eq!(kv["fieldConfig"]["defaults"]["thresholds"]["steps"][1]["value"], 0.85);
    assert!(kv["description"].as_str().is_some_and(|text| text.contains("378,432 tokens")), "{kv}");
    let expressions = emitted.panels().join("\n");
    for metric in [
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:e2e_request_latency_seconds_bucket",
        "vllm:request_queue_time_seconds_bucket",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_hits_total",
        "vllm:spec_decode_num_accepted_tokens_total",
    ] {
        assert!(expressions.contains(metric), "{metric} has no panel");
    }
    let without = Emitted::new("31b-v6e-8").panels().join("\n");
    assert!(!without.contains("spec_decode"), "no panel of speculation without speculation");
}

#[test]
fn expressions_of_panels_are_promql() {
    if tool("promtool").is_none() {
        return;
    }
    for (profile, settings) in [("turbo-stable", &[][..]), ("smoke", &[]), ("e4b-b200", &[]), ("31b-v6e-8", &[HOSTILE])]
    {
        let emitted = Emitted::with(profile, settings);
        let mut rules = "groups:\n  - name: panels\n    rules:\n".to_owned();
        for (index, expr) in emitted.panels().iter().enumerate() {
            let expr = expr.replace("$__rate_interval", "1m");
            rules.push_str(&format!("      - record: panel:{index}\n        expr: {}\n", Value::from(expr)));
        }
        std::fs::write(emitted.folder.path().join("panels.yaml"), rules).expect("a file");
        let (passes, text) = emitted.promtool(&["check", "rules", "panels.yaml"]).expect("promtool");
        assert!(passes, "{profile}: {text}");
    }
}

#[test]
fn a_plan_without_statistics_has_no_alerts_on_them() {
    let emitted = Emitted::new("e4b-b200");
    assert_eq!(emitted.alerts(), ["Gemma4NoReadyReplica", "Gemma4StartOverdue", "Gemma4ServerErrors"]);
    assert!(emitted.read("rules.yaml").contains("--disable-log-stats"));
    assert!(!emitted.panels().join("\n").contains("vllm:"));
}

/// The runbook's blocks of a language.
fn blocks(runbook: &str, language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in runbook.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(found)) => open = Some((found == language, String::new())),
            (Some((wanted, text)), Some("")) => {
                if *wanted {
                    blocks.push(std::mem::take(text));
                }
                open = None;
            }
            (Some((_, text)), None) => {
                text.push_str(line);
                text.push('\n');
            }
            (None, None) => {}
            (Some(_), Some(_)) => panic!("a block inside a block: {line}"),
        }
    }
    assert!(open.is_none(), "a block is not closed");
    blocks
}

/// Anchors that GitHub makes of the headings.
fn anchors(runbook: &str) -> BTreeSet<String> {
    let headings = runbook.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
        })
        .collect()
}

/// What holds for every runbook.
fn check(name: &str, emitted: &Emitted) {
    let runbook = emitted.runbook();
    let anchors = anchors(&runbook);
    let rules = emitted.read("rules.yaml");
    for alert in emitted.alerts() {
        let anchor = alert.to_lowercase();
        assert!(anchors.contains(&anchor), "{name}: {alert} has no section");
        assert!(rules.contains(&format!("RUNBOOK.md#{anchor}\"")), "{name}: {alert} does not lead to its section");
    }
    for link in runbook.split("](#").skip(1) {
        let anchor = link.split(')').next().expect("an end");
        assert!(anchors.contains(anchor), "{name}: nothing at #{anchor}");
    }
    let lower = runbook.to_lowercase();
    for word in
        ["localhost", "todo", "tbd", "fixme", "placeholder", "xxx", "undefined", "your-", "<your", "none)", "{%"]
    {
        assert!(!lower.contains(word), "{name}: says {word}");
    }
    assert!(!runbook.contains("\n\n\n"), "{name}: two empty lines");
    let scripts = blocks(&runbook, "bash");
    assert!(scripts.len() >= 6, "{name}");
    for script in scripts {
        let mut bash =
            Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash");
        bash.stdin.take().expect("stdin").write_all(script.as_bytes()).expect("the script");
        let output = bash.wait_with_output().expect("bash");
        assert!(output.status.success(), "{name}: {}\n{script}", String::from_utf8_lossy(&output.stderr));
    }
}

fn has(runbook: &str, texts: &[&str]) {
    for text in texts {
        assert!(runbook.contains(text), "no `{text}` in\n{runbook}");
    }
}

fn has_not(runbook: &str, texts: &[&str]) {
    for text in texts {
        assert!(!runbook.contains(text), "`{text}` in\n{runbook}");
    }
}

#[test]
fn runbooks_hold_together() {
    for profile in profiles() {
        check(&profile, &Emitted::new(&profile));
    }
    check("a hostile name", &Emitted::with("31b-v6e-8", &[HOSTILE]));
}

#[test]
fn the_runbook_of_turbo_stable() {
    let emitted = Emitted::new("turbo-stable");
    let runbook = emitted.runbook();
    has(
        &runbook,
        &[
            "**378,432 tokens**",
            "| Cold start | about 1,440 s",
            "E1000: CompileTimeHbmOom",
            "Attempting to reserve",
            "Chunked MM input disabled but max_tokens_per_mm_item",
            "To serve at least one request with the models's max seq len",
            "./compute-engine.sh create",
            "docker restart vllm-gemma4",
            "gcloud secrets versions add hf-token",
            "http://127.0.0.1:8000/health",
            "`floating-image`",
        ],
    );
    with_settings!({
        filters => vec![(r"sha256:[0-9a-f]{64}", "sha256:DIGEST"), (r"vllm-gemma4-[0-9a-f]{12}", "vllm-gemma4-DIGEST")],
    }, {
        assert_snapshot!(runbook);
    });
}

#[test]
fn the_runbook_of_the_bundled_engine() {
    let runbook = Emitted::new("smoke").runbook();
    has(
        &runbook,
        &[
            "### Gemma4CompilesWhileServing",
            "| Programs compiled at a start | 12 |",
            "sudo systemctl enable --now gemma4-smoke",
            "/etc/gemma4ctl/gemma4-smoke.plan.json",
            "http://127.0.0.1:8000/v1/completions",
            "The plan refers to no secret.",
            "This plan has none.",
        ],
    );
    has_not(&runbook, &["docker", "gcloud", "kubectl", "vLLM's", "E1000", "forcing TRITON_ATTN", "HF_TOKEN"]);
}

#[test]
fn the_runbook_of_31b() {
    let runbook = Emitted::new("31b-v6e-8").runbook();
    has(
        &runbook,
        &[
            "**320,832 tokens**",
            "8 devices",
            "sha256:19a1a0526476f902eb83e1057f3d8938f35b457dd7716a30e9ab4f7bee90d507",
            "an image: 280 tokens",
            "./compute-engine.sh delete",
            "`/var/cache/gemma4ctl/xla`",
        ],
    );
    // Pinned, without speculation, on a disk, without video.
    has_not(
        &runbook,
        &["which can move", "RepoDigests", "Speculation", "outlives the container", "2,496", "queued-resource"],
    );
}

#[test]
fn commands_are_those_of_the_plane() {
    let queued = Emitted::with(
        "e2b-v6e-1",
        &[
            r#"deploy.gcloud.plane="queued-resource""#,
            r#"deploy.gcloud.project="proj-1""#,
            r#"deploy.gcloud.max_run_duration="4h""#,
            r#"secrets.api_key={gcp_secret="serve-key"}"#,
        ],
    );
    check("queued", &queued);
    let runbook = queued.runbook();
    has(
        &runbook,
        &[
            "./queued-resource.sh create",
            "keep the queued resource",
            "deleted by itself 4h after",
            "--project=proj-1",
            "./queued-resource.sh delete gemma4-e2b-v6e-1\n",
            "gcloud compute tpus tpu-vm ssh gemma4-e2b-v6e-1-node --project=proj-1",
            "gcloud secrets versions add serve-key --project=proj-1",
            r#"--set 'deploy.gcloud.plane="queued-resource"'"#,
        ],
    );
    has_not(&runbook, &["compute-engine.sh", "kubectl"]);

    let kubernetes =
        Emitted::with("31b-v6e-8", &[r#"deploy.gke.namespace="serving""#, r#"secrets.api_key={env="SERVE_KEY"}"#]);
    check("gke", &kubernetes);
    let runbook = kubernetes.runbook();
    has(
        &runbook,
        &[
            "./node-pool.sh\n./secret.sh\nkubectl apply -k .",
            "kubectl --namespace serving rollout restart deployment/gemma4-31b-v6e-8",
            "read -rs SERVE_KEY",
            "Authorization: Bearer",
        ],
    );
    has_not(&runbook, &["docker", "compute-engine.sh"]);

    // The cloud's machines take secrets from Secret Manager alone, so this one is started by hand.
    let file = Emitted::with("e2b-v6e-1", &[r#"secrets.api_key={file="/etc/the key"}"#]);
    check("file", &file);
    has(&file.runbook(), &["mv '/etc/the key.new' '/etc/the key'", "./docker-run.sh", "$(cat '/etc/the key')"]);
    has_not(&file.runbook(), &["compute-engine.sh", "kubectl"]);

    let gpu = Emitted::new("e4b-b200-fast-prefill").runbook();
    has(&gpu, &["./docker-run.sh", "http://127.0.0.1:8434/health"]);
    has_not(&gpu, &["gcloud", "kubectl", "E1000", "TPU"]);
}

#[test]
fn the_runbook_of_a_plan_that_does_not_fit_says_so() {
    let output = Command::new(env!("CARGO_BIN_EXE_gemma4ctl"))
        .args(["emit", "31b-v6e-8", "--target", "runbook", "--allow-unfit"])
        .args(["--set", r#"hardware.accelerator="v6e-1""#, "--set", "parallelism.tensor=1"])
        .current_dir(root())
        .output()
        .expect("the binary");
    assert!(output.status.success());
    has(&String::from_utf8_lossy(&output.stdout), &["**This plan does not fit:**"]);
}

/// The commands of the section `Start` make this very plan again, `--set` and all.
#[test]
fn the_runbook_makes_its_own_plan_again() {
    let emitted = Emitted::with("e2b-v6e-1", &[r#"secrets.api_key={env="KEY"}"#, "memory.hbm_utilization=0.9"]);
    let runbook = emitted.runbook();
    let start = blocks(&runbook, "bash").into_iter().next().expect("a block");
    let script: Vec<&str> = start.lines().filter(|line| !line.contains(" --target gcloud ")).collect();
    let binary = Path::new(env!("CARGO_BIN_EXE_gemma4ctl")).parent().expect("a folder");
    let output = Command::new("bash")
        .args(["-euc", &script.join("\n")])
        .current_dir(emitted.folder.path())
        .env_clear()
        .env("HOME", emitted.folder.path())
        .env("GEMMA4CTL_CONFIG_DIR", emitted.folder.path().join("config"))
        .env("PATH", format!("{}:/usr/bin:/bin", binary.display()))
        .output()
        .expect("bash");
    assert!(output.status.success(), "{}\n{start}", String::from_utf8_lossy(&output.stderr));
}
