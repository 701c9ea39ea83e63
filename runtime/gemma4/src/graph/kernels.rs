//! Operators that a platform may have kernels of its own for.
//!
//! Invariant: a call computes what the StableHLO form in its place computes, up to the order of sums; so a program with calls
//! and one without are the same step. Names end in a version that grows whenever what is computed or how it is passed
//! changes, since compiled programs that are kept on disk find a handler by its name alone.

use gemma4_hlo::{Attribute, Builder, CustomCall, ElementType, HloError, Shape, Value};

use super::numerics;

/// Who computes the hot operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Kernels {
    /// XLA, from StableHLO: on every platform.
    #[default]
    Hlo,
    /// Handlers on the host, registered by the names of this module, where weights are float32 or bfloat16.
    Cpu,
}

/// `x [T, in] * weight [out, in]^T`, summed in f32. Operands are `x` and `weight` of one type, float32 or bfloat16; the result
/// `[T, out]` is of that type or float32.
pub const LINEAR: &str = "gemma4.linear.v1";

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

    /// `x [T, in] * weight [out, in]^T`, summed in f32 and returned in `result`.
    pub(super) fn linear(
        self,
        b: &mut Builder,
        x: Value,
        weight: Value,
        result: ElementType,
    ) -> Result<Value, HloError> {
        if self == Self::Hlo {
            return numerics::linear(b, x, weight, result);
        }
        let size = |b: &Builder, of| b.shape(of).map(|shape| shape.dims().first().copied().unwrap_or(0));
        let dims = [size(b, x)?, size(b, weight)?];
        let call =
            CustomCall { target: LINEAR.to_owned(), results: vec![Shape::new(result, dims)], ..CustomCall::default() };
        let results = b.custom_call(&call, &[x, weight])?;
        Ok(results.first().copied().unwrap_or(x))
    }

    /// [`EXPERTS`], with its operands.
    pub(super) fn experts(self, b: &mut Builder, operands: [Value; 5]) -> Result<Value, HloError> {
        let [rows, ..] = operands;
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
