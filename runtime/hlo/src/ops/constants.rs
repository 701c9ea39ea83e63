//! Constants and counting tensors. Invariant: equal ones of a block are one operation.

use super::same_count;
use crate::attributes::integer;
use crate::builder::size;
use crate::literal::{highest, lowest, nested, number};
use crate::{Builder, ElementType, HloError, Native, Problem, Shape, Value};

impl Builder {
    /// A scalar constant.
    ///
    /// # Errors
    /// None in practice; the signature is that of all operations.
    pub fn scalar<T: Native>(&mut self, value: T) -> Result<Value, HloError> {
        self.splat(value, &[])
    }

    /// A constant of `dims` whose elements are all `value`.
    ///
    /// # Errors
    /// The size cannot be counted.
    pub fn splat<T: Native>(&mut self, value: T, dims: &[u64]) -> Result<Value, HloError> {
        self.dense(&value.literal(), Shape::new(T::ELEMENT, dims))
    }

    /// A constant of `dims` from its elements in row-major order.
    ///
    /// # Errors
    /// The number of elements is not the product of `dims`.
    pub fn constant<T: Native>(&mut self, elements: &[T], dims: &[u64]) -> Result<Value, HloError> {
        let shape = Shape::new(T::ELEMENT, dims);
        let Some(wanted) = shape.elements() else {
            return Err(self.error("constant", &[], Problem::TooLarge { shape }));
        };
        let found = size(elements.len());
        if found != wanted {
            return Err(self.error(
                "constant",
                &[shape],
                Problem::Count { what: "the number of elements", found, wanted },
            ));
        }
        let literals: Vec<String> = elements.iter().map(|element| element.literal()).collect();
        let text = if literals.is_empty() { String::new() } else { nested(&literals, dims) };
        self.dense(&text, shape)
    }

    /// A constant of `dims` whose elements are all `value`, in an element type chosen at run time. f32, bf16 and f16 round
    /// to nearest even; other types must hold the number exactly.
    ///
    /// # Errors
    /// The element type cannot hold the number, or it is NaN; the size cannot be counted.
    pub fn number(&mut self, value: f64, element: ElementType, dims: &[u64]) -> Result<Value, HloError> {
        let literal = number(value, element).map_err(|problem| self.error("constant", &[], problem))?;
        self.dense(&literal, Shape::new(element, dims))
    }

    /// A constant of `dims` filled with the smallest number of the element type: minus infinity where there is one. It is
    /// what a maximum starts from.
    ///
    /// # Errors
    /// The size cannot be counted.
    pub fn lowest(&mut self, element: ElementType, dims: &[u64]) -> Result<Value, HloError> {
        self.dense(lowest(element), Shape::new(element, dims))
    }

    /// A constant of `dims` filled with the largest number of the element type: infinity where there is one. It is what a
    /// minimum starts from.
    ///
    /// # Errors
    /// The size cannot be counted.
    pub fn highest(&mut self, element: ElementType, dims: &[u64]) -> Result<Value, HloError> {
        self.dense(highest(element), Shape::new(element, dims))
    }

    /// A tensor of `dims` whose elements count from 0 along dimension `dim`.
    ///
    /// # Errors
    /// The dimension does not exist; the element type is [`ElementType::Pred`].
    pub fn iota(&mut self, element: ElementType, dims: &[u64], dim: usize) -> Result<Value, HloError> {
        let shape = Shape::new(element, dims);
        let checked =
            shape.dim(dim).and_then(|_| super::element_is(&shape, "a number", |element| element != ElementType::Pred));
        checked.map_err(|problem| self.error("iota", std::slice::from_ref(&shape), problem))?;
        self.add_shared("iota", vec![("iota_dimension", integer(dim))], shape)
    }

    fn dense(&mut self, literals: &str, shape: Shape) -> Result<Value, HloError> {
        let shape = shape.checked().map_err(|problem| self.error("constant", &[], problem))?;
        // A splat of no elements is not MLIR: an empty list is.
        let literals = if shape.elements() == Some(0) { "" } else { literals };
        self.add_shared("constant", vec![("value", format!("dense<{literals}> : {shape}"))], shape)
    }

    /// The tensors as one: an execution barrier that the compiler moves nothing across. Gives the same values again.
    ///
    /// # Errors
    /// There are no operands.
    pub fn optimization_barrier(&mut self, operands: &[Value]) -> Result<Vec<Value>, HloError> {
        let op = "optimization_barrier";
        let given = self.shapes(op, operands)?;
        if operands.is_empty() {
            return same_count("the number of operands", 0, 1)
                .map(|()| Vec::new())
                .map_err(|problem| self.error(op, &given, problem));
        }
        self.add_operation(op, operands, &given, Vec::new(), Vec::new(), given.clone())
    }
}
