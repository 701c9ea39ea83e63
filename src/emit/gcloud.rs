//! Scripts that create, watch and delete a TPU machine in Google Cloud, and the script that the machine starts with.
//!
//! Two APIs create such machines, with commands, states, quotas and addresses of their own. Which one a plan uses
//! decides the name of the script; what differs between them is decided here.

use std::sync::Arc;

use gemma4_plan::Plan;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::docker::containers_only;
use super::service::machine_name;
use super::templates::shell;
use super::{Artifact, EmitError, Service, Templates};
use crate::catalog::{Accelerator, AcceleratorKind, accelerator};
use crate::profile::units::Span;
use crate::profile::{Plane, Provisioning};

const TARGET: &str = "gcloud";

/// Name of the script that the machine starts with; the flags of a creation say it too.
const STARTUP: &str = "startup.sh";

/// The label of a machine that says which plan it runs: the beginning of the digest, as long as labels may be.
pub const LABEL: &str = "gemma4ctl-plan";

/// Images with the TPU driver; they have no Docker and a disk that is too small for an engine's image.
const IMAGE_PROJECT: &str = "ubuntu-os-accelerator-images";
const IMAGE_FAMILY: &str = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e";
const IMAGE_FAMILY_TPU7X: &str = "ubuntu-accel-2404-amd64-tpu-tpu7x";
const BOOT_DISK: &str = "200GB";

/// The longest that Compute Engine lets a single machine wait for flex-start capacity.
const FLEX_START_WAIT: u64 = 2 * 3_600;

/// How long a machine may take to appear where capacity is not waited for.
const CREATE_SECONDS: u64 = 900;

/// `[deploy.gcloud]` as the profile writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Settings {
    project: Option<String>,
    zone: Option<String>,
    plane: Option<Plane>,
    provisioning: Option<Provisioning>,
    max_run_duration: Option<Span>,
    valid_for: Option<Span>,
    open_to: Vec<String>,
    external_ip: Option<bool>,
    reservation: Option<String>,
    service_account: Option<String>,
    network: Option<String>,
    subnetwork: Option<String>,
}

/// What the templates need beside the service, and what `apply` does the same things with.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Name of the script, which is the plane's.
    pub script: String,
    /// Whether it is a queued resource.
    pub queued: bool,
    /// Name of the machine or of the queued resource.
    pub name: String,
    /// Name that ssh connects to.
    pub target: String,
    /// Project, if the plan says it.
    pub project: Option<String>,
    /// Zone, if the plan says it.
    pub zone: Option<String>,
    /// Words after `gcloud` for the machine.
    pub api: &'static str,
    /// Where its description has the state.
    pub state: &'static str,
    /// The state in which the machine has booted.
    pub up: &'static str,
    /// Flags that create it.
    pub create: Vec<String>,
    /// The label that says which plan it runs.
    pub label: String,
    /// Words after `gcloud` that connect to it.
    pub ssh: &'static str,
    /// Flags that connect to it.
    pub ssh_flags: Vec<&'static str>,
    /// Flags of the firewall rule, if the port is opened.
    pub firewall: Option<Vec<String>>,
    /// Whether capacity is waited for in a queue.
    pub flex_start: bool,
    /// Whether the machine has an address of its own on the internet.
    pub external_ip: bool,
    /// Seconds that `wait` gives capacity.
    pub capacity_seconds: u64,
    /// Service and names of the quotas that it spends.
    pub quota_service: &'static str,
    /// Those that it spends.
    pub quotas: Vec<Quota>,
    /// Filter that finds zones with this machine.
    pub zones: String,
    /// What runs on the machine to see whether it serves.
    pub probe: String,
    /// What runs on the machine to show its logs.
    pub logs: String,
    /// Registry of Google that wants the machine's own token.
    pub registry: Option<String>,
}

/// A quota, or all with TPU in their name where the name is not known.
#[derive(Debug, Clone, Serialize)]
pub struct Quota {
    /// Its name.
    pub id: Option<&'static str>,
    /// What it counts.
    pub note: String,
}

