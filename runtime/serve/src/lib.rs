//! The OpenAI-compatible HTTP service of the bundled engine.
//!
//! Invariants:
//! * a field of a request is implemented or refused by name, never ignored ([`fields`] is the one table of them);
//! * a client that is slow, silent or gone holds up nobody else;
//! * text that a client reads is what the tokens say, whatever the pieces that it comes in.
//!
//! [`serve`] is the whole service: it makes its own threads, and returns when the shutdown that the caller gives is over.
//! A request goes through `http` (routes, keys, limits), `request` (JSON to tokens), `generate` (tokens to text and stop
//! strings), and `answer` (text to JSON and events); `record` and `metrics` watch.

mod answer;
mod docs;
mod error;
pub mod fields;
mod generate;
mod http;
pub mod logging;
mod metrics;
mod openapi;
mod options;
mod record;
mod request;
mod server;
mod service;
mod stop;

pub use docs::request_fields;
pub use openapi::{document as openapi, example as openapi_example};
pub use options::{ApiKeys, Parsers, ServeOptions};
pub use server::{Outcome, ServeError, serve};
pub use service::Service;
