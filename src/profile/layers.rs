//! Finds profiles, follows `extends`, lays the layers over each other, and applies `--set`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::builtin::BUILTIN;
use super::tree::{self, Table, Value};
use super::{Loaded, Profile, de, secrets};
use crate::diagnostic::{Diagnostic, Location, SourceId, SourceKind, Sources};

/// A profile that cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file exists but cannot be read.
    #[error("cannot read the profile {path}: {error}")]
    Read {
        /// The path as given.
        path: String,
        /// What the operating system says.
        error: std::io::Error,
    },
    /// No such file.
    #[error("there is no profile file {path}{hint}")]
    NoFile {
        /// The path as given.
        path: String,
        /// What there is instead.
        hint: &'static str,
    },
    /// No profile of this name anywhere.
    #[error("there is no profile named `{name}` in ./profiles, in {config} or among the built-in ones{hint}")]
    NoName {
        /// The name as given.
        name: String,
        /// The user's folder.
        config: String,
        /// A similar name, or where to see them all.
        hint: String,
    },
}

/// A `--set` argument that is not `key=value`.
#[derive(Debug, Error)]
#[error("`--set {argument}` is not of the form section.key=value; for example `--set scheduler.max_num_seqs=128`")]
pub struct SetError {
    /// The argument.
    pub argument: String,
}

/// Most profiles one chain of `extends` may have.
const MAX_DEPTH: usize = 32;

/// Most times that any profile is read for one. Two parents that share theirs double the number with each level.
const MAX_LAYERS: usize = 256;

/// The user's folder for profiles and catalog entries: `$GEMMA4CTL_CONFIG_DIR`, else `gemma4ctl` in the platform's
/// folder for configuration.
pub fn config_dir() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("GEMMA4CTL_CONFIG_DIR").filter(|path| !path.is_empty()) {
        return Some(PathBuf::from(path));
    }
    etcetera::base_strategy::choose_base_strategy()
        .ok()
        .map(|base| etcetera::BaseStrategy::config_dir(&base).join("gemma4ctl"))
}

/// Where a profile was found.
enum Found {
    File { path: PathBuf, name: String },
    Builtin { name: &'static str, text: &'static str },
}

impl Found {
    /// What tells one profile from another, for finding circles.
    fn identity(&self) -> String {
        match self {
            Found::File { path, .. } => {
                std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()).display().to_string()
            }
            Found::Builtin { name, .. } => format!("builtin:{name}"),
        }
    }

    fn shown(&self) -> String {
        match self {
            Found::File { name, .. } => name.clone(),
            Found::Builtin { name, .. } => format!("builtin:{name}.toml"),
        }
    }
}

fn with_extension(path: &Path) -> PathBuf {
    if path.extension().is_some_and(|extension| extension == "toml") {
        path.to_owned()
    } else {
        PathBuf::from(format!("{}.toml", path.display()))
    }
}

/// Looks a name up beside `folder` (for parents), in ./profiles, in the user's folder, then among the built-in ones.
fn find_named(name: &str, folder: Option<&Path>) -> Option<Found> {
    let relative = Path::new(name);
    let mut folders: Vec<PathBuf> = Vec::new();
    folders.extend(folder.map(Path::to_owned));
    folders.push(PathBuf::from("profiles"));
    folders.extend(config_dir().map(|config| config.join("profiles")));
    for folder in folders {
        let path = with_extension(&folder.join(relative));
        if path.is_file() {
            let shown = path.display().to_string();
            return Some(Found::File { name: shown.strip_prefix("./").map(str::to_owned).unwrap_or(shown), path });
        }
    }
    let plain = name.strip_suffix(".toml").unwrap_or(name);
    BUILTIN
        .iter()
        .find(|builtin| builtin.name == plain)
        .map(|builtin| Found::Builtin { name: builtin.name, text: builtin.text })
}

fn find(argument: &str) -> Result<Found, OpenError> {
    let path = Path::new(argument);
    // A pipe is as good as a file.
    if path.exists() && !path.is_dir() {
        return Ok(Found::File { path: path.to_owned(), name: argument.to_owned() });
    }
    let as_path =
        argument.starts_with(['.', '/', '~']) || path.extension().is_some_and(|extension| extension == "toml");
    if as_path {
        let hint = if path.is_dir() {
            ": it is a folder"
        } else if path.is_symlink() {
            ": it is a link that leads nowhere"
        } else {
            ""
        };
        return Err(OpenError::NoFile { path: argument.to_owned(), hint });
    }
    find_named(argument, None).ok_or_else(|| {
        let names: Vec<String> = list().into_iter().map(|(name, _)| name).collect();
        let borrowed: Vec<&str> = names.iter().map(String::as_str).collect();
        let hint = match super::messages::nearest(argument, &borrowed) {
            Some(name) => format!("; did you mean `{name}`?"),
            None => "; `gemma4ctl profiles` lists them".to_owned(),
        };
        let config = config_dir().map_or_else(
            || "the user's configuration folder".to_owned(),
            |config| config.join("profiles").display().to_string(),
        );
        OpenError::NoName { name: argument.to_owned(), config, hint }
    })
}

