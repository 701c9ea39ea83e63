//! The C ABI of PJRT 0.81 (`xla/pjrt/c/pjrt_c_api.h`), as far as it is used here.
//!
//! Invariant: every struct lies in memory as C lays it out, and `tests` compares each name, offset and size with the
//! header itself. Nothing here checks a value; [`crate::api`] is the only caller of the function table.

pub(crate) mod arguments;
pub(crate) mod custom_call;

use std::ffi::{c_char, c_int, c_void};

/// Objects behind pointers that only the plugin looks into.
macro_rules! opaque {
    ($($name:ident)*) => {$(
        #[repr(C)]
        pub(crate) struct $name {
            _private: [u8; 0],
        }
    )*};
}

opaque!(Error Event Client Device Memory DeviceDescription Topology Executable LoadedExecutable Buffer ExecuteContext
    SerializedExecutable SerializedTopology);

/// `PJRT_Extension_Base`: the head of each link of an extension chain.
#[repr(C)]
pub(crate) struct ExtensionBase {
    pub(crate) struct_size: usize,
    pub(crate) kind: c_int,
    pub(crate) next: *mut ExtensionBase,
}

/// `PJRT_Extension_Type_FFI`.
pub(crate) const EXTENSION_FFI: c_int = 5;

/// `PJRT_Api_Version`.
#[repr(C)]
pub(crate) struct ApiVersion {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) major: c_int,
    pub(crate) minor: c_int,
}

/// The head of `PJRT_Api`. Function pointers follow; how many is told by `struct_size`.
#[repr(C)]
pub(crate) struct ApiHead {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) version: ApiVersion,
}

/// Any function of the table that returns an error, its argument struct passed as an untyped pointer.
///
/// `C-unwind`, since plugins have been seen to let C++ exceptions out, against the C API's rules. They cannot be caught
/// here, but this way they end the process rather than being undefined behaviour.
pub(crate) type Function = unsafe extern "C-unwind" fn(*mut c_void) -> *mut Error;

/// A struct of arguments of one function of the table.
///
/// # Safety
/// The type is `repr(C)`, equals the C struct that the function in `SLOT` takes, begins with `struct_size` and
/// `extension_start` unless the header says otherwise, and is valid when all its bytes are zero.
pub(crate) unsafe trait Arguments: Sized {
    /// Position of the function in the table, counted from the first one after the version.
    const SLOT: usize;
    /// The function's name in the header.
    const NAME: &'static str;
    /// `PJRT_STRUCT_SIZE`: where the last field ends, without padding after it.
    const STRUCT_SIZE: usize;

    /// All zero but for `struct_size`.
    fn new() -> Self;
}

/// `PJRT_NamedValue`.
#[repr(C)]
pub(crate) struct NamedValue {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) name: *const c_char,
    pub(crate) name_size: usize,
    pub(crate) kind: c_int,
    pub(crate) value: NamedValueUnion,
    pub(crate) value_size: usize,
}

/// The value of a [`NamedValue`]; its `kind` tells which field is set.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) union NamedValueUnion {
    pub(crate) string: *const c_char,
    pub(crate) int64: i64,
    pub(crate) int64_list: *const i64,
    pub(crate) float: f32,
    pub(crate) boolean: bool,
}

/// `PJRT_NamedValue_kString` and the kinds after it.
pub(crate) const NAMED_STRING: c_int = 0;
pub(crate) const NAMED_INT64: c_int = 1;
pub(crate) const NAMED_INT64_LIST: c_int = 2;
pub(crate) const NAMED_FLOAT: c_int = 3;
pub(crate) const NAMED_BOOL: c_int = 4;

/// `PJRT_Program`.
#[repr(C)]
pub(crate) struct Program {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) code: *mut c_char,
    pub(crate) code_size: usize,
    pub(crate) format: *const c_char,
    pub(crate) format_size: usize,
}

/// `PJRT_Buffer_MemoryLayout` with its tiled variant, the larger of the two and the only one used.
#[repr(C)]
pub(crate) struct MemoryLayout {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) tiled: TiledLayout,
    pub(crate) kind: c_int,
}

/// `PJRT_Buffer_MemoryLayout_Tiled`.
#[repr(C)]
pub(crate) struct TiledLayout {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) minor_to_major: *const i64,
    pub(crate) minor_to_major_size: usize,
    pub(crate) tile_dims: *const i64,
    pub(crate) tile_dim_sizes: *const usize,
    pub(crate) num_tiles: usize,
}

/// `PJRT_Buffer_MemoryLayout_Type_Tiled`.
pub(crate) const LAYOUT_TILED: c_int = 0;

/// `PJRT_HostBufferSemantics_kImmutableOnlyDuringCall`.
pub(crate) const HOST_ONLY_DURING_CALL: c_int = 0;
/// `PJRT_HostBufferSemantics_kImmutableZeroCopy`.
pub(crate) const HOST_ZERO_COPY: c_int = 2;

/// `PJRT_ExecuteOptions`.
#[repr(C)]
pub(crate) struct ExecuteOptions {
    pub(crate) struct_size: usize,
    pub(crate) extension_start: *mut ExtensionBase,
    pub(crate) send_callbacks: *mut *mut c_void,
    pub(crate) recv_callbacks: *mut *mut c_void,
    pub(crate) num_send_ops: usize,
    pub(crate) num_recv_ops: usize,
    pub(crate) launch_id: c_int,
    pub(crate) non_donatable_input_indices: *const i64,
    pub(crate) num_non_donatable_input_indices: usize,
    pub(crate) context: *mut ExecuteContext,
    pub(crate) call_location: *const c_char,
    pub(crate) num_tasks: usize,
    pub(crate) task_ids: *mut c_int,
    pub(crate) incarnation_ids: *mut i64,
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "a line says what is skipped")]
mod tests;
