//! What a device holds of a tensor, and of all of them.

use gemma4_model::tensors::Tensor;
use gemma4_plan::{MemoryTerm, TensorPlacement};

use crate::resolve::Resolved;

/// A tensor on a device.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The dimension that is split over the model axis, if any.
    pub split: Option<usize>,
    /// Shape on one device.
    pub local_shape: Vec<u64>,
    /// Copies that a device holds; 2 where an engine stores K = V twice.
    pub copies: u64,
    /// Bytes on one device, where they are not those of as many elements in the type of the weights.
    pub bytes: Option<u64>,
    /// Why the shape is not simply divided.
    pub note: Option<String>,
}

impl Placed {
    /// The whole tensor on every device.
    pub fn whole(tensor: &Tensor) -> Self {
        Placed { split: None, local_shape: tensor.shape.clone(), copies: 1, bytes: None, note: None }
    }

    /// Dimension `dimension` divided by `parts`, rounded up: engines pad what does not divide.
    pub fn split(tensor: &Tensor, dimension: usize, parts: u64) -> Self {
        if parts <= 1 {
            return Placed { split: Some(dimension), ..Placed::whole(tensor) };
        }
        let mut local_shape = tensor.shape.clone();
        if let Some(size) = local_shape.get_mut(dimension) {
            *size = size.div_ceil(parts);
        }
        Placed { split: Some(dimension), local_shape, copies: 1, bytes: None, note: None }
    }

    /// The same with another size of the split dimension.
    pub fn sized(tensor: &Tensor, dimension: usize, size: u64, note: impl Into<String>) -> Self {
        let mut local_shape = tensor.shape.clone();
        if let Some(old) = local_shape.get_mut(dimension) {
            *old = size;
        }
        Placed { split: Some(dimension), local_shape, copies: 1, bytes: None, note: Some(note.into()) }
    }

    /// A key or value projection by vLLM's own layers: a device holds one KV head at the least, and K = V twice.
    pub fn vllm_key_value(resolved: &Resolved, tensor: &Tensor, device: &str) -> Self {
        let tp = u64::from(resolved.tensor);
        let layer = tensor.layer.and_then(|layer| resolved.model.config.text.layers.get(layer));
        let (heads, head_dim, equal) =
            layer.map_or((1, 1, false), |layer| (layer.kv_heads, layer.head_dim, layer.k_eq_v));
        let note = match (heads < tp, equal) {
            (true, true) => Some(format!("one KV head on each {device}, stored as K and as V")),
            (true, false) => Some(format!("one KV head on each {device}")),
            (false, true) => Some("stored as K and as V".to_owned()),
            (false, false) => None,
        };
        let mut placed = Placed::sized(tensor, 0, (heads / tp).max(1) * head_dim, "");
        placed.copies = if equal { 2 } else { 1 };
        placed.note = note;
        placed
    }

    /// Elements on one device.
    pub fn elements(&self) -> u64 {
        self.local_shape.iter().fold(self.copies, |product, &size| product.saturating_mul(size))
    }
}

/// All weights of a launch.
#[derive(Debug, Clone)]
pub struct Weights {
    /// Rows of the sharding table.
    pub rows: Vec<TensorPlacement>,
    /// Bytes on one device, exact for the rules above.
    pub device_bytes: u64,
    /// The same by component, with buffers that loading makes.
    pub terms: Vec<MemoryTerm>,
}
