//! What every artifact needs of a plan, decided once: names, the command, mounts, secrets, times.

use std::collections::BTreeMap;

use gemma4_plan::{Plan, SecretRef};
use serde::Serialize;
use serde_json::Value;

/// A service as artifacts start it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Service {
    /// Name of container, unit and Kubernetes objects: letters, digits and dashes.
    pub name: String,
    /// Container image.
    pub image: Option<String>,
    /// Program that the container starts.
    pub entrypoint: String,
    /// Its arguments. Every value of the plan is an argument of its own.
    pub arguments: Vec<String>,
    /// Environment variables that are no secrets.
    pub env: BTreeMap<String, String>,
    /// Secrets by the variable that the engine reads.
    pub secrets: Vec<SecretUse>,
    /// Folders of the host that the container sees.
    pub volumes: Vec<Volume>,
    /// Size of /dev/shm in Docker's units.
    pub shm_size: Option<String>,
    /// Whether the host's /dev/shm is mounted.
    pub share_dev_shm: bool,
    /// Whether the engine runs on TPUs, which containers reach only with all privileges.
    pub tpu: bool,
    /// Whether the engine runs on GPUs.
    pub gpu: bool,
    /// Port of the HTTP server.
    pub port: u16,
    /// Where the machine itself reaches the server. vLLM listens on IPv4, so never a name that may mean IPv6.
    pub base_url: String,
    /// Where it says that it is alive.
    pub health_url: String,
    /// What asks it within its container, a word each.
    pub health_command: Vec<String>,
    /// Seconds that a start may take: fetching weights, loading, and a cold compile.
    pub ready_seconds: u64,
    /// Seconds that running requests get to finish.
    pub stop_seconds: u64,
    /// Model id, as requests name it.
    pub model: String,
    /// Options of `docker run`, an option and its value a line, then the image, then each argument. Empty without an
    /// image.
    pub docker_run: Vec<Vec<String>>,
    /// The same after the options of a container that Docker itself keeps running and watches.
    pub docker_detached: Vec<Vec<String>>,
}

/// A secret and the variable that carries it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SecretUse {
    /// Name in the profile.
    pub name: String,
    /// Environment variable that the engine reads.
    pub variable: String,
    /// `gcp_secret`, `env` or `file`.
    pub kind: &'static str,
    /// The secret's name, the variable's name, or the path.
    pub reference: String,
    /// Project of a secret in Secret Manager, if the plan says it.
    pub project: Option<String>,
}

/// A folder or file of the host in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Path on the host.
    pub host: String,
    /// Path in the container.
    pub container: String,
    /// Whether it is a file, which has to be there.
    pub file: bool,
}

/// Installs packages, then becomes the engine. The packages come first, then `--`, then the engine's own arguments; the
/// text is the same for every plan, so no value has to survive a shell.
pub(super) const INSTALL_AND_EXEC: &str = r#"packages=(); while [ "$1" != -- ]; do packages+=("$1"); shift; done; shift; python3 -m pip install -- "${packages[@]}" && exec "$@""#;

/// Where a container of the bundled engine finds its plan.
const PLAN_IN_CONTAINER: &str = "/etc/gemma4ctl/plan.json";

impl Service {
    /// Takes the plan of a container of the bundled engine from `host`.
    pub fn with_plan_file(mut self, plan: &Plan, host: &std::path::Path) -> Self {
        for volume in self.volumes.iter_mut().filter(|volume| volume.container == PLAN_IN_CONTAINER) {
            volume.host = host.display().to_string();
        }
        self.docker_run = docker_run(&self);
        self.docker_detached = docker_detached(&self, plan);
        self
    }

