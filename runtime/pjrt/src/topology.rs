//! Devices known by name, for which programs are compiled.
//!
//! Invariant: a topology that a client owns keeps the client alive; one made by name is destroyed with its last user.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::api::{Api, query, slice, text};
use crate::client::ClientHandle;
use crate::device::{self, Device};
use crate::error::{Error, Result};
use crate::executable::Executable;
use crate::ffi::arguments::{Compile, TopologyCreate, TopologyDestroy, TopologySerialize};
use crate::ffi::{self, Arguments as _};
use crate::options::CompileOptions;
use crate::plugin::Plugin;
use crate::value::{NamedValues, Value};

/// A set of devices and how they are connected.
pub struct Topology {
    raw: NonNull<ffi::Topology>,
    api: &'static Api,
    /// Whose it is, when it was not made by name.
    owner: Option<Arc<ClientHandle>>,
}

// SAFETY: a topology is immutable, and PJRT asks plugins to accept calls from any thread.
unsafe impl Send for Topology {}
// SAFETY: as above.
unsafe impl Sync for Topology {}

impl Topology {
    pub(crate) fn create(plugin: Plugin, name: &str, options: &[(&str, Value)]) -> Result<Self> {
        let api = plugin.api();
        let options = NamedValues::new(options);
        let mut arguments = TopologyCreate::new();
        arguments.topology_name = name.as_ptr().cast();
        arguments.topology_name_size = name.len();
        arguments.create_options = options.as_ptr();
        arguments.num_options = options.len();
        // SAFETY: name and options outlive the call.
        unsafe { api.call("describe the topology", &mut arguments) }?;
        let raw = non_null(arguments.topology, "describe the topology")?;
        Ok(Topology { raw, api, owner: None })
    }

    pub(crate) fn of_client(client: &Arc<ClientHandle>) -> Result<Self> {
        let api = client.api();
        let raw = query!(api, "describe the client's topology", ClientTopologyDescription { client: client.raw() } => topology)?;
        let raw = non_null(raw, "describe the client's topology")?;
        Ok(Topology { raw, api, owner: Some(Arc::clone(client)) })
    }

    /// The platform, such as `tpu`.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn platform_name(&self) -> Result<String> {
        let (start, size) = query!(
            self.api, "name the platform", TopologyPlatformName { topology: self.raw.as_ptr() } => platform_name, platform_name_size
        )?;
        // SAFETY: the text lives as long as the topology.
        Ok(unsafe { text(start, size) })
    }

    /// The plugin's words for the version of its compiler.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn platform_version(&self) -> Result<String> {
        let (start, size) = query!(
            self.api, "tell its version", TopologyPlatformVersion { topology: self.raw.as_ptr() } => platform_version, platform_version_size
        )?;
        // SAFETY: the text lives as long as the topology.
        Ok(unsafe { text(start, size) })
    }

    /// All devices, in an order that stays the same within a process. A chip may count as two, as of TPU v7.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let (start, count) = query!(
            self.api, "list the devices", TopologyGetDeviceDescriptions { topology: self.raw.as_ptr() } => descriptions, num_descriptions
        )?;
        // SAFETY: the list lives as long as the topology.
        let descriptions = unsafe { slice(start, count) };
        // SAFETY: and so do the descriptions in it.
        descriptions.iter().map(|one| unsafe { device::read_description(self.api, *one, None) }).collect()
    }

    /// The topology as bytes. Equal topologies of one version of a plugin give equal bytes, so they belong into the
    /// key of a compile cache.
    ///
    /// # Errors
    /// [`crate::StatusCode::Unimplemented`] from plugins that cannot.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let mut arguments = TopologySerialize::new();
        arguments.topology = self.raw.as_ptr();
        // SAFETY: the topology is live.
        unsafe { self.api.call("serialize the topology", &mut arguments) }?;
        // SAFETY: the bytes live until the deleter is called.
        let bytes = unsafe { slice(arguments.serialized_bytes.cast::<u8>(), arguments.serialized_bytes_size) }.to_vec();
        if let Some(delete) = arguments.serialized_topology_deleter {
            // SAFETY: called once, after the last use of the bytes.
            unsafe { delete(arguments.serialized_topology) };
        }
        Ok(bytes)
    }

    /// Compiles a StableHLO program, as text or bytecode, for these devices. The result tells what the program takes,
    /// and can be serialized for a machine that has the devices.
    ///
    /// # Errors
    /// [`Error::Xla`], always from the CPU plugin, which compiles for clients only; [`Error::hbm_exceeded`] tells
    /// whether it is too large for the devices.
    pub fn compile(&self, program: &[u8], options: &CompileOptions) -> Result<Executable> {
        let options = options.serialize()?;
        let program = crate::executable::mlir_program(program);
        let mut arguments = Compile::new();
        arguments.topology = self.raw.as_ptr();
        arguments.program = &raw const program;
        arguments.compile_options = options.as_ptr().cast();
        arguments.compile_options_size = options.len();
        // SAFETY: the topology is live; program and options outlive the call, which does not change them.
        unsafe { self.api.call("compile the program", &mut arguments) }?;
        let raw = non_null(arguments.executable, "compile the program")?;
        // SAFETY: just made, and handed over.
        Ok(unsafe { Executable::new(raw, self.api, self.owner.clone()) })
    }
}

/// A pointer that a successful call must have set.
pub(crate) fn non_null<T>(pointer: *mut T, action: &'static str) -> Result<NonNull<T>> {
    NonNull::new(pointer).ok_or_else(|| Error::Answer { action, reason: "it succeeded but gave nothing".to_owned() })
}

impl Drop for Topology {
    fn drop(&mut self) {
        if self.owner.is_none() {
            let mut arguments = TopologyDestroy::new();
            arguments.topology = self.raw.as_ptr();
            // SAFETY: made by name, hence ours, live until here and not used afterwards.
            unsafe { self.api.free(&mut arguments) };
        }
    }
}

impl std::fmt::Debug for Topology {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Topology").field("platform", &self.platform_name().ok()).finish_non_exhaustive()
    }
}
