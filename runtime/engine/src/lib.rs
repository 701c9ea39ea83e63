//! The bundled engine, as far as programs go: which ones a plan needs, compiling them, keeping them.
//!
//! Invariant: everything is a function of a plan and a model's configuration, so that the proof of a plan, a cache that is
//! filled ahead and the engine's own start all speak of the same programs.
//!
//! * [`steps`]: from a plan to the programs that the engine runs
//! * [`compile`]: one program compiled, for devices that are here or that are only known by name
//! * [`store`]: compiled programs on disk, each with everything that decides whether it may be used

pub mod compile;
pub mod steps;
pub mod store;
