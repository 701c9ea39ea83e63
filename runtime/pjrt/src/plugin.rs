//! Loading a plugin.
//!
//! Invariant: a file is loaded and initialized at most once in a process, and never unloaded, so that every pointer
//! from its table stays valid; plugins start threads that would otherwise run code that is gone.

use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::fmt;
use std::mem::size_of;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::api::{Api, query};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ffi::arguments::PluginInitialize;
use crate::ffi::{ApiHead, Arguments as _};
use crate::topology::Topology;
use crate::value::{self, Value};

/// The oldest version of the C API that is accepted: the one that the argument structs here are laid out for, and that
/// the oldest plugin in the lock file speaks.
pub const OLDEST_API: ApiVersion = ApiVersion { major: 0, minor: 81 };

/// A version of the PJRT C API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Changes when the ABI breaks.
    pub major: i32,
    /// Grows when something is added.
    pub minor: i32,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

/// A loaded plugin: XLA for one kind of device. Copies are cheap and mean the same plugin.
#[derive(Clone, Copy)]
pub struct Plugin {
    api: &'static Api,
}

/// What has been loaded, by the file's real path.
static LOADED: Mutex<Option<HashMap<PathBuf, Plugin>>> = Mutex::new(None);

impl Plugin {
    /// Loads a plugin, or gives the one that was loaded from this file before.
    ///
    /// **Loading runs the file**: its code has all the rights of this process. Give only files that you would also
    /// execute. What a plugin reads from the environment it reads now; see [`crate::environment`].
    ///
    /// # Errors
    /// [`Error::Load`] when the operating system does not load it, [`Error::NotAPlugin`] when it lacks `GetPjrtApi`,
    /// [`Error::Version`] when it is too old or too new, [`Error::Xla`] when it cannot start.
    pub fn load(path: &Path) -> Result<Self> {
        let load_error = |reason: String| Error::Load { path: path.to_owned(), reason };
        let real = path.canonicalize().map_err(|error| load_error(error.to_string()))?;
        // The lock is held while loading, so that two threads do not initialize one plugin twice. A panic in here
        // leaves the map as it was.
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        let plugins = loaded.get_or_insert_default();
        if let Some(plugin) = plugins.get(&real) {
            return Ok(*plugin);
        }
        let head = find_table(&real)?;
        // SAFETY: `find_table` checked the pointer, and the library is never unloaded.
        let api = unsafe { Api::new(real.clone(), head) };
        check_version(&api)?;
        let mut arguments = PluginInitialize::new();
        // SAFETY: takes nothing but the struct itself.
        unsafe { api.call("start the plugin", &mut arguments) }?;
        let plugin = Plugin { api: Box::leak(Box::new(api)) };
        plugins.insert(real, plugin);
        Ok(plugin)
    }

    /// The file that it was loaded from.
    pub fn path(&self) -> &Path {
        self.api.path()
    }

    /// The version of the C API that it speaks.
    pub fn api_version(&self) -> ApiVersion {
        version(self.api)
    }

    /// What it says of itself, such as `xla_version`, `stablehlo_current_version`, `stablehlo_minimum_version`.
    ///
    /// # Errors
    /// [`Error::Xla`], [`Error::MissingFunction`].
    pub fn attributes(&self) -> Result<BTreeMap<String, Value>> {
        let (start, count) =
            query!(self.api, "describe the plugin", PluginAttributes {} => attributes, num_attributes)?;
        // SAFETY: attributes live as long as the process.
        Ok(unsafe { value::copy(start, count) })
    }

    /// Numbers of the extensions that it has, `PJRT_Extension_Type` in the C header, in the plugin's order.
    pub fn extensions(&self) -> Vec<i32> {
        let mut kinds = Vec::new();
        let mut link = self.api.head().extension_start.cast_const();
        while !link.is_null() {
            // SAFETY: links of the table's chain are as immortal as the table.
            let base = unsafe { &*link };
            kinds.push(base.kind);
            link = base.next.cast_const();
        }
        kinds
    }

    /// Opens the devices of this machine. `options` are the plugin's own, such as `cpu_device_count` (an integer) of
    /// the CPU plugin.
    ///
    /// # Errors
    /// [`Error::Xla`] when there is no such device, or an option is not known; [`Error::OutOfRange`] when
    /// `cpu_device_count` is no positive integer.
    pub fn client(&self, options: &[(&str, Value)]) -> Result<Client> {
        // The CPU plugin ends the process by a C++ exception when the value is of another kind.
        let count = options.iter().find(|option| option.0 == "cpu_device_count");
        if let Some((_, value)) = count
            && !matches!(value, Value::Int(1..))
        {
            let reason = format!("{value:?} is no positive integer");
            return Err(Error::OutOfRange { what: "cpu_device_count", reason });
        }
        Client::create(*self, options)
    }

    /// Devices by name, without having them: programs can be compiled for them, not run. Names are the plugin's own,
    /// such as `v6e:2x2` for TPUs. A TPU plugin on a machine without TPUs needs
    /// [`environment::TPU_COMPILE_ONLY`](crate::environment::TPU_COMPILE_ONLY).
    ///
    /// # Errors
    /// [`Error::Xla`] when the plugin does not know the name, or knows no names at all.
    pub fn topology(&self, name: &str, options: &[(&str, Value)]) -> Result<Topology> {
        Topology::create(*self, name, options)
    }

    pub(crate) fn api(&self) -> &'static Api {
        self.api
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Plugin").field("path", &self.path()).field("api", &self.api_version()).finish()
    }
}

/// Loads the library, for good, and asks for its table.
fn find_table(path: &Path) -> Result<*const ApiHead> {
    let not_a_plugin = |reason: &str| Error::NotAPlugin { path: path.to_owned(), reason: reason.to_owned() };
    // SAFETY: runs the library's initializers; `Plugin::load` tells its callers that a file is trusted like a program.
    let library = unsafe { libloading::Library::new(path) }
        .map_err(|error| Error::Load { path: path.to_owned(), reason: error_chain(&error) })?;
    // Whatever happens next, code of this library may have started threads or left pointers behind.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    // SAFETY: a plugin exports this function with this type; a library that is no plugin does not use the name.
    let get = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiHead>(b"GetPjrtApi\0") }
        .map_err(|_| not_a_plugin("it does not export `GetPjrtApi`"))?;
    // SAFETY: takes no arguments and may be called any number of times.
    let head = unsafe { get() };
    if head.is_null() || !head.is_aligned() {
        return Err(not_a_plugin("`GetPjrtApi` returns no table"));
    }
    // SAFETY: not null, aligned, and every version of the table begins with its size.
    if unsafe { (*head).struct_size } < size_of::<ApiHead>() {
        return Err(not_a_plugin("its table is too short to hold a version"));
    }
    Ok(head)
}

/// An error and what it came from, in one line: the loader's reason stands in the source.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn version(api: &Api) -> ApiVersion {
    let raw = &api.head().version;
    let (major, minor): (c_int, c_int) = (raw.major, raw.minor);
    ApiVersion { major, minor }
}

fn check_version(api: &Api) -> Result<()> {
    let found = version(api);
    if found.major != OLDEST_API.major || found < OLDEST_API {
        return Err(Error::Version { path: api.path().to_owned(), found });
    }
    Ok(())
}
