//! Layers that share a loop body: the list of layers as repeated patterns.

use std::ops::Range;

use crate::config::{Layer, TextConfig};

/// A run of layers: `period` layers from `first` on, `repeats` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) first: usize,
    pub(super) period: usize,
    pub(super) repeats: usize,
}

/// Cuts these layers into segments: from each layer on the pattern that covers most, the shortest among equals. Layers of a
/// pattern are alike in everything that the program depends on, the donor of borrowed keys and values included.
pub(super) fn segments(text: &TextConfig, wanted: Range<usize>) -> Vec<Segment> {
    let layers = text.layers.get(..wanted.end).unwrap_or(&text.layers);
    let mut segments = Vec::new();
    let mut first = wanted.start;
    while first < layers.len() {
        let mut best = Segment { first, period: 1, repeats: 1 };
        for period in 1..=(layers.len() - first) / 2 {
            let repeats = repeats(layers, first, period);
            if repeats > 1 && repeats * period > best.repeats * best.period {
                best = Segment { first, period, repeats };
            }
        }
        first += best.period * best.repeats;
        segments.push(best);
    }
    segments
}

fn repeats(layers: &[Layer], first: usize, period: usize) -> usize {
    let pattern = layers.get(first..first + period).unwrap_or_default();
    let rest = layers.get(first..).unwrap_or_default();
    rest.chunks_exact(period).take_while(|chunk| *chunk == pattern).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn every_size_has_few_bodies() {
        let segment = |first, period, repeats| Segment { first, period, repeats };
        for (size, expected) in [
            ("e2b", vec![segment(0, 5, 3), segment(15, 5, 4)]),
            ("e4b", vec![segment(0, 6, 4), segment(24, 6, 3)]),
            ("12b", vec![segment(0, 6, 8)]),
            ("26b-a4b", vec![segment(0, 6, 5)]),
            ("31b", vec![segment(0, 6, 10)]),
        ] {
            let path = format!("{}/tests/published/{size}.json", env!("CARGO_MANIFEST_DIR"));
            let config = Config::from_json(&std::fs::read(path).expect("a config")).expect("a config");
            let (cut, all) = (config.text.fast_prefill_cut(), config.text.layers.len());
            assert_eq!(segments(&config.text, 0..all), expected, "{size}");
            // With fast prefill they are the same: none reaches over the border.
            let parts = [segments(&config.text, 0..cut), segments(&config.text, cut..all)];
            assert_eq!(parts.concat(), expected, "{size}");
        }
    }
}
