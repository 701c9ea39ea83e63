//! One struct per function of the table: its arguments, going in and coming out.
//!
//! Invariant: field names and order are the header's, so that a reader can hold the two side by side.

use std::ffi::{c_char, c_int, c_void};
use std::mem::{MaybeUninit, offset_of, size_of};

use super::{
    Arguments, Buffer, Client, Device, DeviceDescription, Error, Event, Executable, ExecuteOptions, ExtensionBase,
    LoadedExecutable, Memory, MemoryLayout, NamedValue, Program, SerializedExecutable, SerializedTopology, Topology,
};

/// Where the last of `fields` ends.
const fn end(fields: &[(&str, usize, usize)]) -> usize {
    let mut end = 0;
    let mut index = 0;
    while index < fields.len() {
        end = fields[index].1 + fields[index].2;
        index += 1;
    }
    end
}

macro_rules! arguments {
    ($($name:ident = $function:literal at $slot:literal { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            #[repr(C)]
            pub(crate) struct $name {
                pub(crate) struct_size: usize,
                pub(crate) extension_start: *mut ExtensionBase,
                $(pub(crate) $field: $type,)*
            }

            // SAFETY: `repr(C)`, compared with the header by `super::tests`; pointers, numbers, booleans and optional
            // function pointers are all valid when zero.
            unsafe impl Arguments for $name {
                const SLOT: usize = $slot;
                const NAME: &'static str = $function;
                const STRUCT_SIZE: usize = end($name::FIELDS);

                fn new() -> Self {
                    // SAFETY: a safe value, by this trait's promise.
                    let mut arguments: Self = unsafe { MaybeUninit::zeroed().assume_init() };
                    arguments.struct_size = Self::STRUCT_SIZE;
                    arguments
                }
            }

            impl $name {
                /// Name, offset and size in bytes of every field.
                pub(crate) const FIELDS: &'static [(&'static str, usize, usize)] = &[
                    ("struct_size", 0, size_of::<usize>()),
                    ("extension_start", offset_of!($name, extension_start), size_of::<usize>()),
                    $((stringify!($field), offset_of!($name, $field), size_of::<$type>()),)*
                ];
            }
        )*

        /// A function: its name, its slot, and its arguments' fields with offset and size.
        #[cfg(test)]
        pub(crate) type Layout = (&'static str, usize, &'static [(&'static str, usize, usize)]);

        /// All functions that are bound.
        #[cfg(test)]
        pub(crate) const LAYOUTS: &[Layout] = &[$(($function, $slot, $name::FIELDS)),*];
    };
}

arguments! {
    ErrorDestroy = "PJRT_Error_Destroy" at 0 { error: *mut Error }
    ErrorMessage = "PJRT_Error_Message" at 1 { error: *const Error, message: *const c_char, message_size: usize }
    ErrorGetCode = "PJRT_Error_GetCode" at 2 { error: *const Error, code: c_int }
    PluginInitialize = "PJRT_Plugin_Initialize" at 3 {}
    PluginAttributes = "PJRT_Plugin_Attributes" at 4 { attributes: *const NamedValue, num_attributes: usize }

    EventDestroy = "PJRT_Event_Destroy" at 5 { event: *mut Event }
    EventIsReady = "PJRT_Event_IsReady" at 6 { event: *mut Event, is_ready: bool }
    EventAwait = "PJRT_Event_Await" at 8 { event: *mut Event }
    EventOnReady = "PJRT_Event_OnReady" at 9 {
        event: *mut Event,
        callback: Option<unsafe extern "C" fn(*mut Error, *mut c_void)>,
        user_arg: *mut c_void,
    }

    ClientCreate = "PJRT_Client_Create" at 10 {
        create_options: *const NamedValue,
        num_options: usize,
        kv_get_callback: *mut c_void,
        kv_get_user_arg: *mut c_void,
        kv_put_callback: *mut c_void,
        kv_put_user_arg: *mut c_void,
        client: *mut Client,
        kv_try_get_callback: *mut c_void,
        kv_try_get_user_arg: *mut c_void,
    }
    ClientDestroy = "PJRT_Client_Destroy" at 11 { client: *mut Client }
    ClientPlatformName = "PJRT_Client_PlatformName" at 12 {
        client: *mut Client,
        platform_name: *const c_char,
        platform_name_size: usize,
    }
    ClientPlatformVersion = "PJRT_Client_PlatformVersion" at 14 {
        client: *mut Client,
        platform_version: *const c_char,
        platform_version_size: usize,
    }
    ClientDevices = "PJRT_Client_Devices" at 15 {
        client: *mut Client,
        devices: *const *mut Device,
        num_devices: usize,
    }
    ClientAddressableDevices = "PJRT_Client_AddressableDevices" at 16 {
        client: *mut Client,
        addressable_devices: *const *mut Device,
        num_addressable_devices: usize,
    }
    ClientCompile = "PJRT_Client_Compile" at 20 {
        client: *mut Client,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        executable: *mut LoadedExecutable,
    }
    ClientBufferFromHostBuffer = "PJRT_Client_BufferFromHostBuffer" at 22 {
        client: *mut Client,
        data: *const c_void,
        type_: c_int,
        dims: *const i64,
        num_dims: usize,
        byte_strides: *const i64,
        num_byte_strides: usize,
        host_buffer_semantics: c_int,
        device: *mut Device,
        memory: *mut Memory,
        device_layout: *mut MemoryLayout,
        done_with_host_buffer: *mut Event,
        buffer: *mut Buffer,
    }

    DescriptionId = "PJRT_DeviceDescription_Id" at 23 { device_description: *mut DeviceDescription, id: c_int }
    DescriptionProcessIndex = "PJRT_DeviceDescription_ProcessIndex" at 24 {
        device_description: *mut DeviceDescription,
        process_index: c_int,
    }
    DescriptionAttributes = "PJRT_DeviceDescription_Attributes" at 25 {
        device_description: *mut DeviceDescription,
        num_attributes: usize,
        attributes: *const NamedValue,
    }
    DescriptionKind = "PJRT_DeviceDescription_Kind" at 26 {
        device_description: *mut DeviceDescription,
        device_kind: *const c_char,
        device_kind_size: usize,
    }
    DeviceGetDescription = "PJRT_Device_GetDescription" at 29 {
        device: *mut Device,
        device_description: *mut DeviceDescription,
    }
    DeviceLocalHardwareId = "PJRT_Device_LocalHardwareId" at 31 { device: *mut Device, local_hardware_id: c_int }
    DeviceMemoryStats = "PJRT_Device_MemoryStats" at 34 {
        device: *mut Device,
        bytes_in_use: i64,
        peak_bytes_in_use: i64,
        peak_bytes_in_use_is_set: bool,
        num_allocs: i64,
        num_allocs_is_set: bool,
        largest_alloc_size: i64,
        largest_alloc_size_is_set: bool,
        bytes_limit: i64,
        bytes_limit_is_set: bool,
        bytes_reserved: i64,
        bytes_reserved_is_set: bool,
        peak_bytes_reserved: i64,
        peak_bytes_reserved_is_set: bool,
        bytes_reservable_limit: i64,
        bytes_reservable_limit_is_set: bool,
        largest_free_block_bytes: i64,
        largest_free_block_bytes_is_set: bool,
        pool_bytes: i64,
        pool_bytes_is_set: bool,
        peak_pool_bytes: i64,
        peak_pool_bytes_is_set: bool,
    }

    ExecutableDestroy = "PJRT_Executable_Destroy" at 40 { executable: *mut Executable }
    ExecutableName = "PJRT_Executable_Name" at 41 {
        executable: *mut Executable,
        executable_name: *const c_char,
        executable_name_size: usize,
    }
    ExecutableNumReplicas = "PJRT_Executable_NumReplicas" at 42 { executable: *mut Executable, num_replicas: usize }
    ExecutableNumPartitions = "PJRT_Executable_NumPartitions" at 43 {
        executable: *mut Executable,
        num_partitions: usize,
    }
    ExecutableNumOutputs = "PJRT_Executable_NumOutputs" at 44 { executable: *mut Executable, num_outputs: usize }
    ExecutableGetCostAnalysis = "PJRT_Executable_GetCostAnalysis" at 46 {
        executable: *mut Executable,
        num_properties: usize,
        properties: *const NamedValue,
    }
    ExecutableOptimizedProgram = "PJRT_Executable_OptimizedProgram" at 48 {
        executable: *mut Executable,
        program: *mut Program,
    }
    ExecutableSerialize = "PJRT_Executable_Serialize" at 49 {
        executable: *const Executable,
        serialized_bytes: *const c_char,
        serialized_bytes_size: usize,
        serialized_executable: *mut SerializedExecutable,
        serialized_executable_deleter: Option<unsafe extern "C" fn(*mut SerializedExecutable)>,
    }
    LoadedExecutableDestroy = "PJRT_LoadedExecutable_Destroy" at 50 { executable: *mut LoadedExecutable }
    LoadedExecutableGetExecutable = "PJRT_LoadedExecutable_GetExecutable" at 51 {
        loaded_executable: *mut LoadedExecutable,
        executable: *mut Executable,
    }
    LoadedExecutableAddressableDevices = "PJRT_LoadedExecutable_AddressableDevices" at 52 {
        executable: *mut LoadedExecutable,
        addressable_devices: *const *mut Device,
        num_addressable_devices: usize,
    }
    LoadedExecutableExecute = "PJRT_LoadedExecutable_Execute" at 55 {
        executable: *mut LoadedExecutable,
        options: *mut ExecuteOptions,
        argument_lists: *const *const *mut Buffer,
        num_devices: usize,
        num_args: usize,
        output_lists: *const *mut *mut Buffer,
        device_complete_events: *mut *mut Event,
        execute_device: *mut Device,
    }
    ExecutableDeserializeAndLoad = "PJRT_Executable_DeserializeAndLoad" at 56 {
        client: *mut Client,
        serialized_executable: *const c_char,
        serialized_executable_size: usize,
        loaded_executable: *mut LoadedExecutable,
        overridden_serialized_compile_options: *const c_char,
        overridden_serialized_compile_options_size: usize,
    }

    BufferDestroy = "PJRT_Buffer_Destroy" at 58 { buffer: *mut Buffer }
    BufferElementType = "PJRT_Buffer_ElementType" at 59 { buffer: *mut Buffer, type_: c_int }
    BufferDimensions = "PJRT_Buffer_Dimensions" at 60 { buffer: *mut Buffer, dims: *const i64, num_dims: usize }
    BufferOnDeviceSizeInBytes = "PJRT_Buffer_OnDeviceSizeInBytes" at 64 {
        buffer: *mut Buffer,
        on_device_size_in_bytes: usize,
    }
    BufferDevice = "PJRT_Buffer_Device" at 65 { buffer: *mut Buffer, device: *mut Device }
    BufferIsDeleted = "PJRT_Buffer_IsDeleted" at 68 { buffer: *mut Buffer, is_deleted: bool }
    BufferCopyToDevice = "PJRT_Buffer_CopyToDevice" at 69 {
        buffer: *mut Buffer,
        dst_device: *mut Device,
        dst_buffer: *mut Buffer,
    }
    BufferToHostBuffer = "PJRT_Buffer_ToHostBuffer" at 70 {
        src: *mut Buffer,
        host_layout: *mut MemoryLayout,
        dst: *mut c_void,
        dst_size: usize,
        event: *mut Event,
    }
    BufferReadyEvent = "PJRT_Buffer_ReadyEvent" at 72 { buffer: *mut Buffer, event: *mut Event }
    BufferUnsafePointer = "PJRT_Buffer_UnsafePointer" at 73 { buffer: *mut Buffer, buffer_pointer: usize }

    TopologyCreate = "PJRT_TopologyDescription_Create" at 82 {
        topology_name: *const c_char,
        topology_name_size: usize,
        create_options: *const NamedValue,
        num_options: usize,
        topology: *mut Topology,
    }
    TopologyDestroy = "PJRT_TopologyDescription_Destroy" at 83 { topology: *mut Topology }
    TopologyPlatformName = "PJRT_TopologyDescription_PlatformName" at 84 {
        topology: *const Topology,
        platform_name: *const c_char,
        platform_name_size: usize,
    }
    TopologyPlatformVersion = "PJRT_TopologyDescription_PlatformVersion" at 85 {
        topology: *mut Topology,
        platform_version: *const c_char,
        platform_version_size: usize,
    }
    TopologyGetDeviceDescriptions = "PJRT_TopologyDescription_GetDeviceDescriptions" at 86 {
        topology: *const Topology,
        descriptions: *const *mut DeviceDescription,
        num_descriptions: usize,
    }
    TopologySerialize = "PJRT_TopologyDescription_Serialize" at 87 {
        topology: *mut Topology,
        serialized_bytes: *const c_char,
        serialized_bytes_size: usize,
        serialized_topology: *mut SerializedTopology,
        serialized_topology_deleter: Option<unsafe extern "C" fn(*mut SerializedTopology)>,
    }
    Compile = "PJRT_Compile" at 89 {
        topology: *const Topology,
        program: *const Program,
        compile_options: *const c_char,
        compile_options_size: usize,
        client: *mut Client,
        executable: *mut Executable,
    }

    ExecutableOutputElementTypes = "PJRT_Executable_OutputElementTypes" at 90 {
        executable: *mut Executable,
        output_types: *const c_int,
        num_output_types: usize,
    }
    ExecutableOutputDimensions = "PJRT_Executable_OutputDimensions" at 91 {
        executable: *mut Executable,
        num_outputs: usize,
        dims: *const i64,
        dim_sizes: *const usize,
    }
    ExecutableFingerprint = "PJRT_Executable_Fingerprint" at 94 {
        executable: *mut Executable,
        executable_fingerprint: *const c_char,
        executable_fingerprint_size: usize,
    }
    ClientTopologyDescription = "PJRT_Client_TopologyDescription" at 95 {
        client: *mut Client,
        topology: *mut Topology,
    }
    ExecutableGetCompiledMemoryStats = "PJRT_Executable_GetCompiledMemoryStats" at 96 {
        executable: *mut Executable,
        generated_code_size_in_bytes: i64,
        argument_size_in_bytes: i64,
        output_size_in_bytes: i64,
        alias_size_in_bytes: i64,
        temp_size_in_bytes: i64,
        host_generated_code_size_in_bytes: i64,
        host_argument_size_in_bytes: i64,
        host_output_size_in_bytes: i64,
        host_alias_size_in_bytes: i64,
        host_temp_size_in_bytes: i64,
        peak_memory_in_bytes: i64,
    }
}
