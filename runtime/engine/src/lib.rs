//! The bundled engine: which programs a plan needs, compiling and keeping them, what each of their steps computes, and the
//! loop that runs them.
//!
//! Invariant: programs, shapes and limits are a function of a plan and a model's configuration, so that the proof of a plan,
//! a cache that is filled ahead and the engine's own start all speak of the same programs.
//!
//! * [`steps`]: from a plan to the programs that the engine runs
//! * [`compile`]: one program compiled, for devices that are here or that are only known by name
//! * [`constraint`]: grammars that outputs keep to
//! * [`masks`]: which tokens a step's rows allow, and the programs that rule out the others
//! * [`pool`]: the paged KV cache: who holds which page, and which prefixes are still there
//! * [`engine`]: requests go in, tokens come out
//! * [`runner`]: a step run on the devices
//! * [`sampling`]: from logits to a token
//! * [`scheduler`]: which tokens of which requests a step computes
//! * [`settings`]: what a running engine does, to hold against a plan
//! * [`speculation`]: tokens that may follow, and whether computing them ahead pays
//! * [`store`]: compiled programs on disk, each with everything that decides whether it may be used

pub mod compile;
pub mod constraint;
pub mod engine;
pub mod masks;
pub mod pool;
pub mod runner;
pub mod sampling;
pub mod scheduler;
pub mod settings;
pub mod speculation;
pub mod steps;
pub mod store;
