//! gemma4ctl: a profile says what you want; gemma4ctl proves that it fits, says exactly what will run, and runs it.
//!
//! ```text
//! profile  ->  plan::resolve  ->  budget, lint  ->  plan
//! ```
//!
//! Each arrow is one module, and arrows go one way: [`cli`] knows everything, [`plan`] knows [`budget`] and [`lint`],
//! those know [`profile`] and [`catalog`], and all of them know [`diagnostic`]. Shapes and sharding of the model come
//! from the crate `gemma4-model`, the plan file from `gemma4-plan`; neither knows this crate.

pub mod budget;
pub mod catalog;
pub mod cli;
pub mod diagnostic;
pub mod lint;
pub mod plan;
pub mod profile;
mod words;
