//! `emit --target gke` from outside: what the manifests say, whether Kubernetes takes them, and what the scripts call.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use common::gke::check_calls;
use common::{command, on_path, root, skipped, text, tool};

const TURBO: &[&str] = &["turbo-stable"];
const TPU7X: &[&str] = &["turbo-stable", "--set", "hardware.accelerator=tpu7x-4", "--set", "parallelism.tensor=8"];
const HOSTS: &[&str] = &["31b-v6e-8", "--set", "hardware.accelerator=v6e-16", "--set", "parallelism.tensor=16"];
const TPU7X_HOSTS: &[&str] = &["31b-v6e-8", "--set", "hardware.accelerator=tpu7x-8", "--set", "parallelism.tensor=16"];
const REPLICAS: &[&str] = &["31b-v6e-8", "--set", "deploy.gke.replicas=2"];
const GPU: &[&str] = &["e4b-b200", "--set", "server.host=0.0.0.0"];
const CASES: &[&[&str]] = &[TURBO, &["e2b-v6e-1"], &["31b-v6e-8"], TPU7X, HOSTS, TPU7X_HOSTS, REPLICAS, GPU];

/// A value that must not be seen anywhere.
const PLANTED: &str = "hf_PlantedPlantedPlantedPlanted1";

/// The same, as Kubernetes writes secrets.
const PLANTED_BASE64: &str = "aGZfUGxhbnRlZFBsYW50ZWRQbGFudGVkUGxhbnRlZDE=";

/// The files of one plan.
struct Emitted {
    folder: tempfile::TempDir,
    plan: Value,
}

fn binary(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().expect("the binary")
}

impl Emitted {
    fn new(profile: &[&str]) -> Self {
        Self::from(tempfile::tempdir().expect("a folder"), profile)
    }

