//! Speculation from the outside: the same tokens as without, drawn from the model's own distribution, in fewer steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use gemma4_engine::engine::{Engine, Event, Generation, GenerationRequest, Statistics};
use gemma4_engine::pool::PoolOptions;
use gemma4_engine::runner::{Logits, RunError, Runner};
use gemma4_engine::sampling::{Logprobs, SamplingParams};
use gemma4_engine::scheduler::{Batch, Scheduler, SchedulerOptions, StepShape};
use gemma4_engine::speculation::SpeculationOptions;
use gemma4_model::graph::StepInput;

const VOCABULARY: usize = 12;
const LENGTH: usize = 256;

/// What follows a token, as logits; some tokens have a favourite, some hardly one.
fn row(token: usize) -> [f32; VOCABULARY] {
    std::array::from_fn(|next| {
        let noise = ((token * 31 + next * 17 + 5) % 13) as f32 / 8.0;
        noise + if next == (token + 1) % VOCABULARY { (token % 4) as f32 } else { 0.0 }
    })
}

/// A model whose next token depends on the last one alone, in steps that take what `took` says.
struct Markov {
    took: fn(&Batch) -> Duration,
    drafted_steps: Arc<AtomicU64>,
}

impl Runner for Markov {
    fn run(&mut self, batch: &Batch) -> Result<Logits, RunError> {
        std::thread::sleep((self.took)(batch));
        self.drafted_steps.fetch_add(u64::from(has_drafts(batch)), Ordering::SeqCst);
        let tokens = batch.input(StepInput::TokenIds);
        let rows = &batch.input(StepInput::LogitRows)[..batch.logits()];
        let index = |number: i32| usize::try_from(number).expect("from 0");
        let values = rows.iter().flat_map(|at| row(index(tokens[index(*at)]))).collect();
        Ok(Logits::new(values, VOCABULARY))
    }
}

struct Setup {
    engine: Engine,
    drafted_steps: Arc<AtomicU64>,
}

fn setup(num_tokens: Option<usize>, took: fn(&Batch) -> Duration) -> Setup {
    let shape = |rows| StepShape {
        tokens: 64,
        sequences: 8,
        rows,
        query_tile: 16,
        items: 12,
        full_table: 32,
        sliding_table: 16,
    };
    let options = SchedulerOptions {
        max_model_len: LENGTH,
        max_num_seqs: 8,
        max_num_batched_tokens: 64,
        max_queue: 100_000,
        vocab_size: VOCABULARY,
        shapes: vec![shape(8), shape(48)],
        pool: PoolOptions { pages: 200, full_block: 8, sliding_block: 8, window: 16, prefix_caching: true },
        speculation: num_tokens.map(|num_tokens| SpeculationOptions { num_tokens, lookup_min: 1, lookup_max: 3 }),
    };
    let drafted_steps = Arc::default();
    let runner = Markov { took, drafted_steps: Arc::clone(&drafted_steps) };
    let engine = Engine::start(Scheduler::new(options).expect("a scheduler"), Box::new(runner)).expect("a thread");
    Setup { engine, drafted_steps }
}

fn has_drafts(batch: &Batch) -> bool {
    batch.parts().iter().any(|part| !part.draft.is_empty())
}

/// Drafts cost nothing.
fn alike(_: &Batch) -> Duration {
    Duration::from_micros(500)
}

/// Tokens with their logprobs.
type Answer = Vec<(u32, Option<Logprobs>)>;

fn collect(mut generation: Generation) -> Answer {
    let mut tokens = Vec::new();
    while let Some(event) = generation.blocking_next() {
        if let Event::Token(token) = event {
            tokens.push((token.id, token.logprobs));
        }
    }
    tokens
}

/// All requests at once.
fn run(setup: &Setup, requests: &[GenerationRequest]) -> (Vec<Answer>, Statistics) {
    let generations: Vec<_> =
        requests.iter().map(|request| setup.engine.submit(request.clone()).expect("taken")).collect();
    let tokens = generations.into_iter().map(collect).collect();
    (tokens, setup.engine.statistics())
}

fn request(seed: u64, max_tokens: usize, sampling: SamplingParams) -> GenerationRequest {
    let start = u32::try_from(seed % 12).expect("small");
    let prompt = (0..20).map(|at| (start + at) % 12).collect();
    let sampling = SamplingParams { seed: Some(seed), ..sampling };
    GenerationRequest { prompt, max_tokens, sampling, ..GenerationRequest::default() }
}

