//! The bundled engine's hot operators on CPUs.
//!
//! Invariant: what is computed is what the step's StableHLO form computes, with sums in f32 and results rounded once; the
//! arguments decide everything, and arguments that do not fit together are an error.
//!
//! * [`register`]: makes them known to a plugin, before programs with calls are compiled or loaded
//! * [`attention`]: attention over the pages of the KV cache, and writing to them
//! * [`experts`]: the mixture of experts
//! * [`linear`]: rows times a weight matrix

pub mod attention;
mod blocked;
mod dot;
pub mod experts;
mod functions;
mod handlers;
pub mod linear;
mod number;
mod threads;
mod vectors;

pub use handlers::register;
pub use number::Number;