    /// From a profile with this text.
    fn of(profile: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("mine.toml"), profile).expect("a file");
        Self::from(folder, &["mine.toml"])
    }

    fn from(folder: tempfile::TempDir, profile: &[&str]) -> Self {
        let plan = binary(folder.path(), &[&["plan"], profile, &["--format", "json"]].concat());
        let emit = binary(folder.path(), &[&["emit"], profile, &["--target", "gke", "--out-dir", "out"]].concat());
        assert!(emit.status.success(), "{profile:?}: {}", text(&emit));
        let plan = serde_json::from_slice(&plan.stdout).expect("a plan");
        Emitted { folder, plan }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("out").join(name)
    }

    fn names(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.path("")).expect("the folder");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a file")
    }

    fn documents(&self, name: &str) -> Vec<Value> {
        serde_saphyr::from_multiple(&self.read(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn yaml(&self, name: &str) -> Value {
        let documents = self.documents(name);
        documents.into_iter().last().expect("a document")
    }

    fn hosts(&self) -> u64 {
        self.plan["hardware"]["hosts"].as_u64().expect("hosts")
    }

    /// The templates of the pods: that of the server first.
    fn pods(&self) -> Vec<Value> {
        if self.hosts() > 1 {
            let group = self.yaml("leaderworkerset.yaml")["spec"]["leaderWorkerTemplate"].clone();
            vec![group["leaderTemplate"].clone(), group["workerTemplate"].clone()]
        } else {
            vec![self.yaml("deployment.yaml")["spec"]["template"].clone()]
        }
    }
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().expect("a list");
    items.iter().map(|item| item.as_str().expect("text").to_owned()).collect()
}

/// As Kubernetes reads commands and variables: `$$` is `$`, and nothing else is replaced here.
fn expanded(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        if c == '$' {
            assert_eq!(rest.next(), Some('$'), "Kubernetes may replace a part of {text}");
        }
        out.push(c);
    }
    out
}

fn engine(pod: &Value) -> &Value {
    &pod["spec"]["containers"][0]
}

/// The whole command line of the container.
fn command_line(pod: &Value) -> Vec<String> {
    let mut words = strings(&engine(pod)["command"]);
    words.extend(strings(&engine(pod)["args"]));
    words.iter().map(|word| expanded(word)).collect()
}

fn quantity(value: &Value) -> u64 {
    value.as_str().expect("a quantity").parse().expect("a number")
}

#[test]
fn the_container_runs_what_the_plan_says() {
    for case in CASES {
        let emitted = Emitted::new(case);
        let argv = strings(&emitted.plan["engine"]["argv"]);
        let pip = strings(&emitted.plan["engine"]["pip"]);
        let words = command_line(&emitted.pods()[0]);
        let (head, tail) = words.split_at(words.len() - argv.len() - if emitted.hosts() > 1 { 2 } else { 0 });
        assert_eq!(tail[..argv.len()], argv, "{case:?}");
        if emitted.hosts() > 1 {
            assert_eq!(tail[argv.len()..], ["--distributed-executor-backend", "ray"]);
            assert_eq!(head[head.len() - 1], emitted.hosts().to_string());
        } else if pip.is_empty() {
            assert!(head.is_empty(), "no shell: {head:?}");
        } else {
            assert_eq!(head[..2], ["/bin/bash", "-c"]);
            assert_eq!(head[4..head.len() - 1], pip);
            assert_eq!(head[head.len() - 1], "--");
        }
        for pod in emitted.pods() {
            assert_eq!(engine(&pod)["image"], emitted.plan["engine"]["image"]);
            for (name, value) in emitted.plan["engine"]["env"].as_object().expect("the environment") {
                let found = engine(&pod)["env"].as_array().expect("env").iter().find(|entry| entry["name"] == *name);
                let found = found.and_then(|entry| entry["value"].as_str()).map(expanded);
                assert_eq!(found.as_deref(), value.as_str(), "{name}");
            }
        }
    }
}

#[test]
fn a_pod_has_all_chips_of_its_machine() {
    for (case, chips, accelerator, topology) in [
        (TURBO, 4, "tpu-v6e-slice", "2x2"),
        (&["e2b-v6e-1"][..], 1, "tpu-v6e-slice", "1x1"),
        (&["31b-v6e-8"][..], 8, "tpu-v6e-slice", "2x4"),
        // Chips, although the engine counts eight devices.
        (TPU7X, 4, "tpu7x", "2x2x1"),
        (HOSTS, 4, "tpu-v6e-slice", "4x4"),
        (TPU7X_HOSTS, 4, "tpu7x", "2x2x2"),
    ] {
        let emitted = Emitted::new(case);
        for pod in emitted.pods() {
            let resources = &engine(&pod)["resources"];
            assert_eq!(quantity(&resources["requests"]["google.com/tpu"]), chips, "{case:?}");
            assert_eq!(resources["requests"], resources["limits"]);
            let expected = json!({
                "cloud.google.com/gke-tpu-accelerator": accelerator,
                "cloud.google.com/gke-tpu-topology": topology,
            });
            assert_eq!(pod["spec"]["nodeSelector"], expected);
            assert!(engine(&pod).get("securityContext").is_none(), "nothing is privileged");
        }
    }
    let gpu = Emitted::new(GPU);
    let pod = &gpu.pods()[0];
    assert_eq!(engine(pod)["resources"]["limits"], json!({ "nvidia.com/gpu": "1" }));
    assert_eq!(pod["spec"]["nodeSelector"], json!({ "cloud.google.com/gke-accelerator": "nvidia-b200" }));
}

#[test]
fn probes_wait_for_a_cold_start() {
    for case in CASES {
        let emitted = Emitted::new(case);
        let compile = emitted.plan["buckets"]["compile_seconds"].as_u64().unwrap_or(0);
        let ready = 1800.max(900 + 2 * compile);
        let pods = emitted.pods();
        let container = engine(&pods[0]);
        let number = |probe: &str, key: &str| container[probe][key].as_u64().expect("a number");
        assert!(number("startupProbe", "failureThreshold") * number("startupProbe", "periodSeconds") >= ready);
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            assert_eq!(container[probe]["httpGet"], json!({ "path": "/health", "port": "http" }));
        }
        assert_eq!(container["ports"][0]["containerPort"], emitted.plan["server"]["port"]);
        assert!(pods[0]["spec"]["terminationGracePeriodSeconds"].as_u64() >= Some(120));
        if emitted.hosts() > 1 {
            assert!(engine(&pods[1]).get("startupProbe").is_none(), "only the leader answers requests");
        } else {
            let deadline = emitted.yaml("deployment.yaml")["spec"]["progressDeadlineSeconds"].as_u64();
            assert!(deadline > Some(ready));
        }
    }
}

