//! The crate from the outside, with XLA's CPU plugin.
//!
//! The plugin is the one that `GEMMA4CTL_PJRT_CPU` names or `cargo run -p gemma4-pjrt --example install-cpu` installed.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test helpers and the lines that say what is skipped")]

mod buffers;
mod custom_calls;
mod executables;
mod plugins;
mod spmd;
mod support;
