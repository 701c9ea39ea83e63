//! The operators as handlers of custom calls.
//!
//! Invariant: a handler looks at every shape and type that it is given before it computes; a call that does not fit fails
//! with a text.

use std::sync::{Mutex, PoisonError};

use gemma4_model::graph::{ATTENTION, EXPERTS, GATED, GATED_ROWS, HEADS, KV_WRITE, LINEAR, NORM};
use gemma4_model::quantization::{GROUP, packed_words};
use gemma4_pjrt::custom_call::{self, Call, Handler, Operand, Output};
use gemma4_pjrt::{ElementType, Error, Plugin};
use half::bf16;

use crate::attention::{Attention, Part, Remade, Stored, write};
use crate::experts::Experts;
use crate::heads::{Side, Turns, norm_heads};
use crate::linear::{Inputs, LayerRows};
use crate::norm::rms_norm;
use crate::number::Number;
use crate::profile::Timed;
use crate::weights::Weights;

/// Makes all handlers known to a plugin, for good. To be called before a program with calls is compiled or loaded; what is
/// known already stays as it is.
///
/// # Errors
/// [`Error::MissingExtension`] when the plugin takes no handlers.
pub fn register(plugin: Plugin) -> Result<(), Error> {
    // One after the other, so that nobody goes on before the names of another thread are there.
    static ORDER: Mutex<()> = Mutex::new(());
    let _order = ORDER.lock().unwrap_or_else(PoisonError::into_inner);
    known(custom_call::register::<Timed<Linear>>(plugin, LINEAR))?;
    known(custom_call::register::<Timed<Gated>>(plugin, GATED))?;
    known(custom_call::register::<Timed<GatedRows>>(plugin, GATED_ROWS))?;
    known(custom_call::register::<Timed<Norm>>(plugin, NORM))?;
    known(custom_call::register::<Timed<NormHeads>>(plugin, HEADS))?;
    known(custom_call::register::<Timed<KvWrite>>(plugin, KV_WRITE))?;
    known(custom_call::register::<Timed<Attend>>(plugin, ATTENTION))?;
    known(custom_call::register::<Timed<Mixture>>(plugin, EXPERTS))
}

/// A name that is taken is one that was registered before.
fn known(registered: Result<(), Error>) -> Result<(), Error> {
    match registered {
        Err(Error::HandlerExists(_)) => Ok(()),
        other => other,
    }
}

/// [`LINEAR`].
pub(crate) struct Linear;

impl Handler for Linear {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        let ([x, weights @ .., real], Some(to)) = (call.operands.as_slice(), call.outputs.first().map(Output::element))
        else {
            return Err(format!("{LINEAR} takes rows, weights and how many rows are real, and gives results"));
        };
        let (x, outs) = (Real::new(x, real)?, call.outputs.as_mut_slice());
        let cap = call.attributes.get("softcap").map(|_| call.attributes.f32("softcap")).transpose()?;
        match (x.of.element(), to) {
            (ElementType::BF16, ElementType::BF16) => linear::<bf16, bf16>(x, weights, cap, outs),
            (ElementType::BF16, ElementType::F32) => linear::<bf16, f32>(x, weights, cap, outs),
            (ElementType::F32, ElementType::F32) => linear::<f32, f32>(x, weights, cap, outs),
            (of, to) => Err(format!("{LINEAR} cannot make {to:?} of {of:?}")),
        }
    }
}

