//! Accelerators: families of chips and the slices in which they can be had.

use std::sync::Arc;

use serde::Deserialize;

use super::{Cache, CatalogError, Version, parse, user_entries};
use crate::profile::{EngineKind, Plane};

/// What kind of chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AcceleratorKind {
    /// Cloud TPU.
    Tpu,
    /// NVIDIA GPU.
    Gpu,
    /// Virtual devices on a CPU.
    Cpu,
}

/// A family of chips.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accelerator {
    /// Name, the part of `v6e-4` before the count.
    pub family: String,
    /// What kind of chip.
    pub kind: AcceleratorKind,
    /// Name for people.
    pub title: String,
    /// Devices of a chip, as engines count them.
    pub devices_per_chip: u32,
    /// Nominal memory of a chip, GiB.
    pub nominal_hbm_gib: f64,
    /// Memory bandwidth of a chip, 10^9 bytes a second.
    pub hbm_gigabytes_per_second: Option<f64>,
    /// Peak of dense bfloat16 arithmetic of a chip, 10^12 operations a second.
    pub peak_bf16_tflops: Option<f64>,
    /// Whether the matrix units compute in 8-bit floating point.
    pub fp8_matrix_units: bool,
    /// Name of the family in the TPU compiler's topologies.
    pub compiler_topology: Option<String>,
    /// Value of GKE's accelerator label.
    pub gke_accelerator: Option<String>,
    /// Accelerator type of the TPU API, with `{chips}` or `{cores}`.
    pub tpu_api_type: Option<String>,
    /// Runtime version of the TPU API.
    pub runtime_version: Option<String>,
    /// The APIs that can create it.
    pub planes: Vec<Plane>,
    /// Whether flex-start is offered.
    pub flex_start: bool,
    /// Where the figures come from.
    pub source: String,
    /// Usable bytes of a device, by engine version.
    usable: Vec<Usable>,
    /// List prices.
    pub price: Option<Prices>,
    /// The sizes that can be had; any number of devices for a CPU.
    #[serde(default, rename = "slice")]
    pub slices: Vec<Slice>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Usable {
    bytes: u64,
    since: Option<Version>,
    until: Option<Version>,
    source: String,
}

/// List prices of a chip-hour.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// Listed price.
    pub on_demand: f64,
    /// Up to seven days, when capacity comes free.
    pub flex_start: f64,
    /// Can be taken back at any moment.
    pub spot: f64,
    /// What the numbers count.
    pub unit: String,
    /// Where and when they were read.
    pub source: String,
}

/// A size in which a family can be had.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Chips.
    pub chips: u32,
    /// Their arrangement.
    pub topology: String,
    /// Machine type in the cloud.
    pub machine_type: Option<String>,
    /// Machines.
    pub hosts: u32,
    /// RAM of one machine, GiB.
    pub host_ram_gib: Option<u64>,
}

impl Accelerator {
    /// Usable bytes of one device under `engine` of `version`, and the source of the figure.
    pub fn usable(&self, engine: EngineKind, version: Version) -> Option<(u64, &str)> {
        // The version ranges are those of vLLM on TPU; other engines meet today's driver.
        let newest = self.usable.last();
        let found = match engine {
            EngineKind::VllmTpu => self.usable.iter().find(|usable| {
                usable.since.is_none_or(|since| since <= version) && usable.until.is_none_or(|until| version < until)
            }),
            _ => newest,
        };
        found.or(newest).map(|usable| (usable.bytes, usable.source.as_str()))
    }

    /// The slice with this many chips.
    pub fn slice(&self, chips: u32) -> Option<&Slice> {
        self.slices.iter().find(|slice| slice.chips == chips)
    }
}

macro_rules! files {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("data/accelerators/", $name, ".toml")))),*] };
}

const FILES: [(&str, &str); 12] =
    files!["cpu", "v5e", "v5p", "v6e", "tpu7x", "l4", "h100", "h200", "b200", "rtx-4090", "rtx-5090", "rtx-pro-6000"];

/// The family of this name, if there is one.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn accelerator(family: &str) -> Result<Option<Arc<Accelerator>>, CatalogError> {
    static READ: Cache<Accelerator> = Cache::new();
    READ.get(family, || {
        let own = user_entries::<Accelerator>("accelerators")?.into_iter().find(|entry| entry.family == family);
        if own.is_some() {
            return Ok(own);
        }
        FILES
            .iter()
            .find(|(name, _)| *name == family)
            .map(|(name, text)| parse(&format!("builtin:{name}"), text))
            .transpose()
    })
}

/// Every accelerator that can be named, such as `v6e-4`.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn accelerator_names() -> Result<Vec<String>, CatalogError> {
    let mut all = user_entries::<Accelerator>("accelerators")?;
    for (name, text) in FILES {
        all.push(parse(&format!("builtin:{name}"), text)?);
    }
    let mut names = Vec::new();
    for accelerator in all {
        if accelerator.slices.is_empty() {
            names.push(accelerator.family.clone());
        }
        names.extend(accelerator.slices.iter().map(|slice| format!("{}-{}", accelerator.family, slice.chips)));
    }
    Ok(names)
}