    /// Reads a plan.
    pub fn new(plan: &Plan) -> Self {
        let setting = |section: &str, key: &str| plan.deploy.get(section).and_then(|table| table.get(key)).cloned();
        let text = |section: &str, key: &str| setting(section, key).and_then(|value| value.as_str().map(str::to_owned));
        let share_dev_shm = setting("docker", "share_dev_shm").and_then(|value| value.as_bool()).unwrap_or(false);
        let (entrypoint, mut arguments) = command(&plan.engine.pip, &plan.engine.argv);
        let bundled = plan.engine.kind == "bundled";
        // The command line of a plan cannot name the plan's own file.
        arguments
            .iter_mut()
            .filter(|word| bundled && *word == "PLAN")
            .for_each(|word| *word = PLAN_IN_CONTAINER.to_owned());
        let port = plan.server.port;
        let base_url = format!("http://127.0.0.1:{port}");
        let container = text("docker", "name").unwrap_or_else(|| name(&plan.profile.name));
        let mut volumes = volumes(plan, share_dev_shm);
        if bundled && plan.engine.image.is_some() {
            let host = format!("/etc/gemma4ctl/{container}.plan.json");
            volumes.push(Volume { host, container: PLAN_IN_CONTAINER.to_owned(), file: true });
        }
        let health_url = format!("{base_url}/health");
        let mut service = Service {
            name: container,
            image: plan.engine.image.clone(),
            entrypoint,
            arguments,
            env: plan.engine.env.clone(),
            secrets: plan.secrets.iter().map(|(name, reference)| secret(plan, name, reference)).collect(),
            volumes,
            shm_size: text("docker", "shm_size"),
            share_dev_shm,
            tpu: plan.engine.kind == "vllm-tpu",
            gpu: plan.engine.kind == "vllm-gpu",
            port,
            health_command: health_command(bundled, &health_url),
            health_url,
            base_url,
            ready_seconds: ready_seconds(plan),
            stop_seconds: 120,
            model: plan.model.id.clone(),
            docker_run: Vec::new(),
            docker_detached: Vec::new(),
        };
        service.docker_run = docker_run(&service);
        service.docker_detached = docker_detached(&service, plan);
        service
    }
}

/// The part of `docker run` that every artifact with one shares. Secrets are named and never valued: Docker takes them
/// from its own environment.
fn docker_run(service: &Service) -> Vec<Vec<String>> {
    let Some(image) = &service.image else { return Vec::new() };
    let option = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
    let mut words = vec![option("--network", "host")];
    if service.tpu {
        words.push(vec!["--privileged".to_owned()]);
    }
    if service.gpu {
        words.push(option("--gpus", "all"));
        words.push(option("--ipc", "host"));
    } else if let Some(size) = &service.shm_size {
        words.push(option("--shm-size", size));
    }
    for Volume { host, container, .. } in &service.volumes {
        words.push(option("--volume", &format!("{host}:{container}")));
    }
    for (variable, value) in &service.env {
        words.push(option("--env", &format!("{variable}={value}")));
    }
    for secret in &service.secrets {
        words.push(option("--env", &secret.variable));
    }
    words.push(option("--entrypoint", &service.entrypoint));
    words.push(vec![image.clone()]);
    words.extend(service.arguments.iter().map(|argument| vec![argument.clone()]));
    words
}

/// `docker run` where no systemd restarts the container: Docker does, and says whether it is healthy.
fn docker_detached(service: &Service, plan: &Plan) -> Vec<Vec<String>> {
    if service.docker_run.is_empty() {
        return Vec::new();
    }
    // Docker gives it to a shell; no word of it has a quote of that kind.
    let quoted = |word: &String| if word.contains(' ') { format!("'{word}'") } else { word.clone() };
    let health = service.health_command.iter().map(quoted).collect::<Vec<_>>().join(" ");
    let options = [
        ("--restart", "unless-stopped".to_owned()),
        ("--stop-timeout", service.stop_seconds.to_string()),
        ("--health-cmd", health),
        ("--health-interval", "15s".to_owned()),
        ("--health-timeout", "10s".to_owned()),
        ("--health-start-period", format!("{}s", service.ready_seconds)),
        ("--label", format!("gemma4ctl.digest={}", plan.digest)),
    ];
    let options = options.into_iter().map(|(name, value)| vec![name.to_owned(), value]);
    options.chain(service.docker_run.iter().cloned()).collect()
}