fn linear<X: Number, Y: Number>(
    x: Real<'_, '_>,
    weights: &[Operand<'_>],
    softcap: Option<f32>,
    outs: &mut [Output<'_>],
) -> Result<(), String> {
    let (inputs, matrices) = inputs::<X>(LINEAR, x, weights)?;
    if matrices.len() != outs.len() {
        return Err(format!("{LINEAR}: {} weights for {} results", matrices.len(), outs.len()));
    }
    let mut products = Vec::with_capacity(matrices.len());
    for (matrix, out) in matrices.into_iter().zip(outs) {
        products.push((matrix, x.results(out.values::<Y>()?)));
    }
    inputs.capped(softcap).products(products).map_err(|error| error.to_string())
}

/// Weights, and their dimensions `[.., out, in]`.
type Matrix<'a, X> = (Weights<'a, X>, Vec<i64>);

/// Rows of which the first ones are real.
#[derive(Clone, Copy)]
struct Real<'a, 'o> {
    of: &'a Operand<'o>,
    /// How many, with those that are not.
    all: usize,
    count: usize,
}

impl<'a, 'o> Real<'a, 'o> {
    /// Rows, and how many are real: more than there are is as many as there are.
    fn new(of: &'a Operand<'o>, real: &Operand<'_>) -> Result<Self, String> {
        let all = dim(of.dims(), 0)?;
        Ok(Real { of, all, count: scalar(real)?.min(all) })
    }

    /// The real ones of an array of as many rows.
    fn part<'v, T>(&self, values: &'v [T]) -> &'v [T] {
        &values[..values.len().checked_div(self.all).unwrap_or(0) * self.count]
    }

    fn values<T: gemma4_pjrt::Element>(&self) -> Result<&'a [T], String> {
        Ok(self.part(self.of.values()?))
    }

    /// Those of an array of results, in which others become 0.
    fn results<'r, T: Number>(&self, values: &'r mut [T]) -> &'r mut [T] {
        let each = values.len().checked_div(self.all).unwrap_or(0);
        let (real, others) = values.split_at_mut(each * self.count);
        others.fill(T::default());
        real
    }
}

/// Operands that are weights, those of integers or of words that hold some each with its scales behind it.
fn matrices<'a, X: Number>(name: &str, operands: &'a [Operand<'_>]) -> Result<Vec<Matrix<'a, X>>, String> {
    let mut matrices = Vec::with_capacity(operands.len());
    let mut operands = operands.iter();
    while let Some(operand) = operands.next() {
        let dims = operand.dims();
        if !matches!(operand.element(), ElementType::S8 | ElementType::U16) {
            matrices.push((Weights::Elements(operand.values()?), dims.to_vec()));
            continue;
        }
        let scales = operands.next().ok_or_else(|| format!("{name}: integers without scales"))?;
        let misfit = || format!("{name}: scales {:?} do not go with weights {dims:?}", scales.dims());
        let (last, rows) = dims.split_last().ok_or_else(misfit)?;
        if operand.element() == ElementType::S8 {
            if scales.dims() != rows {
                return Err(misfit());
            }
            matrices.push((Weights::Int8 { values: operand.values()?, scales: scales.values()? }, dims.to_vec()));
            continue;
        }
        let (groups, rows_of_scales) = scales.dims().split_last().ok_or_else(misfit)?;
        let width = usize::try_from(*groups).ok().and_then(|groups| groups.checked_mul(GROUP)).ok_or_else(misfit)?;
        if rows_of_scales != rows || usize::try_from(*last) != Ok(packed_words(width)) {
            return Err(misfit());
        }
        let of_weights = rows.iter().copied().chain(i64::try_from(width)).collect();
        matrices.push((Weights::Int4 { values: operand.values()?, scales: scales.values()? }, of_weights));
    }
    Ok(matrices)
}

/// The rows of `x`, and the weights, if all are as wide.
fn inputs<'a, X: Number>(
    name: &str,
    rows: Real<'a, '_>,
    weights: &'a [Operand<'_>],
) -> Result<(Inputs<'a, X>, Vec<Weights<'a, X>>), String> {
    let x = rows.of;
    let width = x.dims().last().copied().and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    let matrices = matrices::<X>(name, weights)?;
    for (_, dims) in &matrices {
        if dims.len() != 2 || dims.last() != x.dims().last() {
            return Err(format!("{name}: rows {:?} do not go with weights {dims:?}", x.dims()));
        }
    }
    Ok((Inputs::new(rows.values::<X>()?, width), matrices.into_iter().map(|(matrix, _)| matrix).collect()))
}

/// [`GATED`].
pub(crate) struct Gated;

impl Handler for Gated {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        match call.operands.first().map(Operand::element) {
            Some(ElementType::F32) => gated::<f32>(call),
            Some(ElementType::BF16) => gated::<bf16>(call),
            other => Err(format!("{GATED} has no rows of {other:?}")),
        }
    }
}

