//! `emit --target gcloud`: the scripts run with a `gcloud`, `docker`, `curl`, `apt-get` and `sleep` that record how they
//! are called, through each state that a machine can be in.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::gcloud::check_call;
use common::{Outcome, command, on_path, skipped};

const PLACE: [&str; 2] = ["deploy.gcloud.project=example-project", "deploy.gcloud.zone=us-east5-b"];
/// One v5e chip, which the TPU API alone creates.
const V5E: [&str; 1] = ["hardware.accelerator=v5e-1"];
const QUEUED_NAME: &str = "gemma4-e2b-v6e-1";
const PLANTED: &str = "hf_PLANTEDsecretVALUE0123456789";
const TOKEN: &str = "ya29.PLANTEDaccessTOKEN";

/// What every fake does first: a line with its name and arguments.
const RECORD: &str = r#"#!/usr/bin/env bash
line=${0##*/}; for word; do line+=$'\037'${word//$'\n'/ }; done; printf '%s\n' "$line" >>"$RIG/calls"
# Takes the first line of a file, and leaves the last one there.
take() {
    local lines
    mapfile -t lines <"$1"
    printf '%s\n' "${lines[0]}"
    if ((${#lines[@]} > 1)); then printf '%s\n' "${lines[@]:1}" >"$1"; fi
}
"#;

const GCLOUD: &str = r#"
case " $* " in
*" describe "*"value("*)
    state=$(take "$RIG/states")
    case $state in
    ABSENT) echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1 ;;
    BROKEN) echo "ERROR: network is unreachable" >&2; exit 1 ;;
    *) echo "$state" ;;
    esac
    ;;
*" instances create "* | *" queued-resources create "*) [ ! -e "$RIG/refuse-create" ] || { echo "ERROR: stockout" >&2; exit 1; } ;;
*" firewall-rules create "*) echo "$4" >"$RIG/firewall" ;;
*" firewall-rules list "*) cat "$RIG/firewall" 2>/dev/null || true ;;
*" firewall-rules delete "*) rm "$RIG/firewall" ;;
*" ssh "*"/health"*)
    answer=$(take "$RIG/probes")
    [ "$answer" != NOSSH ] || exit 255
    echo "$answer"
    ;;
*" ssh "*"docker logs"*) [ ! -e "$RIG/refuse-ssh" ] || exit 255 ;;
*" locations list "*) printf 'us-west4-a\nus-east5-b\n' ;;
*" accelerator-types list "*"--zone=us-west4-a "*) echo v5litepod-1 ;;
esac
"#;

const DOCKER: &str = r#"
case $1 in
pull) [ "$(take "$RIG/pulls")" = ok ] ;;
run) printf '%s\n' "${HF_TOKEN-none}" | sha256sum >"$RIG/token-of-run" ;;
login) cat >/dev/null ;;
container) case " $* " in
    *State.Running*) take "$RIG/running" ;;
    *) [ -e "$RIG/old-container" ] ;;
    esac ;;
esac
"#;

const CURL: &str = r#"
case " $* " in
*" --config - "*)
    grep -q "Bearer $FAKE_TOKEN" || exit 22
    [ ! -e "$RIG/refuse-secret" ] || { echo "curl: (22) 403" >&2; exit 22; }
    printf '{"name":"x","payload":{"data":"%s"}}' "$(printf '%s' "$FAKE_SECRET" | base64 --wrap=0)"
    ;;
*service-accounts/default/token*) printf '{"access_token":"%s","expires_in":3599}' "$FAKE_TOKEN" ;;
*project/project-id*) printf example-project ;;
*/health*) [ "$(take "$RIG/health")" = ok ] ;;
*) exit 7 ;;
esac
"#;

const APT_GET: &str = r#"
case " $* " in *" install "*) mv "$RIG/docker-to-install" "$RIG/bin/docker" ;; esac
"#;

fn binary(arguments: &[&str], folder: &Path) -> (i32, String, String) {
    finished(command(folder, arguments).output().expect("the binary"))
}

fn finished(output: std::process::Output) -> (i32, String, String) {
    let Outcome { code, stdout, stderr } = output.into();
    (code, stdout, stderr)
}

