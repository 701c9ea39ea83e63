//! Collects where each value came from while a profile is resolved.

use std::collections::BTreeMap;

use gemma4_plan::{Provenance, Source};
use serde::Serialize;

use crate::catalog::{Engine, Version};
use crate::diagnostic::SourceKind;
use crate::profile::Loaded;
use crate::profile::de::Field;
use crate::profile::schema::node_json;
use crate::profile::tree::{Node, Value};

/// A value that nobody wrote down, with the reason for it.
pub(super) struct Otherwise<T> {
    /// The value.
    pub(super) value: T,
    /// A default, or derived from other values.
    pub(super) source: Source,
    /// The reason, in words.
    pub(super) why: String,
}

/// A default with its reason.
pub(super) fn default<T>(value: T, why: impl Into<String>) -> Otherwise<T> {
    Otherwise { value, source: Source::Default, why: why.into() }
}

/// A derived value with its reason.
pub(super) fn derived<T>(value: T, why: impl Into<String>) -> Otherwise<T> {
    Otherwise { value, source: Source::Derived, why: why.into() }
}

/// Picks values and records where they came from.
pub(super) struct Recorder<'a> {
    loaded: &'a Loaded,
    engine: &'a Engine,
    /// Version whose defaults apply, once it is known.
    pub(super) version: Version,
    entries: BTreeMap<String, Provenance>,
}

impl<'a> Recorder<'a> {
    /// Starts with nothing recorded.
    pub(super) fn new(loaded: &'a Loaded, engine: &'a Engine) -> Self {
        Recorder { loaded, engine, version: engine.latest, entries: BTreeMap::new() }
    }

    /// The entries, by profile key. What nobody asked for, such as the settings of a deployment target, is recorded as it
    /// was written, so that every value of a profile has an origin.
    pub(super) fn finish(mut self) -> BTreeMap<String, Provenance> {
        let loaded = self.loaded;
        for (section, node) in loaded.table.iter() {
            if !["name", "summary", "base", "extends", "lint"].contains(&section) {
                self.rest(section, node);
            }
        }
        self.entries
    }

    fn rest(&mut self, path: &str, node: &Node) {
        match &node.value {
            Value::Table(table) if !path.starts_with("secrets.") => {
                for (key, child) in table.iter() {
                    self.rest(&format!("{path}.{key}"), child);
                }
            }
            _ if !self.entries.contains_key(path) => self.written(path, &node_json(node)),
            _ => {}
        }
    }

    /// The value of `field`, else `otherwise`.
    pub(super) fn pick<T, U: Serialize>(
        &mut self,
        key: &str,
        field: &Field<T>,
        convert: impl Fn(&T) -> U,
        otherwise: impl FnOnce() -> Otherwise<U>,
    ) -> U {
        match field.get() {
            Some(value) => {
                let value = convert(value);
                self.written(key, &value);
                value
            }
            None => {
                let Otherwise { value, source, why } = otherwise();
                self.record(key, &value, source, why);
                value
            }
        }
    }

    /// The value of `field`, else the engine's default of the same key, else `fallback`.
    pub(super) fn pick_or_engine<T, U: Serialize>(
        &mut self,
        key: &str,
        field: &Field<T>,
        convert: impl Fn(&T) -> U,
        from_catalog: impl FnOnce(&toml::Value) -> Option<U>,
        fallback: U,
    ) -> U {
        let (engine, version) = (self.engine, self.version);
        self.pick(key, field, convert, || {
            match engine
                .default(key, version)
                .and_then(|entry| from_catalog(&entry.value).map(|value| (value, &entry.source)))
            {
                Some((value, source)) => default(value, format!("the default of {}: {source}", engine.kind)),
                None => default(fallback, "gemma4ctl's default"),
            }
        })
    }

    /// The value of `field` if somebody wrote it down.
    pub(super) fn optional<T, U: Serialize>(
        &mut self,
        key: &str,
        field: &Field<T>,
        convert: impl Fn(&T) -> U,
        without: &str,
    ) -> Option<U> {
        self.pick(key, field, |value| Some(convert(value)), || default(None, without))
    }

    fn written<U: Serialize>(&mut self, key: &str, value: &U) {
        let Some((kind, location)) = self.loaded.origin(key) else {
            return self.record(key, value, Source::Profile, "written in the profile".to_owned());
        };
        let name = &self.loaded.sources.get(location.source).name;
        let (source, why) = match kind {
            SourceKind::Profile => (Source::Profile, "written in the profile".to_owned()),
            SourceKind::Parent => (Source::Extends, format!("inherited from {name}")),
            SourceKind::Set => (Source::Set, "given on the command line with --set".to_owned()),
        };
        let line = (kind != SourceKind::Set).then(|| self.loaded.sources.line_column(location).0);
        self.entries.insert(
            key.to_owned(),
            Provenance { value: json(value), source, file: (kind != SourceKind::Set).then(|| name.clone()), line, why },
        );
    }

    /// Records a value that was not written down.
    pub(super) fn record<U: Serialize>(&mut self, key: &str, value: &U, source: Source, why: String) {
        self.entries.insert(key.to_owned(), Provenance { value: json(value), source, file: None, line: None, why });
    }
}

fn json<T: Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}