/// A machine of a plan, with the script that it starts with.
#[derive(Debug, Clone)]
pub struct MachineLaunch {
    /// The machine.
    pub machine: Machine,
    /// What runs on it.
    pub service: Service,
    /// The text of startup.sh.
    pub startup: String,
}

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let MachineLaunch { machine, service, startup } = launch(plan, templates)?;
    let context = json!({ "plan": plan, "service": service, "gcloud": machine });
    Ok(vec![
        Artifact::script(format!("{}.sh", machine.script), templates.render("gcloud.sh.j2", &context)?),
        Artifact::script(STARTUP, startup),
    ])
}

pub(super) fn launch(plan: &Plan, templates: &Templates) -> Result<MachineLaunch, EmitError> {
    let accelerator = find(plan)?;
    let settings = settings(plan)?;
    let plane = settings.plane.or_else(|| accelerator.planes.first().copied());
    let impossible = |what: String, help| EmitError::Impossible { target: TARGET, what, help };
    if accelerator.kind != AcceleratorKind::Tpu {
        return Err(impossible(
            format!("create a machine with {}", plan.hardware.accelerator),
            "use the target `docker` or `systemd` on a machine that you have",
        ));
    }
    if plan.hardware.hosts > 1 {
        return Err(impossible(
            format!("serve on the {} machines of {}", plan.hardware.hosts, plan.hardware.accelerator),
            "use the target `gke`, or a slice with one machine",
        ));
    }
    let service = containers_only(plan, TARGET)?;
    if plan.engine.kind == "bundled" {
        return Err(EmitError::WrongEngine {
            target: TARGET,
            engine: plan.engine.kind.clone(),
            help: "it reads a plan file, which the machine's start-up script does not carry; use the target `systemd`",
        });
    }
    if let Some(secret) = service.secrets.iter().find(|secret| secret.kind != "gcp_secret") {
        return Err(impossible(
            format!("bring the secret `{}` from `{}` {} to the machine", secret.name, secret.kind, secret.reference),
            "put it into Secret Manager and write `{ gcp_secret = \"NAME\" }`",
        ));
    }
    if plan.model.fingerprint.is_some() {
        return Err(impossible(
            format!("bring the folder {} to the machine", plan.model.id),
            "name a model of the Hugging Face Hub",
        ));
    }
    let machine = match plane {
        Some(Plane::ComputeEngine) => compute_engine(plan, &settings, &service)?,
        Some(Plane::QueuedResource) => queued_resource(plan, &settings, &service, &accelerator)?,
        Some(Plane::Gke) | None => {
            return Err(impossible(format!("create {} with `gke`", plan.hardware.family), "use the target `gke`"));
        }
    };
    let context = json!({ "plan": plan, "service": service, "gcloud": machine });
    let startup = templates.render("startup.sh.j2", &context)?;
    Ok(MachineLaunch { machine, service, startup })
}

fn find(plan: &Plan) -> Result<Arc<Accelerator>, EmitError> {
    let family = &plan.hardware.family;
    accelerator(family)?.ok_or_else(|| EmitError::Impossible {
        target: TARGET,
        what: format!("create a machine with {family}"),
        help: "the catalog does not know it",
    })
}

fn settings(plan: &Plan) -> Result<Settings, EmitError> {
    match plan.deploy.get(TARGET) {
        None => Ok(Settings::default()),
        Some(table) => serde_json::from_value(table.clone())
            .map_err(|error| EmitError::Settings { section: TARGET, message: error.to_string() }),
    }
}