/// What asks the engine whether it is alive, with what its own image has.
fn health_command(bundled: bool, url: &str) -> Vec<String> {
    if bundled {
        return ["gemma4ctl", "runtime", "health", url].map(str::to_owned).to_vec();
    }
    let program = format!("import urllib.request; urllib.request.urlopen(\"{url}\", timeout=5)");
    vec!["python3".to_owned(), "-c".to_owned(), program]
}

/// Program and arguments of a container that installs the packages of `pip` and then becomes `argv`.
pub(super) fn command(pip: &[String], argv: &[String]) -> (String, Vec<String>) {
    let mut argv = argv.iter().cloned();
    if pip.is_empty() {
        return (argv.next().unwrap_or_default(), argv.collect());
    }
    let mut arguments: Vec<String> = ["-c", INSTALL_AND_EXEC, "install-and-exec"].map(str::to_owned).to_vec();
    arguments.extend(pip.iter().cloned());
    arguments.push("--".to_owned());
    arguments.extend(argv);
    ("/bin/bash".to_owned(), arguments)
}

/// The name of a machine in the cloud, which takes fewer characters than that of a container does.
pub(super) fn machine_name(plan: &Plan) -> String {
    name(&plan.profile.name)
}

/// A name that container engines, systemd and Kubernetes all take.
fn name(profile: &str) -> String {
    let mut text: String =
        profile.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    text.truncate(40);
    let text = text.trim_matches('-');
    if text.is_empty() { "gemma4".to_owned() } else { format!("gemma4-{text}") }
}

fn secret(plan: &Plan, name: &str, reference: &SecretRef) -> SecretUse {
    let variable = match name {
        "hf_token" => "HF_TOKEN".to_owned(),
        // vLLM reads this variable as it reads --api-key, which would stand in the process list.
        "api_key" => "VLLM_API_KEY".to_owned(),
        other => other.to_uppercase().replace(|c: char| !c.is_ascii_alphanumeric(), "_"),
    };
    let (kind, reference) = match reference {
        SecretRef::Gcp { gcp_secret } => ("gcp_secret", gcp_secret),
        SecretRef::Env { env } => ("env", env),
        SecretRef::File { file } => ("file", file),
    };
    let project = deploy_text(plan, "gcloud", "project");
    SecretUse { name: name.to_owned(), variable, kind, reference: reference.clone(), project }
}

/// The folders that survive the container. What lies in the host's /dev/shm is there already when that is shared.
fn volumes(plan: &Plan, share_dev_shm: bool) -> Vec<Volume> {
    let mut volumes = Vec::new();
    let mut add = |path: &str| {
        let shared = share_dev_shm && (path == "/dev/shm" || path.starts_with("/dev/shm/"));
        let known = volumes.iter().any(|volume: &Volume| volume.container == path);
        if path.starts_with('/') && !shared && !known {
            volumes.push(Volume { host: path.to_owned(), container: path.to_owned(), file: false });
        }
    };
    plan.compile_cache.path.iter().for_each(|path| add(path));
    plan.engine.env.get("HF_HOME").into_iter().for_each(|path| add(path));
    if plan.model.fingerprint.is_some() {
        add(&plan.model.id);
    }
    if share_dev_shm {
        volumes.push(Volume { host: "/dev/shm".to_owned(), container: "/dev/shm".to_owned(), file: false });
    }
    volumes
}

/// Half an hour at least (a first start downloads the weights), and a quarter of an hour beside two cold starts where one is known.
fn ready_seconds(plan: &Plan) -> u64 {
    let compile = plan.buckets.compile_seconds.unwrap_or(0);
    1800.max(900 + 2 * compile)
}

/// The value of a `[deploy]` key as text.
pub(super) fn deploy_text(plan: &Plan, section: &str, key: &str) -> Option<String> {
    match plan.deploy.get(section).and_then(|table| table.get(key)) {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Null) | None => None,
        Some(other) => Some(other.to_string()),
    }
}
