//! Gather and scatter. Invariant: the dimension numbers are consistent, so each index names exactly one block of the
//! operand.

use super::{
    Combine, distinct_dims, element_is, in_range, other_dims, rising_dims, same_count, same_element, same_shape,
};
use crate::attributes::{array, fields};
use crate::builder::{Sight, size};
use crate::{Builder, ElementType, HloError, Problem, Shape, Value};

/// How a gather finds blocks (StableHLO specification, `gather`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatherDimensions {
    /// Dimensions of the result that run over a block.
    pub offset_dims: Vec<usize>,
    /// Dimensions of the operand of which a block has one element, and the result none.
    pub collapsed_slice_dims: Vec<usize>,
    /// Dimensions of the operand that go along with `start_indices_batching_dims`.
    pub operand_batching_dims: Vec<usize>,
    /// Dimensions of the indices that go along with `operand_batching_dims`.
    pub start_indices_batching_dims: Vec<usize>,
    /// The dimension of the operand that each part of an index is for.
    pub start_index_map: Vec<usize>,
    /// The dimension of the indices that holds the parts of an index; their rank if an index has one part.
    pub index_vector_dim: usize,
}

/// How a scatter finds blocks (StableHLO specification, `scatter`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScatterDimensions {
    /// Dimensions of the updates that run over a block.
    pub update_window_dims: Vec<usize>,
    /// Dimensions of the operand of which a block has one element, and the updates none.
    pub inserted_window_dims: Vec<usize>,
    /// Dimensions of the operand that go along with `scatter_indices_batching_dims`.
    pub input_batching_dims: Vec<usize>,
    /// Dimensions of the indices that go along with `input_batching_dims`.
    pub scatter_indices_batching_dims: Vec<usize>,
    /// The dimension of the operand that each part of an index is for.
    pub scatter_dims_to_operand_dims: Vec<usize>,
    /// The dimension of the indices that holds the parts of an index; their rank if an index has one part.
    pub index_vector_dim: usize,
    /// The indices rise. Undefined results if they do not.
    pub indices_are_sorted: bool,
    /// No index comes twice. Undefined results if one does.
    pub unique_indices: bool,
}

impl Builder {
    /// Blocks of `slice_sizes` elements of `operand`, one for each index. Indices that would reach over the end are moved
    /// back.
    ///
    /// # Errors
    /// The dimension numbers do not agree with each other or with the shapes.
    pub fn gather(
        &mut self,
        operand: Value,
        indices: Value,
        dims: &GatherDimensions,
        slice_sizes: &[u64],
    ) -> Result<Value, HloError> {
        self.one("gather", [operand, indices], |[operand, indices]| {
            let shape = gathered(operand, indices, dims, slice_sizes)?;
            let mut numbers = fields(&[
                ("offset_dims", &dims.offset_dims),
                ("collapsed_slice_dims", &dims.collapsed_slice_dims),
                ("operand_batching_dims", &dims.operand_batching_dims),
                ("start_indices_batching_dims", &dims.start_indices_batching_dims),
                ("start_index_map", &dims.start_index_map),
            ]);
            numbers.push(format!("index_vector_dim = {}", dims.index_vector_dim));
            let attributes = vec![
                ("dimension_numbers", format!("#stablehlo.gather<{}>", numbers.join(", "))),
                ("slice_sizes", array(slice_sizes)),
                ("indices_are_sorted", "false".to_owned()),
            ];
            Ok((shape, attributes))
        })
    }

    /// The rows of `operand` along dimension `dim` that `indices` names: the result has the dimensions of `indices` in place
    /// of `dim`. Indices are clamped into the operand.
    ///
    /// # Errors
    /// The dimension does not exist; the indices are no integers.
    pub fn take(&mut self, operand: Value, indices: Value, dim: usize) -> Result<Value, HloError> {
        let shapes = self.shapes_of("gather", [operand, indices])?;
        let [from, at] = &shapes;
        from.dim(dim).map_err(|problem| self.error("gather", &shapes, problem))?;
        let mut slice_sizes = from.dims().to_vec();
        if let Some(slot) = slice_sizes.get_mut(dim) {
            *slot = 1;
        }
        let rank = from.rank() - 1 + at.rank();
        let index_dims: Vec<usize> = (dim..dim + at.rank()).collect();
        let numbers = GatherDimensions {
            offset_dims: other_dims(rank, &[&index_dims]),
            collapsed_slice_dims: vec![dim],
            start_index_map: vec![dim],
            index_vector_dim: at.rank(),
            ..GatherDimensions::default()
        };
        self.gather(operand, indices, &numbers, &slice_sizes)
    }

