//! The crate from the outside: configurations of the five published sizes and of five tiny checkpoints, against figures
//! that were computed or measured elsewhere.

mod checkpoint;
mod config;
mod counts;
mod data;
mod kv;
mod names;
mod robustness;
mod sharding;
