//! Reads typed values out of a [`Table`], collecting every mistake instead of stopping at the first.
//!
//! The types derive serde's `Deserialize`. Each key is a [`Field`]: its `Deserialize` never fails, because the
//! deserializer notes the mistake with its path and place and hands back [`Field::Invalid`]. Unknown keys are noted
//! where serde names the keys that a struct has.

use std::cell::RefCell;
use std::fmt;
use std::marker::PhantomData;

use schemars::JsonSchema;
use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use super::messages::Mistake;
use super::tree::{Node, Table, Value};
use crate::diagnostic::{Diagnostic, Location, SourceId};

/// A key of the profile: not set, set somewhere, or set to something that was already reported.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Field<T> {
    /// Nobody set it.
    #[default]
    Unset,
    /// Somebody set it.
    Set {
        /// The value.
        value: T,
        /// Where it is written.
        location: Location,
    },
    /// It was set to something that cannot be, which was reported.
    Invalid,
}

impl<T> Field<T> {
    /// The value, if there is one.
    pub fn get(&self) -> Option<&T> {
        match self {
            Field::Set { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Where it is written.
    pub fn location(&self) -> Option<Location> {
        match self {
            Field::Set { location, .. } => Some(*location),
            _ => None,
        }
    }
}

impl<T: JsonSchema> JsonSchema for Field<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        generator.subschema_for::<T>()
    }
}

/// Keys of a table that are compared with each other for suggestions.
const MAX_NEIGHBOURS: usize = 64;

/// The name by which [`Field`] makes itself known to the deserializer.
const FIELD: &str = "$gemma4ctl::Field";

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for FieldVisitor<T> {
            type Value = Field<T>;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                // First the place, as three numbers; then the value, whose mistakes the deserializer has noted.
                let Some(((), place)) = map.next_entry::<(), [u32; 3]>()? else { return Ok(Field::Unset) };
                let location = Location { source: SourceId(place[0]), start: place[1], end: place[2] };
                Ok(match map.next_entry::<(), T>() {
                    Ok(Some(((), value))) => Field::Set { value, location },
                    Ok(None) | Err(_) => Field::Invalid,
                })
            }
        }
        deserializer.deserialize_struct(FIELD, &[], FieldVisitor(PhantomData))
    }
}

/// Reads a `T` from `table`. Mistakes go to `diagnostics`; the result is there unless a part was too wrong to go on.
pub fn read<T: DeserializeOwned>(table: &Table, location: Location, diagnostics: &mut Vec<Diagnostic>) -> Option<T> {
    let context = Context { diagnostics: RefCell::new(std::mem::take(diagnostics)) };
    let node = Node { value: Value::Table(table.clone()), location, key_location: location, raw: None, replaced: None };
    let result = T::deserialize(NodeDeserializer { node: &node, path: Path::Root, context: &context });
    *diagnostics = context.diagnostics.into_inner();
    result.ok()
}

struct Context {
    diagnostics: RefCell<Vec<Diagnostic>>,
}

impl Context {
    fn note(&self, mistake: &Mistake, path: &str, location: Location) {
        self.diagnostics.borrow_mut().push(mistake.diagnostic(path, location));
    }
}

#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Root => Ok(()),
            Path::Key(Path::Root, key) => formatter.write_str(key),
            Path::Key(parent, key) => write!(formatter, "{parent}.{key}"),
            Path::Index(parent, index) => write!(formatter, "{parent}[{index}]"),
        }
    }
}

/// An error on its way to the nearest place that can name it. `None` means that it was noted already.
#[derive(Debug)]
pub struct Error(Option<Mistake>);

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.0)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Error(Some(Mistake::Invalid { reason: message.to_string() }))
    }
    fn invalid_type(found: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let found = match found {
            Unexpected::Bool(_) => "a boolean",
            Unexpected::Unsigned(_) | Unexpected::Signed(_) => "an integer",
            Unexpected::Float(_) => "a number",
            Unexpected::Str(_) | Unexpected::Char(_) | Unexpected::Bytes(_) => "a string",
            Unexpected::Seq => "an array",
            Unexpected::Map => "a table",
            _ => "something else",
        };
        // serde's words for what TOML calls arrays and tables.
        let expected = match expected.to_string() {
            words if words == "a sequence" => "an array".to_owned(),
            words if words == "a map" => "a table".to_owned(),
            words => words,
        };
        Error(Some(Mistake::WrongType { expected, found: found.to_owned() }))
    }
    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Error(Some(Mistake::NotAChoice {
            found: variant.to_owned(),
            choices: expected.iter().map(|&choice| choice.to_owned()).collect(),
        }))
    }
    fn missing_field(field: &'static str) -> Self {
        Error(Some(Mistake::Missing { key: field.to_owned() }))
    }
}

