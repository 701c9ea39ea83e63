//! The bundled engine's hot operators on CPUs.
//!
//! Invariant: what is computed is what the step's StableHLO form computes, with sums in f32 and results rounded once; the
//! arguments decide everything, and arguments that do not fit together are an error.
//!
//! * [`register`]: makes them known to a plugin, before programs with calls are compiled or loaded
//! * [`attention`]: attention over the pages of the KV cache, and writing to them
//! * [`experts`]: the mixture of experts
//! * [`heads`]: norms and turns of queries, keys and values
//! * [`linear`]: rows times weight matrices
//! * [`norm`]: root-mean-square norms
//! * [`profile`]: what each of them costs
//! * [`weights`]: matrices of weights, as they are or as integers with scales

#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod blocked;
mod bounds;
mod dot;
pub mod experts;
#[cfg(test)]
mod forms;
mod functions;
mod handlers;
pub mod heads;
mod int4;
#[cfg(target_arch = "x86_64")]
mod int8;
pub mod linear;
mod matrix;
pub mod norm;
mod number;
#[cfg(target_arch = "x86_64")]
mod panels;
mod products;
pub mod profile;
mod softmax;
mod stored;
mod sums;
mod threads;
mod vectors;
pub mod weights;
mod work;

pub use handlers::register;
pub use number::{Number, Weight};
pub use weights::Weights;
