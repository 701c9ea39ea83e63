//! The bundled engine's tensor parallelism: which part of each tensor a device holds.
//!
//! Invariant: every device runs the same program on local shapes, and [`place`] alone decides those shapes. The layout is
//! Megatron's: projections into heads and into the MLP are split by output (column-parallel), those back to the stream by
//! input (row-parallel), so that a layer needs one all-reduce after attention and one after the MLP.
//!
//! Image and audio encoders, the small projections of the per-layer embeddings, norms, scalars and the router are held
//! whole by every device. The encoders are at most 1.1 GiB in bfloat16, and 12 vision heads (E2B, E4B) do not divide by 8.
//!
//! The `data` axis holds copies: no tensor is split over it.

use std::ops::Range;

use crate::config::Layer;
use crate::tensors::{Component, Role, Tensor, tensors};
use crate::{Config, DType};

/// Devices in two axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mesh {
    /// Copies of the model.
    pub data: u64,
    /// Devices that one copy is split over (the tensor-parallel size).
    pub model: u64,
}

impl Mesh {
    /// Number of devices.
    #[must_use]
    pub const fn devices(&self) -> u64 {
        self.data.saturating_mul(self.model)
    }
}

/// An axis of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Axis {
    /// Copies of the model.
    Data,
    /// Parts of one copy.
    Model,
}

/// How experts are split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpertSharding {
    /// Each device has a slice of every expert's width.
    #[default]
    Tensor,
    /// Each device has whole experts.
    Expert,
}

/// What a device holds of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// For each dimension the axis it is split over; `None` = whole. As long as the tensor's shape.
    pub spec: Vec<Option<Axis>>,
    /// Shape on each device.
    pub local_shape: Vec<u64>,
    /// Neighbouring devices of the model axis that hold the same part. Above 1 only for keys and values with fewer heads
    /// than devices; the split dimension is then `replication` times as long in total as the stored one.
    pub replication: u64,
    /// Equal blocks, one after another along the split dimension, that are each split on their own: 2 for the experts'
    /// gate and up rows (so a device's rows are its gate rows, then its up rows), else 1.
    pub blocks: u64,
}

impl Placement {
    /// Whether key/value heads are held by more than one device of the model axis.
    #[must_use]
    pub const fn replicated_kv(&self) -> bool {
        self.replication > 1
    }

    /// The dimension that is split, if one is.
    #[must_use]
    pub fn split_dimension(&self) -> Option<usize> {
        self.spec.iter().position(Option::is_some)
    }

    /// Elements on each device.
    #[must_use]
    pub fn local_elements(&self) -> u64 {
        self.local_shape.iter().fold(1, |product, &size| product.saturating_mul(size))
    }

    /// Which rows of the stored tensor, along [`Self::split_dimension`], the device at `rank` of the model axis holds, in
    /// the order it holds them. Empty if the tensor is not split: the device then holds all of it.
    #[must_use]
    pub fn source_ranges(&self, tensor: &Tensor, rank: u64) -> Vec<Range<u64>> {
        let Some(dimension) = self.split_dimension() else { return Vec::new() };
        let size = |shape: &[u64]| shape.get(dimension).copied().unwrap_or(0);
        let block = size(&tensor.shape).checked_div(self.blocks).unwrap_or(0);
        let part = size(&self.local_shape).checked_div(self.blocks).unwrap_or(0);
        let offset = rank.checked_div(self.replication).unwrap_or(0).saturating_mul(part);
        let ranges = (0..self.blocks).map(|index| {
            let start = index.saturating_mul(block).saturating_add(offset);
            start..start.saturating_add(part)
        });
        ranges.collect()
    }
}

