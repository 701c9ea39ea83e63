//! Launches in Google Cloud from outside, with a `gcloud` that keeps one machine, through each state that it can be in.

#![cfg(unix)]

mod common;

use std::path::PathBuf;

use common::Outcome;
use common::gcloud::check_call;
use common::rig::Rig;

const MACHINE: &str = "gemma4-e2b-v6e-1";
const LAUNCH: &str = "gemma4-e2b-v6e-1.gcloud";
/// Nothing that `redact` would know by its shape.
const SECRET: &str = "planted secret value";
const READY: &str = "gemma4ctl-ready\n";
const DONE: &str = "gemma4ctl-completed\n";

struct Cloud {
    rig: Rig,
    settings: Vec<String>,
}

impl std::ops::Deref for Cloud {
    type Target = Rig;

    fn deref(&self) -> &Rig {
        &self.rig
    }
}

impl Cloud {
    fn new(settings: &[&str]) -> Self {
        let files = [("states", "RUNNING\n"), ("probes", READY), ("completion", DONE)];
        let settings = settings.iter().map(|&text| text.to_owned()).collect();
        Cloud { rig: Rig::new(&["gcloud"], &files), settings }
    }

    fn compute_engine() -> Self {
        Self::new(&["deploy.gcloud.project=example-project", "deploy.gcloud.zone=us-east5-b"])
    }

    fn queued() -> Self {
        let place = ["deploy.gcloud.project=example-project", "deploy.gcloud.zone=us-east5-b"];
        let queued = ["deploy.gcloud.plane=queued-resource", "hardware.accelerator=v6e-4", "parallelism.tensor=4"];
        let cloud = Self::new(&[&place[..], &queued].concat());
        cloud.put("states", "ACTIVE\n");
        cloud
    }

    fn state(&self, name: &str) -> PathBuf {
        self.rig.state(LAUNCH, name)
    }

    fn record(&self) -> serde_json::Value {
        self.rig.record(LAUNCH)
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        let mut command = self.command(arguments);
        if self.has("impatient") {
            command.env("GEMMA4CTL_READY_SECONDS", "1");
        }
        let outcome = Outcome::of(&mut command);
        for call in self.calls().iter().filter(|call| call[1] != "config") {
            check_call(&call[1..]);
        }
        outcome
    }

    fn apply(&self, more: &[&str]) -> Outcome {
        let mut arguments = vec!["apply", "e2b-v6e-1", "--target", "gcloud"];
        arguments.extend(self.settings.iter().flat_map(|setting| ["--set", setting]));
        self.run(&[&arguments[..], more].concat())
    }

    /// The calls that change something, by the words before the first flag; forgets all calls.
    fn changes(&self) -> Vec<String> {
        let looks = |call: &[String]| {
            let line = call.join(" ");
            let remote = line.contains(" ssh ") && !line.contains("systemctl restart");
            remote || ["describe", "list", "get-value"].iter().any(|word| call.contains(&(*word).to_owned()))
        };
        let short = |call: Vec<String>| {
            let words: Vec<&str> =
                call[1..].iter().take_while(|word| !word.starts_with("--")).map(String::as_str).collect();
            words.join(" ")
        };
        self.take_calls().into_iter().filter(|call| !looks(call)).map(short).collect()
    }
}