    /// `operand` with each block of `updates` combined into the place that its index names. Blocks that would reach over
    /// the end are left out.
    ///
    /// # Errors
    /// The dimension numbers do not agree with each other or with the shapes.
    pub fn scatter(
        &mut self,
        operand: Value,
        indices: Value,
        updates: Value,
        dims: &ScatterDimensions,
        combine: Combine,
    ) -> Result<Value, HloError> {
        let op = "scatter";
        let given = self.shapes_of(op, [operand, indices, updates])?;
        let [into, at, from] = &given;
        check_scatter(into, at, from, dims).map_err(|problem| self.error(op, &given, problem))?;
        let mut numbers = fields(&[
            ("update_window_dims", &dims.update_window_dims),
            ("inserted_window_dims", &dims.inserted_window_dims),
            ("input_batching_dims", &dims.input_batching_dims),
            ("scatter_indices_batching_dims", &dims.scatter_indices_batching_dims),
            ("scatter_dims_to_operand_dims", &dims.scatter_dims_to_operand_dims),
        ]);
        numbers.push(format!("index_vector_dim = {}", dims.index_vector_dim));
        let attributes = vec![
            ("scatter_dimension_numbers", format!("#stablehlo.scatter<{}>", numbers.join(", "))),
            ("indices_are_sorted", dims.indices_are_sorted.to_string()),
            ("unique_indices", dims.unique_indices.to_string()),
        ];
        let body = self.combination(op, combine, into.element())?;
        let shape = into.clone();
        self.add_one(op, &[operand, indices, updates], &given, attributes, vec![body], shape)
    }

    /// The body that combines two scalars: the one so far and the new one.
    pub(super) fn combination(
        &mut self,
        op: &str,
        combine: Combine,
        element: ElementType,
    ) -> Result<crate::builder::Block, HloError> {
        let scalar = Shape::scalar(element);
        let (block, _) = self.body(op, "return", Sight::Own, &[scalar.clone(), scalar], |b, args| {
            let [old, new] = b.exactly(op, args)?;
            Ok(vec![combine.apply(b, old, new)?])
        })?;
        Ok(block)
    }
}

/// The parts of a gather or scatter that both have.
struct Indexing<'a> {
    /// Sizes of one block.
    block: &'a [u64],
    /// Dimensions of the operand that a block does not show.
    hidden: &'a [usize],
    operand_batching: &'a [usize],
    index_batching: &'a [usize],
    map: &'a [usize],
    index_vector_dim: usize,
    /// Dimensions of the result (or updates) that run over a block.
    window: &'a [usize],
}

