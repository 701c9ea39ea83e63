//! What the templates of this target say, and `apply` too.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::emit::{Artifact, Service};

/// What all templates of this target share.
#[derive(Debug, Clone, Serialize)]
pub struct Gke {
    /// Comment at the top of each file.
    pub header: Vec<String>,
    /// Name of every object.
    pub name: String,
    /// Namespace of every object.
    pub namespace: String,
    /// Project of the cluster, if the plan says it.
    pub project: Option<String>,
    /// Labels of every object.
    pub labels: BTreeMap<&'static str, String>,
    /// Labels of every pod.
    pub identity: BTreeMap<&'static str, String>,
    /// Labels of the pods that answer requests.
    pub serving: BTreeMap<&'static str, String>,
    /// Copies.
    pub replicas: u64,
    /// Copies at most.
    pub max_replicas: u64,
    /// What a pod asks for.
    pub resource: &'static str,
    /// All chips of a machine, as Kubernetes quantities are written.
    pub chips: String,
    /// Labels of the machines.
    pub node_selector: BTreeMap<&'static str, String>,
    /// What the engine gets as environment variables.
    pub secrets: Vec<Secret>,
    /// Whether a secret lies in Secret Manager.
    pub needs_gcloud: bool,
    /// Whether /dev/shm is a volume in memory.
    pub shm: bool,
    /// Its size in bytes.
    pub shm_size: Option<String>,
    /// Folders on the claim.
    pub mounts: Vec<Mount>,
    /// Whether a mount needs the pod's name.
    pub pod_name: bool,
    /// Name of the claim for the caches.
    pub claim: String,
    /// Whether several machines write to the claim.
    pub shared: bool,
    /// How large it is.
    pub storage: String,
    /// Class of its disks.
    pub storage_class: &'static str,
    /// Whether the class has to be made.
    pub new_class: bool,
    /// The checkpoint, if it is a folder.
    pub local_model: Option<String>,
    /// Seconds between two startup probes.
    pub startup_period: u64,
    /// Startup probes that may fail.
    pub startup_failures: u64,
    /// Seconds between the signal to end and the kill.
    pub grace_seconds: u64,
    /// Seconds before the number of copies is raised again.
    pub scale_up_seconds: u64,
}

/// A secret in Kubernetes.
#[derive(Debug, Clone, Serialize)]
pub struct Secret {
    /// Name in the profile.
    pub name: String,
    /// Name of the Kubernetes object.
    pub object: String,
    /// Key in it, and the variable that the engine reads.
    pub variable: String,
    /// Where the value is: `gcp_secret`, `env` or `file`.
    pub kind: &'static str,
    /// What names it there.
    pub reference: String,
    /// The path below the home folder, of a file that is named with `~/`.
    pub in_home: Option<String>,
}

/// A folder of the claim in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// Where the container sees it.
    pub path: String,
    /// Where it lies on the claim.
    pub folder: &'static str,
    /// Whether each pod has a folder of its own.
    pub own: bool,
}

/// What a plan is in a cluster.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Names, labels and secrets.
    pub gke: Gke,
    /// The machines.
    pub pool: NodePool,
    /// What runs in a pod.
    pub service: Service,
    /// The manifests, and the list of them last.
    pub manifests: Vec<Artifact>,
    /// The scripts.
    pub(super) scripts: Vec<Artifact>,
}

/// A kind of pod.
#[derive(Debug, Serialize)]
pub(super) struct Pod {
    pub(super) labels: BTreeMap<&'static str, String>,
    pub(super) entrypoint: String,
    pub(super) arguments: Vec<String>,
    pub(super) env: BTreeMap<String, String>,
    /// Whether it answers requests.
    pub(super) serves: bool,
}

/// The machines.
#[derive(Debug, Clone, Serialize)]
pub struct NodePool {
    /// Name of the cluster, if the plan says it.
    pub cluster: Option<String>,
    /// Its region or zone.
    pub location: Option<String>,
    /// Zone of the machines.
    pub zone: Option<String>,
    /// Type of the machines.
    pub machine_type: Option<String>,
    /// Type and number of the GPUs of a machine.
    pub accelerator: Option<String>,
    /// How capacity is bought.
    pub provisioning: String,
    /// The reservation, for reserved capacity.
    pub reservation: Option<String>,
    /// Whether a workload policy takes the place of the topology.
    pub policy: bool,
    /// Arguments of every creation.
    pub arguments: Vec<String>,
    /// Arguments with a fixed number of machines, and the pools that are made.
    pub fixed: Vec<String>,
    /// Pools that are made then.
    pub fixed_pools: u64,
    /// Arguments with a number that GKE chooses, and the pools that are made.
    pub autoscaled: Vec<String>,
    /// Pools that are made then.
    pub autoscaled_pools: u64,
    /// Whether GKE chooses the number in any case.
    pub always_autoscaled: bool,
}
