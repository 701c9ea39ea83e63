//! Modules as MLIR text. Invariant: the text depends only on the operations and their order, never on handles, addresses
//! or hash order.

use crate::attributes::quote;
use crate::builder::{Block, Operation};
use crate::module::Built;
use crate::{Parallelism, Shape};

/// Whether to write where an operation comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locations {
    Written,
    Omitted,
}

/// The text of a module.
pub(crate) fn module(name: &str, parallelism: Parallelism, functions: &[Built], locations: Locations) -> String {
    let (replicas, partitions) = match parallelism {
        Parallelism::Single => (1, 1),
        Parallelism::Replicas(count) => (count, 1),
        Parallelism::ManualPartitions(count) => (1, count),
    };
    let mut text = format!(
        "module @{name} attributes {{mhlo.num_partitions = {partitions} : i32, mhlo.num_replicas = {replicas} : i32}} {{\n"
    );
    for function in functions {
        let mut printer = Printer {
            text: String::new(),
            names: vec![String::new(); function.values.len()],
            next_result: 0,
            next_argument: 0,
            function,
            manual: parallelism.is_manual(),
            locations,
        };
        printer.function();
        text.push_str(&printer.text);
    }
    text.push_str("}\n");
    text
}

struct Printer<'a> {
    text: String,
    /// The printed name of each value, set where the value is defined.
    names: Vec<String>,
    next_result: usize,
    next_argument: usize,
    function: &'a Built,
    manual: bool,
    locations: Locations,
}

impl Printer<'_> {
    fn function(&mut self) {
        let function = self.function;
        let visibility = if function.public { "public" } else { "private" };
        let arguments: Vec<String> = function.body.arguments.iter().map(|value| self.name_argument(*value)).collect();
        let mut parameters = Vec::new();
        for (name, parameter) in arguments.iter().zip(&function.parameters) {
            let mut attributes = Vec::new();
            if self.manual {
                attributes.push(MANUAL.to_owned());
            }
            if let Some(output) = parameter.donated_to {
                attributes.push(format!("tf.aliasing_output = {output} : i32"));
            }
            let location = self.location(&parameter.name);
            parameters.push(format!("{name}: {}{}{location}", parameter.shape, braced(&attributes)));
        }
        let manual = if self.manual { vec![MANUAL.to_owned()] } else { Vec::new() };
        let results: Vec<String> =
            function.signature.results.iter().map(|shape| format!("{shape}{}", braced(&manual))).collect();
        let (name, parameters, results) = (&function.signature.name, parameters.join(", "), results.join(", "));
        self.text.push_str(&format!("  func.func {visibility} @{name}({parameters}) -> ({results}) {{\n"));
        for operation in &function.body.operations {
            self.operation(operation, 2);
        }
        let location = self.location(name);
        self.text.push_str(&format!("  }}{location}\n"));
    }

    fn operation(&mut self, operation: &Operation, depth: usize) {
        let indent = "  ".repeat(depth);
        self.text.push_str(&indent);
        if !operation.results.is_empty() {
            let number = self.next_result;
            self.next_result += 1;
            let count = operation.results.len();
            for (index, result) in operation.results.iter().enumerate() {
                let name = if count == 1 { format!("%{number}") } else { format!("%{number}#{index}") };
                self.set_name(*result, name);
            }
            let group = if count == 1 { String::new() } else { format!(":{count}") };
            self.text.push_str(&format!("%{number}{group} = "));
        }
        let operands: Vec<&str> = operation.operands.iter().map(|value| self.name(*value)).collect();
        let head = format!("\"{}\"({})", operation.name, operands.join(", "));
        self.text.push_str(&head);
        if !operation.attributes.is_empty() {
            let attribute = |(name, value): &(&str, String)| match value.as_str() {
                "" => (*name).to_owned(),
                value => format!("{name} = {value}"),
            };
            let properties: Vec<String> = operation.attributes.iter().map(attribute).collect();
            self.text.push_str(&format!(" <{{{}}}>", properties.join(", ")));
        }
        for (index, block) in operation.blocks.iter().enumerate() {
            self.text.push_str(if index == 0 { " ({\n" } else { ", {\n" });
            self.block(block, operation, depth);
            self.text.push_str(&format!("{indent}}}"));
        }
        if !operation.blocks.is_empty() {
            self.text.push(')');
        }
        if self.manual && operation.placed {
            self.text.push_str(&braced(&manual_sharding(operation.results.len())));
        }
        let types = |values: &[usize]| values.iter().map(|value| self.type_of(*value)).collect::<Vec<_>>().join(", ");
        let results = match operation.results.as_slice() {
            [result] => self.type_of(*result),
            results => format!("({})", types(results)),
        };
        let tail = format!(" : ({}) -> {results}", types(&operation.operands));
        let scope = self.function.scopes.get(operation.scope).map_or("", String::as_str);
        let location = self.location(scope);
        self.text.push_str(&format!("{tail}{location}\n"));
    }

    fn block(&mut self, block: &Block, owner: &Operation, depth: usize) {
        if !block.arguments.is_empty() {
            let scope = self.function.scopes.get(owner.scope).map_or("", String::as_str);
            let location = self.location(scope);
            let mut arguments = Vec::new();
            for value in &block.arguments {
                arguments.push(format!("{}: {}{location}", self.name_argument(*value), self.type_of(*value)));
            }
            self.text.push_str(&format!("{}^bb0({}):\n", "  ".repeat(depth), arguments.join(", ")));
        }
        for operation in &block.operations {
            self.operation(operation, depth + 1);
        }
    }

    fn name_argument(&mut self, value: usize) -> String {
        let name = format!("%arg{}", self.next_argument);
        self.next_argument += 1;
        self.set_name(value, name.clone());
        name
    }

    fn set_name(&mut self, value: usize, name: String) {
        if let Some(slot) = self.names.get_mut(value) {
            *slot = name;
        }
    }

    fn name(&self, value: usize) -> &str {
        self.names.get(value).map_or("", String::as_str)
    }

    fn type_of(&self, value: usize) -> String {
        self.function.values.get(value).map(|known| &known.shape).map(Shape::to_string).unwrap_or_default()
    }

    fn location(&self, name: &str) -> String {
        match self.locations {
            Locations::Written => format!(" loc({})", quote(name)),
            Locations::Omitted => String::new(),
        }
    }
}

/// The mark of an instruction that is already partitioned.
const MANUAL: &str = "mhlo.sharding = \"{manual}\"";

/// The mark for an instruction with this many results; several are a tuple in HLO. Terminators have none.
fn manual_sharding(results: usize) -> Vec<String> {
    match results {
        0 => Vec::new(),
        1 => vec![MANUAL.to_owned()],
        count => vec![format!("mhlo.sharding = \"{{{}}}\"", vec!["{manual}"; count].join(", "))],
    }
}

/// Attributes in braces after a space, or nothing.
fn braced(attributes: &[String]) -> String {
    if attributes.is_empty() { String::new() } else { format!(" {{{}}}", attributes.join(", ")) }
}
