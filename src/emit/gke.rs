//! Google Kubernetes Engine: a node pool, and manifests of what runs on it. A copy on one machine is a Deployment's pod,
//! one on several machines a group of a LeaderWorkerSet.

mod types;

use std::collections::BTreeMap;

use gemma4_plan::Plan;
use serde_json::json;

use super::docker::containers_only;
use super::service::{command, deploy_text};
use super::{Artifact, EmitError, Service, Templates};
use crate::catalog::{self, Accelerator, AcceleratorKind};

use types::Pod;
pub use types::{Gke, Mount, NodePool, Secret, Workload};

const TARGET: &str = "gke";

/// Starts the head of a Ray cluster, waits for as many machines as the first argument says, then becomes the rest of
/// the arguments. The text is the same for every plan, so no value has to survive a shell.
const LEAD_AND_EXEC: &str = r#"machines=$1; shift; ray start --head --port=6379 && until [ "$(python3 -c 'import ray; ray.init(address="auto", log_to_driver=False); print(sum(node["Alive"] for node in ray.nodes()))' | tail -n 1)" -ge "$machines" ]; do sleep 5; done && exec "$@""#;

/// Waits for the leader's Ray cluster and works for it. Ends when the cluster does, so that the group starts anew.
const FOLLOW: &str = r#"until (exec 3<>"/dev/tcp/$LWS_LEADER_ADDRESS/6379") 2>/dev/null; do sleep 5; done; exec ray start --address="$LWS_LEADER_ADDRESS:6379" --block"#;

/// The user that the images run as, and where the Hub's client keeps weights without `HF_HOME`.
const DEFAULT_HF_HOME: &str = "/root/.cache/huggingface";

/// The period of the startup probe in seconds.
const STARTUP_PERIOD: u64 = 10;

pub(super) fn emit(plan: &Plan, templates: &Templates) -> Result<Vec<Artifact>, EmitError> {
    let Workload { mut scripts, manifests, .. } = workload(plan, templates)?;
    scripts.extend(manifests);
    Ok(scripts)
}

pub(super) fn workload(plan: &Plan, templates: &Templates) -> Result<Workload, EmitError> {
    let accelerator = accelerator(plan)?;
    let service = containers_only(plan, TARGET)?;
    if plan.engine.kind == "bundled" {
        return Err(EmitError::WrongEngine {
            target: TARGET,
            engine: plan.engine.kind.clone(),
            help: "it reads a plan file, which no manifest carries; use the target `systemd`",
        });
    }
    let gke = gke(plan, &service, &accelerator)?;
    let pool = node_pool(plan, &gke, &accelerator);

    let several = plan.hardware.hosts > 1;
    let mut context = json!({ "plan": plan, "service": service, "gke": gke });
    for (role, pod) in [("server", server(plan, &service, &gke)), ("worker", worker(plan, &gke))] {
        let text = templates
            .render("gke-pod.yaml.j2", &json!({ "plan": plan, "service": service, "gke": gke, "pod": pod }))?;
        context[role] = text.trim_end().into();
    }
    let mut names = Vec::new();
    if gke.namespace != "default" {
        names.push("namespace.yaml");
    }
    if !gke.mounts.is_empty() {
        names.push("pvc.yaml");
    }
    names.push(if several { "leaderworkerset.yaml" } else { "deployment.yaml" });
    names.extend([
        "service.yaml",
        "podmonitoring.yaml",
        "hpa.yaml",
        "pdb.yaml",
        "networkpolicy.yaml",
        "inferencepool.yaml",
    ]);
    context["resources"] = json!(names);
    context["pool"] = json!(pool);

    let mut scripts = vec![Artifact::script("node-pool.sh", templates.render("gke-node-pool.sh.j2", &context)?)];
    if !gke.secrets.is_empty() {
        scripts.push(Artifact::script("secret.sh", templates.render("gke-secret.sh.j2", &context)?));
    }
    names.push("kustomization.yaml");
    let manifest = |name| Ok(Artifact::file(name, templates.render(&format!("gke-{name}.j2"), &context)?));
    let manifests = names.into_iter().map(manifest).collect::<Result<_, EmitError>>()?;
    Ok(Workload { gke, pool, service, manifests, scripts })
}

/// The chips of the plan, if GKE has them.
fn accelerator(plan: &Plan) -> Result<std::sync::Arc<Accelerator>, EmitError> {
    let wrong = |help| EmitError::WrongValue {
        target: TARGET,
        key: "hardware.accelerator",
        value: plan.hardware.accelerator.clone(),
        help,
    };
    let unknown = "the catalog does not know it; `gemma4ctl schema` lists the families";
    let found = catalog::accelerator(&plan.hardware.family)?.ok_or_else(|| wrong(unknown))?;
    if found.kind == AcceleratorKind::Cpu {
        return Err(wrong("its pods are for TPUs and GPUs; use the target `systemd` on a machine without them"));
    }
    if found.gke_accelerator.is_none() {
        return Err(wrong("GKE has no such machines; choose another accelerator, or use the target `docker`"));
    }
    Ok(found)
}