fn emit(profile: &str, settings: &[&str], folder: &Path) -> (i32, String, String) {
    let mut arguments = vec!["emit", profile, "--target", "gcloud", "--out-dir", "out"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    binary(&arguments, folder)
}

/// A folder with the scripts of a plan, and programs that record.
struct Rig {
    folder: tempfile::TempDir,
}

impl Rig {
    fn new(profile: &str, settings: &[&str]) -> Self {
        let rig = Rig { folder: tempfile::tempdir().expect("a folder") };
        let (code, stdout, stderr) = emit(profile, settings, rig.path());
        assert_eq!(code, 0, "{stdout}{stderr}");
        std::fs::create_dir(rig.path().join("bin")).expect("a folder");
        for name in ["bash", "cat", "rm", "mv", "mkdir", "dirname", "mktemp", "sed", "grep", "base64", "sha256sum"] {
            let program = on_path(name).expect(name);
            std::os::unix::fs::symlink(program, rig.path().join("bin").join(name)).expect("a link");
        }
        for (name, body) in [
            ("bin/gcloud", GCLOUD),
            ("bin/docker", DOCKER),
            ("bin/curl", CURL),
            ("bin/apt-get", APT_GET),
            ("bin/sleep", ""),
        ] {
            common::write_program(&rig.path().join(name), &format!("{RECORD}{body}"));
        }
        rig.write("states", "ABSENT\n").write("probes", "gemma4ctl-ready\n").write("calls", "");
        rig.write("pulls", "ok\n").write("running", "true\n").write("health", "ok\n");
        // The machine's own folders are folders of the test.
        let startup =
            rig.read("out/startup.sh").replace("/run/gemma4ctl", &rig.path().join("run").display().to_string());
        rig.write("out/startup.sh", &startup);
        rig
    }

    fn compute_engine(more: &[&str]) -> Self {
        Rig::new("turbo-stable", &[&PLACE, more].concat())
    }

    fn queued(more: &[&str]) -> Self {
        Rig::new("e2b-v6e-1", &[&PLACE[..], &V5E, more].concat())
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        std::fs::write(self.path().join(name), text).expect("a file");
        self
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path().join(name)).expect("a file")
    }

    fn script(&self) -> &'static str {
        if self.path().join("out/compute-engine.sh").is_file() { "compute-engine.sh" } else { "queued-resource.sh" }
    }

    fn command(&self, script: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("bash");
        command
            .arg(self.path().join("out").join(script))
            .args(arguments)
            .current_dir(self.path())
            .env_clear()
            .env("PATH", self.path().join("bin"))
            .env("RIG", self.path())
            .env("TMPDIR", self.path())
            .env("FAKE_TOKEN", TOKEN)
            .env("FAKE_SECRET", PLANTED)
            .stdin(Stdio::null());
        command
    }

    /// Runs a subcommand of the script; what it calls is checked.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let outcome = finished(self.command(self.script(), arguments).output().expect("bash"));
        self.gcloud().iter().for_each(|call| check_call(call));
        outcome
    }

    /// Runs startup.sh as the machine does.
    fn boot(&self) -> (i32, String, String) {
        let python =
            Command::new("python3").args(["-c", "import sys; print(sys.executable)"]).output().expect("python3");
        let python = String::from_utf8(python.stdout).expect("UTF-8");
        let link = self.path().join("bin/python3");
        if !link.exists() {
            std::os::unix::fs::symlink(python.trim(), link).expect("a link");
        }
        finished(self.command("startup.sh", &[]).output().expect("bash"))
    }

    fn calls(&self) -> Vec<Vec<String>> {
        self.read("calls").lines().map(|line| line.split('\u{1f}').map(str::to_owned).collect()).collect()
    }

    /// The calls of `gcloud`, without its name.
    fn gcloud(&self) -> Vec<Vec<String>> {
        self.calls().into_iter().filter(|call| call[0] == "gcloud").map(|call| call[1..].to_vec()).collect()
    }

    /// The flags of the one call that has these words.
    fn flags_of(&self, words: &str) -> Vec<String> {
        let calls: Vec<_> = self.gcloud().into_iter().filter(|call| call.join(" ").starts_with(words)).collect();
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls[0][words.split(' ').count()..].to_vec()
    }

    fn has_call(&self, words: &str) -> bool {
        self.calls().iter().any(|call| call.join(" ").starts_with(words))
    }
}

