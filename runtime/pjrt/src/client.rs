//! The devices of this machine.
//!
//! Invariant: the client outlives everything made by it, because each such thing holds a share of its handle.

use std::ptr::NonNull;
use std::sync::Arc;

use crate::api::{Api, query, slice, text};
use crate::buffer::Buffer;
use crate::device::{self, Device, MemoryUse};
use crate::element::{Element, ElementType};
use crate::error::{Error, Result};
use crate::executable::{LoadedExecutable, mlir_program};
use crate::ffi::arguments::{ClientCompile, ClientCreate, ClientDestroy, ExecutableDeserializeAndLoad};
use crate::ffi::{self, Arguments as _};
use crate::host::HostBytes;
use crate::options::CompileOptions;
use crate::plugin::Plugin;
use crate::topology::{Topology, non_null};
use crate::value::{NamedValues, Value};

/// The client's pointer, destroyed with the last share.
pub(crate) struct ClientHandle {
    raw: NonNull<ffi::Client>,
    plugin: Plugin,
    /// Addressable devices in the plugin's order; they live as long as the client.
    devices: Vec<(*mut ffi::Device, Device)>,
}

// SAFETY: PJRT asks plugins to accept calls on a client and its devices from any thread.
unsafe impl Send for ClientHandle {}
// SAFETY: as above; nothing here is changed through a shared reference.
unsafe impl Sync for ClientHandle {}

impl ClientHandle {
    pub(crate) fn raw(&self) -> *mut ffi::Client {
        self.raw.as_ptr()
    }

    pub(crate) fn api(&self) -> &'static Api {
        self.plugin.api()
    }

    /// The device at a position.
    pub(crate) fn device(&self, index: usize) -> Result<*mut ffi::Device> {
        let count = self.devices.len();
        self.devices.get(index).map(|entry| entry.0).ok_or(Error::NoSuchDevice { index, count })
    }

    /// The position of a device.
    pub(crate) fn position(&self, device: *mut ffi::Device, action: &'static str) -> Result<usize> {
        let unknown = || Error::Answer { action, reason: "it names a device that the client does not list".to_owned() };
        self.devices.iter().position(|entry| entry.0 == device).ok_or_else(unknown)
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        let mut arguments = ClientDestroy::new();
        arguments.client = self.raw();
        // SAFETY: the last share: nothing made by the client is left.
        unsafe { self.api().free(&mut arguments) };
    }
}

/// The devices of one kind on this machine, ready to compile and run programs. Clones mean the same client.
///
/// Devices are named by their position in [`Client::devices`].
#[derive(Clone)]
pub struct Client {
    handle: Arc<ClientHandle>,
}

impl Client {
    pub(crate) fn create(plugin: Plugin, options: &[(&str, Value)]) -> Result<Self> {
        let api = plugin.api();
        let options = NamedValues::new(options);
        let mut arguments = ClientCreate::new();
        arguments.create_options = options.as_ptr();
        arguments.num_options = options.len();
        // SAFETY: options outlive the call; the callbacks for several hosts may be null.
        unsafe { api.call("open the devices", &mut arguments) }?;
        let raw = non_null(arguments.client, "open the devices")?;
        // Owned from here on, so that an error below destroys it.
        let mut handle = ClientHandle { raw, plugin, devices: Vec::new() };
        let (start, count) = query!(
            api, "list the devices", ClientAddressableDevices { client: handle.raw() } => addressable_devices, num_addressable_devices
        )?;
        // SAFETY: the list lives as long as the client.
        for device in unsafe { slice(start, count) } {
            // SAFETY: and so do the devices in it.
            let description = unsafe { device::read_device(api, *device) }?;
            handle.devices.push((*device, description));
        }
        Ok(Client { handle: Arc::new(handle) })
    }

    /// The plugin that it was made by.
    pub fn plugin(&self) -> Plugin {
        self.handle.plugin
    }

