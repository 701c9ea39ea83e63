//! Operators that a platform may have kernels of its own for.
//!
//! Invariant: a call computes what the StableHLO form in its place computes, up to the order of sums; so a program with calls
//! and one without are the same step. Names end in a version that grows whenever what is computed or how it is passed
//! changes, since compiled programs that are kept on disk find a handler by its name alone.
//!
//! Products, gates, norms and heads have one more operand, the last one: how many of the first rows are real, an s32 scalar. Results are 0
//! in the others, which nothing is computed of.

use gemma4_hlo::{Attribute, Builder, CustomCall, ElementType, HloError, Shape, Value};

use super::matrix::Matrix;
use super::numerics;
use crate::tensors::Role;

/// Who computes the hot operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kernels {
    /// XLA, from StableHLO: on every platform.
    #[default]
    Hlo,
    /// Handlers on the host, registered by the names of this module, where weights are float32 or bfloat16.
    Cpu,
}

/// `x [T, in] * weight [out, in]^T` for one weight or several, summed in f32. Operands are `x` and the weights of one type, float32
/// or bfloat16; a weight, here and below, may also be integers of eight bits with an operand `[out]` of float32 behind it, which
/// the sums are multiplied by, or words of 16 bits with an operand `[out, in / 32]` of bfloat16 behind it, as
/// [`Quantization::Int4`](crate::quantization::Quantization::Int4) says; the results `[T, out]`, as many as there are weights, are of
/// that type or float32. With an attribute `softcap`, in f32, each sum `y` becomes `softcap * tanh(y / softcap)`.
pub const LINEAR: &str = "gemma4.linear.v3";

/// `gelu(x * gate^T) * (x * up^T)`. Operands are `x [T, in]`, `gate` and `up` `[out, in]` of one type, float32 or bfloat16; both
/// products, the bent gate and the result `[T, out]` are rounded to it.
pub const GATED: &str = "gemma4.gated.v2";

/// `gelu(x * gate^T) * rows[:, layer]`. Operands are `x [T, in]`, `gate [out, in]` and `rows [T, L, out]` of one type, float32 or
/// bfloat16, and the layer in s32; the product, the bent gate and the result `[T, out]` are rounded to that type.
pub const GATED_ROWS: &str = "gemma4.gated_rows.v2";

/// The root-mean-square norm of rows `[T, H]` times a weight `[H]`, both in float32 or bfloat16, to which the result is rounded;
/// with a third operand `[T, H]` that is added then, and rounded again. Attribute `eps`, in f32.
pub const NORM: &str = "gemma4.norm.v2";

/// Norms and turns heads. Operands are cosines and sines `[T, d/2]` in float32, queries `[T, n * d]` in float32 or bfloat16 and the
/// weight of their norm `[d]`; behind them keys `[T, m * d]`, the weight of their norm and values `[T, m * d]`, or values alone, or
/// nothing. Results are the queries `[T, n, d]` and, where there are values, what is stored of each token: its keys if there are
/// any, then its values. Values are normed without a weight, and not turned. Attribute `eps`, in f32.
pub const HEADS: &str = "gemma4.heads.v2";

/// Writes rows `[T, n]`, what is stored of each token, to their slots. Operands are the pool, whose place the result takes, the
/// rows in its type, `slots [T, 2]` and the row of a page at which the layer's part begins; attribute `tokens`: those of a
/// block.
pub const KV_WRITE: &str = "gemma4.kv_write.v1";

/// Attention of queries over pages that hold keys and values. Operands are queries `[T, heads, d]` in float32 or bfloat16, the
/// pool, the row of a page at which the layer's part begins, positions `[T]`, items `[I, 3]`, their number, the block table
/// and the first blocks; attributes `tokens` (of a block), `kv_heads` and `window` (0: everything is seen). Where values are
/// stored alone, two more: the weight of the keys' norm `[d]` in the type of the queries, and the radians `[<= d/2]` in float32
/// that the first pairs of a key are turned by for each position. The result is like the queries, with 0 in rows of no item.
pub const ATTENTION: &str = "gemma4.attention.v2";

