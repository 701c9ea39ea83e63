//! Launches in Google Kubernetes Engine from outside, with a `kubectl` and a `gcloud` that keep one workload and its node
//! pools.

#![cfg(unix)]

mod common;

use std::path::PathBuf;

use common::Outcome;
use common::gke::check_calls;
use common::rig::Rig;

const LAUNCH: &str = "gemma4-e2b-v6e-1.gke";
const NAME: &str = "gemma4-e2b-v6e-1";
const CONTEXT: &str = "gke_example-project_us-east5_main";
/// Nothing that `redact` would know by its shape; the second line is the first in base64.
const SECRET: &str = "planted secret value";
const SECRET_BASE64: &str = "cGxhbnRlZCBzZWNyZXQgdmFsdWU=";
const KINDS: &str = "deployments.apps\nservices\nhorizontalpodautoscalers.autoscaling\npoddisruptionbudgets.policy\nnetworkpolicies.networking.k8s.io\npodmonitorings.monitoring.googleapis.com\n";

struct Cluster(Rig);

impl std::ops::Deref for Cluster {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.0
    }
}

impl Cluster {
    fn new() -> Self {
        let files = [
            ("context", CONTEXT),
            ("kinds", KINDS),
            ("ready", "2\n"),
            ("completion", "gemma4ctl-completed\n"),
            ("pods", "{\"items\":[]}"),
        ];
        Cluster(Rig::new(&["gcloud", "kubectl"], &files))
    }

    fn state(&self, name: &str) -> PathBuf {
        self.0.state(LAUNCH, name)
    }

    fn record(&self) -> serde_json::Value {
        self.0.record(LAUNCH)
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        let outcome = Outcome::of(&mut self.command(arguments));
        self.check();
        outcome
    }

    fn apply(&self, more: &[&str]) -> Outcome {
        let arguments = ["apply", "e2b-v6e-1", "--target", "gke", "--set", "deploy.gcloud.zone=us-east5-b"];
        let replicas = ["--set", "deploy.gke.replicas=2"];
        self.run(&[&arguments[..], &replicas, more].concat())
    }

    /// Every call is one that the programs take, in the right cluster.
    fn check(&self) {
        let mut calls = self.calls();
        for call in calls.iter_mut().filter(|call| call[0] == "kubectl" && call[1] != "config") {
            assert!(call[1].starts_with("--context=gke_") && call[2] == "--namespace=gemma4", "{call:?}");
            call.drain(1..3);
            if let Some(end) = call.iter().position(|word| word == "--") {
                call.truncate(end);
            }
        }
        check_calls(&calls);
    }

    /// The calls that change something, without flags; forgets all calls.
    fn changes(&self) -> Vec<String> {
        let looks = ["get", "describe", "api-resources", "current-context", "exec", "logs"];
        let changing =
            self.take_calls().into_iter().filter(|call| !call.iter().any(|word| looks.contains(&word.as_str())));
        let short = |call: Vec<String>| {
            let words: Vec<&str> = call.iter().map(String::as_str).filter(|word| !word.starts_with("--")).collect();
            words.join(" ")
        };
        changing.map(short).filter(|call| !call.contains("secrets versions access")).collect()
    }
}