/// A tensor that a mesh cannot split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardingError {
    /// An axis of the mesh has no devices.
    #[error("the mesh has {data} x {model} devices; each axis needs at least 1")]
    EmptyMesh {
        /// Size of the data axis.
        data: u64,
        /// Size of the model axis.
        model: u64,
    },
    /// A size is not a multiple of the number of devices.
    #[error("{tensor}: {size} {what} cannot be split over {divisor} devices")]
    NotDivisible {
        /// Name of the tensor.
        tensor: String,
        /// What is split, for example `query heads`.
        what: &'static str,
        /// How many there are.
        size: u64,
        /// Size of the model axis.
        divisor: u64,
    },
    /// Key/value heads neither divide by the devices nor the devices by them.
    #[error("{tensor}: {heads} key/value heads on {devices} devices; one has to be a multiple of the other")]
    KvHeads {
        /// Name of the tensor.
        tensor: String,
        /// Key/value heads of the layer.
        heads: u64,
        /// Size of the model axis.
        devices: u64,
    },
    /// The tensor does not belong to the configuration: no such layer, or too few dimensions.
    #[error("{tensor} does not belong to this configuration")]
    Foreign {
        /// Name of the tensor.
        tensor: String,
    },
}

/// Decides what each device holds of a tensor.
///
/// # Errors
/// [`ShardingError`] if the mesh cannot split it; names the tensor and the divisor.
pub fn place(
    config: &Config,
    tensor: &Tensor,
    mesh: &Mesh,
    experts: ExpertSharding,
) -> Result<Placement, ShardingError> {
    if mesh.data == 0 || mesh.model == 0 {
        return Err(ShardingError::EmptyMesh { data: mesh.data, model: mesh.model });
    }
    let split = Split { tensor, devices: mesh.model };
    match tensor.role {
        Role::Embedding | Role::Head => split.even(0, "vocabulary rows"),
        Role::PerLayerTable => split.even(0, "rows of the per-layer table"),
        Role::QProj => split.by(0, config.text.query_heads, "query heads"),
        Role::OProj => split.by(1, config.text.query_heads, "query heads"),
        Role::KProj | Role::VProj => {
            let layer = tensor.layer.and_then(|layer| config.text.layers.get(layer));
            split.key_value(layer.ok_or_else(|| split.foreign())?)
        }
        Role::GateProj | Role::UpProj => split.even(0, "MLP columns"),
        Role::DownProj => split.even(1, "MLP columns"),
        Role::ExpertsGateUp | Role::ExpertsDown if experts == ExpertSharding::Expert => split.even(0, "experts"),
        Role::ExpertsGateUp => split.gate_up(1),
        Role::ExpertsDown => split.even(2, "columns of an expert"),
        _ => Ok(split.whole()),
    }
}

/// All reasons why a mesh cannot run a model, each once, with the first tensor it concerns.
#[must_use]
pub fn check_mesh(config: &Config, mesh: &Mesh, experts: ExpertSharding) -> Vec<ShardingError> {
    let mut found: Vec<ShardingError> = Vec::new();
    for tensor in tensors(config).iter().filter(|tensor| tensor.used) {
        if let Err(error) = place(config, tensor, mesh, experts)
            && !found.iter().any(|known| same_reason(known, &error))
        {
            found.push(error);
        }
    }
    found
}

fn same_reason(one: &ShardingError, other: &ShardingError) -> bool {
    use ShardingError::{EmptyMesh, KvHeads, NotDivisible};
    match (one, other) {
        (NotDivisible { what, size, .. }, NotDivisible { what: other, size: same, .. }) => {
            (what, size) == (other, same)
        }
        (KvHeads { heads, .. }, KvHeads { heads: other, .. }) => heads == other,
        (EmptyMesh { .. }, EmptyMesh { .. }) => true,
        _ => false,
    }
}

/// The bytes that one device holds, by component, of the tensors the model reads.
///
/// `dtype` is the type of all tensors (quantized checkpoints need their own rules).
///
/// # Errors
/// The first [`ShardingError`] met.
pub fn bytes_per_device(
    config: &Config,
    mesh: &Mesh,
    experts: ExpertSharding,
    dtype: DType,
) -> Result<Vec<(Component, u64)>, ShardingError> {
    let mut sums = Component::ALL.map(|component| (component, 0_u64));
    for tensor in tensors(config).iter().filter(|tensor| tensor.used) {
        let placement = place(config, tensor, mesh, experts)?;
        let bytes = dtype.bytes(placement.local_elements()).unwrap_or(u64::MAX);
        if let Some((_, sum)) = sums.iter_mut().find(|(component, _)| *component == tensor.component) {
            *sum = sum.saturating_add(bytes);
        }
    }
    Ok(sums.into_iter().filter(|&(_, bytes)| bytes > 0).collect())
}