#[test]
fn a_machine_from_beginning_to_end() {
    let cloud = Cloud::compute_engine();
    cloud.put("states", "PENDING\nPROVISIONING\nSTAGING\nRUNNING\n");
    cloud.put("probes", "NOSSH\ngemma4ctl-starting\ngemma4ctl-ready\n");
    let outcome = cloud.apply(&["--yes"]).is(0, "create  gemma4-e2b-v6e-1.gcloud");
    for expected in [
        "asking for the machine gemma4-e2b-v6e-1 (example-project, us-east5-b)",
        "waiting for capacity (up to 900 s)",
        "PENDING; too little quota looks the same",
        "PROVISIONING: capacity is granted",
        "ssh does not get through yet",
        "the server does not answer yet",
        "is ready",
        "reach it with `gcloud compute ssh gemma4-e2b-v6e-1 --project=example-project --zone=us-east5-b -- -N -L 127.0.0.1:8000:127.0.0.1:8000`",
    ] {
        assert!(outcome.stderr.contains(expected), "{expected}: {}", outcome.all());
    }
    assert_eq!(outcome.stdout.lines().last(), Some("http://127.0.0.1:8000"));
    let record = cloud.record();
    assert_eq!(record["status"], "running");
    assert_eq!(
        record["ids"],
        serde_json::json!({ "project": "example-project", "zone": "us-east5-b", "instance": MACHINE })
    );
    assert_eq!(cloud.changes(), [format!("compute instances create {MACHINE}")]);
    assert!(std::fs::read_to_string(cloud.path("fake/startup.sh")).expect("a script").contains("docker run"));

    cloud.apply(&[]).is(0, "nothing to do");
    assert!(cloud.changes().is_empty());
    let status = cloud.run(&["status", "e2b-v6e-1"]).is(0, "");
    assert!(status.stdout.contains("running and healthy") && status.stdout.contains("us-east5-b"), "{}", status.all());
    let logs = cloud.run(&["logs", LAUNCH]).is(0, "");
    assert!(logs.stdout.contains("the last line") && !logs.stdout.contains("hf_abcdef"), "{}", logs.all());

    // Another plan, or other settings, go to the machine that is there.
    let update = [
        format!("compute instances add-metadata {MACHINE}"),
        format!("compute ssh {MACHINE}"),
        format!("compute instances update {MACHINE}"),
    ];
    let other = ["--yes", "--set", "scheduler.max_num_seqs=128"];
    let outcome = cloud.apply(&other).is(0, "update  gemma4-e2b-v6e-1.gcloud");
    assert!(outcome.stderr.contains("its capacity stays"), "{}", outcome.all());
    assert_eq!(cloud.changes(), update);
    cloud.apply(&[&other[..], &["--set", "deploy.docker.shm_size=\"3gb\""]].concat()).is(0, "other settings");
    assert_eq!(cloud.changes(), update);
    // Another machine is another machine.
    cloud.apply(&[&other[..], &["--set", "deploy.gcloud.provisioning=spot"]].concat()).is(0, "replace");
    assert_eq!(
        cloud.changes(),
        [format!("compute instances delete {MACHINE}"), format!("compute instances create {MACHINE}")]
    );

    cloud.run(&["destroy", "e2b-v6e-1"]).is(2, "--yes");
    assert!(cloud.has("machine"));
    cloud.run(&["destroy", "e2b-v6e-1", "--yes"]).is(0, "delete the machine gemma4-e2b-v6e-1");
    assert_eq!(cloud.changes(), [format!("compute instances delete {MACHINE}")]);
    assert!(!cloud.has("machine") && !cloud.state("").exists());
    cloud.run(&["status", LAUNCH]).is(2, "there is no launch");
}