fn gated<X: Number>(call: &mut Call<'_>) -> Result<(), String> {
    let ([x, weights @ .., real], [out]) = (call.operands.as_slice(), call.outputs.as_mut_slice()) else {
        return Err(format!("{GATED} takes rows, weights and how many rows are real, and gives one result"));
    };
    let x = Real::new(x, real)?;
    let (inputs, matrices) = inputs::<X>(GATED, x, weights)?;
    let [gate, up] = matrices.as_slice() else { return Err(format!("{GATED} takes two matrices")) };
    inputs.gated(gate, up, x.results(out.values::<X>()?)).map_err(|error| error.to_string())
}

/// [`GATED_ROWS`].
pub(crate) struct GatedRows;

impl Handler for GatedRows {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        match call.operands.first().map(Operand::element) {
            Some(ElementType::F32) => gated_rows::<f32>(call),
            Some(ElementType::BF16) => gated_rows::<bf16>(call),
            other => Err(format!("{GATED_ROWS} has no rows of {other:?}")),
        }
    }
}

fn gated_rows<X: Number>(call: &mut Call<'_>) -> Result<(), String> {
    let ([x, gate @ .., rows, layer, real], [out]) = (call.operands.as_slice(), call.outputs.as_mut_slice()) else {
        return Err(format!("{GATED_ROWS} takes five operands or six and gives one result"));
    };
    let x = Real::new(x, real)?;
    let (layers, width, layer) = (dim(rows.dims(), 1)?, dim(rows.dims(), 2)?, scalar(layer)?);
    let (inputs, matrices) = inputs::<X>(GATED_ROWS, x, gate)?;
    let [gate] = matrices.as_slice() else { return Err(format!("{GATED_ROWS} takes one matrix")) };
    let rows = LayerRows { values: x.part(rows.values()?), layers, width, layer };
    inputs.gated_rows(gate, &rows, x.results(out.values::<X>()?)).map_err(|error| error.to_string())
}

/// [`NORM`].
pub(crate) struct Norm;

impl Handler for Norm {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        match call.operands.first().map(Operand::element) {
            Some(ElementType::F32) => norm::<f32>(call),
            Some(ElementType::BF16) => norm::<bf16>(call),
            other => Err(format!("{NORM} has no rows of {other:?}")),
        }
    }
}

fn norm<W: Number>(call: &mut Call<'_>) -> Result<(), String> {
    let eps = call.attributes.f32("eps")?;
    let ([x, weight, residual @ .., real], [out]) = (call.operands.as_slice(), call.outputs.as_mut_slice()) else {
        return Err(format!("{NORM} takes three operands or four and gives one result"));
    };
    let rows = Real::new(x, real)?;
    let residual = match residual {
        [] => None,
        [residual] => Some(rows.part(residual.values::<W>()?)),
        _ => return Err(format!("{NORM} takes three operands or four")),
    };
    if x.dims().last() != weight.dims().last() {
        return Err(format!("{NORM}: rows {:?} do not go with a weight {:?}", x.dims(), weight.dims()));
    }
    let out = rows.results(out.values::<W>()?);
    rms_norm(rows.values::<W>()?, weight.values()?, residual, eps, out).map_err(|error| error.to_string())
}

/// [`HEADS`].
pub(crate) struct NormHeads;

impl Handler for NormHeads {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        match call.operands.get(2).map(Operand::element) {
            Some(ElementType::F32) => heads::<f32>(call),
            Some(ElementType::BF16) => heads::<bf16>(call),
            other => Err(format!("{HEADS} has no queries of {other:?}")),
        }
    }
}

