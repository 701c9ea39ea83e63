//! Attention and experts against sums in f64.
#![expect(clippy::unwrap_used, reason = "test helpers")]

mod packed;

use gemma4_kernels::Weights;
use gemma4_kernels::attention::{Attention, AttentionError, Part, Remade, Stored, write};
use gemma4_kernels::experts::Experts;
use half::bf16;
use proptest::prelude::*;

/// Numbers of a generator that anybody can repeat: splitmix64.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..count).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

#[derive(Clone, Copy, Debug)]
struct Case {
    kv_heads: usize,
    group: usize,
    width: usize,
    block: usize,
    window: usize,
    tile: usize,
    /// Values are stored alone, and so many pairs of a key are turned.
    alone: Option<usize>,
    seed: u64,
}

/// Sequences of so many tokens in the cache and so many new ones, in pages in a scattered order.
fn check(case: Case, sequences: &[(usize, usize)]) {
    let Case { kv_heads, group, width, block, window, tile, alone, seed } = case;
    let sides = if alone.is_some() { 1 } else { 2 };
    let (heads, token) = (kv_heads * group, sides * kv_heads * width);
    let norm = numbers(seed + 77, width);
    let frequencies: Vec<f32> = (0..alone.unwrap_or(0)).map(|pair| 0.7 / (1 + pair) as f32).collect();
    let remade = alone.map(|_| Remade { norm: &norm, frequencies: &frequencies });
    let longest = sequences.iter().map(|(before, new)| before + new).max().unwrap();
    let blocks = longest.div_ceil(block);
    let pages = blocks * sequences.len();
    // 7 has no common factor with as many pages or one more.
    let page = |sequence: usize, number: usize| {
        (sequence * blocks + number) * if pages.is_multiple_of(7) { 1 } else { 7 } % pages
    };
    let part = Part { stored: Stored::F32, page: block * token + 5, start: 5, tokens: block, token };
    let mut pool: Vec<u8> = f32::NAN.to_le_bytes().repeat(part.page * pages);

    let (mut slots, mut stored, mut positions, mut items, mut table) = (vec![], vec![], vec![], vec![], vec![]);
    for (sequence, (before, new)) in sequences.iter().enumerate() {
        for at in 0..before + new {
            let place = [page(sequence, at / block), at % block];
            slots.extend(place.map(|number| i32::try_from(number).unwrap()));
            stored.push(numbers(seed + 1 + (sequence * 1000 + at) as u64, token));
        }
        let first = positions.len();
        positions.extend((*before..before + new).map(|at| i32::try_from(at).unwrap()));
        for start in (0..*new).step_by(tile) {
            items.push([first + start, tile.min(new - start), sequence].map(|number| i32::try_from(number).unwrap()));
        }
        table.extend((0..blocks).map(|number| i32::try_from(page(sequence, number)).unwrap()));
    }
    // A row that is not real goes nowhere.
    slots.extend([i32::try_from(pages).unwrap(), 0, -1, 0]);
    let rows: Vec<u8> =
        stored.iter().flatten().chain(&vec![1.0; 2 * token]).flat_map(|value| value.to_le_bytes()).collect();
    write(&mut pool, &part, &slots, &rows).unwrap();
    positions.push(0);

    let queries = numbers(seed, positions.len() * heads * width);
    let mut out = vec![f32::NAN; queries.len()];
    let first_block = vec![0; sequences.len()];
    let attention = Attention {
        queries: &queries,
        pool: &pool,
        part,
        kv_heads,
        width,
        group,
        positions: &positions,
        items: &items,
        block_table: &table,
        first_block: &first_block,
        window,
        remade,
    };
    attention.run(&mut out).unwrap();

    // The key of a token, as it is stored or made from its value.
    let key = |token: &[f32], position: usize, of: usize| -> Vec<f64> {
        let stored: Vec<f64> = token[of..of + width].iter().map(|value| f64::from(*value)).collect();
        if alone.is_none() {
            return stored;
        }
        let mut key: Vec<f64> = stored.iter().zip(&norm).map(|(value, norm)| value * f64::from(*norm)).collect();
        for (pair, frequency) in frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * f64::from(*frequency)).sin_cos();
            let (left, right) = (key[pair], key[pair + width / 2]);
            (key[pair], key[pair + width / 2]) = (left * cos - right * sin, right * cos + left * sin);
        }
        key
    };

    let (mut row, mut start) = (0, 0);
    for (before, new) in sequences {
        for at in *before..before + new {
            for head in 0..heads {
                let query = &queries[(row * heads + head) * width..][..width];
                let of = head / group * width;
                let seen = (at + 1).saturating_sub(window)..=at;
                let scores: Vec<f64> = seen
                    .clone()
                    .map(|at| {
                        let key = key(&stored[start + at], at, of);
                        query.iter().zip(&key).map(|(q, k)| f64::from(*q) * k).sum()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|score| (score - most).exp()).sum();
                for column in 0..width {
                    let value =
                        |key: usize| f64::from(stored[start + key][(sides - 1) * kv_heads * width + of + column]);
                    let wanted: f64 =
                        seen.clone().zip(&scores).map(|(key, score)| (score - most).exp() * value(key)).sum();
                    let found = f64::from(out[(row * heads + head) * width + column]);
                    assert!((found - wanted / sum).abs() < 1e-5, "{case:?} row {row}: {found} for {}", wanted / sum);
                }
            }
            row += 1;
        }
        start += before + new;
    }
    assert!(out[row * heads * width..].iter().all(|value| *value == 0.0), "rows of no item are 0");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_batch(
        kv_heads in 1_usize..4, group in 1_usize..5, width in 1_usize..40, block in 1_usize..12, window in 1_usize..40,
        tile in 1_usize..9, seed in 0_u64..1000, sequences in proptest::collection::vec((0_usize..30, 1_usize..20), 1..5),
    ) {
        let case = Case { kv_heads, group, width, block, window, tile, alone: None, seed };
        check(case, &sequences);
        check(Case { window: usize::MAX, ..case }, &sequences);
        check(Case { window: usize::MAX, alone: Some(width / 2), ..case }, &sequences);
        check(Case { window: usize::MAX, alone: Some(width / 4), ..case }, &sequences);
    }

    #[test]
    fn long_sequences_in_parts(window in 200_usize..900, before in 200_usize..700, block in 1_usize..60, seed in 0_u64..9) {
        let case = Case { kv_heads: 2, group: 3, width: 20, block, window, tile: 4, alone: None, seed };
        // Single queries are attended to in parts, on both sides of their borders, beside some that are not.
        check(case, &[(before, 1), (255, 1), (256, 1), (before, 3)]);
        check(Case { window: usize::MAX, alone: Some(5), ..case }, &[(before, 1), (511, 1)]);
    }

    #[test]
    fn any_numbers_of_a_step(fields in proptest::collection::vec(any::<i32>(), 12)) {
        let part = Part { stored: Stored::F32, page: 8, start: 0, tokens: 2, token: 4 };
        let (queries, pool, mut out) = ([0.5_f32; 8], [0_u8; 64], [0.0_f32; 8]);
        let attention = Attention {
            queries: &queries, pool: &pool, part, kv_heads: 1, width: 2, group: 1, positions: &fields[..4],
            items: &[[fields[4], fields[5], fields[6]]], block_table: &fields[7..9], first_block: &fields[9..10],
            window: usize::MAX, remade: None,
        };
        // Whatever they say, it is an answer or an error.
        let _: Result<(), AttentionError> = attention.run(&mut out);
        let remade = Some(Remade { norm: &[1.0, 2.0], frequencies: &[0.5] });
        let alone = Attention { part: Part { token: 2, ..part }, remade, ..attention };
        let _: Result<(), AttentionError> = alone.run(&mut out);
        let mut pool = [0_u8; 64];
        prop_assert!(write(&mut pool, &part, &fields[..2], &[1; 16]).is_ok());
    }

    #[test]
    fn experts(
        tokens in 0_usize..40, hidden in 1_usize..50, inner in 1_usize..50, count in 1_usize..6, top_k in 1_usize..4, seed: u64,
        quantized in 0_u8..3,
    ) {
        // Rows of integers of four bits are whole groups.
        let (hidden, inner) = if quantized == 2 { (hidden.next_multiple_of(32), inner.next_multiple_of(32)) } else { (hidden, inner) };
        let inputs = numbers(seed, tokens * hidden);
        let (gate_up, down) = (numbers(seed ^ 1, count * 2 * inner * hidden), numbers(seed ^ 2, count * inner * hidden));
        let shares = numbers(seed ^ 3, tokens * top_k);
        let owners: Vec<i32> = numbers(seed ^ 4, tokens * top_k)
            .into_iter()
            .map(|number| ((number + 1.0) * (count + 1) as f32 / 2.0) as i32)
            .collect();
        let integers = |numbers: &[f32]| numbers.iter().map(|number| (number * 127.0) as i8).collect::<Vec<i8>>();
        let scales = |rows: usize| (0..rows).map(|row| 1.0 / (90 + row % 7 * 11) as f32).collect::<Vec<f32>>();
        let nibbles = |numbers: &[f32]| numbers.iter().map(|number| (number * 8.0) as i8).map(|n| n.min(7)).collect::<Vec<i8>>();
        let groups = |count: usize| {
            (0..count / 32).map(|group| bf16::from_f32(1.0 / (6 + group % 7) as f32)).collect::<Vec<bf16>>()
        };
        let (gate_up8, down8) = (integers(&gate_up), integers(&down));
        let (gate_up_scales, down_scales) = (scales(count * 2 * inner), scales(count * hidden));
        let scaled = |values: &[i8], scales: &[f32], width: usize| -> Vec<f32> {
            values.iter().enumerate().map(|(at, value)| f32::from(*value) * scales[at / width]).collect()
        };
        let (gate_up4, down4) = (nibbles(&gate_up), nibbles(&down));
        let (gate_up_words, down_words) = (packed::pack(&gate_up4, hidden), packed::pack(&down4, inner));
        let (gate_up_groups, down_groups) = (groups(gate_up4.len()), groups(down4.len()));
        let (gate_up, gate_up_of, down, down_of) = if quantized == 2 {
            let gate_up_of = Weights::Int4 { values: &gate_up_words, scales: &gate_up_groups };
            let down_of = Weights::Int4 { values: &down_words, scales: &down_groups };
            let wide = |scales: &[bf16]| scales.iter().map(|scale| scale.to_f32()).collect::<Vec<f32>>();
            (scaled(&gate_up4, &wide(&gate_up_groups), 32), gate_up_of, scaled(&down4, &wide(&down_groups), 32), down_of)
        } else if quantized == 1 {
            let gate_up_of = Weights::Int8 { values: &gate_up8, scales: &gate_up_scales };
            let down_of = Weights::Int8 { values: &down8, scales: &down_scales };
            (scaled(&gate_up8, &gate_up_scales, hidden), gate_up_of, scaled(&down8, &down_scales, inner), down_of)
        } else {
            (gate_up.clone(), (&gate_up).into(), down.clone(), (&down).into())
        };
        let mut out = vec![f32::NAN; inputs.len()];
        Experts { inputs: &inputs, owners: &owners, shares: &shares, gate_up: gate_up_of, down: down_of, hidden, inner, top_k }
            .run(&mut out)
            .unwrap();
        let dot = |left: &[f32], right: &[f64]| left.iter().zip(right).map(|(l, r)| f64::from(*l) * r).sum::<f64>();
        for token in 0..tokens {
            let x: Vec<f64> = inputs[token * hidden..][..hidden].iter().map(|x| f64::from(*x)).collect();
            let mut wanted = vec![0.0; hidden];
            for pair in token * top_k..(token + 1) * top_k {
                let expert = usize::try_from(owners[pair]).unwrap();
                if expert >= count {
                    continue;
                }
                let row = |at: usize| dot(&gate_up[(expert * 2 * inner + at) * hidden..][..hidden], &x);
                let bent = |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh());
                let middle: Vec<f64> = (0..inner).map(|at| bent(row(at)) * row(inner + at)).collect();
                for (column, wanted) in wanted.iter_mut().enumerate() {
                    let result = dot(&down[(expert * hidden + column) * inner..][..inner], &middle);
                    *wanted += f64::from(shares[pair]) * result;
                }
            }
            for (found, wanted) in out[token * hidden..].iter().zip(&wanted) {
                prop_assert!((f64::from(*found) - wanted).abs() < 2e-3, "{found} for {wanted}");
            }
        }
    }
}