#[test]
fn every_way_to_sample_gives_the_same_tokens_with_and_without_drafts() {
    let params = [
        SamplingParams::greedy(),
        SamplingParams::default(),
        SamplingParams { temperature: 0.4, top_k: Some(5), ..SamplingParams::default() },
        SamplingParams { top_p: 0.7, min_p: 0.05, ..SamplingParams::default() },
        SamplingParams { presence_penalty: 0.6, frequency_penalty: 0.2, ..SamplingParams::greedy() },
        SamplingParams { repetition_penalty: 1.2, temperature: 0.7, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(3, -4.0), (5, 2.0)], ..SamplingParams::default() },
    ];
    let mut requests = Vec::new();
    for (at, params) in params.iter().cycle().take(84).enumerate() {
        let mut request = request(at as u64, 1 + at % 50, params.clone());
        request.logprobs = (at % 3 == 0).then_some(at % 4);
        if at % 2 == 0 {
            request.stop_tokens = vec![7, 2];
            request.min_tokens = at % 9;
        }
        requests.push(request);
    }
    let (expected, plain) = run(&setup(None, alike), &requests);
    assert_eq!(plain.speculation, None);
    for num_tokens in [1, 3, 5] {
        let (tokens, statistics) = run(&setup(Some(num_tokens), alike), &requests);
        for (at, (tokens, expected)) in tokens.iter().zip(&expected).enumerate() {
            assert_eq!(tokens, expected, "request {at} with drafts of {num_tokens}");
        }
        let speculation = statistics.speculation.expect("drafts");
        // How many are computed depends on what steps take, and so on what else this machine does.
        assert!(speculation.accepted_tokens > 5, "{speculation:?}");
        assert!(speculation.draft_tokens > speculation.accepted_tokens, "{speculation:?}");
        assert_eq!(statistics.load.pages.used, 0);
    }
}

/// Pearson's test of every drawn token against the softmax of the row that it was drawn from.
#[test]
fn drawn_tokens_have_the_distribution_of_the_model() {
    let requests: Vec<_> = (0..6_000).map(|seed| request(seed, 8, SamplingParams::default())).collect();
    let (answers, statistics) = run(&setup(Some(3), alike), &requests);
    let speculation = statistics.speculation.expect("drafts");
    let rejected = speculation.draft_tokens - speculation.accepted_tokens;
    assert!(speculation.accepted_tokens > 200 && rejected > 200, "{speculation:?}");
    let mut counts = [[0_u32; VOCABULARY]; VOCABULARY];
    for (request, answer) in requests.iter().zip(&answers) {
        let mut last = *request.prompt.last().expect("a prompt") as usize;
        for (token, _) in answer {
            counts[last][*token as usize] += 1;
            last = *token as usize;
        }
    }
    let (mut statistic, mut freedom) = (0.0, 0.0);
    for (token, counts) in counts.iter().enumerate() {
        let weights = row(token).map(|logit| f64::from(logit).exp());
        let total: f64 = weights.iter().sum();
        let drawn = f64::from(counts.iter().sum::<u32>());
        for (count, weight) in counts.iter().zip(weights) {
            let expected = drawn * weight / total;
            assert!(expected > 20.0, "too few draws for the test");
            statistic += (f64::from(*count) - expected).powi(2) / expected;
        }
        freedom += (VOCABULARY - 1) as f64;
    }
    // The seeds are fixed, so this never fails by chance; four standard deviations are far from what a bias would give.
    let bound = freedom + 4.0 * (2.0 * freedom).sqrt();
    assert!(statistic < bound, "{statistic} of {freedom} degrees of freedom");
}

#[test]
fn text_that_repeats_takes_fewer_steps() {
    let requests: Vec<_> = (0..4).map(|seed| request(seed, 100, SamplingParams::greedy())).collect();
    let setup = setup(Some(3), alike);
    let (answers, statistics) = run(&setup, &requests);
    assert!(answers.iter().all(|answer| answer.len() == 100));
    assert!(statistics.load.totals.steps < 90, "{} steps", statistics.load.totals.steps);
}

#[test]
fn an_engine_where_drafts_cost_too_much_goes_on_without() {
    let took = |batch: &Batch| Duration::from_micros(if has_drafts(batch) { 40_000 } else { 500 });
    let requests: Vec<_> = (0..4).map(|seed| request(seed, 230, SamplingParams::greedy())).collect();
    let setup = setup(Some(3), took);
    let (_, statistics) = run(&setup, &requests);
    let (drafted, steps) = (setup.drafted_steps.load(Ordering::SeqCst), statistics.load.totals.steps);
    assert!(drafted > 0, "they are tried");
    assert!(drafted * 3 < steps, "{drafted} of {steps} steps with drafts");
    assert!(statistics.speculation.expect("drafts").declined_tokens > 500);
}