fn heads<W: Number>(call: &mut Call<'_>) -> Result<(), String> {
    let eps = call.attributes.f32("eps")?;
    let [cos, sin, queries, norm, stored @ .., real] = call.operands.as_slice() else {
        return Err(format!("{HEADS} takes cosines, sines, queries, their norm and how many rows are real"));
    };
    let width = dim(norm.dims(), 0)?;
    let rows = Real::new(cos, real)?;
    let tokens = rows.all;
    let turns = Turns { cos: rows.values()?, sin: rows.part(sin.values()?) };
    let side = |x: &Operand<'_>| {
        let is_one_row_each = x.dims().first() == cos.dims().first();
        if is_one_row_each { Ok(()) } else { Err(format!("{HEADS}: rows {:?} for {tokens} tokens", x.dims())) }
    };
    for x in [Some(queries), stored.first(), stored.get(2)].into_iter().flatten() {
        side(x)?;
    }
    let sides: Vec<Side<'_, W>> = match stored {
        [] => Vec::new(),
        [values] => vec![Side { x: rows.part(values.values()?), norm: None }],
        [keys, norm, values] => {
            let values = Side { x: rows.part(values.values()?), norm: None };
            vec![Side { x: rows.part(keys.values()?), norm: Some(norm.values()?) }, values]
        }
        more => return Err(format!("{HEADS} takes no {} operands behind the queries' norm", more.len())),
    };
    let queries = [Side { x: rows.part(queries.values()?), norm: Some(norm.values()?) }];
    let (to, kept) = call.outputs.split_first_mut().ok_or_else(|| format!("{HEADS} gives queries"))?;
    norm_heads(&queries, turns, width, eps, rows.results(to.values::<W>()?)).map_err(|error| error.to_string())?;
    match (sides.as_slice(), kept) {
        ([], []) => Ok(()),
        ([_, ..], [kept]) => {
            let kept = rows.results(kept.values::<W>()?);
            norm_heads(&sides, turns, width, eps, kept).map_err(|error| error.to_string())
        }
        _ => Err(format!("{HEADS} gives a second result where there are values, and only there")),
    }
}

/// An attribute that is a count.
fn count(call: &Call<'_>, name: &str) -> Result<usize, String> {
    let count = call.attributes.int(name)?;
    usize::try_from(count).map_err(|_| format!("attribute `{name}` is {count}"))
}

/// A dimension of an array.
fn dim(dims: &[i64], at: usize) -> Result<usize, String> {
    let dim = dims.get(at).and_then(|dim| usize::try_from(*dim).ok());
    dim.ok_or_else(|| format!("an array of dimensions {dims:?} has no dimension {at}"))
}

/// The only number of an array.
fn scalar(of: &Operand<'_>) -> Result<usize, String> {
    match of.values::<i32>()? {
        [one] => usize::try_from(*one).map_err(|_| format!("{one} is not a count")),
        more => Err(format!("{} numbers in place of one", more.len())),
    }
}

/// Where the layer whose part begins at `row` has its keys and values in a pool `[pages, rows, lanes]`, of `token` elements
/// for each token.
fn part(pool: ElementType, dims: &[i64], row: usize, tokens: usize, token: usize) -> Result<Part, String> {
    let stored = match pool {
        ElementType::F32 => Stored::F32,
        ElementType::BF16 => Stored::Bf16,
        ElementType::F16 => Stored::F16,
        ElementType::F8E4M3FN => Stored::F8E4m3fn,
        ElementType::F8E5M2 => Stored::F8E5m2,
        other => return Err(format!("a pool of {other:?}")),
    };
    let (rows, lanes) = (dim(dims, 1)?, dim(dims, 2)?);
    let too_large = || format!("a pool of dimensions {dims:?} has no row {row}");
    let start = row.checked_mul(lanes).ok_or_else(too_large)?;
    let page = rows.checked_mul(lanes).filter(|page| start < *page).ok_or_else(too_large)?;
    Ok(Part { stored, page, start, tokens, token })
}

/// [`KV_WRITE`].
pub(crate) struct KvWrite;

impl Handler for KvWrite {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        let tokens = count(call, "tokens")?;
        let ([pool, rows, slots, row], [out]) = (call.operands.as_slice(), call.outputs.as_mut_slice()) else {
            return Err(format!("{KV_WRITE} takes four operands and gives one result"));
        };
        if pool.shared_with() != Some(0) {
            return Err(format!("{KV_WRITE} writes in place, and its result is not in the place of the pool"));
        }
        if rows.element() != out.element() {
            return Err(format!("{KV_WRITE}: {:?} into a pool of {:?}", rows.element(), out.element()));
        }
        let part = part(out.element(), pool.dims(), scalar(row)?, tokens, dim(rows.dims(), 1)?)?;
        write(out.bytes(), &part, slots.values()?, rows.bytes()?).map_err(|error| error.to_string())
    }
}

