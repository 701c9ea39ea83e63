//! Where a layer's weights are among the arguments.

use std::collections::HashMap;

use gemma4_hlo::{Builder, ElementType, HloError, Shape, Value};

use super::matrix::Matrix;
use super::numerics::index;
use super::parameters::{ParameterRole, StepParameter};
use super::step::{LayerForm, PerLayerTable, StepOptions};
use super::{GraphError, segments::Segment};
use crate::Config;
use crate::quantization::{Content, arrays};
use crate::sharding::place;
use crate::tensors::{Role, Tensor, tensors};

/// Which layer is being built.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// This one.
    Layer(usize),
    /// This one in the first repetition of a loop, and its counterparts in later ones.
    Loop {
        /// Its index in the first repetition.
        first: usize,
        /// The loop.
        segment: Segment,
        /// The repetition, an s32 scalar.
        counter: Value,
    },
}

impl At {
    /// The layer, or its counterpart in the first repetition.
    pub(super) const fn representative(self) -> usize {
        match self {
            Self::Layer(layer) | Self::Loop { first: layer, .. } => layer,
        }
    }

    /// `value(layer)` for the layer that runs; in a loop it has to grow by the same amount with each repetition.
    pub(super) fn linear(self, b: &mut Builder, value: impl Fn(usize) -> Option<u64>) -> Result<Value, GraphError> {
        let missing = |layer| GraphError::KvLayout { layer };
        match self {
            Self::Layer(layer) => Ok(index(b, value(layer).ok_or(missing(layer))?)?),
            Self::Loop { first, segment, counter } => {
                let at = |repeat: usize| {
                    let layer = first + repeat * segment.period;
                    value(layer).ok_or(missing(layer))
                };
                let (start, next) = (at(0)?, at(1)?);
                let step = next.saturating_sub(start);
                for repeat in 0..segment.repeats {
                    if at(repeat)? != start.saturating_add(step.saturating_mul(repeat as u64)) {
                        return Err(missing(first + repeat * segment.period));
                    }
                }
                let (start, step) = (index(b, start)?, index(b, step)?);
                let grown = b.multiply(step, counter)?;
                Ok(b.add(start, grown)?)
            }
        }
    }
}

/// The tensors of the language model that a step reads, in the order of their arguments.
pub(super) fn list(config: &Config, options: &StepOptions) -> Result<Vec<StepParameter>, GraphError> {
    let on_host = |role| role == Role::PerLayerTable && options.per_layer_table == PerLayerTable::Host;
    let taken = |tensor: &Tensor| tensor.used && tensor.component.is_text() && !on_host(tensor.role);
    let text: Vec<Tensor> = tensors(config).into_iter().filter(taken).collect();
    let element = options.element()?;
    let stacks = match options.layers {
        LayerForm::Unrolled => Vec::new(),
        LayerForm::Looped => config.text.alike_layers(),
    };
    let mut parameters = Vec::new();
    for tensor in &text {
        let placement = place(config, tensor, &options.mesh, options.experts)?;
        let stack = tensor.layer.and_then(|layer| stacks.iter().find(|stack| stack.contains(&layer)));
        let layers: Vec<usize> = match (tensor.layer, stack) {
            (Some(layer), Some(stack)) if stack.first() != Some(&layer) => continue,
            (Some(_), Some(stack)) => stack.clone(),
            (layer, _) => layer.into_iter().collect(),
        };
        let stacked = stack.map(|stack| stack.len() as u64);
        for array in arrays(tensor, &placement, options.dtype, options.quantization) {
            let dims: Vec<u64> = stacked.into_iter().chain(array.shape).collect();
            let name = match array.content {
                Content::Elements => tensor.name.clone(),
                Content::Scales => format!("{}.scales", tensor.name),
            };
            let element = match array.dtype {
                crate::DType::I8 => ElementType::S8,
                crate::DType::U16 => ElementType::U16,
                dtype => element_type(dtype).unwrap_or(element),
            };
            let role = ParameterRole::Weight { role: tensor.role, layers: layers.clone(), content: array.content };
            parameters.push(StepParameter::new(name, role, Shape::new(element, dims)));
        }
    }
    Ok(parameters)
}

