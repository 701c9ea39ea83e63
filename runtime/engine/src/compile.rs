//! One program compiled, as a request and an answer that can travel between processes.
//!
//! Invariant: a program that is too large for the devices is an answer, not an error. Requests and answers name
//! everything they are about; nothing is read from the environment but what the plugin itself reads.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Instant;

use gemma4_pjrt::{Client, CompileOptions, Executable, MemoryStats, Plugin, Topology, Value};
use gemma4_plan::Plan;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A compiler to be: the plugin, and the devices to compile for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The plugin whose compiler is asked.
    pub plugin: PathBuf,
    /// The devices.
    pub devices: Devices,
}

/// What is asked of a process that compiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// Who compiles, and how; answered by an [`Identity`].
    Identify(Target),
    /// One program compiled; answered by an [`Answer`].
    Compile {
        /// Who compiles.
        target: Target,
        /// The program as StableHLO text.
        program: String,
        /// Whether the compiled program is wanted, or only what it takes.
        executable: bool,
    },
}

/// Who compiles, and how: the parts of a compiled program's key that the compiler knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The plugin's words for the version of its compiler.
    pub compiler: String,
    /// The serialized compile options as lower-case hexadecimal digits.
    pub options: String,
}

/// Devices that a program is compiled for, as many as it has partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Devices {
    /// Known by name, not needed on this machine.
    Topology {
        /// The plugin's name for them, such as `v6e:2x2`.
        name: String,
        /// How many the program runs on.
        count: u32,
    },
    /// Made of this machine's processor.
    Cpu {
        /// How many.
        count: u32,
    },
}

impl Devices {
    /// The devices that a plan is for; `None` where only the machine itself can compile, as for GPUs.
    pub fn of(plan: &Plan) -> Option<Self> {
        let hardware = &plan.hardware;
        let mesh = plan.sharding.mesh;
        let count = mesh.data.saturating_mul(mesh.model);
        match hardware.family.as_str() {
            "cpu" => Some(Devices::Cpu { count }),
            // The catalog's names of TPU families are also the compiler's.
            "v5e" | "v5p" | "v6e" | "tpu7x" => {
                Some(Devices::Topology { name: format!("{}:{}", hardware.family, hardware.topology), count })
            }
            _ => None,
        }
    }

    /// How they are named to people, such as `v6e:2x2` or `cpu:4`.
    pub fn name(&self) -> String {
        match self {
            Devices::Topology { name, .. } => name.clone(),
            Devices::Cpu { count } => format!("cpu:{count}"),
        }
    }

    /// How many there are.
    pub const fn count(&self) -> u32 {
        match self {
            Devices::Topology { count, .. } | Devices::Cpu { count } => *count,
        }
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Seconds that the compiler took.
    pub seconds: f64,
    /// Whether the devices can hold it.
    pub verdict: Verdict,
}

/// Whether a program and its arguments fit into a device's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// They do.
    Fits(Bytes),
    /// They do not, says the compiler.
    Exceeds {
        /// Bytes that it needs, when the compiler tells; exact to half a percent.
        needed: Option<u64>,
        /// Bytes that there are, when the compiler tells.
        available: Option<u64>,
        /// The compiler's words.
        message: String,
    },
}