/// The experts' part of a layer. Operands are rows `[T, H]` in float32 or bfloat16, the expert of each pair `[T * k]` (one that
/// does not exist for none), its share `[T, k]` in float32, and the matrices `[E, 2I, H]` and `[E, H, I]` in the type of the
/// rows. The result is like the rows.
pub const EXPERTS: &str = "gemma4.experts.v1";

/// What both calls about pages are told.
pub(super) struct Pages {
    pub(super) pool: Value,
    /// The row of a page at which the layer's part begins.
    pub(super) row: Value,
    /// Tokens of a block.
    pub(super) tokens: u64,
}

impl Kernels {
    /// These, or the StableHLO form for element types that there are no kernels for.
    pub(super) fn for_element(self, element: ElementType) -> Self {
        if matches!(element, ElementType::F32 | ElementType::Bf16) { self } else { Self::Hlo }
    }
}

/// The hot operators of a program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operators {
    /// Who computes them.
    pub(super) kernels: Kernels,
    /// How many of their rows are real, an s32 scalar: kernels compute no others.
    pub(super) real: Value,
}

impl Operators {
    /// `x [T, in] * weight [out, in]^T`, summed in f32 and returned in `result`.
    pub(super) fn linear(
        self,
        b: &mut Builder,
        x: Value,
        weight: Matrix,
        result: ElementType,
    ) -> Result<Value, HloError> {
        if self.kernels == Kernels::Hlo {
            return numerics::linear(b, x, weight, result);
        }
        let results = self.products(b, x, &[weight], result)?;
        Ok(results.first().copied().unwrap_or(x))
    }

    /// [`Self::linear`] in float32, of which each `y` becomes `cap * tanh(y / cap)` if there is a cap.
    pub(super) fn capped(self, b: &mut Builder, x: Value, weight: Matrix, cap: Option<f64>) -> Result<Value, HloError> {
        let Some(cap) = cap else { return self.linear(b, x, weight, ElementType::F32) };
        if self.kernels == Kernels::Hlo {
            let y = numerics::linear(b, x, weight, ElementType::F32)?;
            let y = numerics::scaled(b, y, 1.0 / cap)?;
            let y = b.tanh(y)?;
            return numerics::scaled(b, y, cap);
        }
        #[expect(clippy::cast_possible_truncation, reason = "products are in f32")]
        let config = vec![("softcap".to_owned(), Attribute::F32(cap as f32))];
        let results = self.linear_call(b, x, &[weight], ElementType::F32, config)?;
        Ok(results.first().copied().unwrap_or(x))
    }

    /// [`LINEAR`] with all weights, which then are read in one go.
    pub(super) fn products(
        self,
        b: &mut Builder,
        x: Value,
        weights: &[Matrix],
        result: ElementType,
    ) -> Result<Vec<Value>, HloError> {
        self.linear_call(b, x, weights, result, Vec::new())
    }

    fn linear_call(
        self,
        b: &mut Builder,
        x: Value,
        weights: &[Matrix],
        result: ElementType,
        config: Vec<(String, Attribute)>,
    ) -> Result<Vec<Value>, HloError> {
        let rows = first_dim(b, x)?;
        let mut results = Vec::with_capacity(weights.len());
        for weight in weights {
            results.push(Shape::new(result, [rows, first_dim(b, weight.values)?]));
        }
        let call = CustomCall { target: LINEAR.to_owned(), results, config, ..CustomCall::default() };
        let weights = weights.iter().copied().flat_map(Matrix::operands);
        let operands: Vec<Value> = [x].into_iter().chain(weights).chain([self.real]).collect();
        b.custom_call(&call, &operands)
    }