#[test]
fn a_queued_resource_goes_only_by_its_name() {
    let cloud = Cloud::queued();
    cloud.put("states", "CREATING\nACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n");
    let outcome = cloud.apply(&["--yes"]).is(0, "WAITING_FOR_RESOURCES; too little quota");
    assert!(outcome.stderr.contains("tpu-vm ssh gemma4-e2b-v6e-1-node"), "{}", outcome.all());
    assert_eq!(cloud.changes(), [format!("alpha compute tpus queued-resources create {MACHINE}")]);
    assert_eq!(cloud.record()["ids"]["queued-resource"], MACHINE);
    cloud.apply(&[]).is(0, "nothing to do");

    // Another plan keeps the capacity; another machine would lose it.
    cloud.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(0, "update");
    let node = format!("{MACHINE}-node");
    assert_eq!(
        cloud.changes(),
        [
            format!("compute tpus tpu-vm update {node}"),
            format!("compute tpus tpu-vm ssh {node}"),
            format!("compute tpus tpu-vm update {node}"),
        ]
    );
    cloud.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(0, "nothing to do");
    cloud.apply(&["--yes", "--set", "deploy.gcloud.provisioning=spot"]).is(1, "its capacity may not come back");
    cloud.run(&["destroy", "e2b-v6e-1", "--yes"]).is(1, &format!("`gemma4ctl destroy {MACHINE}` deletes it"));
    assert!(cloud.changes().is_empty() && cloud.has("machine"));
    cloud.run(&["destroy", MACHINE, "--yes"]).is(0, "delete the queued resource gemma4-e2b-v6e-1");
    assert_eq!(cloud.changes(), [format!("alpha compute tpus queued-resources delete {MACHINE}")]);

    // One that waits takes no other plan, and is not given up for one.
    let waiting = Cloud::queued();
    waiting.put("states", "WAITING_FOR_RESOURCES\n");
    waiting.put("impatient", "");
    waiting.apply(&["--yes"]).is(1, "was not ready after 1 s: WAITING_FOR_RESOURCES");
    assert_eq!(waiting.record()["status"], "failed");
    waiting.changes();
    waiting.apply(&["--yes", "--set", "scheduler.max_num_seqs=128"]).is(1, "takes no other plan meanwhile");
    assert!(waiting.changes().is_empty());
    // The same plan goes on waiting, without a question.
    waiting.put("states", "PROVISIONING\nACTIVE\n");
    waiting.remove("impatient");
    waiting.apply(&[]).is(0, "waiting until it answers");
    assert!(waiting.changes().is_empty());
}

#[test]
fn what_ended_is_made_anew() {
    for (cloud, states) in [
        (Cloud::compute_engine(), &["STOPPING", "STOPPED", "TERMINATED", "SUSPENDED", "DEPROVISIONING"][..]),
        (Cloud::queued(), &["FAILED", "SUSPENDING", "SUSPENDED"]),
    ] {
        let up = std::fs::read_to_string(cloud.path("fake/states")).expect("states");
        cloud.apply(&["--yes"]).is(0, "");
        for state in states {
            cloud.put("states", &format!("{state}\n"));
            assert!(cloud.run(&["status"]).is(0, "").stdout.contains(&state.to_lowercase()), "{state}");
            cloud.changes();
            // The state when it is looked at, then that of the new one.
            cloud.put("states", &format!("{state}\n{up}"));
            cloud.apply(&["--yes"]).is(0, &format!("it stopped ({state})"));
            let verbs: Vec<String> = cloud
                .changes()
                .iter()
                .map(|call| call.split(' ').rev().nth(1).unwrap_or_default().to_owned())
                .collect();
            assert_eq!(verbs, ["delete", "create"], "{state}");
        }
        // Taken back while it is waited for.
        cloud.put("states", &format!("{up}{}\n", states[0]));
        cloud.put("probes", "gemma4ctl-starting\n");
        cloud.apply(&["--yes", "--set", "scheduler.max_num_seqs=64"]).is(1, "taken back");
        assert_eq!(cloud.record()["status"], "failed");
    }
    let going = Cloud::queued();
    going.apply(&["--yes"]).is(0, "");
    going.put("states", "DELETING\n");
    going.changes();
    going.apply(&["--yes"]).is(1, "is being deleted already");
    assert!(going.changes().is_empty());
}

#[test]
fn a_machine_that_does_not_come_to_serve_says_why() {
    let cloud = Cloud::compute_engine();
    cloud.put("refuse", "");
    cloud.apply(&["--yes"]).is(1, "ZONE_RESOURCE_POOL_EXHAUSTED");
    assert_eq!(cloud.record()["status"], "failed");
    cloud.remove("refuse");

    cloud.put("probes", "gemma4ctl-failed: cannot read the secret hf-token\n");
    let outcome = cloud.apply(&["--yes"]).is(1, "cannot read the secret hf-token");
    assert!(outcome.stderr.contains("the last line") && !outcome.stderr.contains("hf_abcdef"), "{}", outcome.all());
    cloud.put("probes", READY);
    cloud.put("completion", "gemma4ctl-refused 401 no key\n");
    cloud.apply(&["--yes"]).is(1, "refuses a completion (status 401): no key");
    cloud.put("completion", DONE);
    cloud.changes();
    cloud.apply(&[]).is(0, "is ready");
    assert!(cloud.changes().is_empty());

    // When gcloud cannot tell, nothing is done.
    cloud.put("broken", "");
    cloud.apply(&["--yes"]).is(1, "network is unreachable");
    assert!(cloud.run(&["status"]).is(0, "network is unreachable").stdout.contains("unknown"));
    cloud.run(&["destroy", MACHINE, "--yes"]).is(1, "network is unreachable");
    assert!(cloud.changes().is_empty() && cloud.state("launch.json").exists());
}

