//! Sorting and the largest numbers. Invariant: several tensors are sorted as one, by one order.

use super::{element_is, in_range, same_shape};
use crate::attributes::integer;
use crate::builder::Sight;
use crate::{Builder, Comparison, ElementType, HloError, Problem, Shape, Value};

impl Builder {
    /// Sorts tensors of the same sizes along `dim`, moving their elements together. `before` gets two scalars of the first
    /// tensor, two of the second and so on, and returns whether the first of each pair comes before the second.
    ///
    /// # Errors
    /// The tensors differ in size; the dimension does not exist; `before` returns no scalar truth value.
    pub fn sort(
        &mut self,
        operands: &[Value],
        dim: usize,
        stable: bool,
        before: impl FnOnce(&mut Builder, &[Value]) -> Result<Value, HloError>,
    ) -> Result<Vec<Value>, HloError> {
        let op = "sort";
        let given = self.shapes(op, operands)?;
        let Some(first) = given.first() else {
            let problem = Problem::Range { what: "the number of operands", found: 0, least: 1, most: u32::MAX.into() };
            return Err(self.error(op, &given, problem));
        };
        let checked = first.dim(dim).and_then(|_| {
            given.iter().try_for_each(|other| same_shape("an operand", other, &first.with_element(other.element())))
        });
        checked.map_err(|problem| self.error(op, &given, problem))?;
        let scalars: Vec<Shape> =
            given.iter().flat_map(|shape| [Shape::scalar(shape.element()), Shape::scalar(shape.element())]).collect();
        let (body, returned) = self.body(op, "return", Sight::Own, &scalars, |b, args| Ok(vec![before(b, args)?]))?;
        returned
            .iter()
            .try_for_each(|found| same_shape("the comparison's value", found, &Shape::scalar(ElementType::Pred)))
            .map_err(|problem| self.error(op, &given, problem))?;
        let attributes = vec![("dimension", integer(dim)), ("is_stable", stable.to_string())];
        self.add_operation(op, operands, &given, attributes, vec![body], given.clone())
    }

    /// The `count` largest numbers along the last dimension, largest first, and their places (s32). Among equals the first
    /// place comes first. It is a stable sort and two slices, a form that XLA's own rewriter turns into its top-k where it
    /// has one. NaN has no defined place.
    ///
    /// # Errors
    /// The operand is a scalar or holds no numbers; `count` is more than there are.
    pub fn top_k(&mut self, operand: Value, count: u64) -> Result<(Value, Value), HloError> {
        let from = self.shape(operand)?.clone();
        let dim = from.rank().saturating_sub(1);
        let checked = element_is(&from, "a number", |element| element != ElementType::Pred)
            .and_then(|()| in_range("the size of the dimension", from.dim(dim)?, 0, u64::from(i32::MAX.unsigned_abs())))
            .and_then(|()| in_range("the count", count, 0, from.dim(dim)?));
        checked.map_err(|problem| self.error("top_k", std::slice::from_ref(&from), problem))?;
        let places = self.iota(ElementType::S32, from.dims(), dim)?;
        let sorted = self.sort(&[operand, places], dim, true, |b, args| {
            let [left, right, _, _] = b.exactly("top_k", args)?;
            b.compare(Comparison::Gt, left, right)
        })?;
        let [numbers, places] = self.exactly("top_k", &sorted)?;
        Ok((self.slice_dim(numbers, dim, 0, count)?, self.slice_dim(places, dim, 0, count)?))
    }
}