#[test]
fn a_workload_from_beginning_to_end() {
    let cluster = Cluster::new();
    cluster.put("ready", "unseen\n0\n0\n1\n2\n");
    let pods = r#"{"items":[{"metadata":{"name":"pod-1","annotations":{"gemma4ctl/digest":"DIGEST"}},"status":{"conditions":[{"type":"PodScheduled","status":"False","message":"0/3 nodes are available"}]}}]}"#;
    cluster.put("pods", pods);
    let outcome = cluster.apply(&["--yes"]).is(0, "create  gemma4-e2b-v6e-1.gke");
    for expected in [
        "making the node pool gemma4-e2b-v6e-1 in main",
        "leaving out inferencepool.yaml: the cluster does not know the kind",
        "Kubernetes takes notice",
        "0 of 2 ready; pod-1 waits for a machine: 0/3 nodes are available",
        "1 of 2 ready",
        "is ready",
        "port-forward service/gemma4-e2b-v6e-1 8000:8000",
    ] {
        assert!(outcome.stderr.contains(expected), "{expected}: {}", outcome.all());
    }
    assert_eq!(outcome.stdout.lines().last(), Some("http://127.0.0.1:8000"));
    assert_eq!(
        cluster.record()["ids"],
        serde_json::json!({ "context": CONTEXT, "namespace": "gemma4", "deployment": NAME, "node-pools": NAME })
    );
    assert_eq!(cluster.record()["status"], "running");
    let created = format!("gcloud container node-pools create {NAME}");
    assert_eq!(cluster.changes(), [created.as_str(), "kubectl apply"]);
    let manifests = cluster.read("manifests");
    for kind in ["Namespace", "Secret", "Deployment", "Service", "PodMonitoring", "HorizontalPodAutoscaler"] {
        let yaml = manifests.contains(&format!("kind: {kind}\n"));
        assert!(yaml || manifests.contains(&format!("\"kind\":\"{kind}\"")), "{kind}: {manifests}");
    }
    assert!(manifests.find("kind: Namespace") < manifests.find("\"kind\":\"Secret\""), "the namespace comes first");
    assert!(!manifests.contains("kind: InferencePool"));

    cluster.apply(&[]).is(0, "nothing to do");
    assert!(cluster.changes().is_empty());
    assert!(cluster.run(&["status", "e2b-v6e-1"]).is(0, "").stdout.contains("running and healthy"));
    let logs = cluster.run(&["logs", LAUNCH]).is(0, "");
    assert!(logs.stdout.contains("the last line") && !logs.stdout.contains("hf_abcdef"), "{}", logs.all());

    // The pool is there already.
    cluster.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(0, "update  gemma4-e2b-v6e-1.gke");
    assert_eq!(cluster.changes(), ["kubectl apply"]);
    let other = ["--yes", "--set", "scheduler.max_num_seqs=128", "--set", "deploy.docker.shm_size=\"3gb\""];
    cluster.apply(&other).is(0, "other settings of `[deploy]`");
    assert_eq!(cluster.changes(), ["kubectl apply"]);

    cluster.run(&["destroy", "e2b-v6e-1"]).is(2, "--yes");
    assert!(cluster.has("digest"));
    let outcome = cluster.run(&["destroy", "e2b-v6e-1", "--yes"]).is(0, "delete the deployment gemma4-e2b-v6e-1");
    for expected in ["delete the secret gemma4-e2b-v6e-1-hf-token", "delete the node pool gemma4-e2b-v6e-1 of main"] {
        assert!(outcome.stderr.contains(expected), "{expected}: {}", outcome.all());
    }
    let changes = cluster.changes();
    assert!(changes[0].starts_with("kubectl delete deployments.apps,services,"), "{changes:?}");
    assert_eq!(
        changes[1..],
        [format!("kubectl delete secret {NAME}-hf-token"), format!("gcloud container node-pools delete {NAME}")]
    );
    assert!(!cluster.has("digest") && !cluster.state("").exists());
}

#[test]
fn a_node_pool_of_somebody_else_stays() {
    let cluster = Cluster::new();
    cluster.put(&format!("pool-{NAME}"), "");
    cluster.apply(&["--yes"]).is(0, "");
    assert_eq!(cluster.changes(), ["kubectl apply"]);
    cluster.run(&["destroy", LAUNCH, "--yes"]).is(0, "");
    assert!(cluster.has(&format!("pool-{NAME}")));
}

#[test]
fn a_workload_of_somebody_else_stays() {
    let cluster = Cluster::new();
    cluster.put("digest", "sha256:0");
    cluster.put("owner", "helm");
    cluster.apply(&["--yes"]).is(1, "gemma4ctl did not start");
    assert!(cluster.changes().is_empty() && !cluster.state("launch.json").exists());
}