#[test]
fn a_machine_of_somebody_else_stays() {
    let cloud = Cloud::compute_engine();
    cloud.put("machine", "");
    cloud.apply(&["--yes"]).is(1, "gemma4ctl did not start");
    assert!(cloud.changes().is_empty() && !cloud.state("launch.json").exists());
}

#[test]
fn a_crash_is_understood() {
    let cloud = Cloud::compute_engine();
    cloud.apply(&["--yes"]).is(0, "");
    cloud.changes();
    let mut record = cloud.record();
    record["status"] = "creating".into();
    std::fs::write(cloud.state("launch.json"), record.to_string()).expect("the record");
    cloud.apply(&[]).is(0, "was cut off; the machine gemma4-e2b-v6e-1 (example-project, us-east5-b) is there");
    assert!(cloud.changes().is_empty());
    // Between the script and the label of an update: it is done again.
    cloud.put("machine", "000000000000");
    cloud.apply(&["--yes"]).is(0, "it runs 000000000000");
    assert_eq!(cloud.changes().len(), 3);
    // The record is lost, the machine is not.
    std::fs::remove_dir_all(cloud.path("state")).expect("the state");
    cloud.apply(&[]).is(0, "waiting until it answers");
    assert!(cloud.changes().is_empty());
    // The record is torn: what runs is kept, and the record can be removed.
    std::fs::write(cloud.state("launch.json"), "{").expect("a record");
    cloud.apply(&["--yes"]).is(1, "launch.json is not a record");
    cloud.run(&["destroy", LAUNCH, "--yes"]).is(0, "keep what may run");
    assert!(cloud.changes().is_empty() && cloud.has("machine") && !cloud.state("launch.json").exists());
}

#[test]
fn the_place_comes_from_the_profile_or_from_gcloud() {
    let cloud = Cloud::new(&[]);
    cloud.apply(&["--yes"]).is(1, "deploy.gcloud.project");
    cloud.put("project", "mine\n");
    cloud.apply(&["--yes"]).is(1, "deploy.gcloud.zone");
    assert!(cloud.changes().is_empty() && !cloud.state("launch.json").exists());
    cloud.put("zone", "us-east5-b\n");
    cloud.apply(&["--yes"]).is(0, "(mine, us-east5-b)");
    // A launch stays where it is, whatever gcloud is set to meanwhile.
    cloud.put("project", "other\n");
    cloud.changes();
    cloud.apply(&["--yes"]).is(1, "this launch is in the project mine");
    assert!(cloud.changes().is_empty());
    assert!(cloud.run(&["status", LAUNCH]).is(0, "").stdout.contains("running and healthy"));
    cloud.run(&["destroy", LAUNCH, "--yes"]).is(0, "(mine, us-east5-b)");
}

#[test]
fn a_port_is_opened_and_closed_again() {
    let cloud = Cloud::compute_engine();
    let open = ["--yes", "--set", "deploy.gcloud.open_to=[\"203.0.113.0/24\"]"];
    cloud.apply(&open).is(0, "");
    assert!(cloud.has("firewall"));
    cloud.run(&["destroy", MACHINE, "--yes"]).is(0, "delete the firewall rule gemma4-e2b-v6e-1-http");
    assert!(!cloud.has("firewall"));
    cloud.put("refuse", "");
    cloud.apply(&open).is(1, "EXHAUSTED");
    assert!(!cloud.has("firewall"), "a machine that was refused leaves no open port");
}