    /// The platform: `cpu`, `tpu`, `cuda`.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn platform_name(&self) -> Result<String> {
        let (start, size) = query!(
            self.handle.api(), "name the platform", ClientPlatformName { client: self.handle.raw() } => platform_name, platform_name_size
        )?;
        // SAFETY: the text lives as long as the client.
        Ok(unsafe { text(start, size) })
    }

    /// The plugin's words for the version of driver and compiler.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn platform_version(&self) -> Result<String> {
        let (start, size) = query!(
            self.handle.api(), "tell its version", ClientPlatformVersion { client: self.handle.raw() } => platform_version, platform_version_size
        )?;
        // SAFETY: the text lives as long as the client.
        Ok(unsafe { text(start, size) })
    }

    /// Number of devices of all hosts.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn global_device_count(&self) -> Result<usize> {
        query!(self.handle.api(), "list the devices", ClientDevices { client: self.handle.raw() } => num_devices)
    }

    /// The devices that this process can give work to.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = &Device> {
        self.handle.devices.iter().map(|entry| &entry.1)
    }

    /// Number of devices that this process can give work to.
    pub fn device_count(&self) -> usize {
        self.handle.devices.len()
    }

    /// Memory of a device as its allocator counts it now.
    ///
    /// # Errors
    /// [`Error::NoSuchDevice`]; [`crate::StatusCode::Unimplemented`] where nobody counts, as on CPUs.
    pub fn memory_use(&self, device: usize) -> Result<MemoryUse> {
        let device = self.handle.device(device)?;
        // SAFETY: the device lives as long as the client.
        unsafe { device::memory_use(self.handle.api(), device) }
    }

    /// These devices as a topology.
    ///
    /// # Errors
    /// [`crate::StatusCode::Unimplemented`] from plugins that have none.
    pub fn topology(&self) -> Result<Topology> {
        Topology::of_client(&self.handle)
    }

    /// Compiles a StableHLO program, as text or bytecode, and loads it.
    ///
    /// # Errors
    /// [`Error::Xla`]; [`Error::hbm_exceeded`] tells whether it is too large for the devices.
    pub fn compile(&self, program: &[u8], options: &CompileOptions) -> Result<LoadedExecutable> {
        let options = options.serialize()?;
        let program = mlir_program(program);
        let mut arguments = ClientCompile::new();
        arguments.client = self.handle.raw();
        arguments.program = &raw const program;
        arguments.compile_options = options.as_ptr().cast();
        arguments.compile_options_size = options.len();
        // SAFETY: the client is live; program and options outlive the call, which does not change them.
        unsafe { self.handle.api().call("compile the program", &mut arguments) }?;
        let raw = non_null(arguments.executable, "compile the program")?;
        // SAFETY: just made, and handed over.
        unsafe { LoadedExecutable::new(raw, &self.handle) }
    }

    /// Loads what [`crate::Executable::serialize`] gave. **An executable is code**: load only bytes that come from a
    /// place that nobody else can write to. They must be from the same version of the same plugin.
    ///
    /// # Errors
    /// [`Error::Xla`] when the plugin does not understand the bytes.
    pub fn load(&self, serialized: &[u8]) -> Result<LoadedExecutable> {
        let mut arguments = ExecutableDeserializeAndLoad::new();
        arguments.client = self.handle.raw();
        arguments.serialized_executable = serialized.as_ptr().cast();
        arguments.serialized_executable_size = serialized.len();
        // SAFETY: the client is live and the bytes outlive the call.
        unsafe { self.handle.api().call("load the executable", &mut arguments) }?;
        let raw = non_null(arguments.loaded_executable, "load the executable")?;
        // SAFETY: just made, and handed over.
        unsafe { LoadedExecutable::new(raw, &self.handle) }
    }

    /// Copies an array to a device. `bytes` are the elements in row-major order, little-endian as in memory.
    ///
    /// # Errors
    /// [`Error::Size`] when bytes and shape differ, [`Error::NoSuchDevice`], [`Error::Xla`] when memory is short.
    pub fn buffer(&self, bytes: &[u8], element: ElementType, dims: &[i64], device: usize) -> Result<Buffer> {
        Buffer::copy_from_host(&self.handle, bytes, element, dims, device)
    }

    /// [`Client::buffer`] of numbers.
    ///
    /// # Errors
    /// As for [`Client::buffer`].
    pub fn buffer_of<T: Element>(&self, values: &[T], dims: &[i64], device: usize) -> Result<Buffer> {
        self.buffer(bytemuck::cast_slice(values), T::TYPE, dims, device)
    }

    /// Lends memory of the host to a device. On CPUs nothing is copied when the bytes begin at a multiple of
    /// [`HostBytes::ALIGNMENT`], and the memory is kept as long as the buffer lives; else XLA copies, and it is kept
    /// until the copy is done. The memory is never written: a donated buffer of this kind is copied first.
    ///
    /// # Errors
    /// As for [`Client::buffer`].
    pub fn borrow(&self, bytes: HostBytes, element: ElementType, dims: &[i64], device: usize) -> Result<Buffer> {
        Buffer::borrow_from_host(&self.handle, bytes, element, dims, device)
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Client")
            .field("plugin", &self.handle.plugin)
            .field("devices", &self.handle.devices.len())
            .finish()
    }
}