    /// `gelu(x * gate^T) * (x * up^T)`, rounded to the type of `x` after each step; `weight` brings a weight where it is needed.
    pub(super) fn gated<E: From<HloError>>(
        self,
        b: &mut Builder,
        x: Value,
        mut weight: impl FnMut(&mut Builder, Role) -> Result<Matrix, E>,
    ) -> Result<Value, E> {
        let gate = weight(b, Role::GateProj)?;
        let element = b.shape(x)?.element();
        if self.kernels == Kernels::Cpu {
            let up = weight(b, Role::UpProj)?;
            let results = vec![Shape::new(element, [first_dim(b, x)?, first_dim(b, gate.values)?])];
            let call = CustomCall { target: GATED.to_owned(), results, ..CustomCall::default() };
            let operands = [x].into_iter().chain(gate.operands()).chain(up.operands());
            let operands: Vec<Value> = operands.chain([self.real]).collect();
            let results = b.custom_call(&call, &operands)?;
            return Ok(results.first().copied().unwrap_or(x));
        }
        let gate = numerics::linear(b, x, gate, element)?;
        let gate = numerics::gelu_tanh(b, gate)?;
        let up = weight(b, Role::UpProj)?;
        let up = numerics::linear(b, x, up, element)?;
        Ok(b.multiply(gate, up)?)
    }

    /// `gelu(x * gate^T)` times the rows `[T, out]` that belong to `layer` of all rows `[T, L, out]`, rounded to the type of `x`
    /// after each step; `gate` brings the weight.
    pub(super) fn gated_rows<E: From<HloError>>(
        self,
        b: &mut Builder,
        x: Value,
        gate: impl FnOnce(&mut Builder) -> Result<Matrix, E>,
        rows: Value,
        layer: Value,
    ) -> Result<Value, E> {
        let element = b.shape(x)?.element();
        if self.kernels == Kernels::Cpu {
            let gate = gate(b)?;
            let results = vec![Shape::new(element, [first_dim(b, x)?, first_dim(b, gate.values)?])];
            let call = CustomCall { target: GATED_ROWS.to_owned(), results, ..CustomCall::default() };
            let operands: Vec<Value> = [x].into_iter().chain(gate.operands()).chain([rows, layer, self.real]).collect();
            let results = b.custom_call(&call, &operands)?;
            return Ok(results.first().copied().unwrap_or(x));
        }
        let own = layer_rows(b, rows, layer)?;
        let gate = gate(b)?;
        let gate = numerics::linear(b, x, gate, element)?;
        let gate = numerics::gelu_tanh(b, gate)?;
        Ok(b.multiply(gate, own)?)
    }

    /// The root-mean-square norm of rows `[T, H]` times a weight, onto `residual` if there is one.
    pub(super) fn norm(
        self,
        b: &mut Builder,
        x: Value,
        weight: Value,
        eps: f64,
        residual: Option<Value>,
    ) -> Result<Value, HloError> {
        if self.kernels == Kernels::Hlo {
            let normed = numerics::rms_norm(b, x, Some(weight), eps)?;
            return match residual {
                Some(residual) => b.add(residual, normed),
                None => Ok(normed),
            };
        }
        #[expect(clippy::cast_possible_truncation, reason = "norms are computed in f32")]
        let config = vec![("eps".to_owned(), Attribute::F32(eps as f32))];
        let results = vec![b.shape(x)?.clone()];
        let call = CustomCall { target: NORM.to_owned(), results, config, ..CustomCall::default() };
        let operands: Vec<Value> = [x, weight].into_iter().chain(residual).chain([self.real]).collect();
        let results = b.custom_call(&call, &operands)?;
        Ok(results.first().copied().unwrap_or(x))
    }

