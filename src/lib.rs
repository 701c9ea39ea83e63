//! gemma4ctl: a profile says what you want; gemma4ctl proves that it fits, says exactly what will run, and runs it.
//!
//! ```text
//! profile, catalog  ->  resolve  ->  budget  ->  lint  ->  plan  ->  emit  ->  apply  ->  cli
//! ```
//!
//! Arrows go one way: [`resolve`] fills in what a [`profile`] leaves out from the [`catalog`], [`budget`] counts bytes,
//! [`lint`] looks at both, [`plan`] puts everything together, [`emit`] makes files of a plan alone, [`apply`] runs what
//! [`emit`] would have a file say and remembers it, [`prove`] asks the compiler about it, and all of them know [`diagnostic`]. What could take the process down
//! with it runs in a [`child`]. Shapes and sharding of the model come from the crate `gemma4-model`, the plan file from
//! `gemma4-plan`; neither knows this crate.

pub mod apply;
pub mod bench;
pub mod budget;
pub mod catalog;
pub mod checkpoint;
pub mod child;
pub mod cli;
pub mod diagnostic;
pub mod emit;
pub mod lint;
pub mod plan;
pub mod profile;
pub mod prove;
pub mod resolve;
mod words;
