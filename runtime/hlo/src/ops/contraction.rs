//! Matrix products. Invariant: contracted and batch dimensions pair up in size.

use super::{distinct_dims, element_is, other_dims, same_count};
use crate::attributes::fields;
use crate::{Builder, ElementType, HloError, Problem, Shape, Value};

/// Which dimensions of a product go together. The result has the batch dimensions, then the rest of the left
/// operand's, then the rest of the right operand's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DotDimensions {
    /// Batch dimensions of the left operand.
    pub left_batch: Vec<usize>,
    /// The right operand's partners of `left_batch`.
    pub right_batch: Vec<usize>,
    /// Dimensions of the left operand that are summed over.
    pub left_contract: Vec<usize>,
    /// The right operand's partners of `left_contract`.
    pub right_contract: Vec<usize>,
}

impl DotDimensions {
    /// One contracted dimension on each side and no batch dimensions.
    pub fn contract(left: usize, right: usize) -> Self {
        Self { left_contract: vec![left], right_contract: vec![right], ..Self::default() }
    }
}

/// How exactly a TPU multiplies f32 numbers, in passes of bf16. Other plugins ignore it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// One pass.
    #[default]
    Default,
    /// Three passes.
    High,
    /// Six passes: as exact as f32.
    Highest,
}

impl Precision {
    const fn mlir(self) -> &'static str {
        match self {
            Self::Default => "DEFAULT",
            Self::High => "HIGH",
            Self::Highest => "HIGHEST",
        }
    }
}

impl Builder {
    /// The product of two tensors, summed and returned in the element type `result`: f32 for bf16 operands, s32 for s8.
    ///
    /// # Errors
    /// Element types differ, other than two 8-bit floats; paired dimensions differ in size or are named twice; integers
    /// into floats or the other way.
    pub fn dot_general(
        &mut self,
        left: Value,
        right: Value,
        dims: &DotDimensions,
        result: ElementType,
        precision: Precision,
    ) -> Result<Value, HloError> {
        self.one("dot_general", [left, right], |[left, right]| {
            let shape = product(left, right, dims, result)?;
            let numbers = fields(&[
                ("lhs_batching_dimensions", &dims.left_batch),
                ("rhs_batching_dimensions", &dims.right_batch),
                ("lhs_contracting_dimensions", &dims.left_contract),
                ("rhs_contracting_dimensions", &dims.right_contract),
            ]);
            let precision = format!("#stablehlo<precision {}>", precision.mlir());
            let attributes = vec![
                ("dot_dimension_numbers", format!("#stablehlo.dot<{}>", numbers.join(", "))),
                ("precision_config", format!("[{precision}, {precision}]")),
            ];
            Ok((shape, attributes))
        })
    }
}

fn product(left: &Shape, right: &Shape, dims: &DotDimensions, result: ElementType) -> Result<Shape, Problem> {
    let narrow = |shape: &Shape| matches!(shape.element(), ElementType::F8E4m3fn | ElementType::F8E5m2);
    if !(narrow(left) && narrow(right)) {
        super::same_element(right, left)?;
    }
    element_is(left, "a number", |element| element != ElementType::Pred)?;
    if left.element().is_float() != result.is_float() || result == ElementType::Pred {
        return Err(Problem::ElementTypes { left: left.element(), right: result });
    }
    let (left_batch, right_batch) = (&dims.left_batch, &dims.right_batch);
    same_count("the number of batch dimensions on the right", right_batch.len(), left_batch.len())?;
    same_count(
        "the number of contracted dimensions on the right",
        dims.right_contract.len(),
        dims.left_contract.len(),
    )?;
    let left_used: Vec<usize> = left_batch.iter().chain(&dims.left_contract).copied().collect();
    let right_used: Vec<usize> = right_batch.iter().chain(&dims.right_contract).copied().collect();
    distinct_dims("the batch and contracted dimensions on the left", &left_used, left.rank())?;
    distinct_dims("the batch and contracted dimensions on the right", &right_used, right.rank())?;
    for (ours, theirs) in left_used.iter().zip(&right_used) {
        let (wanted, found) = (left.dim(*ours)?, right.dim(*theirs)?);
        if found != wanted {
            return Err(Problem::Count { what: "the size of a paired dimension on the right", found, wanted });
        }
    }
    let mut sizes = Vec::new();
    for dim in left_batch.iter().copied().chain(other_dims(left.rank(), &[&left_used])) {
        sizes.push(left.dim(dim)?);
    }
    for dim in other_dims(right.rank(), &[&right_used]) {
        sizes.push(right.dim(dim)?);
    }
    Ok(Shape::new(result, sizes))
}
