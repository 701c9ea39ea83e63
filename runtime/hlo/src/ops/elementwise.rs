//! Operations on each element by itself. Invariant: operands have one shape; nothing is broadcast in silence.

use super::{element_is, same_element, same_shape};
use crate::{Builder, ElementType, HloError, Problem, Shape, Value};

/// How two elements are compared. Floats compare as IEEE 754 does: everything with NaN is false, except `Ne`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Comparison {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less than.
    Lt,
    /// Less than or equal.
    Le,
    /// Greater than.
    Gt,
    /// Greater than or equal.
    Ge,
}

impl Comparison {
    const fn mlir(self) -> &'static str {
        match self {
            Self::Eq => "EQ",
            Self::Ne => "NE",
            Self::Lt => "LT",
            Self::Le => "LE",
            Self::Gt => "GT",
            Self::Ge => "GE",
        }
    }
}

/// Which elements an operation takes.
type Class = (&'static str, fn(ElementType) -> bool);

const NUMBER: Class = ("a number", |element| element != ElementType::Pred);
const SIGNED: Class = ("a signed number", ElementType::is_signed);
const FLOAT: Class = ("a float", ElementType::is_float);
const INTEGER: Class = ("an integer", ElementType::is_integer);
const BITS: Class = ("an integer or truth value", |element| !element.is_float());

macro_rules! operations {
    ($arity:ident: $($(#[$doc:meta])* $method:ident $op:literal $class:ident)*) => {
        impl Builder {
            $(operations!(@$arity $(#[$doc])* $method $op $class);)*
        }
    };
    (@unary $(#[$doc:meta])* $method:ident $op:literal $class:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The element type is not one that the operation takes.
        pub fn $method(&mut self, operand: Value) -> Result<Value, HloError> {
            self.one($op, [operand], |[shape]| {
                element_is(shape, $class.0, $class.1)?;
                Ok((shape.clone(), Vec::new()))
            })
        }
    };
    (@binary $(#[$doc:meta])* $method:ident $op:literal $class:ident) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// The shapes differ, or the element type is not one that the operation takes.
        pub fn $method(&mut self, left: Value, right: Value) -> Result<Value, HloError> {
            self.one($op, [left, right], |[left, right]| {
                same_element(left, right)?;
                same_shape("the second operand", right, left)?;
                element_is(left, $class.0, $class.1)?;
                Ok((left.clone(), Vec::new()))
            })
        }
    };
}

operations! { binary:
    /// `left + right`. Integers wrap around.
    add "add" NUMBER
    /// `left - right`. Integers wrap around.
    subtract "subtract" NUMBER
    /// `left * right`. Integers wrap around.
    multiply "multiply" NUMBER
    /// `left / right`. Integers round toward 0.
    divide "divide" NUMBER
    /// The remainder of a division that rounds toward 0: it has the sign of `left`.
    remainder "remainder" NUMBER
    /// The larger of the two; NaN if one is NaN.
    maximum "maximum" NUMBER
    /// The smaller of the two; NaN if one is NaN.
    minimum "minimum" NUMBER
    /// `left` to the power of `right`.
    power "power" NUMBER
    /// Logical and of truth values, bitwise and of integers.
    and "and" BITS
    /// Logical or of truth values, bitwise or of integers.
    or "or" BITS
    /// Logical exclusive or of truth values, bitwise exclusive or of integers.
    xor "xor" BITS
    /// `left` moved `right` bits up.
    shift_left "shift_left" INTEGER
    /// `left` moved `right` bits down, with copies of its sign bit on top.
    shift_right_arithmetic "shift_right_arithmetic" INTEGER
    /// `left` moved `right` bits down, with zeros on top.
    shift_right_logical "shift_right_logical" INTEGER
}

operations! { unary:
    /// `-operand`.
    negate "negate" NUMBER
    /// The absolute value.
    abs "abs" SIGNED
    /// -1, 0 or 1; NaN for NaN.
    sign "sign" SIGNED
    /// e to the power of each element.
    exponential "exponential" FLOAT
    /// The natural logarithm.
    log "log" FLOAT
    /// The hyperbolic tangent.
    tanh "tanh" FLOAT
    /// `1 / sqrt(operand)`.
    rsqrt "rsqrt" FLOAT
    /// The square root.
    sqrt "sqrt" FLOAT
    /// `1 / (1 + e^-operand)`.
    logistic "logistic" FLOAT
    /// The largest whole number that is not larger.
    floor "floor" FLOAT
    /// The smallest whole number that is not smaller.
    ceil "ceil" FLOAT
    /// The nearest whole number, halves to the even one.
    round_nearest_even "round_nearest_even" FLOAT
    /// The cosine of an angle in radians.
    cosine "cosine" FLOAT
    /// The sine of an angle in radians.
    sine "sine" FLOAT
    /// Logical not of truth values, bitwise not of integers.
    not "not" BITS
}

impl Builder {
    /// Truth values of `left comparison right`.
    ///
    /// # Errors
    /// The shapes differ.
    pub fn compare(&mut self, comparison: Comparison, left: Value, right: Value) -> Result<Value, HloError> {
        self.one("compare", [left, right], |[left, right]| {
            same_element(left, right)?;
            same_shape("the second operand", right, left)?;
            let direction = format!("#stablehlo<comparison_direction {}>", comparison.mlir());
            Ok((left.with_element(ElementType::Pred), vec![("comparison_direction", direction)]))
        })
    }

    /// `yes` where `condition` is true, `no` elsewhere. The condition is a scalar or has the shape of the others.
    ///
    /// # Errors
    /// The shapes differ, or the condition is no truth value.
    pub fn select(&mut self, condition: Value, yes: Value, no: Value) -> Result<Value, HloError> {
        self.one("select", [condition, yes, no], |[condition, yes, no]| {
            element_is(condition, "a truth value", |element| element == ElementType::Pred)?;
            same_shape("the third operand", no, yes)?;
            if condition.rank() != 0 {
                same_shape("the condition", condition, &yes.with_element(ElementType::Pred))?;
            }
            Ok((yes.clone(), Vec::new()))
        })
    }

    /// The nearest number to `operand` from `least` to `most`, which are scalars or have its shape.
    ///
    /// # Errors
    /// The shapes or element types differ.
    pub fn clamp(&mut self, least: Value, operand: Value, most: Value) -> Result<Value, HloError> {
        self.one("clamp", [least, operand, most], |[least, operand, most]| {
            element_is(operand, NUMBER.0, NUMBER.1)?;
            for (what, bound) in [("the lower bound", least), ("the upper bound", most)] {
                same_element(bound, operand)?;
                if bound.rank() != 0 {
                    same_shape(what, bound, operand)?;
                }
            }
            Ok((operand.clone(), Vec::new()))
        })
    }

    /// The same numbers in another element type. Floats round to nearest even; a float becomes an integer by rounding
    /// toward 0. The operand itself where nothing changes.
    ///
    /// # Errors
    /// None but those of a wrong handle.
    pub fn convert(&mut self, operand: Value, element: ElementType) -> Result<Value, HloError> {
        let shapes = self.shapes("convert", &[operand])?;
        if shapes.iter().all(|shape| shape.element() == element) {
            return Ok(operand);
        }
        self.one("convert", [operand], |[shape]| Ok((shape.with_element(element), Vec::new())))
    }

    /// The same bits as another element type. With a narrower type a new last dimension holds the parts of an element,
    /// lowest first; with a wider one the last dimension must hold exactly the parts, and goes away.
    ///
    /// # Errors
    /// The last dimension is not the ratio of the widths; one of the types is [`ElementType::Pred`].
    pub fn bitcast_convert(&mut self, operand: Value, element: ElementType) -> Result<Value, HloError> {
        self.one("bitcast_convert", [operand], |[shape]| {
            element_is(shape, NUMBER.0, NUMBER.1)?;
            element_is(&Shape::scalar(element), NUMBER.0, NUMBER.1)?;
            let (from, to) = (shape.element().bytes(), element.bytes());
            let mut dims = shape.dims().to_vec();
            if from > to {
                dims.push(from / to);
            } else if from < to {
                let (found, wanted) = (dims.pop().unwrap_or(1), to / from);
                if found != wanted {
                    return Err(Problem::Count { what: "the size of the last dimension", found, wanted });
                }
            }
            Ok((Shape::new(element, dims), Vec::new()))
        })
    }
}
