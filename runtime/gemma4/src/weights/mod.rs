//! Weights of a checkpoint, cut for each device.
//!
//! Invariant: what a rank receives of a tensor is byte for byte the part that [`crate::sharding::place`] gives it, in its
//! local shape, row-major, in the element type asked for. Slices that lie in one piece in the file are handed out without a
//! copy; of all others at most [`LoadOptions::buffer_bytes`] are in memory at a time (or one part, if it alone is larger).
//!
//! * [`Checkpoint::open`] maps the files, reads the headers and matches every tensor against the configuration
//! * [`Checkpoint::load`] produces the parts on a few threads, for devices to take over
//! * [`Checkpoint::load_aligned`] does so from memory that devices take over without a copy, at any start but the first
//! * [`Checkpoint::part`] cuts a single tensor for a single rank
//! * [`Checkpoint::row_table`] leaves a table where it is and gives single rows of it
//!
//! How a file becomes bytes is the caller's choice ([`FileBytes`]): mapping needs unsafe code, which this crate has none of.
//! A mapped file must not shrink while it is in use; the system ends a process that touches what is gone.

mod aligned;
mod bytes;
mod convert;
mod error;
mod gate;
mod groups;
mod load;
mod open;
mod quantize;
mod rows;
mod slice;
mod work;

pub use aligned::AlignedStore;
pub use bytes::{FileBytes, LocalBytes, OWNED_ALIGNMENT};
pub use error::WeightsError;
pub use load::{Layout, LoadOptions, LoadReport, Part, Progress, Strategy, Target};
pub use open::Checkpoint;
pub use rows::RowTable;

pub use crate::checkpoint::{Ignored, IgnoredBecause, Problems, Selection};
