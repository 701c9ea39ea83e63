//! Gemma 4 as data: from a `config.json` to every tensor, its shard on a device, its weights, and the bytes of the KV cache.
//!
//! Invariant: shapes, shards and sizes are pure functions of a configuration (plus a mesh, a data type or a block size). Only
//! files that a caller names are read or written, and no input makes these functions panic. The memory budget, the
//! plan, the graph builder and the weight loader all call the same functions, so they cannot disagree about a shape.
//!
//! * [`config`]: the published and the per-layer form of `config.json`, resolved to one [`Config`]
//! * [`tensors`]: names, shapes and roles of all tensors of a checkpoint, and parameter counts
//! * [`sharding`]: the bundled engine's manual tensor parallelism
//! * [`graph`]: one step of the language model as a program for XLA
//! * [`kv`]: pages of the KV cache
//! * [`checkpoint`]: headers of safetensors files, and which of their tensors belong to the model
//! * [`quantization`]: which weights are quantized while they are loaded, and what becomes of them
//! * [`weights`]: the weights themselves, cut for each device
//! * [`tokenizer`]: text to token ids and back, at once or as tokens come
//! * [`chat`]: a conversation as one prompt, by the template of the checkpoint
//! * [`output`]: what a model wrote, told apart: thoughts, the answer, calls of tools
//! * [`generation`]: where a checkpoint stops, and how it wants to be sampled
//! * [`seeded`]: a tiny model with random weights, for runs without a download
//!
//! Dimension names used in the documentation: `V` vocabulary, `H` hidden size, `L` layers, `P` width of the per-layer
//! embeddings, `I` width of an MLP, `E` experts, `D` width of a vision or audio tower, `W` the sliding window in tokens.

pub mod chat;
pub mod checkpoint;
pub mod config;
mod dtype;
mod files;
pub mod generation;
pub mod graph;
pub mod kv;
pub mod output;
pub mod quantization;
pub mod seeded;
pub mod sharding;
pub mod tensors;
pub mod tokenizer;
pub mod weights;

pub use config::{AttentionKind, Config, ConfigError, RawConfig};
pub use dtype::{DType, UnknownDType};
pub use files::FileError;
