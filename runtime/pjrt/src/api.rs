//! The function table of a loaded plugin, and the one way to call into it.
//!
//! Invariant: a function is called only when the plugin's table reaches as far as its slot, with the argument struct
//! that belongs to it, and its error becomes an [`Error`] and is freed.

use std::ffi::{c_char, c_int, c_void};
use std::mem::size_of;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result, StatusCode};
use crate::ffi::arguments::{ErrorDestroy, ErrorGetCode, ErrorMessage};
use crate::ffi::{self, ApiHead, Arguments, ExtensionBase};

/// A loaded plugin's table. Lives as long as the process, since plugins are never unloaded.
pub(crate) struct Api {
    /// The file that it came from.
    path: PathBuf,
    head: *const ApiHead,
}

// SAFETY: the table is immutable after `GetPjrtApi` returned it, and PJRT asks plugins to accept calls from any thread.
unsafe impl Send for Api {}
// SAFETY: as above; nothing here is changed through a shared reference.
unsafe impl Sync for Api {}

impl Api {
    /// A table.
    ///
    /// # Safety
    /// `head` points at a `PJRT_Api` that stays valid and unchanged until the process ends.
    pub(crate) unsafe fn new(path: PathBuf, head: *const ApiHead) -> Self {
        Api { path, head }
    }

    /// The plugin's file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Head of the table.
    pub(crate) fn head(&self) -> &ApiHead {
        // SAFETY: valid and unchanged, by the promise given to `new`.
        unsafe { &*self.head }
    }

    /// The first extension of a kind in the table's chain.
    pub(crate) fn extension(&self, kind: c_int) -> Option<*const ExtensionBase> {
        let mut link = self.head().extension_start.cast_const();
        while !link.is_null() {
            // SAFETY: the chain belongs to the table: links are valid as long as it is, and the last `next` is null.
            let base = unsafe { &*link };
            if base.kind == kind {
                return Some(link);
            }
            link = base.next.cast_const();
        }
        None
    }

    /// The function in a slot, when the table has it.
    fn function<A: Arguments>(&self) -> Result<ffi::Function> {
        let missing = || Error::MissingFunction { path: self.path.clone(), function: A::NAME };
        let offset = size_of::<ApiHead>() + A::SLOT * size_of::<usize>();
        if self.head().struct_size < offset + size_of::<usize>() {
            return Err(missing());
        }
        // SAFETY: the table is `struct_size` bytes long, which reaches past this slot, and slots hold function pointers
        // or null. All of them take one pointer and return a pointer or nothing; `call` knows which.
        let slot = unsafe { self.head.cast::<u8>().add(offset).cast::<Option<ffi::Function>>().read() };
        slot.ok_or_else(missing)
    }

    /// Calls the function that `arguments` belongs to. `action` is the end of the sentence "XLA cannot ...".
    ///
    /// # Safety
    /// The pointers in `arguments` are what the function's header comment asks for.
    pub(crate) unsafe fn call<A: Arguments>(&self, action: &'static str, arguments: &mut A) -> Result<()> {
        let function = self.function::<A>()?;
        // SAFETY: `function` takes this very struct, as `Arguments` promises, and the caller answers for its pointers.
        let error = unsafe { function((&raw mut *arguments).cast::<c_void>()) };
        // SAFETY: an error that was just returned is null or ours to free.
        unsafe { self.check(action, error) }
    }

    /// Calls a function that frees something. Nobody can act on a failure to free, and PJRT's destructors only fail
    /// on a wrong `struct_size`, so an error is freed and goes no further.
    ///
    /// # Safety
    /// As for [`Api::call`]; what is freed is not used afterwards.
    pub(crate) unsafe fn free<A: Arguments>(&self, arguments: &mut A) {
        // SAFETY: passed on to the caller.
        drop(unsafe { self.call("free an object", arguments) });
    }

    /// Turns the plugin's error into ours, and frees it.
    ///
    /// # Safety
    /// `error` is null, or an error of this plugin that nobody else frees.
    pub(crate) unsafe fn check(&self, action: &'static str, error: *mut ffi::Error) -> Result<()> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a live error, passed on from the caller.
        let failure = unsafe { self.describe(action, error) };
        if let Ok(function) = self.function::<ErrorDestroy>() {
            let mut arguments = ErrorDestroy::new();
            arguments.error = error;
            // SAFETY: `PJRT_Error_Destroy` takes this struct; it returns nothing, so the result is not looked at.
            let function: unsafe extern "C-unwind" fn(*mut c_void) = unsafe { std::mem::transmute(function) };
            // SAFETY: `error` is live and is not used afterwards.
            unsafe { function((&raw mut arguments).cast()) };
        }
        Err(failure)
    }

    /// Code and message of an error.
    ///
    /// # Safety
    /// `error` is a live error of this plugin.
    unsafe fn describe(&self, action: &'static str, error: *mut ffi::Error) -> Error {
        let message = match self.function::<ErrorMessage>() {
            Ok(function) => {
                let mut arguments = ErrorMessage::new();
                arguments.error = error;
                // SAFETY: `PJRT_Error_Message` takes this struct and returns nothing.
                let function: unsafe extern "C-unwind" fn(*mut c_void) = unsafe { std::mem::transmute(function) };
                // SAFETY: `error` is live.
                unsafe { function((&raw mut arguments).cast()) };
                // SAFETY: the message lives as long as the error, and is copied here.
                unsafe { text(arguments.message, arguments.message_size) }
            }
            Err(error) => error.to_string(),
        };
        let code = match self.function::<ErrorGetCode>() {
            Ok(function) => {
                let mut arguments = ErrorGetCode::new();
                arguments.error = error;
                // SAFETY: `PJRT_Error_GetCode` takes this struct. Its own error could only be described by asking
                // again, so a code of zero, which `from_raw` calls other, stands for it.
                unsafe { function((&raw mut arguments).cast()) };
                arguments.code
            }
            Err(_) => 2,
        };
        Error::Xla { action, code: StatusCode::from_raw(code), message }
    }
}

/// A copy of a text that C gives as pointer and length; bytes that are not UTF-8 are replaced.
///
/// # Safety
/// `start` is null, or `length` bytes from it can be read.
pub(crate) unsafe fn text(start: *const c_char, length: usize) -> String {
    // SAFETY: passed on to the caller.
    String::from_utf8_lossy(unsafe { slice(start.cast::<u8>(), length) }).into_owned()
}

/// A slice of a C array, empty when the pointer is null.
///
/// # Safety
/// `start` is null, or `length` values from it can be read and do not change during `'a`.
pub(crate) unsafe fn slice<'a, T>(start: *const T, length: usize) -> &'a [T] {
    if start.is_null() || length == 0 {
        return &[];
    }
    // SAFETY: not null, and readable by the caller's promise.
    unsafe { std::slice::from_raw_parts(start, length) }
}

/// Reads one property that a function writes into its argument struct.
///
/// Expands to a `Result` of the fields after `=>`, in a tuple when there are several.
macro_rules! query {
    ($api:expr, $action:literal, $arguments:ident { $($field:ident: $value:expr),* } => $($out:ident),+) => {{
        let mut arguments = <$crate::ffi::arguments::$arguments as $crate::ffi::Arguments>::new();
        $(arguments.$field = $value;)*
        // SAFETY: the object in the arguments is live, because a live owner gave it, and results go into the struct.
        unsafe { $api.call($action, &mut arguments) }.map(|()| ($(arguments.$out),+))
    }};
}
pub(crate) use query;
