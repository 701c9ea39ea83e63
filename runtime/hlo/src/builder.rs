//! The body of a function while it is built. Invariant: an operation enters a block only when each of its operands can
//! be seen from there and each of its results has a size that can be counted.

use std::collections::HashMap;

use crate::attributes::Attributes;
use crate::module::Signature;
use crate::{HloError, Parallelism, Problem, Shape};

/// A tensor within a function: a small copyable handle. It is usable in the body where it was made and in the `while`,
/// `if` and `case` bodies inside of that; anywhere else it is refused by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Value {
    function: u64,
    index: usize,
}

/// What a value is, and which block made it.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) shape: Shape,
    pub(crate) block: u64,
}

/// One operation.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) name: String,
    pub(crate) operands: Vec<usize>,
    pub(crate) attributes: Attributes,
    pub(crate) blocks: Vec<Block>,
    pub(crate) results: Vec<usize>,
    /// Index into the function's scope paths.
    pub(crate) scope: usize,
    /// Whether the operation is an instruction that takes part in partitioning: bodies of reductions do not.
    pub(crate) placed: bool,
}

/// A straight list of operations with arguments.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) arguments: Vec<usize>,
    pub(crate) operations: Vec<Operation>,
}

#[derive(Debug)]
struct OpenBlock {
    id: u64,
    isolated: bool,
    block: Block,
    /// Constants and iotas by their text, so that equal ones are made once a block.
    shared: HashMap<String, Value>,
}

/// Whether a body sees the values around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Bodies of control flow: XLA passes what they use along.
    Enclosing,
    /// Bodies of reductions, sorts and scatters: XLA refuses values from outside.
    Own,
}

/// Builds the body of one function, or of a body inside it. Made by [`crate::Module::main`] and
/// [`crate::Module::function`]; see [`crate`] for the operations' rules.
#[derive(Debug)]
pub struct Builder {
    function: u64,
    pub(crate) module: u64,
    pub(crate) parallelism: Parallelism,
    pub(crate) signatures: Vec<Signature>,
    pub(crate) channels: u64,
    values: Vec<Known>,
    blocks: Vec<OpenBlock>,
    next_block: u64,
    scopes: Vec<String>,
    /// Full paths; the open scope is the last of `open`.
    open: Vec<usize>,
}

impl Builder {
    pub(crate) fn new(name: &str, function: u64, module: u64, parallelism: Parallelism) -> Self {
        Self {
            function,
            module,
            parallelism,
            signatures: Vec::new(),
            channels: 0,
            values: Vec::new(),
            blocks: Vec::new(),
            next_block: 0,
            scopes: vec![name.to_owned()],
            open: vec![0],
        }
    }

    /// The shape of a value.
    ///
    /// # Errors
    /// The value belongs to another function.
    pub fn shape(&self, value: Value) -> Result<&Shape, HloError> {
        match self.known(value) {
            Some(known) => Ok(&known.shape),
            None => Err(self.error("shape", &[], Problem::ForeignValue { operand: 0 })),
        }
    }

