//! Fast prefill: with the layers that share keys and values run only for the wanted rows, every logit is as without, over
//! both forms of the operators and of the layers, several devices, chunks of any size and rows of drafts.

use std::collections::HashMap;

use gemma4_model::graph::{Kernels, LayerForm, PerLayerTable};

use crate::golden::prompts;
use crate::runner::{How, Rows, Runner, argmax, client, distance};
use crate::{TOLERANCE, published};

/// The fixtures that have layers to skip.
const SHARING: [&str; 2] = ["tiny-e2b", "tiny-mm"];
/// Rows of a step, more than the logits of eight sequences with [`DRAFTED`] rows.
const BUCKET: u64 = 64;
/// Rows of a sequence that speculates.
const DRAFTED: usize = 4;

/// Logits of the prompts with their golden continuations, cut into ragged chunks, several in a step: for each sequence and
/// position whose logits were wanted.
fn ragged(name: &str, how: How, rows: Rows) -> Option<Vec<(usize, usize, Vec<f32>)>> {
    let mut runner = Runner::new(client()?, &published(name), how);
    let prompts = prompts(name);
    let sequences: Vec<usize> = prompts.iter().map(|_| runner.add_sequence()).collect();
    let whole: Vec<Vec<i32>> = prompts.iter().map(|prompt| [&prompt.ids[..], &prompt.greedy[..31]].concat()).collect();
    let (mut done, mut found) = (vec![0; prompts.len()], Vec::new());
    let mut sizes = [1, 7, 16, 3, 33, 2, 15, 17, 5, 8].into_iter().cycle();
    while done.iter().zip(&whole).any(|(done, whole)| *done < whole.len()) {
        let (mut chunks, mut left): (Vec<(usize, &[i32])>, usize) = (Vec::new(), 64);
        for (sequence, whole) in sequences.iter().zip(&whole) {
            let rest = &whole[done[*sequence]..];
            let size = sizes.next().expect("a size").min(rest.len()).min(left);
            if size > 0 {
                chunks.push((*sequence, &rest[..size]));
                left -= size;
            }
        }
        let (logits, _) = runner.step(BUCKET, &chunks, rows);
        let mut logits = logits.into_iter();
        for (sequence, tokens) in chunks {
            done[sequence] += tokens.len();
            let wanted = match rows {
                Rows::All => tokens.len(),
                Rows::LastOfEach => 1,
                Rows::Last(count) => count.min(tokens.len()),
            };
            for position in done[sequence] - wanted..done[sequence] {
                found.push((sequence, position, logits.next().expect("logits")));
            }
        }
    }
    Some(found)
}

#[test]
fn logits_are_those_of_all_rows() {
    let host = PerLayerTable::Host;
    let (each, drafted) = (Rows::LastOfEach, Rows::Last(DRAFTED));
    let own = How { kernels: Kernels::Cpu, ..How::default() };
    let hows = [
        (How::default(), each),
        (How { layers: LayerForm::Looped, tensor_parallel: 2, ..How::default() }, drafted),
        (How { per_layer_table: host, tensor_parallel: 2, ..How::default() }, each),
        (own, each),
        (own, drafted),
        (How { tensor_parallel: 2, per_layer_table: host, ..own }, drafted),
    ];
    for name in SHARING {
        let prompts = prompts(name);
        // Nothing is skipped where all rows are wanted, or where it is switched off.
        let Some(all) = ragged(name, How::default(), Rows::All) else { return };
        let all: HashMap<(usize, usize), Vec<f32>> =
            all.into_iter().map(|(of, at, logits)| ((of, at), logits)).collect();
        let hows = hows.into_iter().chain([(How { fast_prefill: false, ..own }, drafted)]);
        for (how, rows) in hows {
            let Some(found) = ragged(name, how, rows) else { return };
            for (sequence, position, logits) in found {
                let place = format!("{name} {how:?}: prompt {sequence}, position {position}");
                let off = distance(&logits, &all[&(sequence, position)]);
                assert!(off < TOLERANCE, "{place} is {off} off");
                let prompt = &prompts[sequence];
                if let Some(next) = (position + 1).checked_sub(prompt.ids.len()) {
                    assert_eq!(argmax(&logits), prompt.greedy[next], "{place}");
                }
            }
        }
    }
}
