//! A StableHLO builder.
//!
//! Invariant: a [`Module`] only ever holds operations whose shapes and element types agree, so its text parses and
//! verifies. Every operation is a method of [`Builder`] that returns the new [`Value`] or an [`HloError`] that names the
//! operation, the scope and the shapes. The crate knows nothing of PJRT: it makes text.
//!
//! ```
//! use gemma4_hlo::{ElementType, Module, Parallelism, Parameter, Shape};
//!
//! let mut module = Module::new("scale", Parallelism::Single)?;
//! let x = Parameter::new("x", Shape::new(ElementType::F32, [2, 3]));
//! module.main(&[x], |b, args| {
//!     let half = b.splat(0.5_f32, &[2, 3])?;
//!     let y = b.scope("scale", |b| b.multiply(args[0], half))?;
//!     Ok(vec![y])
//! })?;
//! assert!(module.text().contains("stablehlo.multiply"));
//! # Ok::<(), gemma4_hlo::HloError>(())
//! ```
//!
//! All operations are printed in MLIR's generic form, which depends on no operation's own syntax and so is the form that
//! changes least from one StableHLO version to the next.

mod attributes;
mod builder;
mod error;
mod literal;
mod module;
mod ops;
mod print;
mod types;

pub use builder::{Builder, Value};
pub use error::{HloError, Problem};
pub use half::{bf16, f16};
pub use literal::Native;
pub use module::{Function, Module, Parallelism, Parameter};
pub use ops::{
    Attribute, Combine, Comparison, CustomCall, DotDimensions, GatherDimensions, Groups, Precision, ScatterDimensions,
};
pub use types::{ElementType, Shape};