/// Role, content and layer.
type Key = ((Role, Content), Option<usize>);

/// A weight by its role and layer: the argument, and its place in the stack if it is one.
#[derive(Debug, Default)]
pub(super) struct Weights {
    known: HashMap<Key, (Value, Option<u64>)>,
}

impl Weights {
    /// `stacked`: the first dimension is that of `layers`, also if it is a single one.
    pub(super) fn insert(&mut self, role: (Role, Content), layers: &[usize], stacked: bool, value: Value) {
        if layers.is_empty() {
            self.known.insert((role, None), (value, None));
        }
        for (place, layer) in layers.iter().enumerate() {
            self.known.insert((role, Some(*layer)), (value, stacked.then_some(place as u64)));
        }
    }

    /// A weight outside of the layers.
    pub(super) fn global(&self, role: Role) -> Result<Value, GraphError> {
        Ok(self.global_matrix(role)?.values)
    }

    /// A matrix outside of the layers.
    pub(super) fn global_matrix(&self, role: Role) -> Result<Matrix, GraphError> {
        let found = |content| self.known.get(&((role, content), None)).map(|(value, _)| *value);
        let values = found(Content::Elements);
        let values = values.ok_or_else(|| GraphError::Weight { role: format!("{role:?}"), layer: None })?;
        Ok(Matrix { values, scales: found(Content::Scales) })
    }

    /// A weight of a layer.
    pub(super) fn of(&self, b: &mut Builder, at: At, role: Role) -> Result<Value, GraphError> {
        Ok(self.matrix(b, at, role)?.values)
    }

    /// A matrix of a layer.
    pub(super) fn matrix(&self, b: &mut Builder, at: At, role: Role) -> Result<Matrix, GraphError> {
        let (matrix, place) = self.located(b, at, role)?;
        Ok(match place {
            Some(place) => matrix.at(b, &[place])?,
            None => matrix,
        })
    }

    /// A matrix of a layer as it comes in: the argument, and the layer's place in it if it is a stack. For who reads only
    /// parts of it within a loop: what a loop is given whole, XLA copies out of the stack first.
    pub(super) fn located(&self, b: &mut Builder, at: At, role: Role) -> Result<(Matrix, Option<Value>), GraphError> {
        let layer = at.representative();
        let missing = || GraphError::Weight { role: format!("{role:?}"), layer: Some(layer) };
        let known = |content, layer| self.known.get(&((role, content), Some(layer))).copied();
        let (values, place) = known(Content::Elements, layer).ok_or_else(missing)?;
        let matrix = Matrix { values, scales: known(Content::Scales, layer).map(|(scales, _)| scales) };
        if place.is_none() {
            return Ok((matrix, None));
        }
        let place = |layer: usize| known(Content::Elements, layer).and_then(|(_, place)| place);
        Ok((matrix, Some(at.linear(b, place)?)))
    }
}

/// What is at `at`, an index for each of the first dimensions, without these dimensions.
pub(super) fn part(b: &mut Builder, stack: Value, at: &[Value]) -> Result<Value, HloError> {
    let dims = b.shape(stack)?.dims().to_vec();
    let zero = b.scalar(0_i32)?;
    let rest = dims.get(at.len()..).unwrap_or_default();
    let starts: Vec<Value> = at.iter().copied().chain(rest.iter().map(|_| zero)).collect();
    let sizes: Vec<u64> = at.iter().map(|_| 1).chain(rest.iter().copied()).collect();
    let one = b.dynamic_slice(stack, &starts, &sizes)?;
    b.reshape(one, rest)
}

/// The element type that a data type is in a program.
pub(super) fn element_type(dtype: crate::DType) -> Option<ElementType> {
    use crate::DType;
    match dtype {
        DType::F32 => Some(ElementType::F32),
        DType::Bf16 => Some(ElementType::Bf16),
        DType::F16 => Some(ElementType::F16),
        DType::F8E4M3 => Some(ElementType::F8E4m3fn),
        DType::F8E5M2 => Some(ElementType::F8E5m2),
        _ => None,
    }
}
