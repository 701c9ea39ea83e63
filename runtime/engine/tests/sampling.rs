//! Sampling against distributions computed here in the plainest way, with double precision and whole sorts.

use std::collections::HashMap;

use gemma4_engine::runner::Logits;
use gemma4_engine::sampling::{Logprobs, SampleError, Sampler, SamplingParams, Scratch};
use proptest::prelude::*;

/// Probabilities of all tokens, as the parameters shape them; the order of vLLM: temperature, min-p, top-k, top-p.
fn reference(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let scaled: Vec<f64> = logits.iter().map(|logit| f64::from(*logit) / f64::from(params.temperature)).collect();
    let largest = scaled.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut weights: Vec<f64> = scaled.iter().map(|logit| (logit - largest).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|left, right| logits[*right].total_cmp(&logits[*left]).then(left.cmp(right)));
    if let Some(count) = params.top_k {
        order.iter().skip(count as usize).for_each(|token| weights[*token] = 0.0);
    }
    for weight in &mut weights {
        if *weight < f64::from(params.min_p) {
            *weight = 0.0;
        }
    }
    let sum: f64 = weights.iter().sum();
    let mut reached = 0.0;
    for token in order {
        if reached >= sum * f64::from(params.top_p) {
            weights[token] = 0.0;
        }
        reached += weights[token];
    }
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

fn draw(logits: &[f32], params: &SamplingParams, seed: u64) -> u32 {
    let mut sampler = Sampler::new(params.clone(), seed, &[1, 2, 3]);
    sampler.sample(logits, &mut Scratch::default()).expect("a token").token
}

fn logits(count: usize) -> Vec<f32> {
    (0..count).map(|token| ((token * 7919 % 101) as f32 / 101.0 - 0.5) * 8.0).collect()
}

#[test]
fn tokens_are_drawn_as_often_as_they_should_be() {
    let logits = logits(40);
    let base = SamplingParams::default();
    for params in [
        base.clone(),
        SamplingParams { temperature: 0.6, ..base.clone() },
        SamplingParams { top_k: Some(5), temperature: 2.0, ..base.clone() },
        SamplingParams { top_p: 0.8, ..base.clone() },
        SamplingParams { min_p: 0.1, temperature: 1.5, ..base.clone() },
        SamplingParams { top_k: Some(12), top_p: 0.7, min_p: 0.02, temperature: 1.3, ..base },
    ] {
        let expected = reference(&logits, &params);
        let draws = 40_000_u32;
        let mut counts: HashMap<u32, u32> = HashMap::new();
        for seed in 0..u64::from(draws) {
            *counts.entry(draw(&logits, &params, seed)).or_default() += 1;
        }
        // Pearson's statistic; its 99.99th percentile lies below df + 4 sqrt(2 df) + 12.
        let mut statistic = 0.0;
        let mut classes = 0;
        for (token, probability) in (0_u32..).zip(&expected) {
            let seen = f64::from(counts.get(&token).copied().unwrap_or(0));
            let wanted = probability * f64::from(draws);
            if wanted == 0.0 {
                assert_eq!(seen, 0.0, "token {token} was ruled out: {params:?}");
            } else if wanted >= 5.0 {
                statistic += (seen - wanted).powi(2) / wanted;
                classes += 1;
            }
        }
        let freedom = f64::from(classes - 1);
        assert!(statistic < freedom + 4.0 * (2.0 * freedom).sqrt() + 12.0, "{statistic} for {freedom}: {params:?}");
    }
}

#[test]
fn a_draw_depends_on_seed_and_place_alone() {
    let logits = logits(500);
    let params = SamplingParams { seed: Some(7), ..SamplingParams::default() };
    let run = |prompt: &[u32], other_seed| {
        let mut sampler = Sampler::new(params.clone(), other_seed, prompt);
        let mut scratch = Scratch::default();
        (0..20).map(|_| sampler.sample(&logits, &mut scratch).expect("a token").token).collect::<Vec<_>>()
    };
    let first = run(&[1, 2, 3], 1);
    assert_eq!(first, run(&[9, 9, 9], 2), "the same seed at the same places");
    assert_eq!(first[1..], run(&[1, 2, 3, 4], 1)[..19], "a place counts from the start of the sequence");
    let other = SamplingParams { seed: Some(8), ..params.clone() };
    assert_ne!(first, (0..20).map(|_| draw(&logits, &other, 0)).collect::<Vec<_>>());
}

#[test]
fn penalties_and_biases_change_the_choice_as_documented() {
    let mut scratch = Scratch::default();
    let logits = [2.0, 1.9, -1.0, 0.5];
    let greedy = SamplingParams::greedy();
    let mut sample = |params: SamplingParams, prompt: &[u32], steps: usize| {
        let mut sampler = Sampler::new(params, 0, prompt);
        (0..steps).map(|_| sampler.sample(&logits, &mut scratch).expect("a token").token).collect::<Vec<_>>()
    };
    assert_eq!(sample(greedy.clone(), &[0], 3), [0, 0, 0]);
    // 2.0 - 0.2 is below 1.9; then both were generated.
    assert_eq!(sample(SamplingParams { presence_penalty: 0.2, ..greedy.clone() }, &[0], 3), [0, 1, 0]);
    assert_eq!(sample(SamplingParams { frequency_penalty: 0.2, ..greedy.clone() }, &[0], 4), [0, 1, 0, 1]);
    // The prompt counts for repetition alone: 2.0 / 1.1 is below 1.9.
    assert_eq!(sample(SamplingParams { repetition_penalty: 1.1, ..greedy.clone() }, &[0], 2), [1, 0]);
    assert_eq!(sample(SamplingParams { logit_bias: vec![(2, 3.5)], ..greedy.clone() }, &[0], 1), [2]);
    let excluded = SamplingParams { logit_bias: vec![(0, -100.0), (1, -100.0)], ..greedy };
    assert_eq!(sample(excluded, &[0], 1), [3]);
}

#[test]
fn logprobs_are_those_of_the_model_itself() {
    let logits = logits(300);
    let params = SamplingParams { temperature: 0.2, top_k: Some(3), ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, 3, &[1]).with_logprobs(Some(5));
    let sampled = sampler.sample(&logits, &mut Scratch::default()).expect("a token");
    let found = sampled.logprobs.expect("logprobs");
    let normalizer = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    let wanted = |token: u32| f64::from(logits[token as usize]) - normalizer;
    assert!((f64::from(found.logprob) - wanted(sampled.token)).abs() < 1e-5);
    let mut order: Vec<u32> = (0..300).collect();
    order.sort_by(|left, right| logits[*right as usize].total_cmp(&logits[*left as usize]).then(left.cmp(right)));
    assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), order[..5]);
    assert!(found.top.iter().all(|(token, logprob)| (f64::from(*logprob) - wanted(*token)).abs() < 1e-5));
    let place = order.iter().position(|token| logits[*token as usize] == logits[sampled.token as usize]);
    assert_eq!(found.rank, place.expect("there") + 1);
}

