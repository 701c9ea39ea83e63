//! Launches in Google Kubernetes Engine. Kubernetes does the work: it places the pods, asks /health, restarts what ends
//! and drains what goes. Here the node pools and objects of `emit --target gke` are made, and waited for.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::Duration;

use base64::Engine as _;
use gemma4_plan::Plan;
use serde_json::{Value, json};

use super::completion::{self, Completion};
use super::secrets::Values;
use super::state::{Fingerprint, Launch};
use super::tools::{Call, GCLOUD, KUBECTL, failed, parse};
use super::{Decision, Found, LaunchError, Life, Place, Progress, Reason, Say, hash};
use crate::emit::{Service, Workload};
use crate::profile::redact;

/// The annotation that says which plan something runs.
const ANNOTATION: &str = "gemma4ctl/digest";

/// Kinds that a cluster may not know, with their manifests.
const OPTIONAL: [(&str, &str); 2] = [
    ("inferencepool.yaml", "inferencepools.inference.networking.k8s.io"),
    ("podmonitoring.yaml", "podmonitorings.monitoring.googleapis.com"),
];

/// Groups of machines.
const GROUPS: &str = "leaderworkersets.leaderworkerset.x-k8s.io";

/// Reasons for which a container never starts.
const HOPELESS: [&str; 4] =
    ["InvalidImageName", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull"];

/// A cluster of Google's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Cluster {
    project: Option<String>,
    location: String,
    name: String,
}

/// A workload, or the wish for one.
pub(super) struct Gke {
    workload: Workload,
    digest: String,
    /// Kind of the object that has the pods.
    kind: &'static str,
    context: String,
    /// `None` if neither the plan nor kubectl's context names one of Google's.
    cluster: Option<Cluster>,
    values: Values,
    /// Kinds of the cluster, once they are known.
    kinds: Vec<String>,
    /// Node pools that gemma4ctl made, and those that are still to be made.
    made: Vec<String>,
    missing: Vec<String>,
}

impl Gke {
    /// In the cluster that kubectl points at.
    pub(super) fn new(workload: Workload, plan: &Plan) -> Result<Self, LaunchError> {
        let output = KUBECTL.command(["config", "current-context"]).output()?;
        let context = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() || context.is_empty() {
            return Err(LaunchError::Unset {
                what: "the cluster",
                help: "`gcloud container clusters get-credentials NAME --location=LOCATION` points kubectl at one",
            });
        }
        Self::with(workload, plan, context)
    }

    /// Where a record says.
    pub(super) fn at(workload: Workload, plan: &Plan, ids: &BTreeMap<String, String>) -> Result<Self, LaunchError> {
        let mut gke = match ids.get("context") {
            Some(context) => Self::with(workload, plan, context.clone())?,
            None => Self::new(workload, plan)?,
        };
        gke.recall(ids)?;
        Ok(gke)
    }

    fn with(workload: Workload, plan: &Plan, context: String) -> Result<Self, LaunchError> {
        let pool = &workload.pool;
        let named = match context.strip_prefix("gke_").map(|rest| rest.splitn(3, '_').collect::<Vec<_>>()) {
            Some(parts) if parts.len() == 3 => Some(Cluster {
                project: Some(parts[0].to_owned()),
                location: parts[1].to_owned(),
                name: parts[2].to_owned(),
            }),
            _ => None,
        };
        if let (Some(cluster), Some(wanted)) = (&named, &pool.cluster)
            && cluster.name != *wanted
        {
            return Err(LaunchError::Kept {
                what: format!("kubectl points at the cluster {}, and the profile names {wanted}", cluster.name),
                help: format!("`gcloud container clusters get-credentials {wanted}`, or change `deploy.gke.cluster`"),
            });
        }
        let cluster = named.or_else(|| {
            let (name, location) = (pool.cluster.clone()?, pool.location.clone()?);
            Some(Cluster { project: workload.gke.project.clone(), location, name })
        });
        Ok(Gke {
            kind: if plan.hardware.hosts > 1 { "leaderworkerset" } else { "deployment" },
            digest: plan.digest.clone(),
            workload,
            context,
            cluster,
            values: Values::default(),
            kinds: Vec::new(),
            made: Vec::new(),
            missing: Vec::new(),
        })
    }

