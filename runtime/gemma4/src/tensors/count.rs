//! Parameter counts.

use std::collections::BTreeMap;

use super::{Component, tensors};
use crate::Config;

/// Numbers of parameters (elements, not bytes) of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Components {
    used: BTreeMap<Component, u64>,
    unused: u64,
}

impl Components {
    /// Parameters of one component that the model reads.
    #[must_use]
    pub fn get(&self, component: Component) -> u64 {
        self.used.get(&component).copied().unwrap_or(0)
    }

    /// Components that the model has, with their parameters.
    pub fn iter(&self) -> impl Iterator<Item = (Component, u64)> {
        self.used.iter().map(|(&component, &count)| (component, count))
    }

    /// Parameters of the language model.
    #[must_use]
    pub fn text(&self) -> u64 {
        self.iter().filter(|(component, _)| component.is_text()).map(|(_, count)| count).sum()
    }

    /// Parameters of the whole model, encoders included.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.used.values().sum()
    }

    /// Parameters that a checkpoint ships and nothing reads: keys and values of layers that borrow them.
    #[must_use]
    pub const fn unused(&self) -> u64 {
        self.unused
    }

    /// Parameters in the files of a checkpoint.
    #[must_use]
    pub fn on_disk(&self) -> u64 {
        self.total().saturating_add(self.unused)
    }
}

/// Counts the parameters of a model.
///
/// Everything that a checkpoint stores counts: layer scalars, bounds of clipped linear layers and the statistics of the
/// standardization too, although transformers keeps some of them as buffers.
#[must_use]
pub fn parameters(config: &Config) -> Components {
    let mut components = Components::default();
    for tensor in tensors(config) {
        let count =
            if tensor.used { components.used.entry(tensor.component).or_default() } else { &mut components.unused };
        *count = count.saturating_add(tensor.elements());
    }
    components
}