/// The sizes of a gather's result, or of a scatter's updates.
fn blocks(operand: &Shape, indices: &Shape, parts: &Indexing<'_>) -> Result<Vec<u64>, Problem> {
    element_is(indices, "an integer", ElementType::is_integer)?;
    let rank = operand.rank();
    same_count("the number of slice sizes", parts.block.len(), rank)?;
    for (found, most) in parts.block.iter().zip(operand.dims()) {
        in_range("a slice size", *found, 0, *most)?;
    }
    rising_dims("the collapsed or inserted dimensions", parts.hidden, rank)?;
    rising_dims("the operand's batching dimensions", parts.operand_batching, rank)?;
    let all_hidden: Vec<usize> = parts.hidden.iter().chain(parts.operand_batching).copied().collect();
    distinct_dims("the collapsed or inserted and the batching dimensions", &all_hidden, rank)?;
    for dim in &all_hidden {
        in_range(
            "the slice size of a collapsed, inserted or batching dimension",
            block_size(parts.block, *dim)?,
            0,
            1,
        )?;
    }
    in_range("the index vector dimension", size(parts.index_vector_dim), 0, size(indices.rank()))?;
    let one_part = parts.index_vector_dim == indices.rank();
    let index_parts = if one_part { 1 } else { indices.dim(parts.index_vector_dim)? };
    let found = size(parts.map.len());
    if found != index_parts {
        return Err(Problem::Count { what: "the length of the index map", found, wanted: index_parts });
    }
    let mapped: Vec<usize> = parts.map.iter().chain(parts.operand_batching).copied().collect();
    distinct_dims("the index map and the batching dimensions", &mapped, rank)?;
    distinct_dims("the indices' batching dimensions", parts.index_batching, indices.rank())?;
    same_count(
        "the number of the indices' batching dimensions",
        parts.index_batching.len(),
        parts.operand_batching.len(),
    )?;
    for (ours, theirs) in parts.index_batching.iter().zip(parts.operand_batching) {
        if *ours == parts.index_vector_dim {
            return Err(Problem::DimOutOfRange { dim: *ours, rank: indices.rank() });
        }
        let (found, wanted) = (indices.dim(*ours)?, operand.dim(*theirs)?);
        if found != wanted {
            return Err(Problem::Count { what: "the size of a batching dimension", found, wanted });
        }
    }
    let index_dims = other_dims(indices.rank(), &[&[parts.index_vector_dim]]);
    let shown = other_dims(rank, &[&all_hidden]);
    let result_rank = index_dims.len() + parts.window.len();
    rising_dims("the dimensions that run over a block", parts.window, result_rank)?;
    same_count("the number of dimensions that run over a block", parts.window.len(), shown.len())?;
    let (mut index_dims, mut shown) = (index_dims.into_iter(), shown.into_iter());
    let mut dims = Vec::with_capacity(result_rank);
    for dim in 0..result_rank {
        if parts.window.contains(&dim) {
            if let Some(dim) = shown.next() {
                dims.push(block_size(parts.block, dim)?);
            }
        } else if let Some(dim) = index_dims.next() {
            dims.push(indices.dim(dim)?);
        }
    }
    Ok(dims)
}

fn block_size(block: &[u64], dim: usize) -> Result<u64, Problem> {
    block.get(dim).copied().ok_or(Problem::DimOutOfRange { dim, rank: block.len() })
}

fn gathered(operand: &Shape, indices: &Shape, dims: &GatherDimensions, slices: &[u64]) -> Result<Shape, Problem> {
    let parts = Indexing {
        block: slices,
        hidden: &dims.collapsed_slice_dims,
        operand_batching: &dims.operand_batching_dims,
        index_batching: &dims.start_indices_batching_dims,
        map: &dims.start_index_map,
        index_vector_dim: dims.index_vector_dim,
        window: &dims.offset_dims,
    };
    Ok(operand.with_dims(blocks(operand, indices, &parts)?))
}

fn check_scatter(into: &Shape, at: &Shape, from: &Shape, dims: &ScatterDimensions) -> Result<(), Problem> {
    same_element(from, into)?;
    // A block is as large as the updates' window dimensions say, and 1 where it is not shown.
    let hidden = [dims.inserted_window_dims.as_slice(), &dims.input_batching_dims];
    let mut block = vec![1; into.rank()];
    for (dim, window) in other_dims(into.rank(), &hidden).into_iter().zip(&dims.update_window_dims) {
        let found = from.dim(*window)?;
        if let Some(slot) = block.get_mut(dim) {
            *slot = found;
        }
    }
    let parts = Indexing {
        block: &block,
        hidden: &dims.inserted_window_dims,
        operand_batching: &dims.input_batching_dims,
        index_batching: &dims.scatter_indices_batching_dims,
        map: &dims.scatter_dims_to_operand_dims,
        index_vector_dim: dims.index_vector_dim,
        window: &dims.update_window_dims,
    };
    let wanted = from.with_dims(blocks(into, at, &parts)?);
    same_shape("the updates", from, &wanted)
}