/// A machine of Compute Engine.
fn compute_engine(plan: &Plan, settings: &Settings, service: &Service) -> Result<Machine, EmitError> {
    let machine_type = plan.hardware.machine_type.clone().ok_or(EmitError::Missing {
        what: "a machine type",
        help: "add `hardware.machine_type`, or another accelerator",
    })?;
    let provisioning = settings.provisioning.unwrap_or(Provisioning::OnDemand);
    let image_family = if plan.hardware.family == "tpu7x" { IMAGE_FAMILY_TPU7X } else { IMAGE_FAMILY };
    let mut create = vec![
        format!("--machine-type={machine_type}"),
        format!("--image-project={IMAGE_PROJECT}"),
        format!("--image-family={image_family}"),
        format!("--boot-disk-size={BOOT_DISK}"),
        "--maintenance-policy=TERMINATE".to_owned(),
        "--scopes=cloud-platform".to_owned(),
    ];
    let mut add = |flags: &[&str]| create.extend(flags.iter().map(|flag| (*flag).to_owned()));
    match provisioning {
        Provisioning::OnDemand => add(&["--provisioning-model=STANDARD"]),
        Provisioning::Spot => add(&["--provisioning-model=SPOT", "--reservation-affinity=none"]),
        Provisioning::FlexStart => {
            let wait = settings.valid_for.as_ref().map_or(FLEX_START_WAIT, |span| span.seconds);
            add(&[
                "--provisioning-model=FLEX_START",
                "--reservation-affinity=none",
                &format!("--request-valid-for-duration={}", duration(wait)),
            ]);
        }
        Provisioning::Reserved => add(&[
            "--provisioning-model=RESERVATION_BOUND",
            "--reservation-affinity=specific",
            &format!("--reservation={}", reservation(settings)?),
        ]),
    }
    if let Some(span) = &settings.max_run_duration {
        add(&[&format!("--max-run-duration={}", duration(span.seconds)), "--instance-termination-action=DELETE"]);
    }
    for (flag, value) in [
        ("service-account", &settings.service_account),
        ("network", &settings.network),
        ("subnet", &settings.subnetwork),
    ] {
        if let Some(value) = value {
            add(&[&format!("--{flag}={value}")]);
        }
    }
    if settings.external_ip == Some(false) {
        add(&["--no-address"]);
    }
    let mut machine = common(plan, settings, service, create);
    if settings.external_ip == Some(false) {
        machine.ssh_flags.push("--tunnel-through-iap");
    }
    machine.quotas = compute_engine_quotas(plan, provisioning, &machine_type);
    machine.zones = format!("name={machine_type}");
    Ok(machine)
}

/// A queued resource of the TPU API. `alpha` alone has the provisioning model and the longest run.
fn queued_resource(
    plan: &Plan,
    settings: &Settings,
    service: &Service,
    accelerator: &Accelerator,
) -> Result<Machine, EmitError> {
    let (Some(pattern), Some(runtime)) = (&accelerator.tpu_api_type, &accelerator.runtime_version) else {
        return Err(EmitError::Impossible {
            target: TARGET,
            what: format!("queue for {}", plan.hardware.accelerator),
            help: "the TPU API does not have it; use `plane = \"compute-engine\"`",
        });
    };
    let (chips, cores) = (plan.hardware.chips, 2 * plan.hardware.chips);
    if pattern.contains("{cores}") && cores < 8 {
        return Err(EmitError::Impossible {
            target: TARGET,
            what: format!("queue for {}", plan.hardware.accelerator),
            help: "the TPU API starts at four chips; use `plane = \"compute-engine\"`",
        });
    }
    let accelerator_type = pattern.replace("{chips}", &chips.to_string()).replace("{cores}", &cores.to_string());
    let provisioning = settings.provisioning.unwrap_or(Provisioning::OnDemand);
    let mut create = vec![
        format!("--node-id={}", node_name(plan)),
        format!("--accelerator-type={accelerator_type}"),
        format!("--runtime-version={runtime}"),
    ];
    let mut add = |flags: &[&str]| create.extend(flags.iter().map(|flag| (*flag).to_owned()));
    match provisioning {
        Provisioning::OnDemand => add(&["--provisioning-model=standard"]),
        Provisioning::FlexStart => add(&["--provisioning-model=flex-start"]),
        // Each of the two flags alone leaves out a part of the request.
        Provisioning::Spot => add(&["--provisioning-model=spot", "--spot"]),
        // No provisioning model: `reservation-bound` is for reservations in calendar mode alone.
        Provisioning::Reserved => add(&[&format!("--reservation={}", reservation(settings)?)]),
    }
    for (flag, span) in
        [("max-run-duration", &settings.max_run_duration), ("valid-until-duration", &settings.valid_for)]
    {
        if let Some(span) = span {
            add(&[&format!("--{flag}={}", duration(span.seconds))]);
        }
    }
    for (flag, value) in [
        ("service-account", &settings.service_account),
        ("network", &settings.network),
        ("subnetwork", &settings.subnetwork),
    ] {
        if let Some(value) = value {
            add(&[&format!("--{flag}={value}")]);
        }
    }
    if settings.external_ip == Some(false) {
        add(&["--internal-ips"]);
    }
    let mut machine = common(plan, settings, service, create);
    machine.script = Plane::QueuedResource.to_string();
    machine.queued = true;
    machine.target = node_name(plan);
    machine.api = "alpha compute tpus queued-resources";
    machine.state = "state.state";
    machine.up = "ACTIVE";
    machine.ssh = "compute tpus tpu-vm ssh";
    machine.ssh_flags.push("--worker=0");
    if settings.external_ip == Some(false) {
        // Only `alpha` goes through Identity-Aware Proxy.
        machine.ssh = "alpha compute tpus tpu-vm ssh";
        machine.ssh_flags.push("--tunnel-through-iap");
    }
    // A queue without an end is left to the caller after a day; the request stays.
    machine.capacity_seconds = settings.valid_for.as_ref().map_or(86_400, |span| span.seconds + 300);
    machine.quota_service = "tpu.googleapis.com";
    machine.quotas = queued_resource_quotas(plan, provisioning);
    machine.zones = format!("type={accelerator_type}");
    Ok(machine)
}

