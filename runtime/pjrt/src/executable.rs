//! Compiled programs: what they take, give and cost.
//!
//! Invariant: a loaded executable keeps its client alive; numbers are the compiler's own, per device.

use std::collections::BTreeMap;
use std::mem::size_of;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::api::{Api, query, slice, text};
use crate::client::ClientHandle;
use crate::element::ElementType;
use crate::error::{Error, Result};
use crate::ffi::arguments::{
    ExecutableDestroy, ExecutableGetCompiledMemoryStats, ExecutableOptimizedProgram, ExecutableSerialize,
    LoadedExecutableDestroy,
};
use crate::ffi::{self, Arguments as _};
use crate::topology::non_null;
use crate::value::{self, Value};

/// A compiled program that need not be loaded anywhere.
pub struct Executable {
    raw: NonNull<ffi::Executable>,
    api: &'static Api,
    /// Kept alive when the program was compiled by a client or for a client's topology.
    _owner: Option<Arc<ClientHandle>>,
}

// SAFETY: an executable is immutable, and PJRT asks plugins to accept calls from any thread.
unsafe impl Send for Executable {}
// SAFETY: as above.
unsafe impl Sync for Executable {}

/// Bytes that a program takes on one device, in the device's own memory unless the name says host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryStats {
    /// The program itself.
    pub generated_code: i64,
    /// All arguments, donated ones among them.
    pub arguments: i64,
    /// All outputs.
    pub outputs: i64,
    /// What outputs share with donated arguments.
    pub aliased: i64,
    /// Intermediate values, as the compiler laid them out.
    pub temporaries: i64,
    /// The most that is live at once, when the compiler tells.
    pub peak: Option<i64>,
    /// Arguments in the host's memory.
    pub host_arguments: i64,
    /// Outputs in the host's memory.
    pub host_outputs: i64,
    /// Intermediate values in the host's memory.
    pub host_temporaries: i64,
}

impl MemoryStats {
    /// Bytes that a device needs while the program runs: arguments, outputs that are not aliased, temporaries and code.
    pub fn total(&self) -> i64 {
        self.arguments + self.outputs - self.aliased + self.temporaries + self.generated_code
    }
}

/// Type and shape of one output on one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputShape {
    /// Type of the elements.
    pub element: ElementType,
    /// Dimensions, outermost first.
    pub dims: Vec<i64>,
}

impl Executable {
    /// Takes over an executable.
    ///
    /// # Safety
    /// `raw` is live, belongs to this plugin, and nobody else destroys it; `owner` is what it depends on.
    pub(crate) unsafe fn new(
        raw: NonNull<ffi::Executable>,
        api: &'static Api,
        owner: Option<Arc<ClientHandle>>,
    ) -> Self {
        Executable { raw, api, _owner: owner }
    }

    fn raw(&self) -> *mut ffi::Executable {
        self.raw.as_ptr()
    }

    /// The program's name.
    ///
    /// # Errors
    /// What the plugin says; so for every method here.
    pub fn name(&self) -> Result<String> {
        let (start, size) = query!(
            self.api, "name the executable", ExecutableName { executable: self.raw() } => executable_name, executable_name_size
        )?;
        // SAFETY: the text lives as long as the executable.
        Ok(unsafe { text(start, size) })
    }

    /// Equal for equal program, options and compiler.
    ///
    /// # Errors
    /// [`crate::StatusCode::Unimplemented`] from plugins that have none.
    pub fn fingerprint(&self) -> Result<Vec<u8>> {
        let (start, size) = query!(
            self.api, "fingerprint the executable", ExecutableFingerprint { executable: self.raw() } => executable_fingerprint, executable_fingerprint_size
        )?;
        // SAFETY: the bytes live as long as the executable.
        Ok(unsafe { slice(start.cast::<u8>(), size) }.to_vec())
    }