/// The profiles that can be named, each with where it was found: a path, or `builtin`.
pub fn list() -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let folders = [Some(PathBuf::from("profiles")), config_dir().map(|config| config.join("profiles"))];
    for folder in folders.into_iter().flatten() {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let toml = path.extension().is_some_and(|extension| extension == "toml");
            if toml && path.is_file() && !found.iter().any(|(known, _)| *known == name) {
                found.push((name, path.display().to_string()));
            }
        }
    }
    for builtin in BUILTIN {
        if !builtin.name.contains('/') && !found.iter().any(|(known, _)| known == builtin.name) {
            found.push((builtin.name.to_owned(), "builtin".to_owned()));
        }
    }
    found.sort();
    found
}

/// Loads the profile that `argument` names (a path or a name), with its parents and the `--set` arguments.
///
/// # Errors
/// [`OpenError`] if the file cannot be opened, [`SetError`] if an argument of `--set` has no `=`. Everything else is
/// a finding in the result.
pub fn load(argument: &str, set: &[String]) -> anyhow::Result<Loaded> {
    let found = find(argument)?;
    let mut loader = Loader { sources: Sources::default(), diagnostics: Vec::new(), stack: Vec::new(), layers: 0 };
    let bytes = match &found {
        Found::File { path, .. } => {
            read_bounded(path).map_err(|error| OpenError::Read { path: argument.to_owned(), error })?
        }
        Found::Builtin { text, .. } => text.as_bytes().to_vec(),
    };
    let stem = match &found {
        Found::File { path, .. } => {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        }
        Found::Builtin { name, .. } => (*name).to_owned(),
    };
    let (main, mut table) = loader.layer(&found, bytes, SourceKind::Profile);
    loader.apply_sets(&mut table, set)?;

    let Loader { mut sources, mut diagnostics, .. } = loader;
    secrets::take_out(&mut table, &mut sources, &mut diagnostics);
    if !diagnostics.iter().any(|finding| finding.code == "toml-syntax") {
        super::lines::check(&table, &mut diagnostics);
    }
    let top = Location::new(main, &(0..0));
    let profile: Profile = de::read(&table, top, &mut diagnostics).unwrap_or_default();
    let mut loaded =
        Loaded { name: profile.name.get().cloned().unwrap_or(stem), sources, main, table, profile, diagnostics };
    require(&mut loaded);
    Ok(loaded)
}

/// Reads a file, but never much more than a profile may have: a file that is too large is told by its first bytes.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(tree::MAX_PROFILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The keys without which nothing can be planned.
fn require(loaded: &mut Loaded) {
    // What could not be read may well say it.
    let unread = ["toml-syntax", "extends-cycle", "extends-not-found"];
    let extends_is_list = loaded.table.get("extends").is_none_or(|node| matches!(node.value, Value::Array(_)));
    if !extends_is_list || loaded.diagnostics.iter().any(|finding| unread.contains(&finding.code)) {
        return;
    }
    if loaded.table.is_empty() && loaded.diagnostics.is_empty() {
        let top = loaded.top();
        loaded.diagnostics.push(
            Diagnostic::error("missing-key", top, "the profile is empty")
                .help("it needs at least `model.id`, `hardware.accelerator` and `engine.kind`; `gemma4ctl init` writes one to start from"),
        );
        return;
    }
    for key in ["model.id", "hardware.accelerator", "engine.kind"] {
        if loaded.node(key).is_none() {
            let section = key.split('.').next().unwrap_or(key);
            let location = loaded.locate(section);
            let mistake = super::messages::Mistake::Missing { key: key.to_owned() };
            loaded.diagnostics.push(mistake.diagnostic(key, location));
        }
    }
}

struct Loader {
    sources: Sources,
    diagnostics: Vec<Diagnostic>,
    /// Identity and shown name of each profile on the way down.
    stack: Vec<(String, String)>,
    /// Profiles read so far.
    layers: usize,
}

impl Loader {
    /// Reads one file and lays it over its parents.
    fn layer(&mut self, found: &Found, bytes: Vec<u8>, kind: SourceKind) -> (SourceId, Table) {
        let path = match found {
            Found::File { path, .. } => Some(path.clone()),
            Found::Builtin { .. } => None,
        };
        let folder = path.as_deref().and_then(Path::parent).map(Path::to_owned);
        let before = self.diagnostics.len();
        let id = tree::add_bytes(&mut self.sources, &found.shown(), kind, bytes, path, &mut self.diagnostics);
        let mut own = if self.diagnostics.len() == before {
            let text = self.sources.get(id).text.clone();
            tree::parse(id, &text, &mut self.diagnostics)
        } else {
            Table::default()
        };
        self.stack.push((found.identity(), found.shown()));
        let mut merged = Table::default();
        for (name, location) in self.parents(&own) {
            if let Some(parent) = self.parent(&name, location, folder.as_deref()) {
                merged.overlay(parent);
            }
        }
        self.stack.pop();
        if kind == SourceKind::Parent {
            // Name, summary and ancestry belong to one profile alone.
            for key in ["name", "summary", "extends", "base"] {
                own.remove(key);
            }
        }
        merged.overlay(own);
        (id, merged)
    }