/// What both planes share, with the words of Compute Engine.
fn common(plan: &Plan, settings: &Settings, service: &Service, mut create: Vec<String>) -> Machine {
    let name = machine_name(plan);
    let flex_start = settings.provisioning == Some(Provisioning::FlexStart);
    let label = format!("{LABEL}={}", short_digest(plan));
    create.push(format!("--labels={label}"));
    let firewall = (!settings.open_to.is_empty()).then(|| {
        create.push(format!("--tags={name}"));
        vec![
            format!("--network={}", settings.network.as_deref().unwrap_or("default")),
            "--direction=INGRESS".to_owned(),
            format!("--allow=tcp:{}", service.port),
            format!("--source-ranges={}", settings.open_to.join(",")),
            format!("--target-tags={name}"),
        ]
    });
    create.push(format!("--metadata-from-file=startup-script={STARTUP}"));
    let container = shell(&service.name);
    Machine {
        script: Plane::ComputeEngine.to_string(),
        queued: false,
        target: name.clone(),
        name,
        project: settings.project.clone(),
        zone: settings.zone.clone(),
        api: "compute instances",
        state: "status",
        up: "RUNNING",
        create,
        label,
        ssh: "compute ssh",
        ssh_flags: Vec::new(),
        firewall,
        flex_start,
        external_ip: settings.external_ip != Some(false),
        capacity_seconds: if flex_start {
            settings.valid_for.as_ref().map_or(FLEX_START_WAIT, |span| span.seconds) + 300
        } else {
            CREATE_SECONDS
        },
        quota_service: "compute.googleapis.com",
        quotas: Vec::new(),
        zones: String::new(),
        probe: format!(
            "if curl --silent --fail --max-time 5 --output /dev/null {}; then echo gemma4ctl-ready; \
             elif [ -r /run/gemma4ctl/failed ]; then sed 's/^/gemma4ctl-failed: /' /run/gemma4ctl/failed; \
             else echo gemma4ctl-starting; fi",
            service.health_url
        ),
        logs: format!(
            "sudo journalctl --no-pager --lines=60 --unit=google-startup-scripts; sudo docker logs --tail 200 {container}"
        ),
        registry: service.image.as_deref().and_then(google_registry),
    }
}

