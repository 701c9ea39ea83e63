//! The program that rules tokens out of logits, on XLA's CPU plugin, against a loop over bits.

use std::path::PathBuf;

use gemma4_model::graph::{GraphError, MaskOptions, mask};
use gemma4_pjrt::install::{self, Target};
use gemma4_pjrt::{Argument, Client, CompileOptions, Plugin, Value};
use proptest::prelude::*;

fn plugin() -> Option<PathBuf> {
    let found = install::find(Target::Cpu).expect("the place of plugins");
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "the CPU plugin is missing; .ci/run installs it");
    Some(found?.path)
}

/// What every device makes of logits and masks.
fn masked(client: &Client, options: &MaskOptions, logits: &[f32], words: &[u32]) -> Vec<Vec<f32>> {
    let devices = usize::try_from(options.devices).expect("few");
    let compile = match devices {
        1 => CompileOptions::default(),
        _ => CompileOptions::manual_spmd(&client.devices().take(devices).map(|one| one.id.into()).collect::<Vec<_>>()),
    };
    let program = mask(options).expect("a program").text();
    let program = client.compile(program.as_bytes(), &compile).expect("it compiles");
    let stats = program.executable().memory_stats().expect("statistics");
    assert_eq!(stats.aliased, 4 * logits.len() as i64, "the logits change in place");
    let size = |count: u64| i64::try_from(count).expect("small");
    let arguments = program.devices().iter().map(|device| {
        let dims = [size(options.rows), size(options.vocab_size)];
        let logits = client.buffer_of(logits, &dims, *device).expect("logits");
        let words = client.buffer_of(words, &[dims[0], size(options.words())], *device).expect("a mask");
        vec![Argument::Donate(logits), Argument::Donate(words)]
    });
    let outputs = program.execute(arguments.collect()).expect("it runs");
    outputs.iter().map(|outputs| outputs[0].to_vec().expect("logits")).collect()
}

/// The same as [`mask`], a bit after the other.
fn reference(options: &MaskOptions, logits: &[f32], words: &[u32]) -> Vec<f32> {
    let (vocabulary, width) = (options.vocab_size as usize, options.words() as usize);
    let allowed = |at: usize| {
        let (row, token) = (at / vocabulary, at % vocabulary);
        words[row * width + token % width] & 1 << (token / width) != 0
    };
    logits.iter().enumerate().map(|(at, logit)| if allowed(at) { *logit } else { f32::NEG_INFINITY }).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn what_the_mask_leaves_stays_bit_by_bit(
        devices in 1_u64..=2,
        rows in 1_u64..=9,
        vocab_size in prop_oneof![1_u64..=70, Just(96), Just(1024), 1000_u64..=1100],
        seed in any::<u32>(),
    ) {
        let Some(plugin) = plugin() else { return Ok(()) };
        let client = Plugin::load(&plugin).and_then(|plugin| plugin.client(&[("cpu_device_count", Value::Int(2))]));
        let client = client.expect("two devices");
        let options = MaskOptions { devices, rows, vocab_size };
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.rotate_left(13) ^ state
        };
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, f32::MIN_POSITIVE];
        let logits: Vec<f32> = (0..rows * vocab_size)
            .map(|_| match next() as usize {
                number if number % 5 == 0 => special[number % special.len()],
                number => number as f32 / 1e7 - 200.0,
            })
            .collect();
        // Words of nothing and of everything too, as most are.
        let words: Vec<u32> = (0..rows * options.words())
            .map(|_| match next() % 4 { 0 => 0, 1 => u32::MAX, _ => next() })
            .collect();
        let expected = bits(&reference(&options, &logits, &words));
        let found = masked(&client, &options, &logits, &words);
        prop_assert_eq!(found.len() as u64, devices);
        for found in found {
            prop_assert_eq!(bits(&found), expected.clone());
        }
    }
}

#[test]
fn the_same_options_give_the_same_text() {
    let options = MaskOptions { devices: 4, rows: 16, vocab_size: 262_144 };
    assert_eq!(options.words(), 8192);
    let text = || mask(&options).expect("a program").text();
    assert_eq!(text(), text());
    assert!(!text().contains("stablehlo.pad") && !text().contains("stablehlo.slice"), "whole words need neither");
}

#[test]
fn what_makes_no_program_is_refused() {
    for (devices, rows, vocab_size) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1 << 40, 1)] {
        let refused = mask(&MaskOptions { devices, rows, vocab_size }).map(drop);
        assert!(matches!(refused, Err(GraphError::Size { .. })), "{refused:?}");
    }
}