fn assert_flags(rig: &Rig, command: &str, expected: &[&str]) {
    let (code, stdout, stderr) = rig.run(&["create"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let flags: Vec<String> = rig.flags_of(command).into_iter().filter(|flag| !flag.starts_with("--labels=")).collect();
    assert_eq!(flags, expected);
}

#[test]
fn turbo_stable_is_a_machine_of_compute_engine() {
    let rig = Rig::compute_engine(&[]);
    assert_flags(
        &rig,
        "compute instances create",
        &[
            "gemma4-turbo-stable",
            "--project=example-project",
            "--zone=us-east5-b",
            "--machine-type=ct6e-standard-4t",
            "--image-project=ubuntu-os-accelerator-images",
            "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e",
            "--boot-disk-size=200GB",
            "--maintenance-policy=TERMINATE",
            "--scopes=cloud-platform",
            "--provisioning-model=STANDARD",
            "--metadata-from-file=startup-script=startup.sh",
        ],
    );
    let flags = rig.flags_of("compute instances create");
    let label = flags.iter().find_map(|flag| flag.strip_prefix("--labels=gemma4ctl-plan=")).expect("a label");
    assert!(label.len() == 12 && rig.read("out/startup.sh").contains(&format!("sha256:{label}")), "{label}");
    assert!(!rig.has_call("gcloud compute firewall-rules"), "the port stays closed");
}

#[test]
fn each_generation_has_its_machine_and_image() {
    for (settings, machine, image) in [
        (&["hardware.accelerator=v6e-1"][..], "ct6e-standard-1t", "2204-amd64-tpu-v5e-v5p-v6e"),
        (&["hardware.accelerator=v5p-1"], "ct5p-hightpu-1t-tpu", "2204-amd64-tpu-v5e-v5p-v6e"),
        (&["hardware.accelerator=tpu7x-1", "parallelism.tensor=2"], "tpu7x-standard-1t", "2404-amd64-tpu-tpu7x"),
    ] {
        let rig = Rig::new("e2b-v6e-1", &[&PLACE, settings].concat());
        assert_eq!(rig.run(&["create"]).0, 0);
        let flags = rig.flags_of("compute instances create");
        assert!(flags.contains(&format!("--machine-type={machine}")), "{flags:?}");
        assert!(flags.contains(&format!("--image-family=ubuntu-accel-{image}")), "{flags:?}");
    }
}

#[test]
fn capacity_is_bought_as_the_profile_says() {
    let create = |settings: &[&str]| {
        let rig = Rig::compute_engine(settings);
        assert_eq!(rig.run(&["create"]).0, 0);
        rig.flags_of("compute instances create")[9..].join(" ")
    };
    let flex = create(&[
        "deploy.gcloud.provisioning=flex-start",
        "deploy.gcloud.max_run_duration=4h",
        "deploy.gcloud.valid_for=90m",
    ]);
    assert!(flex.starts_with("--provisioning-model=FLEX_START --reservation-affinity=none --request-valid-for-duration=90m --max-run-duration=4h --instance-termination-action=DELETE --labels="), "{flex}");
    let spot = create(&["deploy.gcloud.provisioning=spot"]);
    assert!(spot.starts_with("--provisioning-model=SPOT --reservation-affinity=none --labels="), "{spot}");
    let reserved = create(&["deploy.gcloud.provisioning=reserved", "deploy.gcloud.reservation=mine"]);
    assert!(
        reserved.starts_with(
            "--provisioning-model=RESERVATION_BOUND --reservation-affinity=specific --reservation=mine --labels="
        ),
        "{reserved}"
    );
    let timed = create(&["deploy.gcloud.max_run_duration=2h30m"]);
    assert!(timed.contains("STANDARD --max-run-duration=150m --instance-termination-action=DELETE"), "{timed}");
}

#[test]
fn v5e_is_a_queued_resource() {
    let start = [QUEUED_NAME, "--project=example-project", "--zone=us-east5-b", "--node-id=gemma4-e2b-v6e-1-node"];
    let kind = ["--accelerator-type=v5litepod-1", "--runtime-version=v2-alpha-tpuv5-lite"];
    let end = ["--metadata-from-file=startup-script=startup.sh"];
    for (settings, expected) in [
        (&[][..], &["--provisioning-model=standard"][..]),
        (
            &[
                "deploy.gcloud.provisioning=flex-start",
                "deploy.gcloud.max_run_duration=4h",
                "deploy.gcloud.valid_for=6h",
            ],
            &["--provisioning-model=flex-start", "--max-run-duration=4h", "--valid-until-duration=6h"],
        ),
        (&["deploy.gcloud.provisioning=spot"], &["--provisioning-model=spot", "--spot"]),
        (&["deploy.gcloud.provisioning=reserved", "deploy.gcloud.reservation=mine"], &["--reservation=mine"]),
        (
            &[
                "deploy.gcloud.external_ip=false",
                "deploy.gcloud.network=net",
                "deploy.gcloud.subnetwork=sub",
                "deploy.gcloud.service_account=tpu@example-project.iam.gserviceaccount.com",
            ],
            &[
                "--provisioning-model=standard",
                "--service-account=tpu@example-project.iam.gserviceaccount.com",
                "--network=net",
                "--subnetwork=sub",
                "--internal-ips",
            ],
        ),
    ] {
        let expected = [&start, &kind[..], expected, &end].concat();
        assert_flags(&Rig::queued(settings), "alpha compute tpus queued-resources create", &expected);
    }
}

#[test]
fn accelerator_types_count_what_the_tpu_api_counts() {
    for (accelerator, data, expected) in
        [("v6e-4", 1, "v6e-4"), ("v5e-4", 1, "v5litepod-4"), ("v5p-4", 1, "v5p-8"), ("v6e-8", 2, "v6e-8")]
    {
        let settings = [
            &format!("hardware.accelerator={accelerator}"),
            "parallelism.tensor=4",
            &format!("parallelism.data={data}"),
            "deploy.gcloud.plane=queued-resource",
        ];
        let rig = Rig::new("e2b-v6e-1", &[&PLACE[..], &settings].concat());
        assert!(
            rig.read("out/queued-resource.sh").contains(&format!("--accelerator-type={expected} ")),
            "{accelerator}"
        );
    }
}

#[test]
fn what_cannot_be_created_is_refused_and_nothing_is_written() {
    for (profile, settings, expected) in [
        ("turbo-stable", &["deploy.gcloud.plane=gke"][..], "use the target `gke`"),
        ("e4b-b200", &[], "use the target `docker` or `systemd`"),
        ("smoke", &[], "use the target `docker` or `systemd`"),
        (
            "e2b-v6e-1",
            &["hardware.accelerator=v6e-16", "parallelism.tensor=4", "parallelism.data=4"],
            "use the target `gke`, or a slice",
        ),
        ("e2b-v6e-1", &["secrets.api_key={ env = \"KEY\" }"], "put it into Secret Manager"),
        ("e2b-v6e-1", &["secrets.api_key={ file = \"/key\" }"], "put it into Secret Manager"),
        (
            "e2b-v6e-1",
            &["hardware.accelerator=v5p-1", "deploy.gcloud.plane=queued-resource"],
            "the TPU API starts at four chips",
        ),
        (
            "e2b-v6e-1",
            &["hardware.accelerator=tpu7x-1", "parallelism.tensor=2", "deploy.gcloud.plane=queued-resource"],
            "plane-unavailable",
        ),
        ("e2b-v6e-1", &["deploy.gcloud.provisioning=reserved"], "reserved-without-reservation"),
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        let (code, stdout, stderr) = emit(profile, settings, folder.path());
        assert!(code == 1 || code == 2, "{settings:?}: {code}");
        assert!(stderr.contains(expected), "{settings:?}: {stdout}{stderr}");
        assert!(!folder.path().join("out").exists(), "{settings:?}");
    }
}

#[test]
fn without_an_external_address_ssh_goes_through_the_proxy() {
    let closed = ["deploy.gcloud.external_ip=false"];
    let rig = Rig::compute_engine(&closed);
    assert_eq!(rig.run(&["create"]).0, 0);
    assert!(rig.flags_of("compute instances create").contains(&"--no-address".to_owned()));
    assert!(rig.read("out/compute-engine.sh").contains("Cloud NAT"));
    assert_eq!(rig.run(&["tunnel"]).0, 0);
    assert!(rig.has_call("gcloud compute ssh gemma4-turbo-stable --project=example-project --zone=us-east5-b --tunnel-through-iap -- -N -L 127.0.0.1:8000:127.0.0.1:8000"));
    let rig = Rig::queued(&closed);
    assert_eq!(rig.run(&["tunnel"]).0, 0);
    assert!(rig.has_call("gcloud alpha compute tpus tpu-vm ssh gemma4-e2b-v6e-1-node --project=example-project --zone=us-east5-b --worker=0 --tunnel-through-iap -- -N -L 127.0.0.1:8000:127.0.0.1:8000"));
    let rig = Rig::queued(&[]);
    assert_eq!(rig.run(&["tunnel"]).0, 0);
    assert!(rig.has_call("gcloud compute tpus tpu-vm ssh gemma4-e2b-v6e-1-node --project=example-project --zone=us-east5-b --worker=0 -- -N"));
}

#[test]
fn a_port_is_opened_to_the_named_ranges_and_closed_again() {
    let open = ["deploy.gcloud.open_to=[\"203.0.113.0/24\", \"198.51.100.7/32\"]", "deploy.gcloud.network=net"];
    for rig in [Rig::compute_engine(&open), Rig::queued(&open)] {
        let name = if rig.script() == "compute-engine.sh" { "gemma4-turbo-stable" } else { QUEUED_NAME };
        assert_eq!(rig.run(&["create"]).0, 0);
        let rule = rig.flags_of("compute firewall-rules create");
        let expected = [
            &format!("{name}-http"),
            "--project=example-project",
            "--network=net",
            "--direction=INGRESS",
            "--allow=tcp:8000",
            "--source-ranges=203.0.113.0/24,198.51.100.7/32",
            &format!("--target-tags={name}"),
        ];
        assert_eq!(rule, expected);
        assert!(rig.calls().iter().any(|call| call.contains(&format!("--tags={name}"))));
        let delete: &[&str] = if rig.script() == "compute-engine.sh" { &["delete"] } else { &["delete", name] };
        assert_eq!(rig.run(delete).0, 0);
        assert!(rig.has_call(&format!("gcloud compute firewall-rules delete {name}-http")));
        assert!(!rig.path().join("firewall").exists());
    }
    // A machine that was refused leaves no open port.
    let rig = Rig::compute_engine(&open);
    rig.write("refuse-create", "");
    let (code, _, stderr) = rig.run(&["create"]);
    assert!(code == 1 && stderr.contains("stockout") && stderr.contains("was not created"), "{stderr}");
    assert!(!rig.path().join("firewall").exists());
}

#[test]
fn a_machine_that_is_there_is_not_created_again() {
    for rig in [Rig::compute_engine(&[]), Rig::queued(&[])] {
        rig.write("states", "PROVISIONING\n");
        let (code, _, stderr) = rig.run(&["create"]);
        assert!(code == 1 && stderr.contains("is there already, in state PROVISIONING"), "{stderr}");
        assert!(!rig.has_call("gcloud alpha compute tpus queued-resources create"));
        // When gcloud cannot tell, nothing is created either.
        rig.write("states", "BROKEN\n");
        let (code, _, stderr) = rig.run(&["create"]);
        assert!(code == 1 && stderr.contains("network is unreachable"), "{stderr}");
        assert!(!rig.calls().iter().any(|call| call.contains(&"create".to_owned())));
    }
}

#[test]
fn waiting_goes_through_every_state_of_a_machine() {
    let rig = Rig::compute_engine(&["deploy.gcloud.provisioning=flex-start", "deploy.gcloud.max_run_duration=4h"]);
    rig.write("states", "PENDING\nBROKEN\nPENDING\nPROVISIONING\nSTAGING\nRUNNING\n");
    rig.write("probes", "NOSSH\ngemma4ctl-starting\ngemma4ctl-starting\ngemma4ctl-ready\n");
    let (code, stdout, stderr) = rig.run(&["wait"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    for expected in [
        "PENDING after 0 s of at most 7500 s: waiting for capacity; too little quota looks the same",
        "PROVISIONING after 0 s of at most 3780 s: capacity is granted",
        "STAGING after 15 s",
        "RUNNING after 30 s of at most 3780 s: the machine is up, ssh does not get through yet",
        "ready: gemma4-turbo-stable answers /health",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    for (states, expected) in [
        ("TERMINATED\n", "stopped or taken back (TERMINATED)"),
        ("RUNNING\nSTOPPING\n", "stopped or taken back (STOPPING)"),
        ("SUSPENDED\n", "stopped or taken back (SUSPENDED)"),
        ("PENDING\nABSENT\n", "there is no machine gemma4-turbo-stable"),
        ("BROKEN\n", "gcloud failed five times in a row"),
    ] {
        rig.write("states", states).write("probes", "gemma4ctl-starting\n");
        let (code, stdout, stderr) = rig.run(&["wait"]);
        assert!(code == 1 && stderr.contains(expected), "{states}: {code} {stdout}{stderr}");
    }
    assert!(!rig.calls().iter().any(|call| call.contains(&"delete".to_owned())), "waiting deletes nothing");
}

#[test]
fn waiting_goes_through_every_state_of_a_queued_resource() {
    let rig = Rig::queued(&[]);
    rig.write("states", "CREATING\nACCEPTED\nWAITING_FOR_RESOURCES\nPROVISIONING\nSTATE_UNSPECIFIED\nACTIVE\n");
    rig.write("probes", "gemma4ctl-starting\ngemma4ctl-ready\n");
    let (code, stdout, stderr) = rig.run(&["wait"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    for expected in [
        "CREATING after 0 s of at most 86400 s: waiting for capacity",
        "ACCEPTED after 15 s",
        "WAITING_FOR_RESOURCES after 30 s",
        "PROVISIONING after 0 s of at most 1800 s: capacity is granted and the machine is being made; do not delete it",
        "STATE_UNSPECIFIED after 15 s of at most 1800 s: a state that this script does not know",
        "ACTIVE after 30 s of at most 1800 s: the machine is up, the server does not answer yet",
        "ready: gemma4-e2b-v6e-1 answers /health",
    ] {
        assert!(stdout.contains(expected), "{expected}: {stdout}");
    }
    for (states, expected) in [
        ("FAILED\n", "the request failed, or its time to wait ran out"),
        ("ACTIVE\nSUSPENDING\n", "taken back or its time is over (SUSPENDING)"),
        ("SUSPENDED\n", "taken back or its time is over (SUSPENDED)"),
        ("DELETING\n", "is being deleted"),
        ("ABSENT\n", "there is no queued resource gemma4-e2b-v6e-1"),
        ("PROVISIONING\n", "still PROVISIONING after 1800 s. Capacity is granted, so do not delete it"),
    ] {
        rig.write("states", states).write("probes", "gemma4ctl-starting\n");
        let (code, stdout, stderr) = rig.run(&["wait"]);
        assert!(code == 1 && stderr.contains(expected), "{states}: {code} {stdout}{stderr}");
    }
    assert!(!rig.calls().iter().any(|call| call.contains(&"delete".to_owned())), "waiting deletes nothing");
}

#[test]
fn up_is_not_ready() {
    let rig = Rig::queued(&[]);
    rig.write("states", "ACTIVE\n").write("probes", "gemma4ctl-starting\n");
    let (code, stdout, stderr) = rig.run(&["wait"]);
    assert!(code == 1 && stderr.contains("not ready after 1800 s (ACTIVE). Nothing was deleted"), "{stdout}{stderr}");
    // A failed start is told at once, with its reason.
    rig.write("probes", "gemma4ctl-failed: cannot pull the image\n").write("calls", "");
    let (code, _, stderr) = rig.run(&["wait"]);
    assert!(code == 1 && stderr.contains("gemma4ctl-failed: cannot pull the image"), "{stderr}");
    assert!(!rig.has_call("sleep"));
    for (states, probe, code, expected) in [
        ("ACTIVE\n", "gemma4ctl-ready\n", 0, "ready: it answers /health"),
        ("ACTIVE\n", "gemma4ctl-starting\n", 1, "not ready: the server does not answer yet"),
        ("ACTIVE\n", "NOSSH\n", 1, "ssh does not get through"),
        ("PROVISIONING\n", "NOSSH\n", 1, "gemma4-e2b-v6e-1: PROVISIONING"),
        ("ABSENT\n", "NOSSH\n", 1, "there is no gemma4-e2b-v6e-1"),
    ] {
        rig.write("states", states).write("probes", probe);
        let outcome = rig.run(&["status"]);
        assert!(outcome.0 == code && format!("{}{}", outcome.1, outcome.2).contains(expected), "{outcome:?}");
    }
}

#[test]
fn a_queued_resource_is_deleted_by_name_alone() {
    let rig = Rig::queued(&[]);
    rig.write("states", "ACTIVE\n");
    for arguments in [&["delete"][..], &["delete", "another"], &["delete", "--force"], &["delete", ""]] {
        let (code, _, stderr) = rig.run(arguments);
        assert!(code == 2 && stderr.contains("may take hours") && stderr.contains(QUEUED_NAME), "{stderr}");
    }
    assert_eq!(rig.gcloud(), Vec::<Vec<String>>::new(), "nothing was asked of gcloud");
    let (code, stdout, stderr) = rig.run(&["delete", QUEUED_NAME]);
    assert!(code == 0 && stdout.contains("is deleted"), "{stderr}");
    let flags = rig.flags_of("alpha compute tpus queued-resources delete");
    assert_eq!(flags, [QUEUED_NAME, "--project=example-project", "--zone=us-east5-b", "--force", "--quiet"]);
    let rig = Rig::compute_engine(&[]);
    rig.write("states", "RUNNING\nABSENT\n");
    assert_eq!(rig.run(&["delete"]).0, 0);
    let flags = rig.flags_of("compute instances delete");
    assert_eq!(flags, ["gemma4-turbo-stable", "--project=example-project", "--zone=us-east5-b", "--quiet"]);
    let (code, stdout, _) = rig.run(&["delete"]);
    assert!(code == 0 && stdout.contains("nothing to delete"), "{stdout}");
}

#[test]
fn quotas_zones_and_logs_are_those_of_the_plane() {
    let rig = Rig::compute_engine(&["deploy.gcloud.provisioning=flex-start", "deploy.gcloud.max_run_duration=4h"]);
    assert_eq!(rig.run(&["quota"]).0, 0);
    assert!(rig.has_call(
        "gcloud alpha quotas info describe PREEMPTIBLE-TPU-V6E-per-project-region --service=compute.googleapis.com"
    ));
    assert!(rig.has_call("gcloud alpha quotas info describe TPUS-PER-TPU-FAMILY-per-project-region"));
    assert_eq!(rig.run(&["zones"]).0, 0);
    assert!(rig.has_call("gcloud compute machine-types list --project=example-project --filter=name=ct6e-standard-4t"));
    rig.write("refuse-ssh", "");
    assert_eq!(rig.run(&["logs"]).0, 0);
    assert!(rig.has_call("gcloud compute instances get-serial-port-output gemma4-turbo-stable"));
    let rig = Rig::queued(&["deploy.gcloud.provisioning=spot"]);
    assert_eq!(rig.run(&["quota"]).0, 0);
    assert!(rig.has_call("gcloud alpha quotas info describe TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI --service=tpu.googleapis.com"));
    let (code, stdout, _) = rig.run(&["zones"]);
    assert_eq!((code, stdout.as_str()), (0, "us-west4-a\n"));
    assert_eq!(rig.run(&["logs"]).0, 0);
}

#[test]
fn what_the_profile_leaves_open_comes_from_the_environment() {
    let rig = Rig::new("turbo-stable", &[]);
    let (code, _, stderr) = rig.run(&["status"]);
    assert!(code != 0 && stderr.contains("set PROJECT to the project id"), "{stderr}");
    let with = |place: &[(&str, &str)], subcommand: &str| {
        let mut command = rig.command("compute-engine.sh", &[subcommand]);
        finished(command.envs(place.iter().copied()).output().expect("bash"))
    };
    let (code, _, stderr) = with(&[("PROJECT", "p")], "create");
    assert!(code != 0 && stderr.contains("set ZONE to a zone"), "{stderr}");
    assert_eq!(with(&[("PROJECT", "p")], "zones").0, 0);
    assert_eq!(with(&[("PROJECT", "p q"), ("ZONE", "z")], "create").0, 0);
    assert_eq!(rig.flags_of("compute instances create")[1..3], ["--project=p q", "--zone=z"]);
    for arguments in [&[][..], &["reboot"], &["create", "more"], &["delete", "name"]] {
        let (code, stdout, stderr) = rig.run(arguments);
        assert!(code == 2 && stdout.is_empty() && stderr.contains("usage: compute-engine.sh COMMAND"), "{stderr}");
    }
}

#[test]
fn values_arrive_as_they_are_written() {
    let hostile = "a b'c\"$(touch owned)`touch owned`;&";
    let setting = format!("deploy.gcloud.network={}", serde_json::to_string(hostile).expect("JSON"));
    let rig = Rig::compute_engine(&[&setting, "deploy.gcloud.open_to=[\"203.0.113.0/24\"]"]);
    assert_eq!(rig.run(&["create"]).0, 0);
    assert!(rig.flags_of("compute instances create").contains(&format!("--network={hostile}")));
    assert!(rig.flags_of("compute firewall-rules create").contains(&format!("--network={hostile}")));
    assert!(!rig.path().join("out/owned").exists() && !rig.path().join("owned").exists());
}

#[test]
fn the_machine_installs_docker_and_starts_the_service() {
    let rig = Rig::compute_engine(&[]);
    std::fs::rename(rig.path().join("bin/docker"), rig.path().join("docker-to-install")).expect("docker goes");
    rig.write("pulls", "no\nno\nok\n").write("health", "no\nok\n").write("old-container", "");
    let (code, stdout, stderr) = rig.boot();
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("gemma4ctl: ready: http://127.0.0.1:8000"), "{stdout}");
    assert!(!rig.path().join("run/failed").exists());
    assert!(rig.has_call("apt-get -o DPkg::Lock::Timeout=300 install --yes docker.io"));
    let calls = rig.calls();
    let at = |words: &str| calls.iter().position(|call| call.join(" ").starts_with(words)).expect("a call");
    assert!(at("docker pull") < at("docker rm --force vllm-gemma4"));
    assert!(at("docker rm --force vllm-gemma4") < at("docker run"));
    assert_eq!(calls.iter().filter(|call| call.join(" ") == "sleep 20").count(), 2);
    // The same words as the docker target, but for what waits.
    let (_, script, _) = binary(&["emit", "turbo-stable", "--target", "docker"], rig.path());
    let run = &calls[at("docker run")];
    let plan =
        binary(&["plan", "turbo-stable", "--set", PLACE[0], "--set", PLACE[1], "--format", "json"], rig.path()).1;
    let plan: serde_json::Value = serde_json::from_str(&plan).expect("a plan");
    let argv: Vec<&str> = plan["engine"]["argv"].as_array().expect("argv").iter().filter_map(|v| v.as_str()).collect();
    assert_eq!(run[run.len() - argv.len()..], argv, "the engine's arguments survive");
    for word in ["--privileged", "--restart", "--health-cmd", "--network", "--volume", "/dev/shm:/dev/shm"] {
        assert!(run.contains(&word.to_owned()) && script.contains(word), "{word}");
    }
    let env = run.iter().position(|word| word == "HF_TOKEN").expect("the name of the variable");
    assert_eq!(run[env - 1], "--env");
}

#[test]
fn a_start_that_fails_says_why() {
    let rig = Rig::queued(&["deploy.gcloud.external_ip=false"]);
    for (file, text, expected) in [
        ("refuse-secret", "", "roles/secretmanager.secretAccessor"),
        ("pulls", "no\n", "cannot pull vllm/vllm-tpu:nightly: without an external address it takes Cloud NAT"),
        ("running", "false\n", "the container stopped"),
        ("running", "true\n", "not ready after 1800 s"),
    ] {
        rig.write("pulls", "ok\n").write("running", "true\n").write("health", "no\n").write(file, text);
        let (code, stdout, stderr) = rig.boot();
        assert!(code == 1 && stderr.contains(expected), "{file}: {code} {stdout}{stderr}");
        assert!(rig.read("run/failed").contains(expected));
        let _ = std::fs::remove_file(rig.path().join("refuse-secret"));
    }
    assert_eq!(rig.calls().iter().filter(|call| call.join(" ").starts_with("docker pull")).count(), 5 + 1 + 1);
}

#[test]
fn an_image_in_googles_registry_is_pulled_as_the_machine() {
    let rig = Rig::queued(&["engine.image=us-docker.pkg.dev/example-project/mirror/vllm:1"]);
    let (code, stdout, stderr) = rig.boot();
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(rig.has_call("docker login --username oauth2accesstoken --password-stdin https://us-docker.pkg.dev"));
    assert!(!Rig::queued(&[]).read("out/startup.sh").contains("docker login"));
    assert_no_secret(&rig, &format!("{stdout}{stderr}"));
}

/// Neither secret nor token is in what was printed, in a command line, or in a file.
fn assert_no_secret(rig: &Rig, printed: &str) {
    fn files(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => files(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut all = Vec::new();
    files(rig.path(), &mut all);
    assert!(all.iter().any(|path| path.ends_with("calls")));
    for secret in [PLANTED, TOKEN] {
        assert!(!printed.contains(secret), "printed: {printed}");
        for path in all.iter().filter(|path| !path.is_symlink()) {
            let bytes = std::fs::read(path).expect("a file");
            let text = String::from_utf8_lossy(&bytes);
            assert!(!text.contains(secret), "{} has it", path.display());
        }
    }
}

#[test]
fn a_secret_reaches_the_container_and_nothing_else() {
    let rig = Rig::compute_engine(&[]);
    rig.boot();
    let digest =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().and_then(|mut child| {
            child.stdin.take().expect("a pipe").write_all(format!("{PLANTED}\n").as_bytes())?;
            child.wait_with_output()
        });
    let digest = String::from_utf8(digest.expect("sha256sum").stdout).expect("UTF-8");
    assert_eq!(rig.read("token-of-run"), digest, "docker got it in its environment");
    // Even where the script is traced, and where it fails.
    for refused in [false, true] {
        if refused {
            rig.write("refuse-secret", "");
        }
        let mut command = Command::new("bash");
        let plain = rig.command("startup.sh", &[]);
        command.arg("-x").args(plain.get_args()).current_dir(rig.path()).env_clear().stdin(Stdio::null());
        plain.get_envs().for_each(|(name, value)| {
            command.env(name, value.unwrap_or_default());
        });
        let (code, stdout, stderr) = finished(command.output().expect("bash"));
        assert_eq!(code, i32::from(refused), "{stderr}");
        assert!(refused || stderr.contains("+ docker run"), "tracing goes on after the secret: {stderr}");
        assert_no_secret(&rig, &format!("{stdout}{stderr}"));
    }
}

/// Plans of every kind.
fn all_kinds() -> Vec<Rig> {
    let timed = ["deploy.gcloud.max_run_duration=4h", "deploy.gcloud.valid_for=2h"];
    let flex = [&["deploy.gcloud.provisioning=flex-start"][..], &timed].concat();
    let spot = ["deploy.gcloud.provisioning=spot"];
    let reserved = ["deploy.gcloud.provisioning=reserved", "deploy.gcloud.reservation=mine"];
    let closed = [
        "deploy.gcloud.external_ip=false",
        "deploy.gcloud.open_to=[\"10.0.0.0/8\"]",
        "deploy.gcloud.network=net",
        "deploy.gcloud.subnetwork=sub",
        "deploy.gcloud.service_account=tpu@example-project.iam.gserviceaccount.com",
        "engine.image=us-docker.pkg.dev/example-project/mirror/vllm:1",
    ];
    let mut rigs = Vec::new();
    for settings in [&[][..], &flex, &spot, &reserved, &closed] {
        rigs.push(Rig::compute_engine(settings));
        rigs.push(Rig::queued(settings));
    }
    rigs.push(Rig::new("e2b-v6e-1", &[&PLACE[..], &["hardware.accelerator=v5p-1"]].concat()));
    rigs
}

#[test]
fn the_scripts_pass_bash_and_shellcheck() {
    let local = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/venv/bin/shellcheck");
    let shellcheck = if local.is_file() { Some(local) } else { on_path("shellcheck") };
    if shellcheck.is_none() {
        skipped("shellcheck is not installed; `.ci/install-tools` installs it");
    }
    for rig in all_kinds() {
        for script in [rig.script(), "startup.sh"] {
            let path = rig.path().join("out").join(script);
            let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{script} is executable");
            let text = rig.read(&format!("out/{script}"));
            assert!(!text.contains("localhost"), "{script} reaches the server by its address");
            assert!(!text.replace("{{.State.Running}}", "").contains("{{"), "{script} is rendered");
            assert!(!text.contains("\n\n\n") && text.ends_with('\n'), "{script} is laid out");
            let output = Command::new("bash").arg("-n").arg(&path).output().expect("bash");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            if let Some(shellcheck) = &shellcheck {
                let output = Command::new(shellcheck).arg(&path).output().expect("shellcheck");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            }
        }
    }
}

/// Every distinct call of gcloud, as a line of a shell; what follows `--` is for ssh.
fn every_line() -> BTreeSet<String> {
    let quote = |word: &String| format!("'{}'", word.replace('\'', r"'\''"));
    let mut lines = BTreeSet::new();
    for rig in all_kinds() {
        let delete: &[&str] = if rig.script() == "compute-engine.sh" { &["delete"] } else { &["delete", QUEUED_NAME] };
        rig.write("refuse-ssh", "");
        for (state, arguments) in [
            ("ABSENT", &["create"][..]),
            ("FAILED\nRUNNING\n", &["wait"]),
            ("ACTIVE", &["status"]),
            ("RUNNING", &["status"]),
            ("ACTIVE", &["tunnel"]),
            ("ACTIVE", &["logs"]),
            ("ACTIVE", &["quota"]),
            ("ACTIVE", &["zones"]),
            ("ACTIVE", delete),
        ] {
            rig.write("states", state);
            rig.run(arguments);
        }
        for call in rig.gcloud() {
            let words: Vec<String> = call.iter().take_while(|word| *word != "--").map(quote).collect();
            lines.insert(format!("gcloud {}", words.join(" ")));
        }
    }
    lines
}

#[test]
fn gclouds_own_linter_takes_every_line() {
    let Some(gcloud) = on_path("gcloud") else {
        return skipped("gcloud is not installed; https://cloud.google.com/sdk/docs/install");
    };
    let folder = tempfile::tempdir().expect("a folder");
    let lint = |lines: &[String]| -> Vec<(bool, String)> {
        let commands: Vec<_> = lines.iter().map(|line| serde_json::json!({ "command_string": line })).collect();
        let file = folder.path().join("commands.json");
        std::fs::write(&file, serde_json::to_string(&commands).expect("JSON")).expect("a file");
        let output = Command::new(&gcloud)
            .args(["meta", "lint-gcloud-commands", "--commands-file"])
            .arg(&file)
            .env("CLOUDSDK_CONFIG", folder.path())
            .env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
            .env("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1")
            .stdin(Stdio::null())
            .output()
            .expect("gcloud");
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        let results = report.as_array().expect("a list").iter();
        results
            .map(|result| (result["success"] == true, result["error_message"].as_str().unwrap_or_default().to_owned()))
            .collect()
    };
    // It refuses what is wrong.
    assert!(!lint(&["gcloud compute instances create 'n' --bogus".to_owned()])[0].0);
    let mut lines: Vec<String> = every_line().into_iter().collect();
    assert!(lines.len() > 30, "{}", lines.len());
    // An older gcloud does not know flex-start on Compute Engine; the rest of the line is checked all the same.
    let flex = "gcloud compute instances create n --provisioning-model=FLEX_START --request-valid-for-duration=2h";
    if !lint(&[flex.to_owned()])[0].0 {
        skipped("this gcloud does not know FLEX_START on Compute Engine; a newer one checks it");
        for line in &mut lines {
            *line = line.replace("--provisioning-model=FLEX_START", "--provisioning-model=SPOT");
            *line = line.replace(" '--request-valid-for-duration=2h'", "");
        }
    }
    let results = lint(&lines);
    assert_eq!(results.len(), lines.len());
    let wrong: Vec<_> = lines.iter().zip(&results).filter(|(_, (success, _))| !success).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