    /// Names everything that `build` adds: `name` is appended to the open scopes with a `/`, and the path becomes the
    /// `op_name` of the instructions in XLA's dumps and profiles. XLA puts the path of a loop in front of the
    /// paths of the operations inside it when it flattens calls.
    pub fn scope<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        let path = match self.open.len() {
            1 => name.to_owned(),
            _ => format!("{}/{name}", self.path()),
        };
        self.scopes.push(path);
        self.open.push(self.scopes.len() - 1);
        let result = build(self);
        self.open.pop();
        result
    }

    /// The path of the open scopes, or the function's name.
    pub(crate) fn path(&self) -> &str {
        self.open.last().and_then(|index| self.scopes.get(*index)).map_or("", String::as_str)
    }

    pub(crate) fn error(&self, op: &str, given: &[Shape], problem: Problem) -> HloError {
        HloError::new(op, self.path(), given, problem)
    }

    fn known(&self, value: Value) -> Option<&Known> {
        if value.function == self.function { self.values.get(value.index) } else { None }
    }

    /// The shapes of the operands, all of which must be visible here.
    pub(crate) fn shapes(&self, op: &str, operands: &[Value]) -> Result<Vec<Shape>, HloError> {
        let mut shapes = Vec::with_capacity(operands.len());
        for (operand, value) in operands.iter().enumerate() {
            let Some(known) = self.known(*value) else {
                return Err(self.error(op, &shapes, Problem::ForeignValue { operand }));
            };
            let Some(depth) = self.blocks.iter().position(|open| open.id == known.block) else {
                return Err(self.error(op, &shapes, Problem::EndedBody { operand }));
            };
            if self.blocks.iter().skip(depth + 1).any(|open| open.isolated) {
                return Err(self.error(op, &shapes, Problem::IsolatedBody { operand }));
            }
            shapes.push(known.shape.clone());
        }
        Ok(shapes)
    }

    /// The shapes of a fixed number of operands.
    pub(crate) fn shapes_of<const N: usize>(&self, op: &str, operands: [Value; N]) -> Result<[Shape; N], HloError> {
        let shapes = self.shapes(op, &operands)?;
        // There is one shape an operand; said as an error all the same, because nothing here may panic.
        shapes.try_into().map_err(|shapes: Vec<Shape>| {
            let (found, wanted) = (size(shapes.len()), size(N));
            self.error(op, &shapes, Problem::Count { what: "the number of operands", found, wanted })
        })
    }

    /// The values, of which there must be `N`: the arguments of a body, or the results of an operation.
    pub(crate) fn exactly<const N: usize>(&self, op: &str, values: &[Value]) -> Result<[Value; N], HloError> {
        values.try_into().map_err(|_| {
            let (found, wanted) = (size(values.len()), size(N));
            self.error(op, &[], Problem::Count { what: "the number of values", found, wanted })
        })
    }

    /// Adds an operation of fixed arity with one result, whose shape and attributes `infer` works out.
    pub(crate) fn one<const N: usize>(
        &mut self,
        op: &'static str,
        operands: [Value; N],
        infer: impl FnOnce(&[Shape; N]) -> Result<(Shape, Attributes), Problem>,
    ) -> Result<Value, HloError> {
        let given = self.shapes_of(op, operands)?;
        let (shape, attributes) = infer(&given).map_err(|problem| self.error(op, &given, problem))?;
        self.add_one(op, &operands, &given, attributes, Vec::new(), shape)
    }

    /// Adds an operation with one result of a shape that the caller has checked against `given`.
    pub(crate) fn add_one(
        &mut self,
        op: &str,
        operands: &[Value],
        given: &[Shape],
        attributes: Attributes,
        blocks: Vec<Block>,
        shape: Shape,
    ) -> Result<Value, HloError> {
        let results = self.add_operation(op, operands, given, attributes, blocks, vec![shape])?;
        let [result] = self.exactly(op, &results)?;
        Ok(result)
    }

    /// Adds an operation. `op` without a dialect is of StableHLO.
    pub(crate) fn add_operation(
        &mut self,
        op: &str,
        operands: &[Value],
        given: &[Shape],
        attributes: Attributes,
        blocks: Vec<Block>,
        results: Vec<Shape>,
    ) -> Result<Vec<Value>, HloError> {
        let mut checked = Vec::with_capacity(results.len());
        for shape in results {
            checked.push(shape.checked().map_err(|problem| self.error(op, given, problem))?);
        }
        let placed = !self.blocks.iter().any(|open| open.isolated);
        let results: Vec<Value> = checked.into_iter().map(|shape| self.add_value(shape)).collect();
        let operation = Operation {
            name: if op.contains('.') { op.to_owned() } else { format!("stablehlo.{op}") },
            operands: operands.iter().map(|value| value.index).collect(),
            attributes,
            blocks,
            results: results.iter().map(|value| value.index).collect(),
            scope: self.open.last().copied().unwrap_or(0),
            placed,
        };
        if let Some(open) = self.blocks.last_mut() {
            open.block.operations.push(operation);
        }
        Ok(results)
    }

    /// Adds an operation without operands, or returns the equal one that this block already has.
    pub(crate) fn add_shared(
        &mut self,
        op: &'static str,
        attributes: Attributes,
        shape: Shape,
    ) -> Result<Value, HloError> {
        let key = format!("{op} {attributes:?} {shape}");
        if let Some(value) = self.blocks.last().and_then(|open| open.shared.get(&key)) {
            return Ok(*value);
        }
        let value = self.add_one(op, &[], &[], attributes, Vec::new(), shape)?;
        if let Some(open) = self.blocks.last_mut() {
            open.shared.insert(key, value);
        }
        Ok(value)
    }

    fn add_value(&mut self, shape: Shape) -> Value {
        let block = self.blocks.last().map_or(0, |open| open.id);
        self.values.push(Known { shape, block });
        Value { function: self.function, index: self.values.len() - 1 }
    }

    /// Builds a body: opens a block with arguments of these shapes, lets `build` fill it, and ends it with `terminator`
    /// on what `build` returned. Gives the block and the shapes that it returns.
    pub(crate) fn body(
        &mut self,
        op: &str,
        terminator: &str,
        sight: Sight,
        arguments: &[Shape],
        build: impl FnOnce(&mut Self, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<(Block, Vec<Shape>), HloError> {
        let mut checked = Vec::with_capacity(arguments.len());
        for shape in arguments {
            checked.push(shape.clone().checked().map_err(|problem| self.error(op, arguments, problem))?);
        }
        let isolated = sight == Sight::Own;
        let id = self.next_block;
        self.next_block += 1;
        self.blocks.push(OpenBlock { id, isolated, block: Block::default(), shared: HashMap::new() });
        let arguments: Vec<Value> = checked.into_iter().map(|shape| self.add_value(shape)).collect();
        if let Some(open) = self.blocks.last_mut() {
            open.block.arguments = arguments.iter().map(|value| value.index).collect();
        }
        let returned = build(self, &arguments).and_then(|results| {
            let shapes = self.shapes(terminator, &results)?;
            self.add_operation(terminator, &results, &shapes, Vec::new(), Vec::new(), Vec::new())?;
            Ok(shapes)
        });
        // Closed also when building failed, so that the builder stays usable after an error.
        let block = self.blocks.pop().map(|open| open.block).unwrap_or_default();
        Ok((block, returned?))
    }

    /// Takes out what was built, for printing.
    pub(crate) fn finish(self) -> (Vec<Known>, Vec<String>) {
        (self.values, self.scopes)
    }
}

/// A count as a size. A `usize` has at most 64 bits on every platform that Rust supports.
pub(crate) fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
