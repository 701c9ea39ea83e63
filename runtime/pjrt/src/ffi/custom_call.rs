//! The C ABI of XLA's FFI (`xla/ffi/api/c_api.h`, API 0.3) and of the PJRT extension that registers handlers.
//!
//! Invariant: only what a synchronous, stateless handler reads is named; fields after the ones named here are not
//! touched, so later minor versions that append fields stay readable.

use std::ffi::{c_char, c_int, c_void};

use super::{Error, ExtensionBase};

/// `PJRT_FFI_Extension`.
#[repr(C)]
pub(crate) struct FfiExtension {
    pub(crate) base: ExtensionBase,
    pub(crate) type_register: *mut c_void,
    pub(crate) user_data_add: *mut c_void,
    pub(crate) register_handler: Option<unsafe extern "C-unwind" fn(*mut RegisterHandlerArguments) -> *mut Error>,
}

/// `PJRT_FFI_Register_Handler_Args` as of C API 0.81. Unlike other arguments it has no `extension_start`. Versions long
/// before it had an `api_version` ahead of `handler`, which only `OLDEST_API` keeps away.
#[repr(C)]
pub(crate) struct RegisterHandlerArguments {
    pub(crate) struct_size: usize,
    pub(crate) target_name: *const c_char,
    pub(crate) target_name_size: usize,
    pub(crate) handler: *mut c_void,
    pub(crate) platform_name: *const c_char,
    pub(crate) platform_name_size: usize,
    pub(crate) traits: c_int,
}

/// Opaque `XLA_FFI_Error`.
#[repr(C)]
pub(crate) struct CallError {
    _private: [u8; 0],
}

/// `XLA_FFI_Handler`.
pub(crate) type Handler = unsafe extern "C" fn(*mut CallFrame) -> *mut CallError;

/// `XLA_FFI_Api_Version`.
#[repr(C)]
pub(crate) struct FfiVersion {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) major: c_int,
    pub(crate) minor: c_int,
}

/// The head of `XLA_FFI_Api`, up to the one function that is called.
#[repr(C)]
pub(crate) struct FfiApi {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) api_version: FfiVersion,
    pub(crate) internal_api: *const c_void,
    pub(crate) error_create: Option<unsafe extern "C" fn(*mut ErrorCreateArguments) -> *mut CallError>,
}

/// `XLA_FFI_Error_Create_Args`.
#[repr(C)]
pub(crate) struct ErrorCreateArguments {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) message: *const c_char,
    pub(crate) code: c_int,
}

/// `XLA_FFI_Error_Code_INTERNAL`.
pub(crate) const ERROR_INTERNAL: c_int = 13;

/// `XLA_FFI_Extension_Metadata`.
pub(crate) const EXTENSION_METADATA: c_int = 1;

/// `XLA_FFI_Metadata_Extension`: set when XLA asks a handler what it is, instead of calling it.
#[repr(C)]
pub(crate) struct MetadataExtension {
    pub(crate) base: ExtensionBase,
    pub(crate) metadata: *mut Metadata,
}

/// `XLA_FFI_Metadata`, without the state type that follows in newer versions.
#[repr(C)]
pub(crate) struct Metadata {
    pub(crate) struct_size: usize,
    pub(crate) api_version: FfiVersion,
    pub(crate) traits: u32,
}

/// `XLA_FFI_ExecutionStage_EXECUTE`.
pub(crate) const STAGE_EXECUTE: c_int = 3;

/// `XLA_FFI_ArgType_BUFFER`, and the same number for results.
pub(crate) const KIND_BUFFER: c_int = 1;

/// `XLA_FFI_AttrType_ARRAY` and the kinds after it.
pub(crate) const ATTRIBUTE_ARRAY: c_int = 1;
pub(crate) const ATTRIBUTE_SCALAR: c_int = 3;
pub(crate) const ATTRIBUTE_STRING: c_int = 4;

/// `XLA_FFI_Buffer`.
#[repr(C)]
pub(crate) struct CallBuffer {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) dtype: c_int,
    pub(crate) data: *mut c_void,
    pub(crate) rank: i64,
    pub(crate) dims: *const i64,
}

/// `XLA_FFI_ByteSpan`.
#[repr(C)]
pub(crate) struct ByteSpan {
    pub(crate) ptr: *const c_char,
    pub(crate) len: usize,
}

/// `XLA_FFI_Scalar`.
#[repr(C)]
pub(crate) struct Scalar {
    pub(crate) dtype: c_int,
    pub(crate) value: *const c_void,
}

/// `XLA_FFI_Array`.
#[repr(C)]
pub(crate) struct Array {
    pub(crate) dtype: c_int,
    pub(crate) size: usize,
    pub(crate) data: *const c_void,
}

/// `XLA_FFI_Args` and `XLA_FFI_Rets`, which look alike.
#[repr(C)]
pub(crate) struct CallBuffers {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) size: i64,
    pub(crate) types: *const c_int,
    pub(crate) buffers: *const *mut c_void,
}

/// `XLA_FFI_Attrs`.
#[repr(C)]
pub(crate) struct CallAttributes {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) size: i64,
    pub(crate) types: *const c_int,
    pub(crate) names: *const *const ByteSpan,
    pub(crate) attributes: *const *const c_void,
}

/// `XLA_FFI_CallFrame`, without the future that asynchronous handlers set.
#[repr(C)]
pub(crate) struct CallFrame {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) api: *const FfiApi,
    pub(crate) context: *mut c_void,
    pub(crate) stage: c_int,
    pub(crate) arguments: CallBuffers,
    pub(crate) results: CallBuffers,
    pub(crate) attributes: CallAttributes,
}
