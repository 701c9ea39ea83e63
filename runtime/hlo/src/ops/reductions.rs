//! Reductions and running sums. Invariant: a reduction's body sees only its own arguments, as XLA wants it.

use super::{distinct_dims, element_is, in_range, other_dims, same_count, same_element, same_shape};
use crate::attributes::array;
use crate::builder::Sight;
use crate::{Builder, Comparison, ElementType, HloError, Problem, Shape, Value};

/// How two numbers become one, in reductions, scatters and collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Combine {
    /// The new one. Only for scatters: elsewhere the order is not defined, and it is refused.
    Replace,
    /// The sum.
    Add,
    /// The product.
    Multiply,
    /// The larger.
    Maximum,
    /// The smaller.
    Minimum,
    /// Logical or bitwise and.
    And,
    /// Logical or bitwise or.
    Or,
}

impl Combine {
    pub(super) fn apply(self, b: &mut Builder, old: Value, new: Value) -> Result<Value, HloError> {
        match self {
            Self::Replace => Ok(new),
            Self::Add => b.add(old, new),
            Self::Multiply => b.multiply(old, new),
            Self::Maximum => b.maximum(old, new),
            Self::Minimum => b.minimum(old, new),
            Self::And => b.and(old, new),
            Self::Or => b.or(old, new),
        }
    }

    /// Refuses what depends on the order of the numbers.
    pub(super) fn ordered(self) -> Result<(), Problem> {
        if self != Self::Replace {
            return Ok(());
        }
        Err(Problem::Unavailable { what: "replacing has no order here", instead: "use another way to combine" })
    }
}

