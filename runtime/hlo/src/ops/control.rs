//! Loops, branches and calls. Invariant: all bodies of an operation return the shapes that the operation has.

use super::{in_range, same_count, same_shape};
use crate::builder::{Sight, size};
use crate::{Builder, ElementType, Function, HloError, Problem, Shape, Value};

impl Builder {
    /// Repeats `body` on the carried values, starting with `starts`, as long as `condition` returns a true scalar. Both get
    /// the carried values, and see those around the loop. The trip count may depend on run-time values.
    ///
    /// # Errors
    /// Nothing is carried; the condition returns no scalar truth value; the body returns other shapes than it got.
    pub fn while_loop(
        &mut self,
        starts: &[Value],
        condition: impl FnOnce(&mut Builder, &[Value]) -> Result<Value, HloError>,
        body: impl FnOnce(&mut Builder, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<Vec<Value>, HloError> {
        let op = "while";
        let given = self.shapes(op, starts)?;
        let most = u64::from(u32::MAX);
        in_range("the number of carried values", size(given.len()), 1, most)
            .map_err(|problem| self.error(op, &given, problem))?;
        let (test, tested) =
            self.body(op, "return", Sight::Enclosing, &given, |b, args| Ok(vec![condition(b, args)?]))?;
        let (body, carried) = self.body(op, "return", Sight::Enclosing, &given, body)?;
        let checked = returned("the value of the condition", &tested, &[Shape::scalar(ElementType::Pred)])
            .and_then(|()| returned("a carried value", &carried, &given));
        checked.map_err(|problem| self.error(op, &given, problem))?;
        self.add_operation(op, starts, &given, Vec::new(), vec![test, body], given.clone())
    }

    /// Repeats `body` for a counter (s32 scalar) from `first` up to but without `limit`, both s32 scalars.
    ///
    /// # Errors
    /// As [`Builder::while_loop`]; the bounds are no s32 scalars.
    pub fn for_loop(
        &mut self,
        first: Value,
        limit: Value,
        starts: &[Value],
        body: impl FnOnce(&mut Builder, Value, &[Value]) -> Result<Vec<Value>, HloError>,
    ) -> Result<Vec<Value>, HloError> {
        let given = self.shapes("while", &[first, limit])?;
        let counter = Shape::scalar(ElementType::S32);
        given
            .iter()
            .try_for_each(|bound| same_shape("the bound of a loop", bound, &counter))
            .map_err(|problem| self.error("while", &given, problem))?;
        let carried: Vec<Value> = std::iter::once(first).chain(starts.iter().copied()).collect();
        let results = self.while_loop(
            &carried,
            |b, args| {
                let Some(counter) = args.first() else { return Err(b.no_counter()) };
                b.compare(crate::Comparison::Lt, *counter, limit)
            },
            |b, args| {
                let Some((counter, rest)) = args.split_first() else { return Err(b.no_counter()) };
                let one = b.scalar(1_i32)?;
                let next = b.add(*counter, one)?;
                let results = body(b, *counter, rest)?;
                Ok(std::iter::once(next).chain(results).collect())
            },
        )?;
        Ok(results.into_iter().skip(1).collect())
    }

    /// A loop that lost its counter, which [`Builder::for_loop`] always carries.
    fn no_counter(&self) -> HloError {
        self.error("while", &[], Problem::Count { what: "the number of counters", found: 0, wanted: 1 })
    }

    /// What `yes` returns where `condition`, a scalar, is true, and what `no` returns otherwise. Only that one runs.
    ///
    /// # Errors
    /// The condition is no scalar truth value; the branches return different shapes, or nothing.
    pub fn conditional(
        &mut self,
        condition: Value,
        yes: impl FnOnce(&mut Builder) -> Result<Vec<Value>, HloError>,
        no: impl FnOnce(&mut Builder) -> Result<Vec<Value>, HloError>,
    ) -> Result<Vec<Value>, HloError> {
        let op = "if";
        let given = self.shapes(op, &[condition])?;
        returned("the condition", &given, &[Shape::scalar(ElementType::Pred)])
            .map_err(|problem| self.error(op, &given, problem))?;
        let (yes, results) = self.body(op, "return", Sight::Enclosing, &[], |b, _| yes(b))?;
        let (no, others) = self.body(op, "return", Sight::Enclosing, &[], |b, _| no(b))?;
        self.add_branches(op, condition, &given, vec![yes, no], &[results, others])
    }

    /// What branch number `index` (s32 scalar) returns; the last one where there is no such branch. `build` is called once for
    /// each branch with its number. Only one branch runs.
    ///
    /// # Errors
    /// The index is no s32 scalar; there are no branches; they return different shapes, or nothing.
    pub fn case(
        &mut self,
        index: Value,
        branches: usize,
        mut build: impl FnMut(&mut Builder, usize) -> Result<Vec<Value>, HloError>,
    ) -> Result<Vec<Value>, HloError> {
        let op = "case";
        let given = self.shapes(op, &[index])?;
        returned("the index", &given, &[Shape::scalar(ElementType::S32)])
            .and_then(|()| in_range("the number of branches", size(branches), 1, u64::from(u32::MAX)))
            .map_err(|problem| self.error(op, &given, problem))?;
        let (mut blocks, mut results) = (Vec::new(), Vec::new());
        for branch in 0..branches {
            let (block, shapes) = self.body(op, "return", Sight::Enclosing, &[], |b, _| build(b, branch))?;
            blocks.push(block);
            results.push(shapes);
        }
        self.add_branches(op, index, &given, blocks, &results)
    }

    fn add_branches(
        &mut self,
        op: &str,
        selector: Value,
        given: &[Shape],
        blocks: Vec<crate::builder::Block>,
        results: &[Vec<Shape>],
    ) -> Result<Vec<Value>, HloError> {
        let wanted = results.first().cloned().unwrap_or_default();
        let checked =
            in_range("the number of values that a branch returns", size(wanted.len()), 1, u64::from(u32::MAX))
                .and_then(|()| {
                    results.iter().try_for_each(|found| returned("a value of a later branch", found, &wanted))
                });
        checked.map_err(|problem| self.error(op, given, problem))?;
        self.add_operation(op, &[selector], given, Vec::new(), blocks, wanted)
    }

    /// The results of a function of this module, which is written once however often it is called.
    ///
    /// # Errors
    /// The function is of another module; the operands do not have its parameters' shapes.
    pub fn call(&mut self, function: Function, operands: &[Value]) -> Result<Vec<Value>, HloError> {
        let op = "func.call";
        let given = self.shapes(op, operands)?;
        let signature = (function.module == self.module).then(|| self.signatures.get(function.index)).flatten();
        let Some(signature) = signature.cloned() else {
            return Err(self.error(op, &given, Problem::ForeignFunction));
        };
        let what = format!("an operand of `{}`", signature.name);
        returned(&what, &given, &signature.parameters).map_err(|problem| self.error(op, &given, problem))?;
        let attributes = vec![("callee", format!("@{}", signature.name))];
        self.add_operation(op, operands, &given, attributes, Vec::new(), signature.results)
    }
}

fn returned(what: &str, found: &[Shape], wanted: &[Shape]) -> Result<(), Problem> {
    same_count("the number of values", found.len(), wanted.len())?;
    for (index, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        same_shape(&format!("{what} (number {index})"), found, wanted)?;
    }
    Ok(())
}
