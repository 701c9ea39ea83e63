//! The arithmetic that all parts share. Norms, softmax and activations are computed in f32 and rounded once, as
//! transformers does (`Gemma4RMSNorm`); products of matrices are summed in f32 and rounded to the type of the stream.

use gemma4_hlo::{Builder, DotDimensions, ElementType, HloError, Precision, Value};

use super::GraphError;
use super::matrix::Matrix;

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension; without a weight if there is none.
pub(super) fn rms_norm(b: &mut Builder, x: Value, weight: Option<Value>, eps: f64) -> Result<Value, HloError> {
    let shape = b.shape(x)?.clone();
    let (dims, last) = (shape.dims().to_vec(), shape.rank().saturating_sub(1));
    let width = dims.last().copied().unwrap_or(1).max(1);
    let wide = b.convert(x, ElementType::F32)?;
    let squares = b.multiply(wide, wide)?;
    let sum = b.reduce_sum(squares, &[last])?;
    let rows = dims.get(..last).unwrap_or_default().to_vec();
    let factor = b.number(1.0 / to_f64(width), ElementType::F32, &rows)?;
    let mean = b.multiply(sum, factor)?;
    let eps = b.number(eps, ElementType::F32, &rows)?;
    let mean = b.add(mean, eps)?;
    let scale = b.rsqrt(mean)?;
    let kept: Vec<usize> = (0..last).collect();
    let scale = b.broadcast(scale, &dims, &kept)?;
    let mut normed = b.multiply(wide, scale)?;
    if let Some(weight) = weight {
        let weight = b.convert(weight, ElementType::F32)?;
        let weight = b.broadcast(weight, &dims, &[last])?;
        normed = b.multiply(normed, weight)?;
    }
    b.convert(normed, shape.element())
}

/// `x [.., in] * weight [out, in]^T`, summed in f32, times the scales of whole rows of `weight`, and returned in `result`.
pub(super) fn linear(b: &mut Builder, x: Value, weight: Matrix, result: ElementType) -> Result<Value, HloError> {
    let contracted = b.shape(x)?.rank().saturating_sub(1);
    let element = b.shape(x)?.element();
    let (values, scales) = weight.factors(b, element)?;
    let mut product =
        b.dot_general(x, values, &DotDimensions::contract(contracted, 1), ElementType::F32, Precision::Default)?;
    if let Some(scales) = scales {
        let scales = b.broadcast_like(scales, product, &[contracted])?;
        product = b.multiply(product, scales)?;
    }
    b.convert(product, result)
}

/// The tanh form of GELU: `x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))`.
pub(super) fn gelu_tanh(b: &mut Builder, x: Value) -> Result<Value, HloError> {
    let shape = b.shape(x)?.clone();
    let wide = b.convert(x, ElementType::F32)?;
    let dims = shape.dims();
    let square = b.multiply(wide, wide)?;
    let cube = b.multiply(square, wide)?;
    let third = b.number(0.044_715, ElementType::F32, dims)?;
    let cube = b.multiply(cube, third)?;
    let inner = b.add(wide, cube)?;
    let root = b.number((2.0 / std::f64::consts::PI).sqrt(), ElementType::F32, dims)?;
    let inner = b.multiply(inner, root)?;
    let bend = b.tanh(inner)?;
    let one = b.number(1.0, ElementType::F32, dims)?;
    let bend = b.add(bend, one)?;
    let half = b.number(0.5, ElementType::F32, dims)?;
    let half = b.multiply(wide, half)?;
    let result = b.multiply(half, bend)?;
    b.convert(result, shape.element())
}

/// `x * factor`, with the factor rounded to the type of `x` first.
pub(super) fn scaled(b: &mut Builder, x: Value, factor: f64) -> Result<Value, HloError> {
    let shape = b.shape(x)?.clone();
    let factor = b.number(factor, shape.element(), shape.dims())?;
    b.multiply(x, factor)
}

/// `count` as a number; exact below 2^53, which every size of a model is.
pub(super) fn to_f64(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "sizes of models are far below 2^53")]
    let number = count as f64;
    number
}

/// A scalar of type s32. Every count of a step is below 2^31: `StepOptions` that say otherwise are refused before.
pub(super) fn index(b: &mut Builder, value: u64) -> Result<Value, HloError> {
    b.scalar(i32::try_from(value).unwrap_or(i32::MAX))
}

/// Element `at` of a one-dimensional tensor, as a scalar.
pub(super) fn element(b: &mut Builder, of: Value, at: Value) -> Result<Value, HloError> {
    let one = b.dynamic_slice(of, &[at], &[1])?;
    b.reshape(one, &[])
}

/// [`Builder::for_loop`] with a body that may fail in more ways than the builder.
pub(super) fn for_loop(
    b: &mut Builder,
    first: Value,
    limit: Value,
    starts: &[Value],
    body: impl FnOnce(&mut Builder, Value, &[Value]) -> Result<Vec<Value>, GraphError>,
) -> Result<Vec<Value>, GraphError> {
    let mut failed = None;
    let results = b.for_loop(first, limit, starts, |b, counter, carried| match body(b, counter, carried) {
        Ok(results) => Ok(results),
        Err(GraphError::Hlo(error)) => Err(error),
        Err(error) => {
            failed = Some(error);
            Ok(carried.to_vec())
        }
    });
    match failed {
        Some(error) => Err(error),
        None => Ok(results?),
    }
}
