//! Operations that move elements without looking at them. Invariant: every size and bound is checked without overflow.

use super::{distinct_dims, in_range, same_count, same_element, same_shape};
use crate::attributes::{array, integer};
use crate::builder::size;
use crate::{Builder, HloError, Problem, Shape, Value};

impl Builder {
    /// Copies `operand` into a tensor of `dims`: its dimension `i` becomes dimension `mapping[i]` of the result, where a
    /// size of 1 is repeated. All other dimensions repeat the whole.
    ///
    /// # Errors
    /// `mapping` does not name one dimension of the result for each of the operand's, or sizes differ.
    pub fn broadcast(&mut self, operand: Value, dims: &[u64], mapping: &[usize]) -> Result<Value, HloError> {
        self.one("broadcast_in_dim", [operand], |[from]| {
            let to = from.with_dims(dims);
            same_count("the number of mapped dimensions", mapping.len(), from.rank())?;
            distinct_dims("the mapped dimensions", mapping, to.rank())?;
            for (found, dim) in from.dims().iter().zip(mapping) {
                let wanted = to.dim(*dim)?;
                if *found != 1 && *found != wanted {
                    return Err(Problem::Count { what: "the size of a broadcast dimension", found: *found, wanted });
                }
            }
            Ok((to, vec![("broadcast_dimensions", array(mapping))]))
        })
    }

    /// Repeats a scalar in a tensor of `dims`.
    ///
    /// # Errors
    /// The operand is no scalar.
    pub fn broadcast_scalar(&mut self, operand: Value, dims: &[u64]) -> Result<Value, HloError> {
        self.broadcast(operand, dims, &[])
    }

    /// Copies `operand` into a tensor with the sizes of `like`, mapping dimensions as [`Builder::broadcast`] does.
    ///
    /// # Errors
    /// As [`Builder::broadcast`].
    pub fn broadcast_like(&mut self, operand: Value, like: Value, mapping: &[usize]) -> Result<Value, HloError> {
        let dims = self.shape(like)?.dims().to_vec();
        self.broadcast(operand, &dims, mapping)
    }

    /// The same elements in row-major order with other sizes. The operand itself where nothing changes.
    ///
    /// # Errors
    /// The number of elements changes.
    pub fn reshape(&mut self, operand: Value, dims: &[u64]) -> Result<Value, HloError> {
        let shapes = self.shapes("reshape", &[operand])?;
        if shapes.iter().all(|shape| shape.dims() == dims) {
            return Ok(operand);
        }
        self.one("reshape", [operand], |[from]| {
            let to = from.with_dims(dims).checked()?;
            let (found, wanted) = (to.elements().unwrap_or(0), from.elements().unwrap_or(0));
            if found != wanted {
                return Err(Problem::Count { what: "the number of elements", found, wanted });
            }
            Ok((to, Vec::new()))
        })
    }

    /// Reorders dimensions: dimension `i` of the result is dimension `permutation[i]` of the operand.
    ///
    /// # Errors
    /// `permutation` does not name each dimension once.
    pub fn transpose(&mut self, operand: Value, permutation: &[usize]) -> Result<Value, HloError> {
        self.one("transpose", [operand], |[from]| {
            same_count("the number of permuted dimensions", permutation.len(), from.rank())?;
            distinct_dims("the permuted dimensions", permutation, from.rank())?;
            let dims = permutation.iter().map(|dim| from.dim(*dim)).collect::<Result<Vec<_>, _>>()?;
            Ok((from.with_dims(dims), vec![("permutation", array(permutation))]))
        })
    }

    /// The operands one after the other along dimension `dim`.
    ///
    /// # Errors
    /// There are no operands; a size other than that of `dim` differs.
    pub fn concatenate(&mut self, operands: &[Value], dim: usize) -> Result<Value, HloError> {
        let op = "concatenate";
        let given = self.shapes(op, operands)?;
        let shape = concatenated(&given, dim).map_err(|problem| self.error(op, &given, problem))?;
        self.add_one(op, operands, &given, vec![("dimension", integer(dim))], Vec::new(), shape)
    }

