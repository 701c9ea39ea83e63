//! The numbers of one tensor.
//!
//! Invariant: no operation whose last digit depends on a library or a processor; see the module above.

use half::bf16;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sha2::{Digest, Sha256};

use crate::tensors::{Role, Tensor};

/// Changes with every change of the numbers.
const LABEL: &[u8] = b"gemma4 seeded weights 1\n";

/// Where numbers lie: evenly within `reach` of `center`.
#[derive(Clone, Copy)]
struct Range {
    center: f32,
    reach: f32,
    /// Whether half of them, at random, get the other sign.
    signs: bool,
}

/// All numbers of a tensor as little-endian float32, each one exact in `bfloat16`.
pub(super) fn numbers(tensor: &Tensor, seed: u64) -> Vec<u8> {
    let key = Sha256::new().chain_update(LABEL).chain_update(seed.to_le_bytes()).chain_update(&tensor.name).finalize();
    let mut random = ChaCha8Rng::from_seed(key.into());
    let range = range(tensor);
    let mut bytes = Vec::new();
    for _ in 0..tensor.elements() {
        let [low, high, sign, _] = random.next_u32().to_le_bytes();
        // Evenly spaced and symmetric in (-1, 1); every step up to here is exact.
        let unit = (f32::from(u16::from_le_bytes([low, high])) - 32_767.5) / 32_768.0;
        let number = range.center + range.reach * unit;
        let number = if range.signs && sign & 1 == 1 { -number } else { number };
        bytes.extend(bf16::from_f32(number).to_f32().to_le_bytes());
    }
    bytes
}

/// Magnitudes that keep the stream of about unit size through the layers, so that the logits are neither flat nor all at the
/// softcap.
fn range(tensor: &Tensor) -> Range {
    let around = |center, reach| Range { center, reach, signs: false };
    match tensor.role {
        Role::Embedding => around(0.0, 2.0 * unit_variance(tensor)),
        Role::PerLayerTable => around(0.0, 0.5),
        // With a tied head and norms of one sign the model would mostly repeat its input.
        Role::FinalNorm => Range { center: 1.0, reach: 0.5, signs: true },
        Role::LayerScalar => around(0.85, 0.25),
        Role::QNorm | Role::KNorm => around(0.4, 0.2),
        Role::PostAttentionNorm | Role::PostFeedforwardNorm | Role::PostPerLayerInputNorm => around(0.75, 0.25),
        _ if tensor.shape.len() < 2 => around(1.0, 0.5),
        _ => around(0.0, unit_variance(tensor)),
    }
}

/// The reach at which a sum over the last dimension has the variance of its inputs: evenly spread numbers within `r` have the
/// variance r^2 / 3.
fn unit_variance(tensor: &Tensor) -> f32 {
    // Exact: widths are at most 65536, and those of other dimensions do not occur last.
    let width = tensor.shape.last().and_then(|&width| u16::try_from(width).ok());
    width.map_or(0.0, |width| (3.0 / f32::from(width.max(1))).sqrt())
}