#[test]
fn pods_that_do_not_come_to_serve_say_why() {
    let cluster = Cluster::new();
    let pod = |status: &str| {
        format!(
            r#"{{"items":[{{"metadata":{{"name":"pod-1","annotations":{{"gemma4ctl/digest":"DIGEST"}}}},"status":{{"containerStatuses":[{status}]}}}}]}}"#
        )
    };
    cluster.put("ready", "0\n");
    cluster.put(
        "pods",
        &pod(r#"{"state":{"waiting":{"reason":"CrashLoopBackOff"}},"lastState":{"terminated":{"exitCode":137}}}"#),
    );
    let outcome = cluster.apply(&["--yes"]).is(1, "the pod pod-1 stopped before it was ready (exit code 137");
    assert!(outcome.stderr.contains("the last line") && !outcome.stderr.contains("hf_abcdef"), "{}", outcome.all());
    assert_eq!(cluster.record()["status"], "failed");
    cluster.put("pods", &pod(r#"{"state":{"waiting":{"reason":"InvalidImageName","message":"no such name"}}}"#));
    cluster.apply(&["--yes"]).is(1, "InvalidImageName: no such name");
    // The pods of another plan are on their way out, whatever they say.
    cluster.put("pods", &pod(r#"{"state":{"waiting":{"reason":"CrashLoopBackOff"}}}"#).replace("DIGEST", "sha256:old"));
    cluster.put("ready", "0\n0\n2\n");
    cluster.apply(&["--yes"]).is(0, "loading weights and compiling");
    cluster.put("completion", "gemma4ctl-refused 400 bad\n");
    cluster.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(1, "refuses a completion (status 400): bad");
    cluster.put("broken", "");
    cluster.changes();
    cluster.apply(&["--yes"]).is(1, "Unable to connect to the server");
    assert!(cluster.run(&["status"]).is(0, "Unable to connect").stdout.contains("unknown"));
    assert!(cluster.changes().is_empty());
}

#[test]
fn a_launch_stays_in_its_cluster() {
    let cluster = Cluster::new();
    cluster.apply(&["--yes"]).is(0, "");
    cluster.changes();
    cluster.put("context", "gke_example-project_us-east5_other");
    cluster.apply(&["--yes"]).is(1, "this launch is in gke_example-project_us-east5_main");
    assert!(cluster.changes().is_empty());
    assert!(cluster.run(&["status", LAUNCH]).is(0, "").stdout.contains("running and healthy"));
    cluster.run(&["destroy", LAUNCH, "--yes"]).is(0, CONTEXT);
    cluster.apply(&["--yes", "--set", "deploy.gke.cluster=main"]).is(1, "the profile names main");
    assert!(!cluster.state("").exists());
}

#[test]
fn a_crash_is_understood() {
    let cluster = Cluster::new();
    cluster.apply(&["--yes"]).is(0, "");
    // While the manifests were applied: the record knows the pool that was made.
    let mut record = cluster.record();
    record["status"] = "creating".into();
    std::fs::write(cluster.state("launch.json"), record.to_string()).expect("the record");
    cluster.changes();
    cluster.apply(&[]).is(0, "was cut off");
    assert!(cluster.changes().is_empty());
    assert_eq!(cluster.record()["ids"]["node-pools"], NAME);
    // Before anything was made.
    std::fs::remove_file(cluster.path("fake/digest")).expect("the workload");
    record["status"] = "creating".into();
    std::fs::write(cluster.state("launch.json"), record.to_string()).expect("the record");
    cluster.apply(&["--yes"]).is(0, "is not there");
    assert_eq!(cluster.changes(), ["kubectl apply"]);
}

#[test]
fn a_secret_stands_nowhere() {
    let cluster = Cluster::new();
    let outcome = cluster.apply(&["--yes"]).is(0, "");
    assert!(cluster.read("manifests").contains(SECRET_BASE64), "kubectl gets it");
    for text in [outcome.all(), cluster.read("calls"), cluster.record().to_string()] {
        assert!(!text.contains(SECRET) && !text.contains(SECRET_BASE64), "{text}");
    }
    let plan = std::fs::read_to_string(cluster.state("plan.json")).expect("the plan");
    assert!(!plan.contains(SECRET) && !plan.contains(SECRET_BASE64));
}

#[test]
fn what_is_missing_is_named() {
    let cluster = Cluster::new();
    let words = ["apply", "e2b-v6e-1", "--target", "gke", "--yes"];
    let mut command = common::command(cluster.folder(), &words);
    command.env("PATH", cluster.path("empty")).env("GEMMA4CTL_STATE_DIR", cluster.path("state"));
    Outcome::of(&mut command).is(1, "https://kubernetes.io/docs/tasks/tools/");
    cluster.run(&words).is(1, "add `deploy.gcloud.zone`");
    let hosts =
        ["--set", "hardware.accelerator=v6e-16", "--set", "parallelism.tensor=4", "--set", "parallelism.data=4"];
    cluster.apply(&[&["--yes"], &hosts[..]].concat()).is(1, "LeaderWorkerSet");
    std::fs::remove_file(cluster.path("fake/context")).expect("the context");
    cluster.apply(&["--yes"]).is(1, "get-credentials");
    assert!(cluster.changes().is_empty() && !cluster.state("launch.json").exists());
}
