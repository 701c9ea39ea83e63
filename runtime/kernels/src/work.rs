//! What a call of each operator has to do.

use std::collections::BTreeSet;

use gemma4_pjrt::ElementType;
use gemma4_pjrt::custom_call::{Call, Operand};

use crate::handlers::{Attend, Gated, GatedRows, KvWrite, Linear, Mixture, Norm, NormHeads};
use crate::profile::{Counted, Work};

/// Bytes of an array.
fn bytes(element: ElementType, dims: &[i64]) -> f64 {
    element.bytes(dims).unwrap_or(0) as f64
}

fn operand(of: &Operand<'_>) -> f64 {
    bytes(of.element(), of.dims())
}

fn outputs(call: &Call<'_>) -> f64 {
    call.outputs.iter().map(|output| bytes(output.element(), output.dims())).sum()
}

/// A dimension, 0 if there is none.
fn dim(dims: &[i64], at: usize) -> f64 {
    dims.get(at).copied().unwrap_or(0) as f64
}

fn dims<'c>(call: &'c Call<'_>, operand: usize) -> &'c [i64] {
    call.operands.get(operand).map(Operand::dims).unwrap_or_default()
}

/// Operands that are weights, without the scales behind those of integers.
fn matrices<'c, 'a>(weights: &'c [Operand<'a>]) -> impl Iterator<Item = &'c Operand<'a>> {
    let mut has_scales = false;
    weights.iter().filter(move |weight| {
        let is_scales = has_scales;
        has_scales = !is_scales && matches!(weight.element(), ElementType::S8 | ElementType::U16);
        !is_scales
    })
}

/// How the weights of a call are quantized, to be put behind its name.
fn quantized(weights: &[Operand<'_>]) -> &'static str {
    let of = |element| matrices(weights).any(|weight| weight.element() == element);
    match (of(ElementType::U16), of(ElementType::S8)) {
        (true, true) => ", int4 and int8",
        (true, false) => ", int4",
        (false, true) => ", int8",
        (false, false) => "",
    }
}

/// How many rows are real, which the last operand tells.
fn real(call: &Call<'_>) -> f64 {
    let told = call.operands.last().and_then(|real| real.values::<i32>().ok()).and_then(|real| real.first().copied());
    told.map_or(0.0, f64::from)
}

/// Operands from the second one on, without the last `behind`.
fn between<'c, 'o>(call: &'c Call<'o>, behind: usize) -> &'c [Operand<'o>] {
    call.operands.get(1..call.operands.len().saturating_sub(behind)).unwrap_or_default()
}

/// Rows times matrices `[out, in]`, some of them perhaps integers with scales behind them.
fn product(name: &str, call: &Call<'_>, weights: &[Operand<'_>]) -> Work {
    let x = dims(call, 0);
    let (rows, width) = (real(call), dim(x, 1));
    let columns: Vec<f64> = matrices(weights).map(|weight| dim(weight.dims(), 0)).collect();
    let names: Vec<String> = columns.iter().map(f64::to_string).collect();
    Work {
        name: format!("{name} {rows} x {width} -> {}{}", names.join(" + "), quantized(weights)),
        bytes: weights.iter().map(operand).sum::<f64>()
            + (call.operands.first().map_or(0.0, operand) + outputs(call)) * rows / dim(x, 0).max(1.0),
        operations: 2.0 * rows * width * columns.iter().sum::<f64>(),
    }
}

impl Counted for Linear {
    fn work(call: &Call<'_>) -> Work {
        product("linear", call, between(call, 1))
    }
}

impl Counted for Gated {
    fn work(call: &Call<'_>) -> Work {
        product("gated", call, between(call, 1))
    }
}

impl Counted for GatedRows {
    fn work(call: &Call<'_>) -> Work {
        let work = product("gated rows", call, between(call, 3));
        // Of the rows of all layers, those of one are read.
        let all = call.operands.len().checked_sub(3).and_then(|at| call.operands.get(at));
        let rows = all.map_or(0.0, |rows| operand(rows) / (dim(rows.dims(), 0) * dim(rows.dims(), 1)).max(1.0));
        Work { bytes: work.bytes + rows * real(call), ..work }
    }
}

