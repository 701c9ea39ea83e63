//! What can be wrong with an operation. Invariant: every error says which operation, in which scope, on which shapes.

use std::fmt;

use thiserror::Error;

use crate::{ElementType, Shape};

/// An operation that was refused while building. Nothing was added to the module.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("`{}` in scope `{}`: {problem}{}", .context.op, .context.scope, Given(&.context.given))]
pub struct HloError {
    // Boxed so that a `Result<Value, HloError>` stays small.
    context: Box<Context>,
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq)]
struct Context {
    op: String,
    scope: String,
    given: Vec<Shape>,
}

impl HloError {
    pub(crate) fn new(op: &str, scope: &str, given: &[Shape], problem: Problem) -> Self {
        let context = Context { op: op.to_owned(), scope: scope.to_owned(), given: given.to_vec() };
        Self { context: Box::new(context), problem }
    }

    /// The operation, as StableHLO names it, or the method for those that are no single operation.
    pub fn op(&self) -> &str {
        &self.context.op
    }

    /// The name scopes that were open, joined by `/`; the function's name where none was.
    pub fn scope(&self) -> &str {
        &self.context.scope
    }

    /// The shapes of the operands.
    pub fn given(&self) -> &[Shape] {
        &self.context.given
    }

    /// What does not agree.
    pub const fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// The shapes of the operands as the end of a sentence.
struct Given<'a>(&'a [Shape]);

impl fmt::Display for Given<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, shape) in self.0.iter().enumerate() {
            write!(formatter, "{}{shape}", if index == 0 { "; given " } else { ", " })?;
        }
        Ok(())
    }
}

/// What does not agree, and what to do about it.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// Two element types that must be equal are not.
    #[error("the element types {left} and {right} differ; convert one of them")]
    ElementTypes {
        /// The first of them.
        left: ElementType,
        /// The other.
        right: ElementType,
    },
    /// The operation is not defined for this element type.
    #[error("element type {found} is not {wanted}; convert it first")]
    Element {
        /// What was given.
        found: ElementType,
        /// What the operation takes.
        wanted: &'static str,
    },
    /// Two shapes that must be equal are not.
    #[error("{what} is {found} but must be {wanted}; reshape, broadcast or convert it")]
    Shapes {
        /// Which of the operands or results.
        what: String,
        /// Its shape.
        found: Shape,
        /// The shape it must have.
        wanted: Shape,
    },
    /// Two sizes or counts that must be equal are not.
    #[error("{what} is {found} but must be {wanted}")]
    Count {
        /// What was counted.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it must be.
        wanted: u64,
    },
    /// A number lies outside its range.
    #[error("{what} is {found} but must be between {least} and {most}")]
    Range {
        /// What was measured.
        what: &'static str,
        /// What it is.
        found: i128,
        /// The smallest allowed value.
        least: i128,
        /// The largest allowed value.
        most: i128,
    },
    /// A dimension that the tensor does not have.
    #[error("dimension {dim} does not exist in a tensor of rank {rank}; dimensions count from 0")]
    DimOutOfRange {
        /// The dimension asked for.
        dim: usize,
        /// How many there are.
        rank: usize,
    },
    /// A list of numbers that must rise, or hold each number once, does not.
    #[error("{what} are {found:?}, but must be {wanted}")]
    List {
        /// Which list.
        what: &'static str,
        /// The list.
        found: Vec<u64>,
        /// Its rule.
        wanted: &'static str,
    },
    /// The sizes are beyond what can be counted in 63 bits.
    #[error("{shape} has more bytes than 63 bits can count; check the sizes that it was worked out from")]
    TooLarge {
        /// The shape.
        shape: Shape,
    },
    /// A number worked out from the operands does not fit.
    #[error("{what} does not fit into 63 bits; check the sizes that it was worked out from")]
    Overflow {
        /// What was worked out.
        what: &'static str,
    },
    /// A number that the element type cannot hold.
    #[error("{value:?} cannot be written exactly enough as {element}; use a constant of a wider type and convert it")]
    NotRepresentable {
        /// The number.
        value: f64,
        /// The element type.
        element: ElementType,
    },
    /// A value of another function or module.
    #[error("operand {operand} belongs to another function; pass it as a parameter")]
    ForeignValue {
        /// Which operand, from 0.
        operand: usize,
    },
    /// A value of a body that has ended, or of one that cannot be seen from here.
    #[error("operand {operand} belongs to a body that has ended; return it from that body")]
    EndedBody {
        /// Which operand, from 0.
        operand: usize,
    },
    /// A value from around a reduction, sort or scatter body.
    #[error("operand {operand} comes from outside of a body that can only see its own arguments and constants")]
    IsolatedBody {
        /// Which operand, from 0.
        operand: usize,
    },
    /// A function of another module.
    #[error("the called function belongs to another module; build it in this one")]
    ForeignFunction,
    /// A name that MLIR or the module cannot take.
    #[error("the name {name:?} {reason}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// An operation that this kind of module does not have.
    #[error("{what}; {instead}")]
    Unavailable {
        /// What is missing.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
}