/// Bytes on one device, by the compiler's account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// All arguments.
    pub arguments: u64,
    /// Outputs that do not take an argument's place.
    pub outputs: u64,
    /// Intermediate values.
    pub temporaries: u64,
    /// The program itself.
    pub code: u64,
}

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CompileError {
    /// The plugin refuses, for another reason than memory.
    #[error(transparent)]
    Xla(#[from] gemma4_pjrt::Error),
    /// The devices are not as many as the program needs.
    #[error("{devices} has {found} devices, and the plan's mesh needs {wanted}; make the mesh as large as the slice")]
    Devices {
        /// Name of the devices.
        devices: String,
        /// How many they are.
        found: usize,
        /// How many are needed.
        wanted: u32,
    },
    /// The compiler counts a negative number of bytes.
    #[error("the compiler counts {bytes} bytes of {what}, which makes no sense")]
    Negative {
        /// What of.
        what: &'static str,
        /// The count.
        bytes: i64,
    },
    /// A stream does not hold what it should.
    #[error("{what} cannot be {action}: {error}")]
    Stream {
        /// `the request` or `the answer`.
        what: &'static str,
        /// `read` or `written`.
        action: &'static str,
        /// What is wrong.
        error: std::io::Error,
    },
}

/// A compiler: a plugin and the devices that it compiles for.
pub enum Compiler {
    /// For devices by name.
    Topology(Topology),
    /// For devices that are here.
    Client(Client),
}

impl Compiler {
    /// Loads the plugin and looks at the devices.
    ///
    /// # Errors
    /// [`CompileError::Xla`], [`CompileError::Devices`].
    pub fn open(target: &Target) -> Result<Self, CompileError> {
        let (plugin, devices) = (Plugin::load(&target.plugin)?, &target.devices);
        let compiler = match devices {
            Devices::Topology { name, .. } => Compiler::Topology(plugin.topology(name, &[])?),
            Devices::Cpu { .. } => Compiler::Client(client(plugin, devices)?),
        };
        let found = compiler.device_ids()?.len();
        if u32::try_from(found) != Ok(devices.count()) {
            return Err(CompileError::Devices { devices: devices.name(), found, wanted: devices.count() });
        }
        Ok(compiler)
    }

    /// Who this is.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn identity(&self) -> Result<Identity, CompileError> {
        let compiler = match self {
            Compiler::Topology(topology) => topology.platform_version()?,
            Compiler::Client(client) => client.platform_version()?,
        };
        let options = self.options()?.serialize()?;
        Ok(Identity { compiler, options: options.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// How steps are compiled: one partition for each device, in the plugin's order.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn options(&self) -> Result<CompileOptions, CompileError> {
        let ids = self.device_ids()?;
        // A program for one device is written without partitions.
        Ok(if ids.len() > 1 { CompileOptions::manual_spmd(&ids) } else { CompileOptions::default() })
    }

    fn device_ids(&self) -> Result<Vec<i64>, CompileError> {
        Ok(match self {
            Compiler::Topology(topology) => topology.devices()?.iter().map(|device| device.id.into()).collect(),
            Compiler::Client(client) => client.devices().map(|device| device.id.into()).collect(),
        })
    }

    /// Compiles a program. The second part is the compiled program as bytes, if it is wanted and there is one.
    ///
    /// # Errors
    /// [`CompileError`]; a lack of device memory is none.
    pub fn compile(&self, program: &str, executable: bool) -> Result<(Answer, Option<Vec<u8>>), CompileError> {
        let options = self.options()?;
        let start = Instant::now();
        let compiled = match self {
            Compiler::Topology(topology) => topology.compile(program.as_bytes(), &options).map(Compiled::Alone),
            Compiler::Client(client) => client.compile(program.as_bytes(), &options).map(Compiled::Loaded),
        };
        let seconds = start.elapsed().as_secs_f64();
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(error) => {
                let Some(exceeded) = error.hbm_exceeded() else { return Err(error.into()) };
                let (needed, available) = (exceeded.needed, exceeded.available);
                let verdict = Verdict::Exceeds { needed, available, message: error.to_string() };
                return Ok((Answer { seconds, verdict }, None));
            }
        };
        let compiled = compiled.executable();
        let bytes = bytes(&compiled.memory_stats()?)?;
        let serialized = if executable { Some(compiled.serialize()?) } else { None };
        Ok((Answer { seconds, verdict: Verdict::Fits(bytes) }, serialized))
    }
}

/// The devices of this machine, with what programs for them call.
///
/// # Errors
/// What the plugin says.
pub(crate) fn client(plugin: Plugin, devices: &Devices) -> gemma4_pjrt::Result<Client> {
    match devices {
        Devices::Cpu { count } => {
            gemma4_kernels::register(plugin)?;
            plugin.client(&[("cpu_device_count", Value::Int((*count).into()))])
        }
        Devices::Topology { .. } => plugin.client(&[]),
    }
}

enum Compiled {
    Alone(Executable),
    Loaded(gemma4_pjrt::LoadedExecutable),
}

impl Compiled {
    fn executable(&self) -> &Executable {
        match self {
            Compiled::Alone(executable) => executable,
            Compiled::Loaded(loaded) => loaded.executable(),
        }
    }
}

fn bytes(stats: &MemoryStats) -> Result<Bytes, CompileError> {
    let count = |what, bytes: i64| u64::try_from(bytes).map_err(|_| CompileError::Negative { what, bytes });
    Ok(Bytes {
        arguments: count("arguments", stats.arguments)?,
        outputs: count("outputs", stats.outputs.saturating_sub(stats.aliased))?,
        temporaries: count("temporaries", stats.temporaries)?,
        code: count("code", stats.generated_code)?,
    })
}

/// Reads a [`Request`] as JSON and does what it asks. Writes the answer as one line of JSON, and after it the compiled
/// program, if one was asked for and there is one.
///
/// # Errors
/// [`CompileError`].
pub fn serve(request: impl Read, mut answer: impl Write) -> Result<(), CompileError> {
    let request: Request = serde_json::from_reader(request).map_err(stream("the request", "read"))?;
    let (line, executable) = match request {
        Request::Identify(target) => (serde_json::to_string(&Compiler::open(&target)?.identity()?), None),
        Request::Compile { target, program, executable } => {
            let (found, executable) = Compiler::open(&target)?.compile(&program, executable)?;
            (serde_json::to_string(&found), executable)
        }
    };
    let line = line.map_err(stream("the answer", "written"))?;
    let mut write = || {
        writeln!(answer, "{line}")?;
        answer.write_all(executable.as_deref().unwrap_or_default())?;
        answer.flush()
    };
    write().map_err(|error| CompileError::Stream { what: "the answer", action: "written", error })
}

/// Reads what [`serve`] wrote: an [`Identity`] or an [`Answer`], and the compiled program, empty if there is none.
///
/// # Errors
/// [`CompileError::Stream`].
pub fn read_answer<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<(T, &[u8]), CompileError> {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (line, rest) = bytes.split_at(end);
    let answer = serde_json::from_slice(line).map_err(stream("the answer", "read"))?;
    Ok((answer, rest.get(1..).unwrap_or_default()))
}

fn stream(what: &'static str, action: &'static str) -> impl FnOnce(serde_json::Error) -> CompileError {
    move |error| CompileError::Stream { what, action, error: error.into() }
}
