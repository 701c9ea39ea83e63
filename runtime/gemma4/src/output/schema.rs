//! What a JSON schema says about the type of a value.
//!
//! Only types matter here, so every alternative of a schema counts, and whatever is not understood allows nothing more.

use serde_json::Value;

/// References and alternatives that are followed at most: schemas may refer to themselves.
const DEPTH: usize = 16;

/// A type of JSON, or one of JSON Schema's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Type {
    Null = 1,
    Integer = 2,
    Number = 4,
    Boolean = 8,
    Object = 16,
    Array = 32,
    String = 64,
}

/// Types that a value may have. None: nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    pub(super) fn has(self, kind: Type) -> bool {
        self.0 & kind as u8 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn add(&mut self, kind: Type) {
        self.0 |= kind as u8;
    }
}

/// A schema within another, to which its references refer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schema<'a> {
    root: &'a Value,
    node: &'a Value,
}

impl<'a> Schema<'a> {
    /// That of which nothing is known.
    pub(super) const ANY: Schema<'static> = Schema { root: &Value::Null, node: &Value::Null };

    pub(super) fn new(root: &'a Value) -> Self {
        Self { root, node: root }
    }

    pub(super) fn types(self) -> Types {
        let mut types = Types::default();
        self.visit(DEPTH, &mut |schema| {
            schema.own_types(&mut types);
            false
        });
        types
    }

    /// Whether a value between quotes is a string and nothing else.
    pub(super) fn is_text(self) -> bool {
        let types = self.types();
        types.is_empty() || types == Types(Type::String as u8)
    }

    /// The schema of a member of an object.
    pub(super) fn property(self, name: &str) -> Schema<'a> {
        self.find(|schema| schema.node.get("properties").and_then(|all| all.get(name)))
            .or_else(|| self.find(|schema| schema.node.get("additionalProperties")))
            .unwrap_or(Schema { root: self.root, node: &Value::Null })
    }

    /// The schema of the members of a list.
    pub(super) fn items(self) -> Schema<'a> {
        self.find(|schema| schema.node.get("items")).unwrap_or(Schema { root: self.root, node: &Value::Null })
    }

    fn find(self, of: impl Fn(Self) -> Option<&'a Value>) -> Option<Self> {
        let mut found = None;
        self.visit(DEPTH, &mut |schema| {
            found = of(schema);
            found.is_some()
        });
        found.map(|node| Self { root: self.root, node })
    }

    /// Shows this schema, what it refers to and its alternatives, until `done`; returns whether it was.
    fn visit(self, depth: usize, done: &mut impl FnMut(Self) -> bool) -> bool {
        let Some(deeper) = depth.checked_sub(1) else { return false };
        if done(self) {
            return true;
        }
        let reference = self.node.get("$ref").and_then(Value::as_str).and_then(|text| text.strip_prefix('#'));
        let target = reference.and_then(|pointer| self.root.pointer(pointer));
        let alternatives = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|name| self.node.get(name)?.as_array());
        let mut all = target.into_iter().chain(alternatives.flatten());
        all.any(|node| Self { root: self.root, node }.visit(deeper, done))
    }

    fn own_types(self, types: &mut Types) {
        let named = self.node.get("type");
        let names = named.and_then(Value::as_array).into_iter().flatten().chain(named);
        for name in names.filter_map(Value::as_str) {
            match name.to_ascii_lowercase().as_str() {
                "null" => types.add(Type::Null),
                "integer" => types.add(Type::Integer),
                "number" => types.add(Type::Number),
                "boolean" => types.add(Type::Boolean),
                "object" => types.add(Type::Object),
                "array" => types.add(Type::Array),
                "string" => types.add(Type::String),
                _ => {}
            }
        }
        if self.node.get("nullable") == Some(&Value::Bool(true)) {
            types.add(Type::Null);
        }
        if named.is_some() {
            return;
        }
        let values = self.node.get("enum").and_then(Value::as_array).into_iter().flatten();
        for value in values.chain(self.node.get("const")) {
            types.add(match value {
                Value::Null => Type::Null,
                Value::Bool(_) => Type::Boolean,
                Value::Number(number) if number.is_f64() => Type::Number,
                Value::Number(_) => Type::Integer,
                Value::String(_) => Type::String,
                Value::Array(_) => Type::Array,
                Value::Object(_) => Type::Object,
            });
        }
    }
}