fn gke(plan: &Plan, service: &Service, accelerator: &Accelerator) -> Result<Gke, EmitError> {
    let host = plan.server.host.as_str();
    if host == "localhost" || host == "::1" || host.starts_with("127.") {
        return Err(EmitError::WrongValue {
            target: TARGET,
            key: "server.host",
            value: plan.server.host.clone(),
            help: "probes and clients reach a pod by its own address; use \"0.0.0.0\", and the network policy keeps others out",
        });
    }
    let namespace = deploy_text(plan, "gke", "namespace").unwrap_or_else(|| "gemma4".to_owned());
    if !is_label(&namespace) {
        return Err(EmitError::WrongValue {
            target: TARGET,
            key: "deploy.gke.namespace",
            value: namespace,
            help: "Kubernetes takes up to 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
        });
    }
    let name = object_name(&service.name);
    let identity =
        BTreeMap::from([("app.kubernetes.io/name", "gemma4".to_owned()), ("app.kubernetes.io/instance", name.clone())]);
    let with = |more: [(&'static str, &str); 1]| {
        let mut labels = identity.clone();
        labels.extend(more.map(|(key, value)| (key, value.to_owned())));
        labels
    };
    let tpu = accelerator.kind == AcceleratorKind::Tpu;
    let label = accelerator.gke_accelerator.clone().unwrap_or_default();
    let node_selector = if tpu {
        BTreeMap::from([
            ("cloud.google.com/gke-tpu-accelerator", label),
            ("cloud.google.com/gke-tpu-topology", plan.hardware.topology.clone()),
        ])
    } else {
        BTreeMap::from([("cloud.google.com/gke-accelerator", label)])
    };
    let replicas = plan.deploy.get("gke").and_then(|table| table.get("replicas")).and_then(|value| value.as_u64());
    let replicas = replicas.unwrap_or(1).max(1);
    let hosts = plan.hardware.hosts.max(1);
    let shared = hosts > 1 || replicas > 1;
    let local_model = plan.model.fingerprint.is_some().then(|| plan.model.id.clone());
    if local_model.as_ref().is_some_and(|path| !path.starts_with('/')) {
        return Err(EmitError::WrongValue {
            target: TARGET,
            key: "model.id",
            value: plan.model.id.clone(),
            help: "a pod sees no folder of this machine; use the Hub's id, or an absolute path, which becomes one on the volume",
        });
    }
    let mounts = mounts(plan);
    // A disk is attached to one machine at a time.
    let max_replicas = if shared || mounts.is_empty() { replicas.saturating_mul(2) } else { replicas };
    let shm = service.share_dev_shm
        || service.shm_size.is_some()
        || !tpu
        || hosts > 1
        || cache_paths(plan).iter().any(|(path, _)| in_memory(path));
    let new_class = !shared && matches!(accelerator.family.as_str(), "v6e" | "tpu7x" | "h200" | "b200");
    let secrets: Vec<Secret> = service
        .secrets
        .iter()
        .map(|secret| Secret {
            name: one_line(&secret.name),
            object: format!("{name}-{}", dashes(&secret.name)),
            variable: secret.variable.clone(),
            kind: secret.kind,
            reference: secret.reference.clone(),
            in_home: secret.reference.strip_prefix("~/").map(str::to_owned),
        })
        .collect();
    Ok(Gke {
        header: vec![
            one_line(&format!("{} on {}.", plan.model.id, plan.hardware.accelerator)),
            one_line(&format!("Made by gemma4ctl from the profile {}, plan {}.", plan.profile.name, plan.digest)),
        ],
        namespace,
        project: deploy_text(plan, "gcloud", "project"),
        labels: with([("app.kubernetes.io/managed-by", "gemma4ctl")]),
        serving: with([("app.kubernetes.io/component", "server")]),
        replicas,
        max_replicas,
        resource: if tpu { "google.com/tpu" } else { "nvidia.com/gpu" },
        chips: (plan.hardware.chips / hosts).to_string(),
        node_selector,
        needs_gcloud: secrets.iter().any(|secret| secret.kind == "gcp_secret"),
        secrets,
        shm,
        // As with Docker, the size has no effect where the whole of it is asked for.
        shm_size: service.shm_size.as_deref().filter(|_| !service.share_dev_shm).and_then(docker_bytes),
        pod_name: mounts.iter().any(|mount| mount.own),
        mounts,
        claim: format!("{name}-cache"),
        shared,
        storage: storage(plan),
        storage_class: match (shared, new_class) {
            (true, _) => "standard-rwx",
            (false, true) => "gemma4ctl-hyperdisk-balanced",
            (false, false) => "standard-rwo",
        },
        new_class,
        local_model: local_model.as_deref().map(one_line),
        startup_period: STARTUP_PERIOD,
        startup_failures: service.ready_seconds.div_ceil(STARTUP_PERIOD),
        grace_seconds: service.stop_seconds + 30,
        // The longest period that Kubernetes takes.
        scale_up_seconds: service.ready_seconds.min(1800),
        identity,
        name,
    })
}

/// The pod that answers requests. With several machines, it leads them.
fn server(plan: &Plan, service: &Service, gke: &Gke) -> Pod {
    let hosts = plan.hardware.hosts;
    let (entrypoint, arguments) = if hosts > 1 {
        let mut argv = ["/bin/bash", "-c", LEAD_AND_EXEC, "lead-and-exec"].map(str::to_owned).to_vec();
        argv.push(hosts.to_string());
        argv.extend(plan.engine.argv.iter().cloned());
        let flag = "--distributed-executor-backend";
        if !plan.engine.argv.iter().any(|word| word.split('=').next() == Some(flag)) {
            argv.extend([flag, "ray"].map(str::to_owned));
        }
        command(&plan.engine.pip, &argv)
    } else {
        (service.entrypoint.clone(), service.arguments.clone())
    };
    pod(plan, gke.serving.clone(), entrypoint, arguments, true)
}

/// The pods of the other machines.
fn worker(plan: &Plan, gke: &Gke) -> Pod {
    let argv = ["/bin/bash", "-c", FOLLOW].map(str::to_owned);
    let (entrypoint, arguments) = command(&plan.engine.pip, &argv);
    let mut labels = gke.identity.clone();
    labels.insert("app.kubernetes.io/component", "worker".to_owned());
    pod(plan, labels, entrypoint, arguments, false)
}

fn pod(
    plan: &Plan,
    mut labels: BTreeMap<&'static str, String>,
    entrypoint: String,
    arguments: Vec<String>,
    serves: bool,
) -> Pod {
    labels.insert("app.kubernetes.io/managed-by", "gemma4ctl".to_owned());
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    if plan.hardware.hosts > 1 && plan.engine.kind == "vllm-tpu" {
        let ray = [
            ("TPU_MULTIHOST_BACKEND", "ray"),
            ("TPU_BACKEND_TYPE", "jax"),
            ("IS_TPU_MULTIHOST", "true"),
            // Empty: JAX chooses, and does not insist on a TPU in the processes that have none.
            ("JAX_PLATFORMS", ""),
        ];
        env.extend(ray.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }
    env.extend(plan.engine.env.iter().map(|(name, value)| (name.clone(), literal(value))));
    Pod {
        labels,
        entrypoint: literal(&entrypoint),
        arguments: arguments.iter().map(|argument| literal(argument)).collect(),
        env,
        serves,
    }
}

fn node_pool(plan: &Plan, gke: &Gke, accelerator: &Accelerator) -> NodePool {
    let hosts = u64::from(plan.hardware.hosts.max(1));
    let several = hosts > 1;
    let tpu = accelerator.kind == AcceleratorKind::Tpu;
    let policy = tpu && several && accelerator.family == "tpu7x";
    let gcloud = |key| deploy_text(plan, "gcloud", key);
    let provisioning = gcloud("provisioning").unwrap_or_else(|| "on-demand".to_owned());

    let mut arguments = Vec::new();
    if tpu && several && !policy {
        arguments.push(format!("--tpu-topology={}", plan.hardware.topology));
    }
    match provisioning.as_str() {
        "spot" => arguments.push("--spot".to_owned()),
        "flex-start" => arguments.extend(["--flex-start", "--reservation-affinity=none"].map(str::to_owned)),
        _ => {}
    }
    if let Some(span) = gcloud("max_run_duration") {
        let seconds = if span.bytes().all(|byte| byte.is_ascii_digit()) { "s" } else { "" };
        arguments.push(format!("--max-run-duration={}{seconds}", span.replace(' ', "")));
    }
    if let Some(account) = gcloud("service_account") {
        arguments.push(format!("--service-account={account}"));
    }

    let flags = |flags: &[(&str, u64)]| flags.iter().map(|(flag, value)| format!("{flag}={value}")).collect::<Vec<_>>();
    let always_autoscaled = provisioning == "flex-start";
    // A slice of several machines is a pool by itself, with all of its machines or none.
    let least = if several || always_autoscaled { 0 } else { gke.replicas };
    let mut autoscaled = vec!["--enable-autoscaling".to_owned()];
    autoscaled.extend(flags(&[
        ("--num-nodes", least),
        ("--min-nodes", least),
        ("--max-nodes", if several { hosts } else { gke.max_replicas }),
    ]));
    NodePool {
        cluster: deploy_text(plan, "gke", "cluster"),
        location: deploy_text(plan, "gke", "location"),
        zone: gcloud("zone"),
        machine_type: plan.hardware.machine_type.clone(),
        // The machine type of a TPU says how many chips it has.
        accelerator: accelerator
            .gke_accelerator
            .as_deref()
            .filter(|_| !tpu)
            .map(|label| format!("type={label},count={},gpu-driver-version=latest", gke.chips)),
        reservation: gcloud("reservation"),
        policy,
        arguments,
        fixed: flags(&[("--num-nodes", if several { hosts } else { gke.replicas })]),
        fixed_pools: if several { gke.replicas } else { 1 },
        autoscaled,
        autoscaled_pools: if several { gke.max_replicas } else { 1 },
        always_autoscaled,
        provisioning,
    }
}

/// The folders that outlive a pod, and their names on the claim.
fn cache_paths(plan: &Plan) -> Vec<(String, &'static str)> {
    let mut paths = Vec::new();
    let mut add = |path: &str, folder| {
        let path = path.trim_end_matches('/');
        if path.starts_with('/') && !paths.iter().any(|(known, _)| known == path) {
            paths.push((path.to_owned(), folder));
        }
    };
    if plan.model.fingerprint.is_some() {
        add(&plan.model.id, "model");
    } else {
        add(plan.engine.env.get("HF_HOME").map_or(DEFAULT_HF_HOME, String::as_str), "weights");
    }
    plan.compile_cache.path.iter().for_each(|path| add(path, "compile"));
    paths
}

fn mounts(plan: &Plan) -> Vec<Mount> {
    let several = plan.hardware.hosts > 1;
    cache_paths(plan)
        .into_iter()
        .filter(|(path, _)| !in_memory(path))
        .map(|(path, folder)| Mount { path, folder, own: several && folder == "compile" })
        .collect()
}

fn in_memory(path: &str) -> bool {
    path == "/dev/shm" || path.starts_with("/dev/shm/")
}

/// Size of the claim: the checkpoint and three tenths more, 20 GiB for compiled programs, in steps of 10 GiB.
fn storage(plan: &Plan) -> String {
    const GIB: u64 = 1 << 30;
    let width = if plan.model.dtype == "float32" { 4 } else { 2 };
    let weights = plan.model.parameters.saturating_mul(width).saturating_mul(13) / 10;
    let gib = weights.saturating_add(20 * GIB).div_ceil(10 * GIB) * 10;
    format!("{gib}Gi")
}

/// A size in Docker's units (`10gb` is 10 x 2^30) as bytes.
fn docker_bytes(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * f64::from(2_u32).powi(shift);
    (1.0..1e15).contains(&bytes).then(|| format!("{bytes:.0}"))
}

/// A text that Kubernetes leaves as it is: it replaces `$(NAME)` in commands and variables, and `$$` is its `$`.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// A text that stays within its comment.
fn one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}'), " ")
}