#[test]
fn every_secret_is_a_reference() {
    for case in CASES {
        let emitted = Emitted::new(case);
        let secrets = emitted.plan["secrets"].as_object().expect("secrets");
        for pod in emitted.pods() {
            let empty = Vec::new();
            let env = engine(&pod)["env"].as_array().unwrap_or(&empty);
            let references: Vec<&Value> =
                env.iter().filter(|entry| entry.pointer("/valueFrom/secretKeyRef").is_some()).collect();
            assert_eq!(references.len(), secrets.len(), "{case:?}");
            for entry in references {
                assert!(entry.get("value").is_none());
                let object = entry["valueFrom"]["secretKeyRef"]["name"].as_str().expect("a name");
                assert!(emitted.read("secret.sh").contains(&format!("store {object} ")), "{object}");
            }
            assert!(env.iter().all(|entry| entry.get("value").is_some() || entry["valueFrom"].is_object()));
        }
        assert_eq!(emitted.names().contains("secret.sh"), !secrets.is_empty());
    }
}

#[test]
fn caches_lie_where_the_engine_looks() {
    // Everything is in memory, so there is no claim that would wait for ever for its first user.
    let turbo = Emitted::new(TURBO);
    assert!(!turbo.names().contains("pvc.yaml"));
    let spec = &turbo.pods()[0]["spec"];
    assert_eq!(spec["volumes"], json!([{ "name": "dshm", "emptyDir": { "medium": "Memory" } }]));
    assert_eq!(engine(&turbo.pods()[0])["volumeMounts"], json!([{ "name": "dshm", "mountPath": "/dev/shm" }]));

    let large = Emitted::new(&["31b-v6e-8"]);
    let mounts = engine(&large.pods()[0])["volumeMounts"].clone();
    let cache = large.plan["compile_cache"]["path"].as_str().expect("a path");
    assert_eq!(
        mounts,
        json!([
            { "name": "cache", "mountPath": "/root/.cache/huggingface", "subPath": "weights" },
            { "name": "cache", "mountPath": cache, "subPath": "compile" },
        ])
    );
    let claim = large.yaml("pvc.yaml");
    assert_eq!(claim["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    // 31,273,088,876 parameters of two bytes and three tenths are 75.7 GiB, with 20 GiB more 95.7.
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "100Gi");
    assert_eq!(large.documents("pvc.yaml")[0]["parameters"]["type"], "hyperdisk-balanced");
    assert_eq!(claim["metadata"]["name"], large.pods()[0]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]);

    // A disk is attached to one machine at a time.
    for case in [HOSTS, REPLICAS] {
        let emitted = Emitted::new(case);
        assert_eq!(emitted.yaml("pvc.yaml")["spec"]["accessModes"], json!(["ReadWriteMany"]), "{case:?}");
    }
    assert_eq!(large.yaml("hpa.yaml")["spec"]["maxReplicas"], 1);
    assert_eq!(Emitted::new(REPLICAS).yaml("hpa.yaml")["spec"]["maxReplicas"], 4);

    let sized = Emitted::new(&["31b-v6e-8", "--set", "deploy.docker.shm_size=16gb"]);
    let volume = &sized.pods()[0]["spec"]["volumes"][0];
    assert_eq!(volume["emptyDir"], json!({ "medium": "Memory", "sizeLimit": "17179869184" }));
}

#[test]
fn copies_and_groups() {
    let two = Emitted::new(REPLICAS);
    let spec = two.yaml("deployment.yaml")["spec"].clone();
    assert_eq!((spec["replicas"].as_u64(), &spec["strategy"]["type"]), (Some(2), &json!("Recreate")));
    assert_eq!(two.yaml("hpa.yaml")["spec"]["minReplicas"], 2);

    let group = Emitted::new(HOSTS);
    assert!(!group.names().contains("deployment.yaml"));
    let spec = group.yaml("leaderworkerset.yaml")["spec"].clone();
    assert_eq!(spec["leaderWorkerTemplate"]["size"], 4);
    assert_eq!(spec["leaderWorkerTemplate"]["restartPolicy"], "RecreateGroupOnPodRestart");
    assert_eq!(group.yaml("hpa.yaml")["spec"]["scaleTargetRef"]["kind"], "LeaderWorkerSet");
    for pod in group.pods() {
        let env = engine(&pod)["env"].as_array().expect("env").clone();
        let value = |name: &str| env.iter().find(|entry| entry["name"] == name).map(|entry| entry["value"].clone());
        assert_eq!(value("TPU_MULTIHOST_BACKEND"), Some(json!("ray")));
        assert_eq!(value("TPU_BACKEND_TYPE"), Some(json!("jax")));
        assert_eq!(value("IS_TPU_MULTIHOST"), Some(json!("true")));
        assert_eq!(value("JAX_PLATFORMS"), Some(json!("")));
    }
}