    fn name(&self) -> &str {
        &self.workload.gke.name
    }

    fn selector(&self) -> String {
        format!("app.kubernetes.io/instance={},app.kubernetes.io/managed-by=gemma4ctl", self.name())
    }

    fn kubectl(&self, words: &[&str]) -> Call {
        let mut call = KUBECTL.command([format!("--context={}", self.context)]);
        call.command.arg(format!("--namespace={}", self.workload.gke.namespace)).args(words);
        call
    }

    fn get(&self, words: &[&str]) -> Result<Option<Value>, LaunchError> {
        let what = format!("kubectl get {}", words.join(" "));
        let mut call = self.kubectl(&["get"]);
        call.command.args(words).args(["--ignore-not-found", "--output=json"]);
        let output = call.output()?;
        if output.status.success() {
            let empty = output.stdout.trim_ascii().is_empty();
            return if empty { Ok(None) } else { parse(&what, &output.stdout).map(Some) };
        }
        let unknown = String::from_utf8_lossy(&output.stderr).contains("doesn't have a resource type");
        if unknown { Ok(None) } else { Err(failed(&what, &output)) }
    }

    fn object(&self) -> Result<Option<Value>, LaunchError> {
        self.get(&[self.kind, self.name()])
    }

    /// Every kind that the cluster knows, as `plural.group`.
    fn all_kinds(&self) -> Result<Vec<String>, LaunchError> {
        let output = self.kubectl(&["api-resources", "--output=name"]).done("kubectl api-resources")?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(|line| line.trim().to_owned()).collect())
    }

    fn apply(&self, manifest: &str) -> Result<(), LaunchError> {
        // By the server: a client would repeat all of it, values of secrets too, in an annotation.
        let words = ["apply", "--server-side", "--force-conflicts", "--field-manager=gemma4ctl", "--filename=-"];
        self.kubectl(&words).done_with("kubectl apply", manifest).map(drop)
    }

    fn pools(&self, cluster: &Cluster, verb: &str, pool: &str) -> Call {
        let mut call = GCLOUD.command(["container", "node-pools", verb, pool]);
        call.command.arg(format!("--cluster={}", cluster.name)).arg(format!("--location={}", cluster.location));
        if let Some(project) = &cluster.project {
            call.command.arg(format!("--project={project}"));
        }
        call
    }

    /// Node pools of the plan that the cluster lacks.
    fn missing_pools(&self, cluster: &Cluster) -> Result<Vec<String>, LaunchError> {
        let pool = &self.workload.pool;
        let count = if pool.always_autoscaled { pool.autoscaled_pools } else { pool.fixed_pools };
        let mut missing = Vec::new();
        for number in 1..=count {
            let name = if number == 1 { self.name().to_owned() } else { format!("{}-{number}", self.name()) };
            let mut call = self.pools(cluster, "describe", &name);
            call.command.arg("--format=value(name)");
            let output = call.output()?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr).to_lowercase();
                if !said.contains("not found") && !said.contains("not_found") && !said.contains("code=404") {
                    return Err(failed("gcloud container node-pools describe", &output));
                }
                missing.push(name);
            }
        }
        Ok(missing)
    }

    /// Flags that every pool of the plan is made with.
    fn pool_flags(&self) -> Result<Vec<String>, LaunchError> {
        let pool = &self.workload.pool;
        let zone = pool.zone.as_ref().ok_or(LaunchError::Unset {
            what: "the zone of the machines",
            help: "add `deploy.gcloud.zone`, such as \"us-east5-b\"",
        })?;
        let machine_type = pool
            .machine_type
            .as_ref()
            .ok_or(LaunchError::Unset { what: "the machine type", help: "add `hardware.machine_type`" })?;
        let mut flags = vec![format!("--machine-type={machine_type}"), format!("--node-locations={zone}")];
        flags.extend(pool.accelerator.iter().map(|accelerator| format!("--accelerator={accelerator}")));
        flags.extend(pool.arguments.iter().cloned());
        if pool.provisioning == "reserved" {
            let reservation = pool
                .reservation
                .as_ref()
                .ok_or(LaunchError::Unset { what: "the reservation", help: "add `deploy.gcloud.reservation`" })?;
            flags.extend(["--reservation-affinity=specific".to_owned(), format!("--reservation={reservation}")]);
        }
        if pool.policy {
            flags.push(format!("--placement-policy={}", self.policy_name()));
        }
        flags.extend(if pool.always_autoscaled { &pool.autoscaled } else { &pool.fixed }.iter().cloned());
        Ok(flags)
    }

    fn topology(&self) -> &str {
        self.workload.gke.node_selector.get("cloud.google.com/gke-tpu-topology").map_or("", String::as_str)
    }

    fn policy_name(&self) -> String {
        format!("{}-{}", self.name(), self.topology())
    }

    /// A slice of several of these machines needs a workload policy instead of a topology.
    fn make_policy(&self, cluster: &Cluster) -> Result<(), LaunchError> {
        let zone = self.workload.pool.zone.as_deref().unwrap_or_default();
        let region = zone.rsplit_once('-').map_or(zone, |(region, _)| region);
        let policy = |words: &[&str]| {
            let mut call = GCLOUD.command(["compute", "resource-policies"]);
            call.command.args(words).arg(self.policy_name()).arg(format!("--region={region}"));
            call.command.args(cluster.project.iter().map(|project| format!("--project={project}")));
            call
        };
        if policy(&["describe"]).output()?.status.success() {
            return Ok(());
        }
        let mut call = policy(&["create", "workload-policy"]);
        call.command.args(["--type=HIGH_THROUGHPUT", &format!("--accelerator-topology={}", self.topology())]);
        call.done("gcloud compute resource-policies create workload-policy").map(drop)
    }

    fn make_pools(&mut self, say: Say<'_>) -> Result<(), LaunchError> {
        let Some(cluster) = self.cluster.clone() else { return Ok(()) };
        for pool in std::mem::take(&mut self.missing) {
            if self.workload.pool.policy {
                self.make_policy(&cluster)?;
            }
            say(&format!("making the node pool {pool} in {}; this takes minutes", cluster.name));
            let mut call = self.pools(&cluster, "create", &pool);
            call.command.args(self.pool_flags()?).arg("--quiet");
            call.done("gcloud container node-pools create")?;
            self.made.push(pool);
        }
        Ok(())
    }

    /// The secrets as Kubernetes keeps them. Only ever written to a pipe.
    fn secrets(&self) -> Vec<String> {
        let gke = &self.workload.gke;
        let object = |secret: &crate::emit::Secret| {
            let value = base64::engine::general_purpose::STANDARD.encode(self.values.get(&secret.variable)?);
            let object = json!({
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": { "name": secret.object, "namespace": gke.namespace, "labels": gke.labels },
                "data": { secret.variable.as_str(): value },
            });
            Some(object.to_string())
        };
        gke.secrets.iter().filter_map(object).collect()
    }

    fn known(&self, kind: &str) -> bool {
        self.kinds.iter().any(|known| known == kind)
    }

    /// What the pods say. An error if one will never serve.
    fn pods(&self, say: Say<'_>) -> Result<Option<String>, LaunchError> {
        let selector = format!("--selector=app.kubernetes.io/instance={}", self.name());
        let pods = self.get(&["pods", &selector])?.unwrap_or_default();
        let mut text = None;
        for pod in pods["items"].as_array().into_iter().flatten() {
            // Those of another plan are on their way out.
            if pod["metadata"]["annotations"][ANNOTATION].as_str().is_none_or(|digest| digest != self.digest) {
                continue;
            }
            let name = pod["metadata"]["name"].as_str().unwrap_or("?");
            for status in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                let Some(reason) = status["state"]["waiting"]["reason"].as_str() else { continue };
                let message = status["state"]["waiting"]["message"].as_str().unwrap_or_default();
                if reason == "CrashLoopBackOff" {
                    let words = ["logs", name, "--container=engine", "--previous", "--tail=40"];
                    if let Ok(output) = self.kubectl(&words).output() {
                        let lines = self.values.mask(&String::from_utf8_lossy(&output.stdout));
                        lines.lines().for_each(|line| say(&format!("  {line}")));
                    }
                    let code = &status["lastState"]["terminated"]["exitCode"];
                    let how = format!("exit code {code}; Kubernetes goes on starting it");
                    return Err(LaunchError::Stopped { what: format!("the pod {name}"), how });
                }
                if HOPELESS.contains(&reason) {
                    let message = format!("{reason}: {}", redact(message));
                    return Err(LaunchError::Tool { command: format!("start of the pod {name}"), message });
                }
                text = Some(format!("{name}: {reason} {}", redact(message)).trim().to_owned());
            }
            for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
                if condition["type"] == "PodScheduled" && condition["status"] == "False" {
                    let message = condition["message"].as_str().unwrap_or("no machine has room");
                    text = Some(format!("{name} waits for a machine: {message}"));
                }
            }
        }
        Ok(text)
    }

    fn complete(&self) -> Result<Completion, LaunchError> {
        let target = if self.kind == "deployment" {
            format!("deployment/{}", self.name())
        } else {
            // The leader of the first group.
            format!("pod/{}-0", self.name())
        };
        let program = completion::program(&self.workload.service);
        let words = ["exec", &target, "--container=engine", "--", "python3", "-c", &program];
        let output = self.kubectl(&words).output()?;
        Ok(completion::read(&String::from_utf8_lossy(&output.stdout), &String::from_utf8_lossy(&output.stderr)))
    }
}