    /// The elements from `starts` up to but without `limits`, every `strides`-th, of each dimension.
    ///
    /// # Errors
    /// There is not one start, limit and stride a dimension; a limit is behind the end or in front of its start; a stride
    /// is 0.
    pub fn slice(
        &mut self,
        operand: Value,
        starts: &[u64],
        limits: &[u64],
        strides: &[u64],
    ) -> Result<Value, HloError> {
        self.one("slice", [operand], |[from]| {
            same_count("the number of starts", starts.len(), from.rank())?;
            same_count("the number of limits", limits.len(), from.rank())?;
            same_count("the number of strides", strides.len(), from.rank())?;
            let mut dims = Vec::with_capacity(from.rank());
            for (((found, start), limit), stride) in from.dims().iter().zip(starts).zip(limits).zip(strides) {
                in_range("the limit of a slice", *limit, *start, *found)?;
                in_range("the stride of a slice", *stride, 1, i64::MAX.unsigned_abs())?;
                dims.push((limit - start).div_ceil(*stride));
            }
            let attributes =
                vec![("start_indices", array(starts)), ("limit_indices", array(limits)), ("strides", array(strides))];
            Ok((from.with_dims(dims), attributes))
        })
    }

    /// The elements from `start` up to but without `limit` of one dimension, and all of the others.
    ///
    /// # Errors
    /// The dimension does not exist; the limit is behind the end or in front of the start.
    pub fn slice_dim(&mut self, operand: Value, dim: usize, start: u64, limit: u64) -> Result<Value, HloError> {
        let from = self.shape(operand)?.clone();
        let mut starts = vec![0; from.rank()];
        let mut limits = from.dims().to_vec();
        let (Some(start_slot), Some(limit_slot)) = (starts.get_mut(dim), limits.get_mut(dim)) else {
            let rank = from.rank();
            return Err(self.error("slice", &[from], Problem::DimOutOfRange { dim, rank }));
        };
        (*start_slot, *limit_slot) = (start, limit);
        self.slice(operand, &starts, &limits, &vec![1; from.rank()])
    }

    /// Puts `low` elements of `value` in front of, `high` behind, and `interior` between the elements of each dimension.
    /// A negative `low` or `high` cuts elements off.
    ///
    /// # Errors
    /// `value` is no scalar of the element type; there is not one number a dimension; a size becomes negative.
    pub fn pad(
        &mut self,
        operand: Value,
        value: Value,
        low: &[i64],
        high: &[i64],
        interior: &[u64],
    ) -> Result<Value, HloError> {
        self.one("pad", [operand, value], |[from, value]| {
            same_shape("the padding value", value, &Shape::scalar(from.element()))?;
            same_count("the number of low paddings", low.len(), from.rank())?;
            same_count("the number of high paddings", high.len(), from.rank())?;
            same_count("the number of interior paddings", interior.len(), from.rank())?;
            let mut dims = Vec::with_capacity(from.rank());
            for (((found, low), high), interior) in from.dims().iter().zip(low).zip(high).zip(interior) {
                in_range("an interior padding", *interior, 0, i64::MAX.unsigned_abs())?;
                // All factors are below 2^63, so 128 bits hold the sum.
                let between = i128::from(*interior) * i128::from(found.saturating_sub(1));
                let sum = i128::from(*found) + between + i128::from(*low) + i128::from(*high);
                let most = i128::from(i64::MAX);
                let range = Problem::Range { what: "the size of a padded dimension", found: sum, least: 0, most };
                dims.push(u64::try_from(sum).map_err(|_| range)?);
            }
            let attributes = vec![
                ("edge_padding_low", array(low)),
                ("edge_padding_high", array(high)),
                ("interior_padding", array(interior)),
            ];
            Ok((from.with_dims(dims), attributes))
        })
    }