#[test]
fn selectors_meet_the_pods_that_they_mean() {
    for case in CASES {
        let emitted = Emitted::new(case);
        let matches = |selector: &Value, pod: &Value| {
            let labels = &pod["metadata"]["labels"];
            selector.as_object().expect("labels").iter().all(|(key, value)| labels[key] == *value)
        };
        let pods = emitted.pods();
        let serving = [
            emitted.yaml("service.yaml")["spec"]["selector"].clone(),
            emitted.yaml("podmonitoring.yaml")["spec"]["selector"]["matchLabels"].clone(),
            emitted.yaml("inferencepool.yaml")["spec"]["selector"]["matchLabels"].clone(),
        ];
        for selector in &serving {
            assert!(matches(selector, &pods[0]), "{case:?}");
            assert!(pods[1..].iter().all(|worker| !matches(selector, worker)), "workers answer no requests");
        }
        for selector in [
            &emitted.yaml("pdb.yaml")["spec"]["selector"]["matchLabels"],
            &emitted.yaml("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"],
        ] {
            assert!(pods.iter().all(|pod| matches(selector, pod)));
        }
        let port = &emitted.plan["server"]["port"];
        assert_eq!(&emitted.yaml("service.yaml")["spec"]["ports"][0]["port"], port);
        assert_eq!(&emitted.yaml("inferencepool.yaml")["spec"]["targetPorts"][0]["number"], port);
        assert_eq!(
            emitted.yaml("podmonitoring.yaml")["spec"]["endpoints"],
            json!([{ "port": port, "path": "/metrics", "interval": "15s" }])
        );
        let metric = &emitted.yaml("hpa.yaml")["spec"]["metrics"][0]["pods"];
        assert_eq!(metric["metric"]["name"], "prometheus.googleapis.com|vllm:num_requests_waiting|gauge");
        assert_eq!(metric["target"], json!({ "type": "AverageValue", "averageValue": "10" }));
        assert_eq!(&emitted.yaml("networkpolicy.yaml")["spec"]["ingress"][0]["ports"][0]["port"], port);
        for name in emitted.names().iter().filter(|name| name.ends_with(".yaml")) {
            for document in emitted.documents(name) {
                let kind = document["kind"].as_str().expect("a kind");
                let namespace = document["metadata"]["namespace"].as_str();
                let alone = ["Namespace", "StorageClass", "Kustomization"].contains(&kind);
                assert_eq!(namespace, if alone { None } else { Some("gemma4") }, "{name}");
            }
        }
        for pod in pods {
            assert_eq!(pod["metadata"]["annotations"]["gemma4ctl/digest"], emitted.plan["digest"]);
        }
    }
}

#[test]
fn values_stay_values() {
    let tricky = "a\"b $(HOME) ${X} $$ 'x' \\ # : {{ no }} yes\nnext";
    let profile = format!(
        "name = \"no lines: {{{{ 1 }}}}\"\nextends = [\"e2b-v6e-1\"]\n[engine.env]\nTRICKY = {}\n[deploy.docker]\nname = \"Uber_Name.9\"\n",
        serde_json::to_string(tricky).expect("JSON")
    );
    let emitted = Emitted::of(&profile);
    let pods = emitted.pods();
    let env = engine(&pods[0])["env"].as_array().expect("env").clone();
    let found = env.iter().find(|entry| entry["name"] == "TRICKY").expect("the variable");
    assert_eq!(expanded(found["value"].as_str().expect("text")), tricky);
    for name in emitted.names() {
        assert!(emitted.read(&name).lines().all(|line| !line.starts_with("lines:")), "{name}");
    }
    let name = emitted.yaml("service.yaml")["metadata"]["name"].clone();
    assert_eq!(name, "uber-name-9");
}

#[test]
fn what_gke_cannot_run_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    for (profile, message) in [
        (&["cpu-e2b"][..], "`hardware.accelerator = cpu` is not for `gke`"),
        (&["smoke"], "`hardware.accelerator = cpu` is not for `gke`"),
        (&["e4b-b200"], "`server.host = 127.0.0.1` is not for `gke`"),
        (&["e2b-v6e-1", "--set", "deploy.gke.namespace=My Space"], "`deploy.gke.namespace = My Space`"),
        (&["e2b-v6e-1", "--set", "engine.kind=bundled"], "engine `bundled`"),
    ] {
        let output = binary(
            folder.path(),
            &[&["emit"], profile, &["--target", "gke", "--out-dir", "out", "--allow-unfit"]].concat(),
        );
        assert!(!output.status.success(), "{profile:?}");
        assert!(text(&output).contains(message), "{}", text(&output));
        assert!(!folder.path().join("out").exists(), "nothing is written");
    }
}