/// Copies that serve the newest form of an object, and copies that are wanted. `None` if its controller has not yet
/// looked at the newest form.
fn copies(object: &Value) -> Option<(u64, u64)> {
    let (status, number) = (&object["status"], |value: &Value| value.as_u64().unwrap_or(0));
    let seen =
        status.get("observedGeneration").is_none_or(|seen| seen.as_u64() >= object["metadata"]["generation"].as_u64());
    let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
    seen.then(|| (number(&status["readyReplicas"]).min(number(&status["updatedReplicas"])), wanted))
}

impl Place for Gke {
    fn service(&self) -> &Service {
        &self.workload.service
    }

    fn recall(&mut self, ids: &BTreeMap<String, String>) -> Result<(), LaunchError> {
        if let Some(before) = ids.get("context").filter(|before| **before != self.context) {
            return Err(LaunchError::Kept {
                what: format!("this launch is in {before}, and kubectl points at {}", self.context),
                help: format!("`kubectl config use-context {before}`, or `gemma4ctl destroy` it there first"),
            });
        }
        let made = ids.get("node-pools").into_iter().flat_map(|names| names.split(','));
        self.made.extend(made.filter(|name| !name.is_empty()).map(str::to_owned));
        Ok(())
    }

    fn subject(&self) -> String {
        format!("the {} {} (namespace {}, {})", self.kind, self.name(), self.workload.gke.namespace, self.context)
    }

