//! Profiles: from TOML files to one typed [`Profile`] that knows where each value was written.
//!
//! The invariant: whatever the bytes, loading ends in a [`Loaded`] with findings, never in a panic; only a file that
//! cannot be opened is an error.

mod builtin;
pub mod de;
mod layers;
mod lines;
pub mod messages;
pub mod schema;
mod secrets;
pub mod tree;
mod types;
pub mod units;

pub use builtin::{BUILTIN, Builtin};
pub use layers::{OpenError, SetError, config_dir, list, load};
pub use secrets::redact;
pub use types::*;

use crate::diagnostic::{Diagnostic, Location, SourceId, SourceKind, Sources};
use tree::{Node, Table, Value};

/// A profile with its layers merged, and everything that was found on the way.
#[derive(Debug)]
pub struct Loaded {
    /// The texts of the profile, its parents and the `--set` arguments.
    pub sources: Sources,
    /// The profile's own text.
    pub main: SourceId,
    /// The merged tree.
    pub table: Table,
    /// The typed profile.
    pub profile: Profile,
    /// Name of the profile.
    pub name: String,
    /// What was found so far.
    pub diagnostics: Vec<Diagnostic>,
}

impl Loaded {
    /// The node at a path such as `memory.block_size`.
    pub fn node(&self, path: &str) -> Option<&Node> {
        let mut table = &self.table;
        let mut parts = path.split('.').peekable();
        loop {
            let node = table.get(parts.next()?)?;
            match (&node.value, parts.peek()) {
                (_, None) => return Some(node),
                (Value::Table(inner), Some(_)) => table = inner,
                _ => return None,
            }
        }
    }

    /// The place that a finding about `path` points at: the value; else the nearest section above it; else the top.
    pub fn locate(&self, path: &str) -> Location {
        let mut path = path;
        loop {
            if let Some(node) = self.node(path) {
                return if matches!(node.value, Value::Table(_)) { node.key_location } else { node.location };
            }
            match path.rsplit_once('.') {
                Some((section, _)) => path = section,
                None => return self.top(),
            }
        }
    }

    /// The first line of the profile.
    pub fn top(&self) -> Location {
        Location::new(self.main, &(0..0))
    }

    /// Who set the value at `path`, and where.
    pub fn origin(&self, path: &str) -> Option<(SourceKind, Location)> {
        self.node(path).map(|node| (self.sources.get(node.location.source).kind, node.location))
    }
}

/// Every key of a profile as `section.key`.
pub fn keys() -> &'static [String] {
    static KEYS: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    KEYS.get_or_init(|| {
        let sections: [(&str, &[&str]); 18] = [
            ("model", Model::KEYS),
            ("hardware", Hardware::KEYS),
            ("engine", Engine::KEYS),
            ("parallelism", Parallelism::KEYS),
            ("memory", Memory::KEYS),
            ("scheduler", Scheduler::KEYS),
            ("speculative", Speculative::KEYS),
            ("multimodal", Multimodal::KEYS),
            ("chat", Chat::KEYS),
            ("cache", Cache::KEYS),
            ("server", Server::KEYS),
            ("workload", Workload::KEYS),
            ("deploy.docker", Docker::KEYS),
            ("deploy.gcloud", Gcloud::KEYS),
            ("deploy.gke", Gke::KEYS),
            ("lint", Lint::KEYS),
            ("secrets", &["hf_token", "api_key"]),
            ("", &["name", "summary", "base", "extends"]),
        ];
        sections
            .iter()
            .flat_map(|(section, keys)| {
                keys.iter()
                    .map(move |key| if section.is_empty() { (*key).to_owned() } else { format!("{section}.{key}") })
            })
            .collect()
    })
}