/// Flex-start and spot spend the preemptible quota, and flex-start the standard one where a project has no other.
fn compute_engine_quotas(plan: &Plan, provisioning: Provisioning, machine_type: &str) -> Vec<Quota> {
    let preemptible = || match plan.hardware.family.as_str() {
        "v6e" => Quota {
            id: Some("PREEMPTIBLE-TPU-V6E-per-project-region"),
            note: "preemptible chips of a region".to_owned(),
        },
        family => Quota { id: None, note: format!("the preemptible one for {family} counts") },
    };
    let family = machine_type.split('-').next().unwrap_or(machine_type).to_uppercase();
    let standard = || Quota {
        id: Some("TPUS-PER-TPU-FAMILY-per-project-region"),
        note: format!("on-demand chips of a region; the line with tpu_family={family} counts"),
    };
    match provisioning {
        Provisioning::FlexStart => vec![preemptible(), standard()],
        Provisioning::Spot => vec![preemptible()],
        Provisioning::OnDemand | Provisioning::Reserved => vec![standard()],
    }
}

fn queued_resource_quotas(plan: &Plan, provisioning: Provisioning) -> Vec<Quota> {
    let (preemptible, standard, unit) = match plan.hardware.family.as_str() {
        "v5e" => (
            Some("TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI"),
            Some("TPUV5sLitepodPerProjectPerZoneForTPUAPI"),
            "chips",
        ),
        // The TPU API counts TensorCores, two a chip.
        "v5p" => (
            Some("TPUV5PPreemptiblePerProjectPerZoneForTPUAPI"),
            Some("TPUV5PPerProjectPerZoneForTPUAPI"),
            "TensorCores",
        ),
        "v6e" => {
            (Some("TPUV6EPreemptiblePerProjectPerZoneForTPUAPI"), Some("TPUV6EPerProjectPerZoneForTPUAPI"), "chips")
        }
        _ => (None, None, "chips"),
    };
    let preemptible = || Quota { id: preemptible, note: format!("preemptible {unit} of a zone") };
    let standard = || Quota { id: standard, note: format!("on-demand {unit} of a zone") };
    match provisioning {
        Provisioning::FlexStart => vec![preemptible(), standard()],
        Provisioning::Spot => vec![preemptible()],
        Provisioning::OnDemand | Provisioning::Reserved => vec![standard()],
    }
}

fn reservation(settings: &Settings) -> Result<&str, EmitError> {
    settings
        .reservation
        .as_deref()
        .ok_or(EmitError::Missing { what: "which reservation to use", help: "add `deploy.gcloud.reservation`" })
}

fn node_name(plan: &Plan) -> String {
    format!("{}-node", machine_name(plan))
}

/// The beginning of the digest, in characters that a label takes.
fn short_digest(plan: &Plan) -> &str {
    let hex = plan.digest.rsplit(':').next().unwrap_or_default();
    hex.get(..12).unwrap_or(hex)
}

/// A duration in the largest unit that it is a whole number of, as both APIs read it.
fn duration(seconds: u64) -> String {
    match seconds {
        _ if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        _ if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

/// The host of an image in one of Google's registries.
fn google_registry(image: &str) -> Option<String> {
    let host = image.split('/').next().filter(|_| image.contains('/'))?;
    (host.ends_with("-docker.pkg.dev") || host == "gcr.io" || host.ends_with(".gcr.io")).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_one_unit() {
        assert_eq!(duration(14_400), "4h");
        assert_eq!(duration(9_000), "150m");
        assert_eq!(duration(604_800), "168h");
        assert_eq!(duration(61), "61s");
    }

    #[test]
    fn only_googles_registries_get_the_machines_token() {
        assert_eq!(google_registry("us-docker.pkg.dev/p/r/vllm:1").as_deref(), Some("us-docker.pkg.dev"));
        assert_eq!(google_registry("eu.gcr.io/p/vllm").as_deref(), Some("eu.gcr.io"));
        assert_eq!(google_registry("vllm/vllm-tpu:nightly"), None);
        assert_eq!(google_registry("gcr.io.example/p/vllm"), None);
        assert_eq!(google_registry("vllm"), None);
    }
}