    /// Number of replicas.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn num_replicas(&self) -> Result<usize> {
        query!(self.api, "count replicas", ExecutableNumReplicas { executable: self.raw() } => num_replicas)
    }

    /// Number of partitions.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn num_partitions(&self) -> Result<usize> {
        query!(self.api, "count partitions", ExecutableNumPartitions { executable: self.raw() } => num_partitions)
    }

    /// Number of outputs on each device.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn num_outputs(&self) -> Result<usize> {
        query!(self.api, "count outputs", ExecutableNumOutputs { executable: self.raw() } => num_outputs)
    }

    /// Types and shapes of the outputs on each device.
    ///
    /// # Errors
    /// [`Error::ElementType`] for a type that this crate does not carry, and what the plugin says.
    pub fn outputs(&self) -> Result<Vec<OutputShape>> {
        let action = "describe the outputs";
        let (types, count) = query!(
            self.api, "describe the outputs", ExecutableOutputElementTypes { executable: self.raw() } => output_types, num_output_types
        )?;
        let (dims, ranks, ranks_count) = query!(
            self.api, "describe the outputs", ExecutableOutputDimensions { executable: self.raw() } => dims, dim_sizes, num_outputs
        )?;
        // SAFETY: both lists live as long as the executable.
        let (types, ranks) = unsafe { (slice(types, count), slice(ranks, ranks_count)) };
        if types.len() != ranks.len() {
            let reason = format!("{} types for {} shapes", types.len(), ranks.len());
            return Err(Error::Answer { action, reason });
        }
        let total = ranks.iter().sum();
        // SAFETY: the list holds the dimensions of all outputs one after another, and lives as long as the executable.
        let mut dims = unsafe { slice(dims, total) };
        let mut outputs = Vec::with_capacity(types.len());
        for (number, rank) in types.iter().zip(ranks) {
            let Some((own, rest)) = dims.split_at_checked(*rank) else {
                return Err(Error::Answer { action, reason: "it lists too few dimensions".to_owned() });
            };
            outputs.push(OutputShape { element: ElementType::from_raw(*number)?, dims: own.to_vec() });
            dims = rest;
        }
        Ok(outputs)
    }

    /// Bytes on one device.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn memory_stats(&self) -> Result<MemoryStats> {
        let mut arguments = ExecutableGetCompiledMemoryStats::new();
        arguments.executable = self.raw();
        // No peak is negative, so this stays when the plugin does not tell.
        arguments.peak_memory_in_bytes = -1;
        // SAFETY: the executable is live.
        unsafe { self.api.call("count the program's memory", &mut arguments) }?;
        Ok(MemoryStats {
            generated_code: arguments.generated_code_size_in_bytes,
            arguments: arguments.argument_size_in_bytes,
            outputs: arguments.output_size_in_bytes,
            aliased: arguments.alias_size_in_bytes,
            temporaries: arguments.temp_size_in_bytes,
            peak: Some(arguments.peak_memory_in_bytes).filter(|peak| *peak >= 0),
            host_arguments: arguments.host_argument_size_in_bytes,
            host_outputs: arguments.host_output_size_in_bytes,
            host_temporaries: arguments.host_temp_size_in_bytes,
        })
    }

    /// The compiler's estimates, such as `flops` and `bytes accessed`. They leave out custom calls, and are not all
    /// reliable: `optimal_seconds` has been seen negative.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn cost_analysis(&self) -> Result<BTreeMap<String, Value>> {
        let (start, count) = query!(
            self.api, "estimate the program's cost", ExecutableGetCostAnalysis { executable: self.raw() } => properties, num_properties
        )?;
        // SAFETY: the values live as long as the executable.
        Ok(unsafe { value::copy(start, count) })
    }

    /// The program after optimization and the name of its format: `hlo` is a serialized `HloModuleProto`,
    /// `hlo_with_config` one with its configuration. The C API has no way to text.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn optimized_program(&self) -> Result<(String, Vec<u8>)> {
        let action = "give the optimized program";
        let mut program = ffi::Program {
            struct_size: size_of::<ffi::Program>(),
            extension_start: ptr::null_mut(),
            code: ptr::null_mut(),
            code_size: 0,
            format: ptr::null(),
            format_size: 0,
        };
        let mut arguments = ExecutableOptimizedProgram::new();
        arguments.executable = self.raw();
        arguments.program = &raw mut program;
        // SAFETY: without `code`, the call only tells how much there is to write.
        unsafe { self.api.call(action, &mut arguments) }?;
        let mut code = vec![0_u8; program.code_size];
        program.code = code.as_mut_ptr().cast();
        arguments.program = &raw mut program;
        // SAFETY: `code` has as many bytes as the first call asked for.
        unsafe { self.api.call(action, &mut arguments) }?;
        // SAFETY: the format is the plugin's own text, which lives as long as the executable.
        Ok((unsafe { text(program.format, program.format_size) }, code))
    }

    /// The compiled program as bytes for [`crate::Client::load`], good for the same version of the same plugin.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn serialize(&self) -> Result<Vec<u8>> {
        let mut arguments = ExecutableSerialize::new();
        arguments.executable = self.raw();
        // SAFETY: the executable is live.
        unsafe { self.api.call("serialize the executable", &mut arguments) }?;
        // SAFETY: the bytes live until the deleter is called.
        let bytes = unsafe { slice(arguments.serialized_bytes.cast::<u8>(), arguments.serialized_bytes_size) }.to_vec();
        if let Some(delete) = arguments.serialized_executable_deleter {
            // SAFETY: called once, after the last use of the bytes.
            unsafe { delete(arguments.serialized_executable) };
        }
        Ok(bytes)
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        let mut arguments = ExecutableDestroy::new();
        arguments.executable = self.raw();
        // SAFETY: live until here, and not used afterwards.
        unsafe { self.api.free(&mut arguments) };
    }
}