    /// The names in `extends`; anything else there is left for the typed reader to refuse.
    fn parents(&self, own: &Table) -> Vec<(String, Location)> {
        match own.get("extends").map(|node| &node.value) {
            Some(Value::Array(items)) => items
                .iter()
                .filter_map(|item| match &item.value {
                    Value::String(name) => Some((name.clone(), item.location)),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    fn parent(&mut self, name: &str, location: Location, folder: Option<&Path>) -> Option<Table> {
        let Some(found) = find_named(name, folder) else {
            let names: Vec<&str> = BUILTIN.iter().map(|builtin| builtin.name).collect();
            let help = match super::messages::nearest(name, &names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "a parent is looked up beside this file, in ./profiles, in the user's folder, then among the built-in ones".to_owned(),
            };
            self.diagnostics.push(
                Diagnostic::error(
                    "extends-not-found",
                    location,
                    format!("there is no profile `{}` to extend", secrets::redact(name)),
                )
                .help(help),
            );
            return None;
        };
        let identity = found.identity();
        if let Some(at) = self.stack.iter().position(|(known, _)| *known == identity) {
            let mut circle: Vec<&str> = self.stack[at..].iter().map(|(_, shown)| shown.as_str()).collect();
            let back = found.shown();
            circle.push(&back);
            self.diagnostics.push(
                Diagnostic::error(
                    "extends-cycle",
                    location,
                    format!("`extends` goes in a circle: {}", circle.join(" -> ")),
                )
                .help("take one of these `extends` out"),
            );
            return None;
        }
        self.layers += 1;
        if self.layers == MAX_LAYERS {
            self.diagnostics.push(
                Diagnostic::error(
                    "extends-cycle",
                    location,
                    format!("more than {MAX_LAYERS} profiles are laid over each other"),
                )
                .help("extend a common parent once, in the profile at the bottom"),
            );
        }
        if self.layers >= MAX_LAYERS {
            return None;
        }
        if self.stack.len() >= MAX_DEPTH {
            self.diagnostics.push(Diagnostic::error(
                "extends-cycle",
                location,
                format!("more than {MAX_DEPTH} profiles extend one another"),
            ));
            return None;
        }
        let bytes = match &found {
            Found::Builtin { text, .. } => text.as_bytes().to_vec(),
            Found::File { path, .. } => match read_bounded(path) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.diagnostics.push(Diagnostic::error(
                        "extends-not-found",
                        location,
                        format!("cannot read `{name}`: {error}"),
                    ));
                    return None;
                }
            },
        };
        Some(self.layer(&found, bytes, SourceKind::Parent).1)
    }

    fn apply_sets(&mut self, table: &mut Table, set: &[String]) -> Result<(), SetError> {
        for argument in set {
            let wrong = || SetError { argument: argument.clone() };
            let (path, value) = argument.split_once('=').ok_or_else(wrong)?;
            let parts = key_parts(path).ok_or_else(wrong)?;
            let id = self.sources.add("--set", SourceKind::Set, argument.clone(), None);
            let key_location = Location::new(id, &(0..path.len()));
            let Some((first, rest)) = parts.split_first() else { return Err(wrong()) };
            if ["extends", "base"].contains(&first.as_str()) {
                let finding = Diagnostic::error(
                    "invalid-value",
                    key_location,
                    format!("`{first}` cannot be set from the command line"),
                );
                self.diagnostics.push(finding.help("write a profile of your own that extends what you want"));
                continue;
            }
            let value = value.trim();
            let start = argument.len() - argument.trim_end().len();
            let end = argument.len() - start;
            let mut node = tree::parse_value(id, value, end - value.len()..end, &mut self.diagnostics);
            node.key_location = key_location;
            for part in rest.iter().rev() {
                let mut inner = Table::default();
                inner.insert(part.clone(), node);
                node = tree::Node {
                    value: Value::Table(inner),
                    location: key_location,
                    key_location,
                    raw: None,
                    replaced: None,
                };
            }
            let mut layer = Table::default();
            layer.insert(first.clone(), node);
            table.overlay(layer);
        }
        Ok(())
    }
}

/// The parts of a dotted key, as TOML splits it: `engine.env."A.B"` has three.
fn key_parts(path: &str) -> Option<Vec<String>> {
    let mut diagnostics = Vec::new();
    if path.contains('\n') {
        return None;
    }
    let table = tree::parse(SourceId(0), &format!("{path} = 0"), &mut diagnostics);
    let mut parts = Vec::new();
    let mut level = Some(&table);
    while let Some(table) = level {
        let (key, node) = table.iter().next()?;
        parts.push(key.to_owned());
        level = match &node.value {
            Value::Table(inner) => Some(inner),
            _ => None,
        };
    }
    (diagnostics.is_empty() && parts.len() <= 8).then_some(parts)
}