#[test]
fn kubernetes_takes_the_manifests() {
    let Some(validator) = tool("kubernetes-validate") else { return };
    let check = |paths: &[PathBuf]| {
        let mut command = Command::new(&validator);
        command.args(["--strict", "--kubernetes-version", "1.37.0"]).args(paths).output().expect("the validator")
    };
    for case in CASES {
        let emitted = Emitted::new(case);
        let own = ["kustomization.yaml", "leaderworkerset.yaml", "podmonitoring.yaml", "inferencepool.yaml"];
        let mut paths: Vec<PathBuf> = emitted
            .names()
            .iter()
            .filter(|name| name.ends_with(".yaml") && !own.contains(&name.as_str()))
            .map(|name| emitted.path(name))
            .collect();
        assert!(paths.len() >= 5, "{case:?}: {paths:?}");
        if emitted.hosts() > 1 {
            for (index, pod) in emitted.pods().iter().enumerate() {
                let path = emitted.folder.path().join(format!("pod-{index}.yaml"));
                let mut metadata = pod["metadata"].clone();
                metadata["name"] = json!("pod");
                let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"] });
                std::fs::write(&path, pod.to_string()).expect("a file");
                paths.push(path);
            }
        }
        let output = check(&paths);
        assert!(output.status.success(), "{case:?}: {}", text(&output));
        assert!(text(&output).matches(" passed ").count() >= paths.len(), "{}", text(&output));
    }
    // It does refuse what is wrong.
    let emitted = Emitted::new(TURBO);
    let broken = emitted.read("deployment.yaml").replace("enableServiceLinks", "enableServiceLink");
    std::fs::write(emitted.path("broken.yaml"), broken).expect("a file");
    assert!(!check(&[emitted.path("broken.yaml")]).status.success());
}

#[test]
fn custom_resources_have_the_form_of_their_definitions() {
    let schema = |name: &str| {
        let path = root().join("tests/fixtures/crds").join(format!("{name}.json"));
        let text = std::fs::read_to_string(path).expect("a schema");
        jsonschema::validator_for(&serde_json::from_str(&text).expect("JSON")).expect("a schema")
    };
    for case in CASES {
        let emitted = Emitted::new(case);
        let mut names = vec!["podmonitoring", "inferencepool"];
        if emitted.hosts() > 1 {
            names.push("leaderworkerset");
        }
        for name in names {
            let document = emitted.yaml(&format!("{name}.yaml"));
            let errors: Vec<String> = schema(name).iter_errors(&document).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{case:?} {name}: {errors:?}");
        }
    }
    let mut old = Emitted::new(TURBO).yaml("inferencepool.yaml");
    old["spec"].as_object_mut().expect("a table").remove("targetPorts");
    assert!(!schema("inferencepool").is_valid(&old));
}

#[test]
fn kustomize_finds_every_file() {
    let Some(kubectl) = on_path("kubectl") else { return skipped("kubectl is not installed") };
    for case in CASES {
        let emitted = Emitted::new(case);
        let listed: BTreeSet<String> = strings(&emitted.yaml("kustomization.yaml")["resources"]).into_iter().collect();
        let mut there = emitted.names();
        there.retain(|name| name.ends_with(".yaml") && name != "kustomization.yaml");
        assert_eq!(listed, there, "{case:?}");
        let output = Command::new(&kubectl).arg("kustomize").arg(emitted.path("")).output().expect("kubectl");
        assert!(output.status.success(), "{case:?}: {}", text(&output));
        let rendered: Vec<Value> = serde_saphyr::from_multiple(&String::from_utf8_lossy(&output.stdout)).expect("YAML");
        let mut kinds: Vec<String> =
            there.iter().flat_map(|name| emitted.documents(name)).map(|d| d["kind"].to_string()).collect();
        let mut found: Vec<String> = rendered.iter().map(|document| document["kind"].to_string()).collect();
        kinds.sort();
        found.sort();
        assert_eq!(kinds, found);
        // What kubectl's own reader makes of the arguments.
        let pods = emitted.pods();
        let read = rendered.iter().find_map(|document| {
            document.pointer("/spec/template").or_else(|| document.pointer("/spec/leaderWorkerTemplate/leaderTemplate"))
        });
        assert_eq!(command_line(read.expect("a pod template")), command_line(&pods[0]));
    }
}