/// Lower-case letters, digits and single dashes.
fn dashes(text: &str) -> String {
    let words: Vec<String> = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}

/// A name that every kind of object takes, with room for the endings of those that belong to it.
pub(super) fn object_name(service: &str) -> String {
    let mut name = dashes(service);
    if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        name = format!("gemma4-{name}");
    }
    name.truncate(35);
    name.trim_end_matches('-').to_owned()
}

/// Whether Kubernetes takes it as the name of a namespace.
fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_by_kubernetes() {
        assert_eq!(object_name("vllm_Gemma4"), "vllm-gemma4");
        assert_eq!(object_name("4-chips"), "gemma4-4-chips");
        assert_eq!(object_name("..."), "gemma4");
        assert!(is_label(&object_name(&"long-name-".repeat(9))));
        assert!(!is_label("Serving") && !is_label("-a") && !is_label("") && is_label("a-1"));
    }

    #[test]
    fn sizes_are_those_of_docker() {
        assert_eq!(docker_bytes("10gb").as_deref(), Some("10737418240"));
        assert_eq!(docker_bytes("64M").as_deref(), Some("67108864"));
        assert_eq!(docker_bytes("1.5g").as_deref(), Some("1610612736"));
        assert_eq!(docker_bytes("1024").as_deref(), Some("1024"));
        assert_eq!(docker_bytes("many"), None);
    }

    #[test]
    fn kubernetes_replaces_nothing() {
        assert_eq!(literal("$(HOME) $1 $$"), "$$(HOME) $$1 $$$$");
        assert_eq!(one_line("a\nrm\u{2028}b"), "a rm b");
    }
}