    fn fingerprint(&self) -> Fingerprint {
        let pool = json!(self.workload.pool).to_string();
        let manifests = self.workload.manifests.iter().map(|manifest| manifest.text.as_str());
        Fingerprint { machine: hash([pool.as_str()]), service: hash(manifests) }
    }

    fn look(&self) -> Result<Option<Found>, LaunchError> {
        let Some(object) = self.object()? else { return Ok(None) };
        let metadata = &object["metadata"];
        let ours = metadata["labels"]["app.kubernetes.io/managed-by"] == "gemma4ctl";
        let (ready, wanted) = copies(&object).unwrap_or((0, object["spec"]["replicas"].as_u64().unwrap_or(1)));
        Ok(Some(Found {
            id: metadata["uid"].as_str().unwrap_or_default().to_owned(),
            life: if ready >= wanted { Life::Up } else { Life::Coming },
            state: format!("{ready} of {wanted} ready"),
            digest: metadata["annotations"][ANNOTATION].as_str().filter(|_| ours).map(str::to_owned),
        }))
    }

    /// Kubernetes asks /health itself.
    fn answers(&self, found: &Found) -> bool {
        found.life == Life::Up
    }

    fn foreign(&self) -> LaunchError {
        LaunchError::Foreign {
            what: "an object of the kind",
            name: format!("{} named {}", self.kind, self.name()),
            help: "choose another `deploy.gke.namespace` or `deploy.docker.name`".to_owned(),
        }
    }

