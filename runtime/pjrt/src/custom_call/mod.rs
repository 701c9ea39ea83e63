//! Rust functions inside compiled programs.
//!
//! Invariant: a handler sees memory only as slices that XLA vouches for during the call, writable ones never overlap
//! anything else, and neither an error nor a panic gets past it: both fail the execution with their text.
//!
//! A program calls a handler by name:
//!
//! ```mlir
//! %y = stablehlo.custom_call @my_scale(%x) {api_version = 4 : i32,
//!     backend_config = {factor = 2.0 : f32}} : (tensor<4xf32>) -> tensor<4xf32>
//! ```

mod attributes;
mod call;

use std::any::Any;
use std::collections::BTreeSet;
use std::ffi::{CString, c_int, c_void};
use std::mem::{offset_of, size_of};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::ptr;
use std::sync::{Mutex, PoisonError};

pub use attributes::{Attribute, Attributes};
pub use call::{Call, Operand, Output};

use crate::error::{Error, Result};
use crate::ffi::EXTENSION_FFI;
use crate::ffi::custom_call::{
    CallError, CallFrame, ERROR_INTERNAL, EXTENSION_METADATA, ErrorCreateArguments, FfiApi, FfiExtension,
    Handler as RawHandler, MetadataExtension, RegisterHandlerArguments, STAGE_EXECUTE,
};
use crate::plugin::Plugin;

/// The major version of XLA's FFI that the structs here are laid out for. Minor versions append fields.
const FFI_MAJOR: i32 = 0;

/// A function for compiled programs.
///
/// A type rather than a closure, since XLA passes no data of ours to a handler: what differs from call to call comes
/// as operands and attributes. Devices of one program call it at the same time, from XLA's threads; while it runs, its
/// device waits, and it may use threads of its own.
pub trait Handler: 'static {
    /// Fills the outputs.
    ///
    /// # Errors
    /// A text, with which the execution fails. A panic counts as one, but only in programs that unwind: built with
    /// `panic = "abort"`, the process ends.
    fn call(call: &mut Call<'_>) -> std::result::Result<(), String>;
}

/// Makes a handler known to a plugin, for custom calls on the CPU of any client of it. Lasts as long as the process; a
/// name can be taken once.
///
/// Compiled programs keep the name only, also when serialized: give a handler a new name when what it computes
/// changes, or old executables will call the new one.
///
/// # Errors
/// [`Error::MissingExtension`] when the plugin takes no handlers; [`Error::HandlerExists`] when the name is taken.
pub fn register<H: Handler>(plugin: Plugin, name: &str) -> Result<()> {
    const PLATFORM: &str = "Host";
    static NAMES: Mutex<BTreeSet<(PathBuf, String)>> = Mutex::new(BTreeSet::new());
    let api = plugin.api();
    let missing = || Error::MissingExtension {
        path: api.path().to_owned(),
        extension: "FFI",
        consequence: "it cannot call handlers written outside of it",
    };
    let extension = api.extension(EXTENSION_FFI).ok_or_else(missing)?.cast::<FfiExtension>();
    // SAFETY: links of the chain that are of this kind are this struct, and immortal; its size is compared before
    // anything after the head is read.
    let function = unsafe {
        if (*extension).base.struct_size < size_of::<FfiExtension>() {
            return Err(missing());
        }
        (*extension).register_handler.ok_or_else(missing)?
    };
    // Plugins have been seen to ignore a second registration without a word, so names are kept here as well.
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let entry = (api.path().to_owned(), name.to_owned());
    if names.contains(&entry) {
        return Err(Error::HandlerExists(entry.1));
    }
    let handler: RawHandler = trampoline::<H>;
    let mut arguments = RegisterHandlerArguments {
        struct_size: offset_of!(RegisterHandlerArguments, traits) + size_of::<c_int>(),
        target_name: name.as_ptr().cast(),
        target_name_size: name.len(),
        handler: handler as *mut c_void,
        platform_name: PLATFORM.as_ptr().cast(),
        platform_name_size: PLATFORM.len(),
        traits: 0,
    };
    // SAFETY: names outlive the call, which copies them; the handler is a function and lives for good.
    let error = unsafe { function(&raw mut arguments) };
    // SAFETY: just returned, hence null or ours.
    unsafe { api.check("register a custom-call handler", error) }?;
    names.insert(entry);
    Ok(())
}

/// What XLA calls for the handler `H`.
unsafe extern "C" fn trampoline<H: Handler>(frame: *mut CallFrame) -> *mut CallError {
    // SAFETY: XLA passes a frame that is valid during the call.
    let frame = unsafe { &*frame };
    // SAFETY: extensions of the frame are as valid as it is.
    if unsafe { answer_metadata(frame) } {
        return ptr::null_mut();
    }
    // XLA also calls handlers to prepare, which is nothing here.
    if frame.stage != STAGE_EXECUTE {
        return ptr::null_mut();
    }
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: operands, results and attributes are as valid as the frame.
        let mut call = unsafe { Call::new(frame) }?;
        H::call(&mut call)
    }));
    let message = match outcome {
        Ok(Ok(())) => return ptr::null_mut(),
        Ok(Err(message)) => message,
        Err(panic) => describe_panic(panic),
    };
    // SAFETY: the frame's table of functions is as valid as it is.
    unsafe { call_error(frame.api, message) }
}

/// Text of a panic. Its payload is dropped outside of any destructor that could panic again.
fn describe_panic(panic: Box<dyn Any + Send>) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    // A payload of another type may have a destructor that panics, which must not unwind into C++.
    std::mem::forget(panic);
    format!("the custom-call handler panicked: {}", text.as_deref().unwrap_or("with no text"))
}

/// When XLA asks what the handler is rather than calling it, answers, and tells so.
///
/// XLA refuses handlers that are built for a later version than its own. As nothing is used here that minor versions
/// differ in, the answer is XLA's own version.
///
/// # Safety
/// The frame is one that XLA passes.
unsafe fn answer_metadata(frame: &CallFrame) -> bool {
    let mut link = frame.extension_start;
    while !link.is_null() {
        // SAFETY: a link of a live frame; a link of this kind is this struct, whose memory XLA lends. The table of
        // functions is live, too.
        unsafe {
            if (*link).kind == EXTENSION_METADATA {
                let minor = if frame.api.is_null() { 0 } else { (*frame.api).api_version.minor };
                let metadata = (*link.cast::<MetadataExtension>()).metadata;
                (*metadata).api_version.major = FFI_MAJOR;
                (*metadata).api_version.minor = minor;
                // No trait: a handler runs on the host and cannot be recorded into a command buffer.
                (*metadata).traits = 0;
                return true;
            }
            link = (*link).next;
        }
    }
    false
}

/// An error for XLA, with a text.
///
/// # Safety
/// `api` is the table of a live frame.
unsafe fn call_error(api: *const FfiApi, message: String) -> *mut CallError {
    // C ends a text at its first zero.
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    let mut arguments = ErrorCreateArguments {
        struct_size: size_of::<ErrorCreateArguments>(),
        extension_start: ptr::null_mut(),
        message: message.as_ptr(),
        code: ERROR_INTERNAL,
    };
    // SAFETY: a live table; the function copies the text.
    match unsafe { (*api).error_create } {
        // SAFETY: as above.
        Some(create) => unsafe { create(&raw mut arguments) },
        // Without it a failure cannot be told, and going on with outputs that were not written would be worse.
        None => std::process::abort(),
    }
}