    /// [`HEADS`] with heads of `width` elements: queries, and what is stored of each token if `stored`, which follows the queries' norm,
    /// has values.
    pub(super) fn heads(
        self,
        b: &mut Builder,
        (cos, sin): (Value, Value),
        queries: [Value; 2],
        stored: &[Value],
        (width, eps): (u64, f64),
    ) -> Result<(Value, Option<Value>), HloError> {
        let dims = |b: &Builder, of: Value| b.shape(of).map(|shape| (shape.element(), shape.dims().to_vec()));
        let [x, norm] = queries;
        let (element, shape) = dims(b, x)?;
        let (rows, all) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
        let mut results = vec![Shape::new(element, [rows, all.checked_div(width).unwrap_or(0), width])];
        let mut kept = 0;
        // Keys and values, without the norm between them.
        for side in stored.iter().step_by(2) {
            kept += dims(b, *side)?.1.get(1).copied().unwrap_or(0);
        }
        if kept > 0 {
            results.push(Shape::new(element, [rows, kept]));
        }
        #[expect(clippy::cast_possible_truncation, reason = "norms are computed in f32")]
        let config = vec![("eps".to_owned(), Attribute::F32(eps as f32))];
        let call = CustomCall { target: HEADS.to_owned(), results, config, ..CustomCall::default() };
        let operands: Vec<Value> =
            [cos, sin, x, norm].into_iter().chain(stored.iter().copied()).chain([self.real]).collect();
        let mut results = b.custom_call(&call, &operands)?.into_iter();
        Ok((results.next().unwrap_or(x), results.next()))
    }

    /// [`EXPERTS`], with its operands.
    pub(super) fn experts(
        self,
        b: &mut Builder,
        [rows, owners, shares]: [Value; 3],
        [gate_up, down]: [Matrix; 2],
    ) -> Result<Value, HloError> {
        let matrices = gate_up.operands().chain(down.operands());
        let operands: Vec<Value> = [rows, owners, shares].into_iter().chain(matrices).collect();
        let results = vec![b.shape(rows)?.clone()];
        let call = CustomCall { target: EXPERTS.to_owned(), results, ..CustomCall::default() };
        let results = b.custom_call(&call, &operands)?;
        Ok(results.first().copied().unwrap_or(rows))
    }

    /// [`KV_WRITE`].
    pub(super) fn write(self, b: &mut Builder, pages: &Pages, rows: Value, slots: Value) -> Result<Value, HloError> {
        let call = CustomCall {
            target: KV_WRITE.to_owned(),
            results: vec![b.shape(pages.pool)?.clone()],
            config: vec![("tokens".to_owned(), count(pages.tokens))],
            aliases: vec![(0, 0)],
            ..CustomCall::default()
        };
        let results = b.custom_call(&call, &[pages.pool, rows, slots, pages.row])?;
        Ok(results.first().copied().unwrap_or(pages.pool))
    }

    /// [`ATTENTION`]; `others` are its operands from the positions on.
    pub(super) fn attention(
        self,
        b: &mut Builder,
        pages: &Pages,
        queries: Value,
        others: &[Value],
        (kv_heads, window): (u64, u64),
    ) -> Result<Value, HloError> {
        let setting = |name: &str, value| (name.to_owned(), count(value));
        let call = CustomCall {
            target: ATTENTION.to_owned(),
            results: vec![b.shape(queries)?.clone()],
            config: vec![setting("tokens", pages.tokens), setting("kv_heads", kv_heads), setting("window", window)],
            ..CustomCall::default()
        };
        let operands: Vec<Value> = [queries, pages.pool, pages.row].into_iter().chain(others.iter().copied()).collect();
        let results = b.custom_call(&call, &operands)?;
        Ok(results.first().copied().unwrap_or(queries))
    }
}

/// A count of a step, all of which are below 2^31.
fn count(value: u64) -> Attribute {
    Attribute::S64(i64::try_from(value).unwrap_or(i64::MAX))
}

fn first_dim(b: &Builder, of: Value) -> Result<u64, HloError> {
    b.shape(of).map(|shape| shape.dims().first().copied().unwrap_or(0))
}

/// The rows `[T, width]` that belong to `layer` of all rows `[T, L, width]`.
pub(super) fn layer_rows(b: &mut Builder, rows: Value, layer: Value) -> Result<Value, HloError> {
    let dims = b.shape(rows)?.dims().to_vec();
    let size = |at: usize| dims.get(at).copied().unwrap_or(0);
    let none = b.scalar(0_i32)?;
    let own = b.dynamic_slice(rows, &[none, layer, none], &[size(0), 1, size(2)])?;
    b.reshape(own, &[size(0), size(2)])
}