    fn change(&self, reason: Reason, _: &Found, _: Option<&Launch>) -> Result<Decision, LaunchError> {
        Ok(Decision::Update(reason))
    }

    fn prepare(&mut self, decision: Decision, _: Option<&Found>) -> Result<(), LaunchError> {
        if decision == Decision::Await {
            return Ok(());
        }
        self.kinds = self.all_kinds()?;
        if self.kind == "leaderworkerset" && !self.known(GROUPS) {
            return Err(LaunchError::Unset {
                what: "the kind LeaderWorkerSet",
                help: "install its controller: https://lws.sigs.k8s.io/docs/installation/",
            });
        }
        self.values = Values::fetch(self.workload.service.secrets.iter())?;
        if let Some(cluster) = &self.cluster {
            self.missing = self.missing_pools(cluster)?;
            if !self.missing.is_empty() {
                self.pool_flags()?;
            }
        }
        Ok(())
    }

    fn act(&mut self, _: Decision, _: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        if self.cluster.is_none() {
            say(&format!("{} is no cluster of Google's by its name: its node pools are left to you", self.context));
        }
        self.make_pools(say)?;
        let mut documents = Vec::new();
        for manifest in self.workload.manifests.iter().filter(|manifest| manifest.name != "kustomization.yaml") {
            match OPTIONAL.iter().find(|(name, _)| manifest.name == *name) {
                Some((name, kind)) if !self.known(kind) => {
                    say(&format!("leaving out {name}: the cluster does not know the kind {kind}"));
                }
                _ => documents.push(manifest.text.clone()),
            }
        }
        // The namespace, if it is ours, comes first of all.
        let namespace =
            usize::from(self.workload.manifests.first().is_some_and(|first| first.name == "namespace.yaml"));
        documents.splice(namespace..namespace, self.secrets());
        say(&format!("applying the manifests to {}", self.context));
        self.apply(&documents.join("\n---\n"))
    }

    fn ids(&self) -> BTreeMap<String, String> {
        let mut ids = BTreeMap::from([
            ("context".to_owned(), self.context.clone()),
            ("namespace".to_owned(), self.workload.gke.namespace.clone()),
            (self.kind.to_owned(), self.name().to_owned()),
        ]);
        let pools: Vec<&str> = self.made.iter().chain(&self.missing).map(String::as_str).collect();
        if !pools.is_empty() {
            ids.insert("node-pools".to_owned(), pools.join(","));
        }
        ids
    }