impl Counted for Norm {
    fn work(call: &Call<'_>) -> Work {
        let width = dim(dims(call, 1), 0);
        let behind = if call.operands.len() > 3 { " + residual" } else { "" };
        let share = real(call) / dim(dims(call, 0), 0).max(1.0);
        Work {
            name: format!("norm {} x {width}{behind}", real(call)),
            bytes: (call.operands.iter().map(operand).sum::<f64>() + outputs(call)) * share,
            operations: 0.0,
        }
    }
}

impl Counted for NormHeads {
    fn work(call: &Call<'_>) -> Work {
        let queries = dims(call, 2);
        let kept = call.outputs.get(1).map(|kept| format!(" + {}", dim(kept.dims(), 1))).unwrap_or_default();
        Work {
            name: format!("heads {} x {}{kept}", real(call), dim(queries, 1)),
            bytes: (call.operands.iter().map(operand).sum::<f64>() + outputs(call)) * real(call)
                / dim(queries, 0).max(1.0),
            operations: 0.0,
        }
    }
}

impl Counted for KvWrite {
    fn work(call: &Call<'_>) -> Work {
        let rows = dims(call, 1);
        let moved = call.operands.get(1).map_or(0.0, operand);
        Work { name: format!("KV write {} x {}", dim(rows, 0), dim(rows, 1)), bytes: 2.0 * moved, operations: 0.0 }
    }
}

impl Counted for Attend {
    fn work(call: &Call<'_>) -> Work {
        let queries = dims(call, 0);
        let (rows, heads, width) = (dim(queries, 0), dim(queries, 1), dim(queries, 2));
        let window = call.attributes.int("window").ok().filter(|window| *window > 0);
        let kv_heads = call.attributes.int("kv_heads").unwrap_or(0) as f64;
        let indices = |at: usize| call.operands.get(at).and_then(|of| of.values::<i32>().ok()).unwrap_or_default();
        let (positions, count) = (indices(3), indices(5).first().copied().unwrap_or(0));
        let (mut seen, mut read) = (0.0, 0.0);
        for [first, count, _] in indices(4).as_chunks::<3>().0.iter().take(usize::try_from(count).unwrap_or(0)) {
            let lowest = usize::try_from(*first).ok().and_then(|first| positions.get(first)).copied().unwrap_or(0);
            let before = |row: i64| window.map_or(row, |window| row.min(window)) as f64;
            let (lowest, count) = (i64::from(lowest), i64::from(*count));
            seen += (lowest + 1..=lowest + count).map(before).sum::<f64>();
            read += before(lowest + 1) + (count - 1) as f64;
        }
        let sides = if call.operands.len() > 8 { 1.0 } else { 2.0 };
        let element = call.operands.get(1).map_or(0, |pool| pool.element().size()) as f64;
        let window = window.map_or_else(|| "all".to_owned(), |window| window.to_string());
        Work {
            name: format!("attention {rows} x {heads} x {width}, window {window}"),
            bytes: call.operands.first().map_or(0.0, operand)
                + outputs(call)
                + read * kv_heads * width * sides * element,
            operations: 4.0 * seen * heads * width,
        }
    }
}

impl Counted for Mixture {
    fn work(call: &Call<'_>) -> Work {
        let weights = call.operands.get(3..).unwrap_or_default();
        let (x, gate_up) = (dims(call, 0), dims(call, 3));
        let (hidden, inner, experts) = (dim(x, 1), dim(gate_up, 1) / 2.0, dim(gate_up, 0));
        let owners = call.operands.get(1).and_then(|owners| owners.values::<i32>().ok()).unwrap_or_default();
        let has = |owner: &&i32| **owner >= 0 && f64::from(**owner) < experts;
        let used: BTreeSet<&i32> = owners.iter().filter(has).collect();
        let pairs = owners.iter().filter(has).count() as f64;
        Work {
            name: format!("experts {} x {hidden}, {} of {experts}{}", dim(x, 0), used.len(), quantized(weights)),
            bytes: call.operands.first().map_or(0.0, operand)
                + outputs(call)
                + used.len() as f64 / experts.max(1.0) * weights.iter().map(operand).sum::<f64>(),
            operations: 6.0 * pairs * hidden * inner,
        }
    }
}
