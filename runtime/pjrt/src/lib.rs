//! XLA through the PJRT C ABI, in safe Rust.
//!
//! Invariant: no sequence of safe calls, and no wrong answer of XLA's, leads to undefined behaviour; what XLA refuses
//! comes back as [`Error::Xla`] with its own words. What has to be trusted is the plugin itself: loading a library
//! runs it, see [`Plugin::load`].
//!
//! ```text
//! Plugin --client--> Client --compile--> LoadedExecutable --launch--> Execution { outputs: Buffer, done: Event }
//!    |                  `----buffer----> Buffer
//!    `---topology---> Topology --compile--> Executable (bytes and costs, without any device)
//! ```
//!
//! * [`install`] brings plugins onto the machine and finds them again.
//! * [`custom_call`] puts Rust functions into compiled programs.
//! * [`mapped`] gives files as memory that buffers can borrow.
//!
//! Everything here can be shared between threads: PJRT asks plugins to be safe to call from any thread, and the values
//! that it hands out keep what they depend on alive.

mod api;
mod buffer;
mod client;
pub mod custom_call;
mod device;
mod element;
pub mod environment;
mod error;
mod event;
mod executable;
mod ffi;
mod host;
pub mod install;
mod launch;
pub mod mapped;
mod options;
mod plugin;
mod topology;
mod value;

pub use buffer::Buffer;
pub use client::Client;
pub use device::{Device, MemoryUse};
pub use element::{Element, ElementType};
pub use error::{Error, HbmExceeded, Result, StatusCode};
pub use event::Event;
pub use executable::{Executable, LoadedExecutable, MemoryStats, OutputShape};
pub use host::HostBytes;
pub use launch::{Argument, Execution};
pub use options::{CompileOptions, DeviceAssignment, Override};
pub use plugin::{ApiVersion, OLDEST_API, Plugin};
pub use topology::Topology;
pub use value::Value;
