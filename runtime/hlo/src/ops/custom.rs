//! Calls of code outside of XLA. Invariant: all buffers of a custom call are dense and row-major, whatever layouts the
//! compiler would like.

use super::{distinct_dims, same_count, same_shape};
use crate::attributes::{Attributes, is_identifier, list, quote};
use crate::builder::size;
use crate::{Builder, HloError, Native, Problem, Shape, Value};

/// A setting that a handler gets with the call.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A truth value.
    Bool(bool),
    /// A signed 32-bit integer.
    S32(i32),
    /// A signed 64-bit integer.
    S64(i64),
    /// A 32-bit float.
    F32(f32),
    /// A text.
    Text(String),
    /// A list of signed 64-bit integers.
    S64List(Vec<i64>),
}

impl Attribute {
    fn mlir(&self) -> String {
        match self {
            Self::Bool(value) => value.to_string(),
            Self::S32(value) => format!("{value} : i32"),
            Self::S64(value) => format!("{value} : i64"),
            Self::F32(value) => format!("{} : f32", value.literal()),
            Self::Text(value) => quote(value),
            Self::S64List(values) => crate::attributes::array(values),
        }
    }
}

/// A call of a handler that was registered with XLA's FFI (API version 4, typed).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CustomCall {
    /// The name under which the handler is registered. Put the handler's version into it: it is part of the cache key.
    pub target: String,
    /// The shapes of the results.
    pub results: Vec<Shape>,
    /// Settings by name, in the order of writing.
    pub config: Vec<(String, Attribute)>,
    /// The call does more than make its results: it is neither removed nor merged with an equal one.
    pub has_side_effect: bool,
    /// Results (first) that are written over operands (second) of the same shape.
    pub aliases: Vec<(usize, usize)>,
}

impl Builder {
    /// Calls a handler.
    ///
    /// # Errors
    /// A setting's name is no identifier or comes twice; an alias names a result or operand that does not exist, one
    /// twice, or two of different shapes; a call without results has no side effect.
    pub fn custom_call(&mut self, call: &CustomCall, operands: &[Value]) -> Result<Vec<Value>, HloError> {
        let op = "custom_call";
        let given = self.shapes(op, operands)?;
        let attributes = attributes(call, &given).map_err(|problem| self.error(op, &given, problem))?;
        self.add_operation(op, operands, &given, attributes, Vec::new(), call.results.clone())
    }
}

fn attributes(call: &CustomCall, given: &[Shape]) -> Result<Attributes, Problem> {
    if call.target.is_empty() {
        return Err(Problem::Name { name: String::new(), reason: "is empty; name the handler" });
    }
    if call.results.is_empty() && !call.has_side_effect {
        let what = "a custom call without results and side effect would be removed";
        return Err(Problem::Unavailable { what, instead: "say that it has a side effect" });
    }
    let mut settings = Vec::new();
    for (index, (name, value)) in call.config.iter().enumerate() {
        let refuse = |reason| Problem::Name { name: name.clone(), reason };
        if !is_identifier(name) {
            return Err(refuse("is not an identifier; use letters, digits, `_`, `$` and `.`"));
        }
        if call.config.iter().take(index).any(|(earlier, _)| earlier == name) {
            return Err(refuse("is taken; choose another"));
        }
        settings.push(format!("{name} = {}", value.mlir()));
    }
    let mut attributes = vec![
        ("call_target_name", quote(&call.target)),
        ("has_side_effect", call.has_side_effect.to_string()),
        ("api_version", "4 : i32".to_owned()),
        ("backend_config", format!("{{{}}}", settings.join(", "))),
        ("operand_layouts", row_major(given)),
        ("result_layouts", row_major(&call.results)),
    ];
    if !call.aliases.is_empty() {
        attributes.push(("output_operand_aliases", aliases(call, given)?));
    }
    Ok(attributes)
}

fn aliases(call: &CustomCall, given: &[Shape]) -> Result<String, Problem> {
    let results: Vec<usize> = call.aliases.iter().map(|(result, _)| *result).collect();
    let operands: Vec<usize> = call.aliases.iter().map(|(_, operand)| *operand).collect();
    distinct_dims("the aliased results", &results, call.results.len())?;
    distinct_dims("the aliased operands", &operands, given.len())?;
    let mut texts = Vec::new();
    for (result, operand) in &call.aliases {
        let (Some(to), Some(from)) = (call.results.get(*result), given.get(*operand)) else {
            return same_count("the number of aliases", 0, call.aliases.len()).map(|()| String::new());
        };
        same_shape("an aliased operand", from, to)?;
        // A single result is no tuple in HLO, so it has no index.
        let index = if call.results.len() == 1 { String::new() } else { result.to_string() };
        texts.push(format!(
            "#stablehlo.output_operand_alias<output_tuple_indices = [{index}], operand_index = {operand}, \
             operand_tuple_indices = []>"
        ));
    }
    Ok(format!("[{}]", texts.join(", ")))
}

/// Layouts of tensors whose last dimension is the one without gaps.
fn row_major(shapes: &[Shape]) -> String {
    let layout = |shape: &Shape| {
        let order: Vec<u64> = (0..shape.rank()).rev().map(size).collect();
        match order.as_slice() {
            [] => "dense<> : tensor<0xindex>".to_owned(),
            order => format!("dense<[{}]> : tensor<{}xindex>", list(order), order.len()),
        }
    };
    format!("[{}]", shapes.iter().map(layout).collect::<Vec<_>>().join(", "))
}