#[test]
fn scripts_are_clean() {
    let shellcheck = tool("shellcheck");
    for case in [TURBO, HOSTS, TPU7X_HOSTS, REPLICAS, GPU] {
        let emitted = Emitted::new(case);
        for name in emitted.names().iter().filter(|name| name.ends_with(".sh")) {
            let path = emitted.path(name);
            let output = Command::new("bash").arg("-n").arg(&path).output().expect("bash");
            assert!(output.status.success(), "{case:?} {name}: {}", text(&output));
            if let Some(shellcheck) = &shellcheck {
                let output = Command::new(shellcheck).arg(&path).output().expect("shellcheck");
                assert!(output.status.success(), "{case:?} {name}: {}", text(&output));
            }
        }
    }
}

/// Programs that write down how they were called.
struct Recorder {
    folder: tempfile::TempDir,
}

impl Recorder {
    fn new(programs: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, body) in programs {
            // Programs of a pipe run at the same time, and printf writes at every end of a line; cat writes all at once.
            let script = format!(
                "#!/bin/bash\nprintf '%s\\0' {name} \"$@\" >\"$RECORD.$$\"\nprintf '\\n' >>\"$RECORD.$$\"\ncat \"$RECORD.$$\" >>\"$RECORD\"\n{body}\n"
            );
            common::write_program(&folder.path().join(name), &script);
        }
        Recorder { folder }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", format!("{}:/usr/bin:/bin", self.folder.path().display()))
            .env("RECORD", self.folder.path().join("record"))
            .env("HOME", self.folder.path())
            .stdin(Stdio::null());
        command
    }

    fn calls(&self) -> Vec<Vec<String>> {
        let text = std::fs::read_to_string(self.folder.path().join("record")).unwrap_or_default();
        let lines = text.split("\0\n").filter(|line| !line.is_empty());
        lines.map(|line| line.split('\0').map(str::to_owned).collect()).collect()
    }
}

const GCLOUD: (&str, &str) = (
    "gcloud",
    r#"case "$*" in "secrets versions access"*) printf '%s\n' "$PLANTED" ;; *" describe "*) exit "${THERE:-1}" ;; esac"#,
);
/// `create secret` passes on what it read, as the real one does; what is passed on must be the planted value.
const KUBECTL: (&str, &str) = (
    "kubectl",
    r#"case "$*" in
        "get namespace"*) exit 1 ;;
        "create secret"*) value=$(cat; echo .); [[ $value == "$PLANTED." ]] && echo intact >>"$RECORD.values"; printf '%s' "${value%.}" | base64 ;;
        apply*) cat >/dev/null; echo "secret/x serverside-applied" ;;
    esac"#,
);

/// The calls of node-pool.sh.
fn node_pool(emitted: &Emitted, environment: &[(&str, &str)]) -> Vec<Vec<String>> {
    let recorder = Recorder::new(&[GCLOUD]);
    let base = [("CLUSTER", "main"), ("LOCATION", "us-east5"), ("NODE_LOCATIONS", "us-east5-b")];
    let output = recorder
        .command(emitted.path("node-pool.sh"))
        .envs(base)
        .envs(environment.iter().copied())
        .output()
        .expect("the script");
    assert!(output.status.success(), "{}", text(&output));
    check_calls(&recorder.calls());
    recorder.calls()
}

fn creations(calls: &[Vec<String>]) -> Vec<Vec<String>> {
    calls.iter().filter(|call| call[1..4] == ["container", "node-pools", "create"]).cloned().collect()
}

fn has(call: &[String], flag: &str) -> bool {
    call.iter().any(|word| word == flag)
}

