//! Engines: defaults, flags and what was measured, by version.

use std::sync::{Arc, OnceLock};

use serde::Deserialize;

use super::{Cache, CatalogError, Version, parse, user_entries};
use crate::profile::EngineKind;

/// An engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name in profiles.
    pub kind: String,
    /// Name for people.
    pub title: String,
    /// Version whose rules apply when a profile names none.
    pub latest: Version,
    /// Oldest version that serves Gemma 4.
    pub first: Version,
    /// Repository of the image.
    pub image: Option<String>,
    /// Name of the list of options.
    pub options: Option<String>,
    /// Where the entry comes from.
    pub source: String,
    /// Defaults of profile keys.
    #[serde(default, rename = "default")]
    defaults: Vec<Default>,
    /// Flags that are gone.
    #[serde(default, rename = "flag")]
    pub flags: Vec<Flag>,
    /// Flags that do nothing.
    #[serde(default, rename = "ignored_flag")]
    pub ignored_flags: Vec<IgnoredFlag>,
    /// Environment variables that do nothing.
    #[serde(default, rename = "ignored_env")]
    pub ignored_env: Vec<IgnoredEnv>,
    /// Memory of compiled programs, where it was measured.
    #[serde(default)]
    pub programs: Vec<Programs>,
    /// Weights in device memory, where they were measured.
    #[serde(default)]
    pub weights: Vec<MeasuredWeights>,
    /// Compile times, where they were measured.
    pub compile: Option<CompileTimes>,
    /// Cold starts that were observed.
    #[serde(default, rename = "cold_start")]
    pub starts: Vec<ColdStart>,
}

/// A default of an engine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Default {
    /// Profile key.
    key: String,
    /// First version that has it.
    since: Option<Version>,
    /// First version that has another.
    until: Option<Version>,
    /// The value.
    pub value: toml::Value,
    /// Where it comes from.
    pub source: String,
}

/// A flag that is gone.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flag {
    /// The flag.
    pub name: String,
    /// A version that does not know it; no older parser was read.
    pub until: Version,
    /// Whether it took a value.
    #[serde(default = "takes_value")]
    pub takes_value: bool,
    /// What to do.
    pub help: String,
}

/// Most flags take a value.
fn takes_value() -> bool {
    true
}

/// A flag that does nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoredFlag {
    /// The flag.
    pub name: String,
    /// Why, and what to use.
    pub help: String,
}

/// An environment variable that does nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IgnoredEnv {
    /// The variable.
    pub name: String,
    /// The first version that ignores it.
    pub since: Option<Version>,
    /// What to do.
    pub help: String,
}

/// Memory of compiled programs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// Accelerator family.
    pub family: String,
    /// Size of the model.
    pub size: String,
    /// Tensor parallelism of the observation.
    pub tensor: u64,
    /// MiB on one device.
    pub mib: u64,
    /// Whether the observation is of all programs together, rather than of what comes on top of structured decoding.
    #[serde(default)]
    pub total: bool,
    /// The observation.
    pub source: String,
}

/// Weights in device memory after loading.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredWeights {
    /// Model id.
    pub id: String,
    /// Tensor parallelism.
    pub tensor: u64,
    /// GiB, all devices together.
    pub gib: f64,
    /// The observation.
    pub source: String,
}

/// A start with nothing cached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColdStart {
    /// Accelerator family.
    pub family: String,
    /// Size of the model.
    pub size: String,
    /// Tensor parallelism.
    pub tensor: u64,
    /// Whether speculation was on.
    pub speculative: bool,
    /// Seconds until ready.
    pub seconds: u64,
    /// The observation.
    pub source: String,
}

/// Seconds of a cold compile.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct CompileTimes {
    /// For each token bucket.
    pub seconds_per_token_bucket: f64,
    /// For each token bucket with media.
    pub seconds_per_media_bucket: f64,
    /// For each other program.
    pub seconds_per_program: f64,
    /// Layers of the model that was measured.
    pub layers: u64,
}

impl Engine {
    /// The default of a profile key in `version`.
    pub fn default(&self, key: &str, version: Version) -> Option<&Default> {
        self.defaults.iter().find(|entry| {
            entry.key == key
                && entry.since.is_none_or(|since| since <= version)
                && entry.until.is_none_or(|until| version < until)
        })
    }

    /// The engine's command-line options, if the catalog has them.
    pub fn option_list(&self) -> Option<&'static [Opt]> {
        static VLLM: OnceLock<Vec<Opt>> = OnceLock::new();
        match self.options.as_deref() {
            Some("vllm-0.32") => {
                Some(VLLM.get_or_init(|| read_options(include_str!("data/engines/vllm-0.32.options"))))
            }
            _ => None,
        }
    }
}

/// A command-line option.
#[derive(Debug, Clone)]
pub struct Opt {
    /// Whether it takes no value.
    pub flag: bool,
    /// Its spellings.
    pub names: Vec<&'static str>,
}

fn read_options(text: &'static str) -> Vec<Opt> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let kind = words.next()?;
            Some(Opt { flag: kind == "flag", names: words.collect() })
        })
        .collect()
}

/// The engine of this kind.
///
/// # Errors
/// If a catalog file of the user cannot be used.
pub fn engine(kind: EngineKind) -> Result<Arc<Engine>, CatalogError> {
    static READ: Cache<Engine> = Cache::new();
    let found = READ.get(kind.as_str(), || {
        let own = user_entries::<Engine>("engines")?.into_iter().find(|entry| entry.kind == kind.as_str());
        if own.is_some() {
            return Ok(own);
        }
        let (name, text) = match kind {
            EngineKind::VllmTpu => ("builtin:vllm-tpu", include_str!("data/engines/vllm-tpu.toml")),
            EngineKind::VllmGpu => ("builtin:vllm-gpu", include_str!("data/engines/vllm-gpu.toml")),
            EngineKind::Bundled => ("builtin:bundled", include_str!("data/engines/bundled.toml")),
        };
        parse(name, text).map(Some)
    })?;
    found.ok_or_else(|| CatalogError::Parse { path: kind.to_string(), message: "there is no such engine".to_owned() })
}
