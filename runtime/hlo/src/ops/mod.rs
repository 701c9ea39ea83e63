//! The operations, as methods of [`crate::Builder`]. Invariant: each works out its result's shape from its operands'
//! by the rules of the StableHLO specification, and refuses what the specification refuses.

mod collectives;
mod constants;
mod contraction;
mod control;
mod custom;
mod elementwise;
mod indexing;
mod reductions;
mod shaping;
mod sorting;

pub use collectives::Groups;
pub use contraction::{DotDimensions, Precision};
pub use custom::{Attribute, CustomCall};
pub use elementwise::Comparison;
pub use indexing::{GatherDimensions, ScatterDimensions};
pub use reductions::Combine;

use crate::builder::size;
use crate::{ElementType, Problem, Shape};

/// Refuses element types that differ.
fn same_element(left: &Shape, right: &Shape) -> Result<(), Problem> {
    if left.element() == right.element() {
        return Ok(());
    }
    Err(Problem::ElementTypes { left: left.element(), right: right.element() })
}

/// Refuses shapes that differ in size or element type.
fn same_shape(what: &str, found: &Shape, wanted: &Shape) -> Result<(), Problem> {
    if found == wanted {
        return Ok(());
    }
    Err(Problem::Shapes { what: what.to_owned(), found: found.clone(), wanted: wanted.clone() })
}

/// Refuses an element type that `accept` does not take.
fn element_is(shape: &Shape, wanted: &'static str, accept: impl Fn(ElementType) -> bool) -> Result<(), Problem> {
    if accept(shape.element()) { Ok(()) } else { Err(Problem::Element { found: shape.element(), wanted }) }
}

/// Refuses counts that differ.
fn same_count(what: &'static str, found: usize, wanted: usize) -> Result<(), Problem> {
    if found == wanted { Ok(()) } else { Err(Problem::Count { what, found: size(found), wanted: size(wanted) }) }
}

/// Refuses a number outside of `least..=most`.
fn in_range(what: &'static str, found: u64, least: u64, most: u64) -> Result<(), Problem> {
    if (least..=most).contains(&found) {
        return Ok(());
    }
    Err(Problem::Range { what, found: found.into(), least: least.into(), most: most.into() })
}

/// Refuses dimensions that do not exist or are named twice.
fn distinct_dims(what: &'static str, dims: &[usize], rank: usize) -> Result<(), Problem> {
    for (index, dim) in dims.iter().enumerate() {
        if *dim >= rank {
            return Err(Problem::DimOutOfRange { dim: *dim, rank });
        }
        if dims.iter().take(index).any(|earlier| earlier == dim) {
            return Err(list_problem(what, dims, "different from each other"));
        }
    }
    Ok(())
}

/// Refuses dimensions that do not exist or do not rise.
fn rising_dims(what: &'static str, dims: &[usize], rank: usize) -> Result<(), Problem> {
    distinct_dims(what, dims, rank)?;
    if dims.is_sorted() { Ok(()) } else { Err(list_problem(what, dims, "in rising order")) }
}

fn list_problem(what: &'static str, dims: &[usize], wanted: &'static str) -> Problem {
    Problem::List { what, found: dims.iter().map(|dim| size(*dim)).collect(), wanted }
}

/// The dimensions of a tensor of this rank that are in none of the lists.
fn other_dims(rank: usize, lists: &[&[usize]]) -> Vec<usize> {
    (0..rank).filter(|dim| !lists.iter().any(|list| list.contains(dim))).collect()
}