/// One tensor and the number of devices it is split over.
#[derive(Clone, Copy)]
struct Split<'a> {
    tensor: &'a Tensor,
    devices: u64,
}

impl Split<'_> {
    fn whole(self) -> Placement {
        Placement {
            spec: vec![None; self.tensor.shape.len()],
            local_shape: self.tensor.shape.clone(),
            replication: 1,
            blocks: 1,
        }
    }

    /// Splits a dimension of which every row may go to any device.
    fn even(self, dimension: usize, what: &'static str) -> Result<Placement, ShardingError> {
        let size = self.size(dimension)?;
        self.by(dimension, size, what)
    }

    /// Splits a dimension made of `units` equal units, which must stay whole.
    fn by(self, dimension: usize, units: u64, what: &'static str) -> Result<Placement, ShardingError> {
        if !units.is_multiple_of(self.devices) {
            return Err(self.not_divisible(units, what));
        }
        let size = self.size(dimension)?;
        Ok(self.local(dimension, size / self.devices, 1, 1))
    }

    /// Splits the gate rows and the up rows, each on their own, so that a device has both for its part of the width.
    fn gate_up(self, dimension: usize) -> Result<Placement, ShardingError> {
        let size = self.size(dimension)?;
        let width = size / 2;
        if !width.is_multiple_of(self.devices) || !size.is_multiple_of(2) {
            return Err(self.not_divisible(width, "columns of an expert"));
        }
        Ok(self.local(dimension, size / self.devices, 1, 2))
    }

    /// Splits by key/value head; with fewer heads than devices, each device has the one head that its query heads use.
    fn key_value(self, layer: &Layer) -> Result<Placement, ShardingError> {
        let (heads, devices) = (layer.kv_heads, self.devices);
        let replication = kv_replication(heads, devices).ok_or_else(|| {
            let tensor = self.tensor.name.clone();
            ShardingError::KvHeads { tensor, heads, devices }
        })?;
        let local_heads = heads.saturating_mul(replication) / devices;
        Ok(self.local(0, local_heads.saturating_mul(layer.head_dim), replication, 1))
    }

    fn local(self, dimension: usize, size: u64, replication: u64, blocks: u64) -> Placement {
        let mut placement = self.whole();
        if let Some(axis) = placement.spec.get_mut(dimension) {
            *axis = Some(Axis::Model);
        }
        if let Some(local) = placement.local_shape.get_mut(dimension) {
            *local = size;
        }
        Placement { replication, blocks, ..placement }
    }

    fn size(self, dimension: usize) -> Result<u64, ShardingError> {
        self.tensor.shape.get(dimension).copied().ok_or_else(|| self.foreign())
    }

    fn foreign(self) -> ShardingError {
        ShardingError::Foreign { tensor: self.tensor.name.clone() }
    }

    fn not_divisible(self, size: u64, what: &'static str) -> ShardingError {
        let (tensor, divisor) = (self.tensor.name.clone(), self.devices);
        ShardingError::NotDivisible { tensor, what, size, divisor }
    }
}

/// How many devices hold each key/value head: 1 if the heads can be dealt out, more if there are fewer heads than devices,
/// `None` if neither number is a multiple of the other.
#[must_use]
pub const fn kv_replication(kv_heads: u64, devices: u64) -> Option<u64> {
    if kv_heads == 0 || devices == 0 {
        None
    } else if kv_heads.is_multiple_of(devices) {
        Some(1)
    } else if devices.is_multiple_of(kv_heads) {
        Some(devices / kv_heads)
    } else {
        None
    }
}