    fn progress(&mut self, _: Duration, say: Say<'_>) -> Result<Progress, LaunchError> {
        let service = &self.workload.service;
        // A pod needs a machine first, which a node pool may have to be given.
        let waiting = |text| Progress::Waiting { phase: "the pods", limit: service.ready_seconds + 900, text };
        let Some(object) = self.object()? else { return Err(LaunchError::Gone(self.subject())) };
        let Some((ready, wanted)) = copies(&object) else { return Ok(waiting("Kubernetes takes notice".to_owned())) };
        if ready < wanted {
            let detail = self.pods(say)?.unwrap_or_else(|| "loading weights and compiling".to_owned());
            return Ok(waiting(format!("{ready} of {wanted} ready; {detail}")));
        }
        match self.complete()? {
            Completion::Done => Ok(Progress::Ready),
            Completion::NotYet(text) => Ok(waiting(text)),
            Completion::Refused(status, message) => {
                let message = self.values.mask(&message);
                Err(LaunchError::Refused { name: self.name().to_owned(), status, message })
            }
        }
    }

    fn pause(&self, _: Duration) -> Duration {
        super::cloud_pause()
    }

    fn reach(&self) -> Option<String> {
        let (namespace, name, port) = (&self.workload.gke.namespace, self.name(), self.workload.service.port);
        Some(format!(
            "kubectl --context={} --namespace={namespace} port-forward service/{name} {port}:{port}",
            self.context
        ))
    }

    fn logs(&self, follow: bool) -> Result<ExitStatus, LaunchError> {
        let selector =
            format!("--selector=app.kubernetes.io/instance={},app.kubernetes.io/component=server", self.name());
        let mut call = self.kubectl(&["logs", &selector, "--container=engine", "--prefix", "--tail=200"]);
        if follow {
            call.command.args(["--follow", "--max-log-requests=20"]);
        }
        call.pass_through()
    }

    fn deletions(&self, found: Option<&Found>) -> Result<Vec<String>, LaunchError> {
        let mut lines = Vec::new();
        match found {
            Some(found) if found.digest.is_some() => {
                lines.push(format!("delete {}, its service and its other objects", self.subject()));
            }
            Some(_) => lines.push(format!("keep {}: gemma4ctl did not make it", self.subject())),
            None => {}
        }
        for secret in &self.workload.gke.secrets {
            lines.push(format!("delete the secret {} of the cluster", secret.object));
        }
        if let Some(cluster) = &self.cluster {
            lines.extend(self.made.iter().map(|pool| format!("delete the node pool {pool} of {}", cluster.name)));
        }
        if !self.workload.gke.mounts.is_empty() {
            lines.push(format!("keep the claim {} with weights and compiled programs", self.workload.gke.claim));
        }
        Ok(lines)
    }

    fn delete(&self, found: Option<&Found>, say: Say<'_>) -> Result<(), LaunchError> {
        if found.is_none_or(|found| found.digest.is_some()) {
            say("deleting the objects; running requests get their time");
            let kinds = self.all_kinds()?;
            let mut names = vec!["deployments.apps", "services", "horizontalpodautoscalers.autoscaling"];
            names.extend(["poddisruptionbudgets.policy", "networkpolicies.networking.k8s.io", GROUPS]);
            names.extend(OPTIONAL.map(|(_, kind)| kind));
            names.retain(|name| kinds.iter().any(|kind| kind == name));
            let selector = format!("--selector={}", self.selector());
            let words = ["delete", &names.join(","), &selector, "--ignore-not-found"];
            self.kubectl(&words).done("kubectl delete")?;
            let secrets: Vec<&str> = self.workload.gke.secrets.iter().map(|secret| secret.object.as_str()).collect();
            if !secrets.is_empty() {
                let words = [&["delete", "secret"], &secrets[..], &["--ignore-not-found"]].concat();
                self.kubectl(&words).done("kubectl delete secret")?;
            }
        }
        let Some(cluster) = &self.cluster else { return Ok(()) };
        for pool in &self.made {
            say(&format!("deleting the node pool {pool}; this takes minutes"));
            let mut call = self.pools(cluster, "delete", pool);
            call.command.arg("--quiet");
            let output = call.output()?;
            let gone = String::from_utf8_lossy(&output.stderr).to_lowercase().contains("not found");
            if !output.status.success() && !gone {
                return Err(failed("gcloud container node-pools delete", &output));
            }
        }
        Ok(())
    }
}