impl Builder {
    /// Reduces `dims` of several tensors of the same sizes at once. `build` combines the scalars so far (the first half of
    /// its arguments, starting with `starts`) with new ones (the second half), in any order; it must be associative.
    ///
    /// # Errors
    /// The tensors differ in size; a start is no scalar of its tensor's element type; the body returns other shapes.
    pub fn reduce_with(
        &mut self,
        operands: &[Value],
        starts: &[Value],
        dims: &[usize],
        build: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<Vec<Value>, HloError> {
        let op = "reduce";
        let all: Vec<Value> = operands.iter().chain(starts).copied().collect();
        let given = self.shapes(op, &all)?;
        let (from, start) = given.split_at(operands.len().min(given.len()));
        let results = reduced(from, start, dims).map_err(|problem| self.error(op, &given, problem))?;
        // The order in which a set of dimensions is named has no meaning; rising is what both plugins print.
        let mut sorted = dims.to_vec();
        sorted.sort_unstable();
        let scalars: Vec<Shape> = start.iter().chain(start).cloned().collect();
        let (body, returned) = self.body(op, "return", Sight::Own, &scalars, build)?;
        let checked =
            same_count("the number of values that the body returns", returned.len(), start.len()).and_then(|()| {
                returned.iter().zip(start).try_for_each(|(found, wanted)| same_shape("a returned value", found, wanted))
            });
        checked.map_err(|problem| self.error(op, &given, problem))?;
        self.add_operation(op, &all, &given, vec![("dimensions", array(&sorted))], vec![body], results)
    }

    /// Combines the elements of `dims`, starting with the scalar `start`. Sums of narrow floats lose digits: convert to
    /// f32 first.
    ///
    /// # Errors
    /// A dimension does not exist or is named twice; `start` is no scalar of the element type; the way to combine does not
    /// fit the element type.
    pub fn reduce(
        &mut self,
        operand: Value,
        start: Value,
        dims: &[usize],
        combine: Combine,
    ) -> Result<Value, HloError> {
        let given = self.shapes("reduce", &[operand, start])?;
        combine.ordered().map_err(|problem| self.error("reduce", &given, problem))?;
        let results = self.reduce_with(&[operand], &[start], dims, |b, args| {
            let [old, new] = b.exactly("reduce", args)?;
            Ok(vec![combine.apply(b, old, new)?])
        })?;
        let [result] = self.exactly("reduce", &results)?;
        Ok(result)
    }

    /// The sum over `dims`.
    ///
    /// # Errors
    /// As [`Builder::reduce`].
    pub fn reduce_sum(&mut self, operand: Value, dims: &[usize]) -> Result<Value, HloError> {
        let start = self.number(0.0, self.shape(operand)?.element(), &[])?;
        self.reduce(operand, start, dims, Combine::Add)
    }

    /// The largest number over `dims`; NaN if there is one.
    ///
    /// # Errors
    /// As [`Builder::reduce`].
    pub fn reduce_max(&mut self, operand: Value, dims: &[usize]) -> Result<Value, HloError> {
        let start = self.lowest(self.shape(operand)?.element(), &[])?;
        self.reduce(operand, start, dims, Combine::Maximum)
    }

    /// The smallest number over `dims`; NaN if there is one.
    ///
    /// # Errors
    /// As [`Builder::reduce`].
    pub fn reduce_min(&mut self, operand: Value, dims: &[usize]) -> Result<Value, HloError> {
        let start = self.highest(self.shape(operand)?.element(), &[])?;
        self.reduce(operand, start, dims, Combine::Minimum)
    }

    /// Whether all truth values over `dims` are true.
    ///
    /// # Errors
    /// As [`Builder::reduce`].
    pub fn reduce_and(&mut self, operand: Value, dims: &[usize]) -> Result<Value, HloError> {
        let start = self.scalar(true)?;
        self.reduce(operand, start, dims, Combine::And)
    }

    /// Whether one of the truth values over `dims` is true.
    ///
    /// # Errors
    /// As [`Builder::reduce`].
    pub fn reduce_or(&mut self, operand: Value, dims: &[usize]) -> Result<Value, HloError> {
        let start = self.scalar(false)?;
        self.reduce(operand, start, dims, Combine::Or)
    }

    /// The largest number along `dim` and its place (s32); the first place among equals. NaN is never chosen, unless there
    /// is nothing larger than the smallest number: the place is then that of the first smallest number, or the largest
    /// s32 where all are NaN.
    ///
    /// # Errors
    /// The dimension does not exist or is too long for s32; the operand holds no numbers.
    pub fn argmax(&mut self, operand: Value, dim: usize) -> Result<(Value, Value), HloError> {
        let from = self.shape(operand)?.clone();
        let checked = element_is(&from, "a number", |element| element != ElementType::Pred).and_then(|()| {
            in_range("the size of the dimension", from.dim(dim)?, 1, u64::from(i32::MAX.unsigned_abs()))
        });
        checked.map_err(|problem| self.error("argmax", std::slice::from_ref(&from), problem))?;
        let places = self.iota(ElementType::S32, from.dims(), dim)?;
        let starts = [self.lowest(from.element(), &[])?, self.scalar(i32::MAX)?];
        let results = self.reduce_with(&[operand, places], &starts, &[dim], |b, args| {
            let [old, old_place, new, new_place] = b.exactly("argmax", args)?;
            let larger = b.compare(Comparison::Gt, new, old)?;
            let equal = b.compare(Comparison::Eq, new, old)?;
            let earlier = b.compare(Comparison::Lt, new_place, old_place)?;
            let first = b.and(equal, earlier)?;
            let better = b.or(larger, first)?;
            Ok(vec![b.select(better, new, old)?, b.select(better, new_place, old_place)?])
        })?;
        let [largest, place] = self.exactly("argmax", &results)?;
        Ok((largest, place))
    }

    /// The running sum along `dim`, each element included, in ceil(log2(size)) shifted additions: exact for
    /// integers, and the same form on every plugin.
    ///
    /// # Errors
    /// The dimension does not exist; the operand holds no numbers.
    pub fn cumulative_sum(&mut self, operand: Value, dim: usize) -> Result<Value, HloError> {
        let from = self.shape(operand)?.clone();
        let length =
            from.dim(dim).map_err(|problem| self.error("cumulative_sum", std::slice::from_ref(&from), problem))?;
        let zero = self.number(0.0, from.element(), &[])?;
        let (mut sum, mut shift) = (operand, 1_u64);
        while shift < length {
            // The first `length - shift` elements, moved up by `shift`: one pad that adds in front and cuts off behind.
            let step = i64::try_from(shift).map_err(|_| {
                self.error("cumulative_sum", std::slice::from_ref(&from), Problem::Overflow { what: "the shift" })
            })?;
            let at =
                |amount: i64| (0..from.rank()).map(|index| if index == dim { amount } else { 0 }).collect::<Vec<_>>();
            let moved = self.pad(sum, zero, &at(step), &at(-step), &vec![0; from.rank()])?;
            sum = self.add(sum, moved)?;
            shift = shift.saturating_mul(2);
        }
        Ok(sum)
    }
}

fn reduced(operands: &[Shape], starts: &[Shape], dims: &[usize]) -> Result<Vec<Shape>, Problem> {
    let Some(first) = operands.first() else {
        return Err(Problem::Range { what: "the number of operands", found: 0, least: 1, most: i128::from(u32::MAX) });
    };
    same_count("the number of starts", starts.len(), operands.len())?;
    distinct_dims("the reduced dimensions", dims, first.rank())?;
    let kept = other_dims(first.rank(), &[dims]);
    let sizes = kept.iter().map(|dim| first.dim(*dim)).collect::<Result<Vec<_>, _>>()?;
    let mut results = Vec::with_capacity(operands.len());
    for (operand, start) in operands.iter().zip(starts) {
        same_shape("an operand", operand, &first.with_element(operand.element()))?;
        same_element(start, operand)?;
        same_shape("a start", start, &Shape::scalar(operand.element()))?;
        results.push(operand.with_dims(sizes.clone()));
    }
    Ok(results)
}
