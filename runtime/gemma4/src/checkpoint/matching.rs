//! Compares the tensors of a checkpoint with those its configuration asks for.

use std::collections::BTreeMap;

use super::HeaderTensor;
use crate::Config;
use crate::tensors::tensors;

/// A difference between a checkpoint and its configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// A tensor that the model reads is not there.
    #[error("`{name}` is missing")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("`{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape in the checkpoint.
        found: Vec<u64>,
        /// Shape from the configuration.
        expected: Vec<u64>,
    },
    /// A tensor is there that the configuration knows nothing of.
    #[error("`{name}` is not part of this model")]
    Unexpected {
        /// Name of the tensor.
        name: String,
    },
}

/// All differences, in the order of the model, unexpected tensors last and by name.
///
/// Tensors that nothing reads may be absent. Element types are not compared, since a checkpoint may be quantized.
#[must_use]
pub fn mismatches<'a>(config: &Config, found: impl IntoIterator<Item = &'a HeaderTensor>) -> Vec<Mismatch> {
    let mut by_name: BTreeMap<&str, &[u64]> =
        found.into_iter().map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice())).collect();
    let mut differences = Vec::new();
    for tensor in tensors(config) {
        match by_name.remove(tensor.name.as_str()) {
            None if tensor.used => differences.push(Mismatch::Missing { name: tensor.name }),
            Some(shape) if shape != tensor.shape => {
                differences.push(Mismatch::Shape { name: tensor.name, found: shape.to_vec(), expected: tensor.shape })
            }
            None | Some(_) => {}
        }
    }
    differences.extend(by_name.into_keys().map(|name| Mismatch::Unexpected { name: name.to_owned() }));
    differences
}