    /// The elements of these dimensions in the opposite order.
    ///
    /// # Errors
    /// A dimension does not exist or is named twice.
    pub fn reverse(&mut self, operand: Value, dims: &[usize]) -> Result<Value, HloError> {
        self.one("reverse", [operand], |[from]| {
            distinct_dims("the reversed dimensions", dims, from.rank())?;
            Ok((from.clone(), vec![("dimensions", array(dims))]))
        })
    }

    /// The block of `sizes` elements that starts at `starts`, one scalar integer a dimension. A start that would reach
    /// over the end is moved back.
    ///
    /// # Errors
    /// There is not one start and size a dimension; starts are no scalar integers of one type; a size is too large.
    pub fn dynamic_slice(&mut self, operand: Value, starts: &[Value], sizes: &[u64]) -> Result<Value, HloError> {
        let op = "dynamic_slice";
        let operands: Vec<Value> = std::iter::once(operand).chain(starts.iter().copied()).collect();
        let given = self.shapes(op, &operands)?;
        let shape = dynamic_block(&given, 1, sizes).map_err(|problem| self.error(op, &given, problem))?;
        self.add_one(op, &operands, &given, vec![("slice_sizes", array(sizes))], Vec::new(), shape)
    }

    /// `operand` with the block at `starts` replaced by `update`. A start that would reach over the end is moved back.
    ///
    /// # Errors
    /// There is not one start a dimension; starts are no scalar integers of one type; the update is of another element
    /// type or rank, or too large.
    pub fn dynamic_update_slice(&mut self, operand: Value, update: Value, starts: &[Value]) -> Result<Value, HloError> {
        let op = "dynamic_update_slice";
        let operands: Vec<Value> = [operand, update].into_iter().chain(starts.iter().copied()).collect();
        let given = self.shapes(op, &operands)?;
        let [into, block] = self.shapes_of(op, [operand, update])?;
        let checked = same_element(&block, &into).and_then(|()| dynamic_block(&given, 2, block.dims()));
        checked.map_err(|problem| self.error(op, &given, problem))?;
        self.add_one(op, &operands, &given, Vec::new(), Vec::new(), into)
    }
}

fn concatenated(given: &[Shape], dim: usize) -> Result<Shape, Problem> {
    let Some((first, rest)) = given.split_first() else {
        return Err(Problem::Range { what: "the number of operands", found: 0, least: 1, most: i128::from(u32::MAX) });
    };
    let mut sum = first.dim(dim)?;
    for other in rest {
        same_element(other, first)?;
        same_count("the rank", other.rank(), first.rank())?;
        for (index, (found, wanted)) in other.dims().iter().zip(first.dims()).enumerate() {
            if index != dim && found != wanted {
                let what = "the size of a dimension that is not concatenated";
                return Err(Problem::Count { what, found: *found, wanted: *wanted });
            }
        }
        sum = sum.checked_add(other.dim(dim)?).ok_or(Problem::Overflow { what: "the concatenated size" })?;
    }
    let sized = |(index, found): (usize, &u64)| if index == dim { sum } else { *found };
    Ok(first.with_dims(first.dims().iter().enumerate().map(sized).collect::<Vec<_>>()))
}

/// The shape of a block of `sizes` in the first of `given`, whose start indices begin at `skip`.
fn dynamic_block(given: &[Shape], skip: usize, sizes: &[u64]) -> Result<Shape, Problem> {
    let Some(from) = given.first() else {
        return Err(Problem::Count { what: "the number of operands", found: 0, wanted: size(skip) });
    };
    same_count("the number of sizes", sizes.len(), from.rank())?;
    let starts = given.get(skip..).unwrap_or_default();
    same_count("the number of start indices", starts.len(), from.rank())?;
    for start in starts {
        super::element_is(start, "an integer", crate::ElementType::is_integer)?;
        same_count("the rank of a start index", start.rank(), 0)?;
        same_element(start, starts.first().unwrap_or(start))?;
    }
    for (found, most) in sizes.iter().zip(from.dims()) {
        in_range("the size of a block", *found, 0, *most)?;
    }
    Ok(from.with_dims(sizes))
}