/// [`ATTENTION`].
pub(crate) struct Attend;

impl Handler for Attend {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        match call.operands.first().map(Operand::element) {
            Some(ElementType::F32) => attend::<f32>(call),
            Some(ElementType::BF16) => attend::<bf16>(call),
            other => Err(format!("{ATTENTION} has no queries of {other:?}")),
        }
    }
}

fn attend<Q: Number>(call: &mut Call<'_>) -> Result<(), String> {
    let (tokens, kv_heads, window) = (count(call, "tokens")?, count(call, "kv_heads")?, count(call, "window")?);
    let ([queries, pool, row, positions, items, num_items, block_table, first_block, remade @ ..], [out]) =
        (call.operands.as_slice(), call.outputs.as_mut_slice())
    else {
        return Err(format!("{ATTENTION} takes eight operands or more and gives one result"));
    };
    let remade = match remade {
        [] => None,
        [norm, frequencies] => Some(Remade { norm: norm.values::<Q>()?, frequencies: frequencies.values()? }),
        _ => return Err(format!("{ATTENTION} takes eight or ten operands")),
    };
    let (heads, width) = (dim(queries.dims(), 1)?, dim(queries.dims(), 2)?);
    let sides = if remade.is_some() { 1 } else { 2 };
    let token = kv_heads.checked_mul(width).and_then(|side| side.checked_mul(sides)).ok_or("too many heads")?;
    let group = heads.checked_div(kv_heads).filter(|group| group * kv_heads == heads);
    let group = group.ok_or_else(|| format!("{heads} heads of queries do not share {kv_heads} heads of keys"))?;
    let items = items.values::<i32>()?.as_chunks().0;
    let num_items = scalar(num_items)?;
    let items = items.get(..num_items).ok_or_else(|| format!("{num_items} items of {}", items.len()))?;
    let attention = Attention {
        queries: queries.values::<Q>()?,
        pool: pool.bytes()?,
        part: part(pool.element(), pool.dims(), scalar(row)?, tokens, token)?,
        kv_heads,
        width,
        group,
        positions: positions.values()?,
        items,
        block_table: block_table.values()?,
        first_block: first_block.values()?,
        // Full layers see everything.
        window: if window == 0 { usize::MAX } else { window },
        remade,
    };
    attention.run(out.values::<Q>()?).map_err(|error| error.to_string())
}

/// [`EXPERTS`].
pub(crate) struct Mixture;

impl Handler for Mixture {
    fn call(call: &mut Call<'_>) -> Result<(), String> {
        match call.operands.first().map(Operand::element) {
            Some(ElementType::F32) => mixture::<f32>(call),
            Some(ElementType::BF16) => mixture::<bf16>(call),
            other => Err(format!("{EXPERTS} has no rows of {other:?}")),
        }
    }
}

fn mixture<W: Number>(call: &mut Call<'_>) -> Result<(), String> {
    let ([rows, owners, shares, weights @ ..], [out]) = (call.operands.as_slice(), call.outputs.as_mut_slice()) else {
        return Err(format!("{EXPERTS} gives one result"));
    };
    let matrices = matrices::<W>(EXPERTS, weights)?;
    let [(gate_up, _), (down, dims)] = matrices.as_slice() else {
        return Err(format!("{EXPERTS} takes two stacks of matrices"));
    };
    let experts = Experts {
        inputs: rows.values::<W>()?,
        owners: owners.values()?,
        shares: shares.values()?,
        gate_up: *gate_up,
        down: *down,
        hidden: dim(rows.dims(), 1)?,
        inner: dim(dims, 2)?,
        top_k: dim(shares.dims(), 1)?,
    };
    experts.run(out.values::<W>()?).map_err(|error| error.to_string())
}
