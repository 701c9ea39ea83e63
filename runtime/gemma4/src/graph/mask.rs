//! Tokens ruled out of logits, as a program of its own.
//!
//! Invariant: a step is the same program whether or not anybody rules tokens out of its logits. They stay on the devices
//! where the step left them, on every one the same, and come back in the same place.

use gemma4_hlo::{Comparison, ElementType, HloError, Module, Parallelism, Parameter, Shape};

use super::GraphError;

/// Tokens of a word of a mask.
pub const MASK_BITS: u64 = u32::BITS as u64;

/// What a mask's program is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MaskOptions {
    /// The devices, which all do the same.
    pub devices: u64,
    /// `R`, rows of the step's logits.
    pub rows: u64,
    /// `V`, tokens of the vocabulary.
    pub vocab_size: u64,
}

impl MaskOptions {
    /// Words of a row of the mask.
    #[must_use]
    pub const fn words(&self) -> u64 {
        self.vocab_size.div_ceil(MASK_BITS)
    }
}

/// Builds the program. Its arguments are the logits `[R, V]` in f32, in whose place the result is written, and the mask
/// `[R, V/32]` in u32: bit `b` of word `w` of `W` is 1 where token `W b + w` stays as it is. Those of all others become minus
/// infinity.
///
/// # Errors
/// [`GraphError`] for sizes that make no program.
pub fn mask(options: &MaskOptions) -> Result<Module, GraphError> {
    let MaskOptions { devices, rows, vocab_size } = *options;
    let most = u64::from(i32::MAX.unsigned_abs());
    for (what, found) in
        [("the number of devices", devices), ("the number of rows with logits", rows), ("the vocabulary", vocab_size)]
    {
        if found == 0 || found > most {
            return Err(GraphError::Size { what, found, wanted: "1 to 2^31-1" });
        }
    }
    let parallelism = match u32::try_from(devices) {
        Ok(1) => Parallelism::Single,
        count => Parallelism::ManualPartitions(count.unwrap_or(u32::MAX)),
    };
    let words = options.words();
    let rest = words.saturating_mul(MASK_BITS).saturating_sub(vocab_size);
    let logits = Parameter::new("logits", Shape::new(ElementType::F32, [rows, vocab_size])).donated_to(0);
    let allowed = Parameter::new("allowed", Shape::new(ElementType::U32, [rows, words]));
    let mut module = Module::new("mask", parallelism)?;
    module.main(&[logits, allowed], |b, arguments| {
        let &[logits, allowed] = arguments else { return Ok(arguments.to_vec()) };
        b.scope("mask", |b| {
            // Neighbouring tokens have the same bit of neighbouring words, and the words are the last dimension: with 32 bits there,
            // a TPU would fill the other 96 lanes of every tile with nothing.
            let dims = [rows, MASK_BITS, words];
            let nothing = b.lowest(ElementType::F32, &[])?;
            let whole = match i64::try_from(rest) {
                Ok(0) => logits,
                rest => b.pad(logits, nothing, &[0, 0], &[0, rest.unwrap_or(0)], &[0, 0])?,
            };
            let whole = b.reshape(whole, &dims)?;
            let bits = b.iota(ElementType::U32, &dims, 1)?;
            let one = b.splat(1_u32, &dims)?;
            let allowed = b.broadcast(allowed, &dims, &[0, 2])?;
            let allowed = b.shift_right_logical(allowed, bits)?;
            let allowed = b.and(allowed, one)?;
            let allowed = b.compare(Comparison::Eq, allowed, one)?;
            let nothing = b.broadcast_scalar(nothing, &dims)?;
            let masked = b.select(allowed, whole, nothing)?;
            let masked = b.reshape(masked, &[rows, words.saturating_mul(MASK_BITS)])?;
            let masked = if rest == 0 { masked } else { b.slice_dim(masked, 1, 0, vocab_size)? };
            Ok::<_, HloError>(vec![masked])
        })
    })?;
    Ok(module)
}