#[test]
fn a_secret_never_leaves_secret_manager() {
    let cloud = Cloud::compute_engine();
    let outcome = cloud.apply(&["--yes", "--set", "secrets.hf_token={gcp_secret=\"hf-token\"}"]).is(0, "");
    let calls = std::fs::read_to_string(cloud.path("fake/calls")).expect("calls");
    assert!(!calls.contains("secrets\u{1f}versions"), "the machine reads it itself: {calls}");
    assert!(!outcome.all().contains(SECRET) && !calls.contains(SECRET));
    cloud.apply(&["--yes", "--set", "secrets.api_key={env=\"KEY\"}"]).is(2, "Secret Manager");
}

/// Answers one request after another with these statuses, and returns what was asked.
fn serve(statuses: &'static [&'static str]) -> (u16, std::thread::JoinHandle<Vec<String>>) {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let answer = move |status: &&str| {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = Vec::new();
        while !request.ends_with(b"}") {
            let mut bytes = [0; 4096];
            let count = stream.read(&mut bytes).expect("a request");
            assert!(count > 0, "{}", String::from_utf8_lossy(&request));
            request.extend_from_slice(&bytes[..count]);
        }
        let body = format!("{{\"error\": \"{status}, not {SECRET}\"}}");
        write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
            .expect("an answer");
        String::from_utf8(request).expect("UTF-8")
    };
    (port, std::thread::spawn(move || statuses.iter().map(answer).collect()))
}

#[test]
fn the_completion_is_asked_for_on_the_machine() {
    let cloud = Cloud::compute_engine();
    std::fs::remove_file(cloud.path("fake/completion")).expect("a file");
    let (port, requests) = serve(&["503 Service Unavailable", "401 Unauthorized", "200 OK"]);
    let arguments = ["--yes", "--set", &format!("server.port={port}")];
    let outcome = cloud.apply(&arguments).is(1, "refuses a completion (status 401)");
    assert!(outcome.stderr.contains("/v1/completions answers with status 503"), "{}", outcome.all());
    assert!(!outcome.all().contains(SECRET), "the server's words go through without the key: {}", outcome.all());
    cloud.apply(&arguments).is(0, "is ready");
    for request in requests.join().expect("the server") {
        assert!(request.starts_with("POST /v1/completions "), "{request}");
        assert!(request.contains(&format!("Authorization: Bearer {SECRET}")), "{request}");
        let body = request.split("\r\n\r\n").nth(1).expect("a body");
        let body: serde_json::Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(body, serde_json::json!({ "model": "google/gemma-4-E2B-it", "prompt": "Hello", "max_tokens": 1 }));
    }
    let calls = std::fs::read_to_string(cloud.path("fake/calls")).expect("calls");
    assert!(!calls.contains(SECRET), "{calls}");
}

#[test]
fn what_is_missing_is_named() {
    let cloud = Cloud::compute_engine();
    let mut command = common::command(
        cloud.folder(),
        &[
            "apply",
            "e2b-v6e-1",
            "--target",
            "gcloud",
            "--set",
            "deploy.gcloud.project=p",
            "--set",
            "deploy.gcloud.zone=z-1-a",
            "--yes",
        ],
    );
    command.env("PATH", cloud.path("empty")).env("GEMMA4CTL_STATE_DIR", cloud.path("state"));
    Outcome::of(&mut command).is(1, "cloud.google.com/sdk/docs/install");
    cloud.run(&["apply", "e4b-b200", "--target", "gcloud"]).is(2, "use the target `docker`");
    let outcome = cloud.apply(&["--dry-run"]).is(0, "");
    assert!(outcome.stdout.contains("create  gemma4-e2b-v6e-1.gcloud"), "{}", outcome.all());
    cloud.apply(&[]).is(2, "no terminal");
    assert!(cloud.changes().is_empty() && !cloud.state("").exists());
}