#[test]
fn the_node_pool_is_that_of_the_plan() {
    let one = creations(&node_pool(&Emitted::new(TURBO), &[]));
    assert_eq!(
        one,
        [[
            "gcloud",
            "container",
            "node-pools",
            "create",
            "vllm-gemma4",
            "--cluster=main",
            "--location=us-east5",
            "--machine-type=ct6e-standard-4t",
            "--node-locations=us-east5-b",
            "--num-nodes=1",
        ]]
    );
    let two = creations(&node_pool(&Emitted::new(REPLICAS), &[("AUTOSCALE", "1")]));
    assert_eq!(two.len(), 1);
    for flag in ["--enable-autoscaling", "--num-nodes=2", "--min-nodes=2", "--max-nodes=4"] {
        assert!(has(&two[0], flag), "{flag}: {two:?}");
    }
    // A slice of several machines is a pool by itself.
    let slices = creations(&node_pool(&Emitted::new(&[HOSTS, &["--set", "deploy.gke.replicas=2"]].concat()), &[]));
    assert_eq!(slices.len(), 2);
    assert!(slices.iter().all(|call| has(call, "--tpu-topology=4x4") && has(call, "--num-nodes=4")), "{slices:?}");
    assert_ne!(slices[0][4], slices[1][4]);
    // On TPU7x a policy says what the topology says elsewhere.
    let calls = node_pool(&Emitted::new(TPU7X_HOSTS), &[]);
    let policy = calls.iter().find(|call| call[2] == "resource-policies" && call[3] == "create").expect("a policy");
    assert!(has(policy, "--accelerator-topology=2x2x2") && has(policy, "--region=us-east5"), "{policy:?}");
    let pool = &creations(&calls)[0];
    assert!(has(pool, &format!("--placement-policy={}", policy[5])) && has(pool, "--num-nodes=2"), "{pool:?}");
    assert!(!pool.iter().any(|word| word.starts_with("--tpu-topology")));
    assert!(!creations(&node_pool(&Emitted::new(TPU7X), &[]))[0].iter().any(|word| word.contains("policy")));
    // GPUs: the plan knows no machine type.
    let gpu = creations(&node_pool(&Emitted::new(GPU), &[("MACHINE_TYPE", "a4-highgpu-1g")]));
    assert!(has(&gpu[0], "--accelerator=type=nvidia-b200,count=1,gpu-driver-version=latest"), "{gpu:?}");
}

#[test]
fn capacity_is_bought_as_the_profile_says() {
    let provisioning = |how: &str, more: &[&str]| {
        let set = format!("deploy.gcloud.provisioning={how}");
        let mut case = vec!["31b-v6e-8", "--set", set.as_str()];
        for item in more {
            case.extend(["--set", item]);
        }
        creations(&node_pool(&Emitted::new(&case), &[("RESERVATION", "ours")])).remove(0)
    };
    let call = provisioning("spot", &[]);
    assert!(has(&call, "--spot"), "{call:?}");
    let call = provisioning("flex-start", &["deploy.gcloud.max_run_duration=2h 30m"]);
    for flag in [
        "--flex-start",
        "--reservation-affinity=none",
        "--max-run-duration=2h30m",
        "--enable-autoscaling",
        "--num-nodes=0",
    ] {
        assert!(has(&call, flag), "{flag}: {call:?}");
    }
    let call = provisioning("reserved", &["deploy.gcloud.reservation=mine"]);
    assert!(has(&call, "--reservation-affinity=specific") && has(&call, "--reservation=mine"), "{call:?}");
}

#[test]
fn the_profile_names_the_cluster_or_the_environment_does() {
    let case = [
        "31b-v6e-8",
        "--set",
        "deploy.gke.cluster=it's",
        "--set",
        "deploy.gke.location=europe-west4",
        "--set",
        "deploy.gcloud.zone=europe-west4-a",
        "--set",
        "deploy.gcloud.project=p-1",
    ];
    let emitted = Emitted::new(&case);
    let call = creations(&node_pool(&emitted, &[])).remove(0);
    for flag in ["--cluster=it's", "--location=europe-west4", "--node-locations=europe-west4-a", "--project=p-1"] {
        assert!(has(&call, flag), "{flag}: {call:?}");
    }
    // What is there already is left alone.
    assert!(creations(&node_pool(&emitted, &[("THERE", "0")])).is_empty());
    // Without a name, nothing is called.
    let recorder = Recorder::new(&[GCLOUD]);
    let output = recorder.command(Emitted::new(TURBO).path("node-pool.sh")).output().expect("the script");
    assert!(!output.status.success() && text(&output).contains("set CLUSTER"), "{}", text(&output));
    assert!(recorder.calls().is_empty());
}

#[test]
fn gcloud_takes_its_lines() {
    let Some(gcloud) = on_path("gcloud") else { return skipped("gcloud is not installed") };
    let mut lines = BTreeSet::new();
    for case in [TURBO, HOSTS, TPU7X_HOSTS] {
        let calls = node_pool(&Emitted::new(case), &[("AUTOSCALE", "1")]);
        lines.extend(creations(&calls).first().map(|call| call.join(" ")));
        lines.extend(calls.iter().filter(|call| call[2] == "resource-policies").map(|call| call.join(" ")));
    }
    assert_eq!(lines.len(), 5);
    for line in lines {
        let output = Command::new(&gcloud)
            .args(["meta", "lint-gcloud-commands", "--command-string", &line])
            .output()
            .expect("gcloud");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        assert_eq!(report[0]["success"], true, "{line}: {}", report[0]["error_message"]);
    }
}