struct NodeDeserializer<'a> {
    node: &'a Node,
    path: Path<'a>,
    context: &'a Context,
}

impl<'a> NodeDeserializer<'a> {
    /// Reads the value with `seed`. A type that reads a plain value first and judges it then errs after the reading;
    /// its error belongs here too.
    fn read<'de, S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        let here = NodeDeserializer { node: self.node, path: self.path, context: self.context };
        here.place(seed.deserialize(self))
    }

    /// Gives an error the place and path of this value, once.
    fn place<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|Error(mistake)| {
            if let Some(mut mistake) = mistake {
                let path = self.path.to_string();
                if let Mistake::Missing { key } = &mut mistake {
                    *key = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                }
                self.context.note(&mistake, &path, self.node.location);
            }
            Error(None)
        })
    }

    fn wrong(&self, expected: &str) -> Error {
        Error(Some(Mistake::WrongType { expected: expected.to_owned(), found: self.node.value.kind().to_owned() }))
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Datetime => Err(self.wrong("another kind of value")),
            Value::Array(items) => {
                visitor.visit_seq(Items { items: items.iter().enumerate(), path: &self.path, context: self.context })
            }
            Value::Table(table) => visitor.visit_map(Entries {
                entries: table.iter().collect::<Vec<_>>().into_iter(),
                current: None,
                path: &self.path,
                context: self.context,
            }),
        };
        self.place(result)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match (&self.node.value, &self.node.raw) {
            // `--set engine.version=0.25` means the text, although it reads as a number.
            (Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime, Some(raw)) => {
                let result = visitor.visit_str(raw);
                self.place(result)
            }
            (Value::Datetime, None) => self.place(Err(self.wrong("a string"))),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let result = match &self.node.value {
            Value::String(text) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(self.wrong("a string")),
        };
        self.place(result)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == FIELD {
            return visitor.visit_map(Placed { node: self.node, path: self.path, context: self.context, step: 0 });
        }
        let Value::Table(table) = &self.node.value else {
            return self.place(Err(self.wrong("a table")));
        };
        // More than a few unknown keys are another kind of mistake, which suggestions do not help.
        let present: Vec<String> = table.iter().map(|(key, _)| key.to_owned()).take(MAX_NEIGHBOURS).collect();
        let mut entries = Vec::new();
        for (key, node) in table.iter() {
            if fields.contains(&key) {
                entries.push((key, node));
            } else {
                let table = self.path.to_string();
                let known = fields.iter().map(|&field| field.to_owned()).collect();
                let present = present.clone();
                self.context.note(
                    &Mistake::UnknownKey { table, key: key.to_owned(), known, present },
                    "",
                    node.key_location,
                );
            }
        }
        let result = visitor.visit_map(Entries {
            entries: entries.into_iter(),
            current: None,
            path: &self.path,
            context: self.context,
        });
        self.place(result)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier ignored_any
    }
}

/// The entries of a table.
struct Entries<'a, I> {
    entries: I,
    current: Option<(&'a str, &'a Node)>,
    path: &'a Path<'a>,
    context: &'a Context,
}

impl<'a, 'de, I: Iterator<Item = (&'a str, &'a Node)>> MapAccess<'de> for Entries<'a, I> {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.entries.next();
        match self.current {
            Some((key, _)) => seed.deserialize(key.into_deserializer()).map(Some),
            None => Ok(None),
        }
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        match self.current.take() {
            Some((key, node)) => {
                NodeDeserializer { node, path: Path::Key(self.path, key), context: self.context }.read(seed)
            }
            None => Err(de::Error::custom("a value without a key")),
        }
    }
}

/// The items of an array.
struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: &'a Path<'a>,
    context: &'a Context,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;
    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        match self.items.next() {
            Some((index, node)) => {
                let item = NodeDeserializer { node, path: Path::Index(self.path, index), context: self.context };
                item.read(seed).map(Some)
            }
            None => Ok(None),
        }
    }
}

/// What a [`Field`] asks for: the place of a value, then the value.
struct Placed<'a> {
    node: &'a Node,
    path: Path<'a>,
    context: &'a Context,
    step: u8,
}

impl<'de> MapAccess<'de> for Placed<'_> {
    type Error = Error;
    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        if self.step == 2 {
            return Ok(None);
        }
        self.step += 1;
        seed.deserialize(().into_deserializer()).map(Some)
    }
    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        if self.step == 1 {
            let Location { source, start, end } = self.node.location;
            let place = de::value::SeqDeserializer::new([source.0, start, end].into_iter());
            return seed.deserialize(place);
        }
        NodeDeserializer { node: self.node, path: self.path, context: self.context }.read(seed)
    }
}
