//! The weight loader from the outside, held against the safetensors library.

mod aligned;
mod data;
mod errors;
mod fixtures;
mod hostile;
mod loading;
mod quantized;
mod rows;
mod seeded;
mod slices;