#[test]
fn logprobs_of_prompts_are_those_of_their_own_rows() {
    let rows: Vec<Vec<f32>> =
        (0..40_u16).map(|row| logits(300).iter().map(|logit| logit * f32::from(row + 1) / 20.0).collect()).collect();
    let of_step = Logits::new(rows.concat(), 300);
    // More than there are processors, in another order than that of the rows, each with a count of its own.
    let wanted: Vec<(usize, u32, usize)> =
        (0..40_u32).rev().map(|row| (row as usize, row * 7, row as usize % 4)).collect();
    let found = Logprobs::of_prompts(&of_step, &wanted);
    assert_eq!(found.len(), wanted.len());
    for (found, (row, token, count)) in found.into_iter().zip(wanted) {
        let (found, logits) = (found.expect("numbers"), &rows[row]);
        let normalizer = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        assert!((f64::from(found.logprob) - (f64::from(logits[token as usize]) - normalizer)).abs() < 1e-5);
        assert_eq!(found.rank, 1 + logits.iter().filter(|logit| **logit > logits[token as usize]).count());
        assert_eq!(found.top.len(), count);
    }
    assert_eq!(Logprobs::of_prompts(&of_step, &[]), []);
    assert_eq!(
        Logprobs::of_prompts(&Logits::new(vec![0.0, f32::NAN], 2), &[(0, 0, 1)]),
        [Err(SampleError::NotANumber)]
    );
}

#[test]
fn what_cannot_be_sampled_is_an_error() {
    let mut scratch = Scratch::default();
    for params in [SamplingParams::greedy(), SamplingParams::default()] {
        let mut sampler = Sampler::new(params, 0, &[1]);
        let mut sample = |logits: &[f32]| sampler.sample(logits, &mut scratch);
        assert_eq!(sample(&[0.0, f32::NAN, 1.0]), Err(SampleError::NotANumber));
        assert_eq!(sample(&[f32::NEG_INFINITY; 40]), Err(SampleError::NothingLeft));
        assert_eq!(sample(&[]), Err(SampleError::NothingLeft));
        assert_eq!(sample(&[f32::NEG_INFINITY, -3.0]).map(|sampled| sampled.token), Ok(1));
    }
}

#[test]
fn parameters_out_of_range_are_named() {
    let base = SamplingParams::default();
    let cases = [
        ("temperature", SamplingParams { temperature: -0.1, ..base.clone() }),
        ("temperature", SamplingParams { temperature: f32::NAN, ..base.clone() }),
        ("top_p", SamplingParams { top_p: 0.0, ..base.clone() }),
        ("min_p", SamplingParams { min_p: 1.5, ..base.clone() }),
        ("top_k", SamplingParams { top_k: Some(0), ..base.clone() }),
        ("presence_penalty", SamplingParams { presence_penalty: 2.1, ..base.clone() }),
        ("frequency_penalty", SamplingParams { frequency_penalty: -2.1, ..base.clone() }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..base.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(10, 1.0)], ..base.clone() }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..base.clone() }),
    ];
    for (parameter, params) in cases {
        assert_eq!(params.check(10).map_err(|error| error.parameter), Err(parameter), "{params:?}");
    }
    assert_eq!(base.check(10), Ok(()));
}

proptest! {
    /// Whatever the numbers are, a token that has no chance is never drawn, and nothing panics.
    #[test]
    fn a_token_that_is_drawn_has_a_chance(
        logits in prop::collection::vec(prop_oneof![9 => -30.0_f32..30.0, 1 => Just(f32::NEG_INFINITY)], 1..600),
        temperature in 0.05_f32..4.0,
        top_k in prop::option::of(1_u32..700),
        top_p in 0.01_f32..=1.0,
        min_p in 0.0_f32..0.9,
        seed: u64,
    ) {
        prop_assume!(logits.iter().any(|logit| *logit > f32::NEG_INFINITY));
        let params = SamplingParams { temperature, top_k, top_p, min_p, ..SamplingParams::default() };
        let token = draw(&logits, &params, seed);
        // The last ulp of a border may fall to either side.
        let loose = SamplingParams { top_p: (top_p + 1e-4).min(1.0), min_p: (min_p - 1e-4).max(0.0), ..params };
        prop_assert!(reference(&logits, &loose)[token as usize] > 0.0 || logits[token as usize] / temperature < -80.0);
    }
}
