//! The plan file: what exactly will run.
//!
//! A [`Plan`] is the one interface between the compiler half of gemma4ctl, which writes it, and everything that acts
//! on it: emitters, launchers, and the bundled runtime. Two invariants hold:
//!
//! * the **digest** names what runs: equal digests mean the same model, engine settings, sharding, buckets and cache
//!   layout, on any machine and at any time (module [`digest`]);
//! * the **checksum** covers every byte of the file, so a plan that was edited or damaged is refused when it is read
//!   (module [`file`]).

pub mod digest;
pub mod file;
mod types;

pub use file::{PlanError, read, to_json};
pub use types::*;

/// The format this crate writes and reads. A reader refuses any other.
pub const FORMAT: &str = "gemma4ctl.plan/1";

/// The JSON Schema of a plan file.
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(Plan).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".into(), "gemma4ctl plan".into());
    }
    schema
}