impl std::fmt::Debug for Executable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Executable").field("name", &self.name().ok()).finish_non_exhaustive()
    }
}

/// A compiled program on the devices that run it.
pub struct LoadedExecutable {
    handle: LoadedHandle,
    executable: Executable,
    num_outputs: usize,
    devices: Vec<usize>,
}

/// The pointer, destroyed once.
struct LoadedHandle {
    raw: NonNull<ffi::LoadedExecutable>,
    client: Arc<ClientHandle>,
}

// SAFETY: PJRT asks plugins to accept calls, executions among them, from any thread.
unsafe impl Send for LoadedHandle {}
// SAFETY: as above.
unsafe impl Sync for LoadedHandle {}

impl Drop for LoadedHandle {
    fn drop(&mut self) {
        let mut arguments = LoadedExecutableDestroy::new();
        arguments.executable = self.raw.as_ptr();
        // SAFETY: live until here, and not used afterwards; executions that still run hold on to what they need.
        unsafe { self.client.api().free(&mut arguments) };
    }
}

impl LoadedExecutable {
    /// Takes over a loaded executable.
    ///
    /// # Safety
    /// `raw` is live, belongs to this client, and nobody else destroys it.
    pub(crate) unsafe fn new(raw: NonNull<ffi::LoadedExecutable>, client: &Arc<ClientHandle>) -> Result<Self> {
        let handle = LoadedHandle { raw, client: Arc::clone(client) };
        let api = client.api();
        let action = "look at the loaded executable";
        let inner = query!(
            api, "look at the loaded executable", LoadedExecutableGetExecutable { loaded_executable: raw.as_ptr() } => executable
        )?;
        // SAFETY: just made for the caller, who has to destroy it.
        let executable = unsafe { Executable::new(non_null(inner, action)?, api, Some(Arc::clone(client))) };
        let (start, count) = query!(
            api, "look at the loaded executable", LoadedExecutableAddressableDevices { executable: raw.as_ptr() }
                => addressable_devices, num_addressable_devices
        )?;
        // SAFETY: the list lives as long as the executable.
        let devices = unsafe { slice(start, count) };
        let devices = devices.iter().map(|device| client.position(*device, action)).collect::<Result<_>>()?;
        let num_outputs = executable.num_outputs()?;
        Ok(LoadedExecutable { handle, executable, num_outputs, devices })
    }

    /// What can be asked of the program.
    pub fn executable(&self) -> &Executable {
        &self.executable
    }

    /// Positions of the devices that run it, in the order of the argument lists.
    pub fn devices(&self) -> &[usize] {
        &self.devices
    }

    /// Number of outputs on each device.
    pub fn num_outputs(&self) -> usize {
        self.num_outputs
    }

    pub(crate) fn raw(&self) -> *mut ffi::LoadedExecutable {
        self.handle.raw.as_ptr()
    }

    pub(crate) fn client(&self) -> &Arc<ClientHandle> {
        &self.handle.client
    }
}

impl std::fmt::Debug for LoadedExecutable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.executable.name().ok();
        formatter.debug_struct("LoadedExecutable").field("name", &name).field("devices", &self.devices).finish()
    }
}

/// A program for the compiler. Borrows the bytes, which the compiler does not change.
pub(crate) fn mlir_program(code: &[u8]) -> ffi::Program {
    const FORMAT: &str = "mlir";
    ffi::Program {
        struct_size: size_of::<ffi::Program>(),
        extension_start: ptr::null_mut(),
        code: code.as_ptr().cast_mut().cast(),
        code_size: code.len(),
        format: FORMAT.as_ptr().cast(),
        format_size: FORMAT.len(),
    }
}