#[test]
fn a_secret_value_is_seen_nowhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("a key.txt");
    std::fs::write(&file, format!("{PLANTED}\n")).expect("a file");
    let profile = format!(
        "extends = [\"31b-v6e-8\"]\n[secrets]\napi_key = {{ env = \"MY_KEY\" }}\nhub_mirror = {{ file = {:?} }}\nhome = {{ file = \"~/own key\" }}\n",
        file.display().to_string()
    );
    let emitted = Emitted::of(&profile);
    let recorder = Recorder::new(&[GCLOUD, KUBECTL]);
    std::fs::write(recorder.folder.path().join("own key"), PLANTED).expect("a file");
    let run = |variable: &str| {
        let mut command = recorder.command("/bin/bash");
        // Not even a trace shows it.
        command.arg("-x").arg(emitted.path("secret.sh")).env("PLANTED", PLANTED).env(variable, PLANTED);
        command.output().expect("the script")
    };
    let output = run("MY_KEY");
    assert!(output.status.success(), "{}", text(&output));
    check_calls(&recorder.calls());
    let stored = recorder.calls().iter().filter(|call| call[1..3] == ["create", "secret"]).count();
    assert_eq!(stored, 4);
    let intact = std::fs::read_to_string(recorder.folder.path().join("record.values")).expect("the values");
    assert_eq!(intact.lines().count(), 4, "the values arrive whole, without the line's end");
    let seen = format!("{}{:?}", text(&output), recorder.calls());
    assert!(!seen.contains(PLANTED) && !seen.contains(PLANTED_BASE64), "{seen}");
    for name in emitted.names() {
        assert!(!emitted.read(&name).contains(PLANTED) && !emitted.read(&name).contains(PLANTED_BASE64), "{name}");
    }
    // A variable that is not there ends it, with its name.
    let output = run("OTHER");
    assert!(!output.status.success() && text(&output).contains("export MY_KEY"), "{}", text(&output));
}

#[test]
fn a_group_starts_its_engine_once_all_machines_are_there() {
    let emitted = Emitted::new(&[HOSTS, &["--set", "engine.pip=[\"a b\"]"]].concat());
    let pods = emitted.pods();
    // The first count is short by one machine.
    let python = r#"case "$*" in *"import ray"*) if [[ -e $RECORD.asked ]]; then echo 4; else echo 3; : >"$RECORD.asked"; fi ;; esac"#;
    let recorder = Recorder::new(&[("python3", python), ("ray", ""), ("vllm", ""), ("sleep", "")]);
    let words = command_line(&pods[0]);
    let output = recorder.command(&words[0]).args(&words[1..]).output().expect("the command");
    assert!(output.status.success(), "{}", text(&output));
    let calls = recorder.calls();
    let of = |name: &str| calls.iter().filter(|call| call[0] == name).cloned().collect::<Vec<_>>();
    assert_eq!(of("python3")[0], ["python3", "-m", "pip", "install", "--", "a b"]);
    assert_eq!(of("ray"), [["ray", "start", "--head", "--port=6379"]]);
    assert_eq!(of("sleep").len(), 1);
    let mut argv = strings(&emitted.plan["engine"]["argv"]);
    argv.extend(["--distributed-executor-backend", "ray"].map(str::to_owned));
    assert_eq!(calls.last(), Some(&argv));

    // A machine that follows waits for the leader's port, then joins.
    let recorder = Recorder::new(&[("python3", ""), ("ray", "")]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port().to_string();
    let words: Vec<String> = command_line(&pods[1]).iter().map(|word| word.replace("6379", &port)).collect();
    let mut command = recorder.command(&words[0]);
    let output = command.args(&words[1..]).env("LWS_LEADER_ADDRESS", "127.0.0.1").output().expect("the command");
    assert!(output.status.success(), "{}", text(&output));
    let joined = format!("--address=127.0.0.1:{port}");
    assert_eq!(
        recorder.calls().last().map(Vec::as_slice),
        Some(&["ray", "start", &joined, "--block"].map(str::to_owned)[..])
    );
}
