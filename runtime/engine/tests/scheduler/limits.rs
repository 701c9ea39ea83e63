//! Limits: a full pool, a full queue, and requests that can never run.

use gemma4_engine::scheduler::{CommitError, OptionsError, StepError};
use gemma4_model::graph::{Kernels, LayerForm, ParameterRole, PerLayerTable, StepOptions, step};
use gemma4_model::kv::KvLayout;
use gemma4_model::sharding::{ExpertSharding, Mesh};
use gemma4_model::{Config, DType};

use super::*;

fn pool(pages: usize) -> PoolOptions {
    PoolOptions { pages, full_block: 8, sliding_block: 4, window: 4, prefix_caching: false }
}

fn request(tokens: usize, max_tokens: usize) -> Request {
    let prompt = (0..u32::try_from(tokens).unwrap()).map(|at| at % 50).collect();
    Request { prompt, max_tokens, ..Request::default() }
}

#[test]
fn a_full_pool_serves_all_and_one_more_waits() {
    // 15 prompt tokens and one generated: 2 full blocks and 4 sliding ones each while the prompt is computed at once.
    let options = options(pool(24), MAX_MODEL_LEN, 64, 8);
    let mut scheduler = Scheduler::new(options.clone()).unwrap();
    let mut fake = Fake::new(&options);
    let expected = alone(&options, &request(15, 1).prompt, 16, &[]);
    let ids: Vec<_> = (0..5).map(|_| scheduler.submit(request(15, 1)).unwrap()).collect();
    let batch = scheduler.plan_step().unwrap().unwrap();
    let load = scheduler.load();
    assert_eq!((load.pages.used, load.pages.free), (24, 0));
    assert_eq!((load.running, load.waiting, load.totals.preemptions), (4, 1, 0));
    let sampled = fake.run(&batch);
    let progress = scheduler.commit(&batch, &sampled).unwrap();
    let done: Vec<_> = progress.iter().map(|progress| progress.request).collect();
    assert_eq!(done, ids[..4]);
    assert!(progress.iter().all(|progress| progress.sampled.is_some_and(|(_, token)| token == expected[0])));
    let batch = scheduler.plan_step().unwrap().unwrap();
    let last = scheduler.commit(&batch, &fake.run(&batch)).unwrap();
    assert_eq!((last[0].request, last[0].finish), (ids[4], Some(Finish::MaxTokens)));
    assert_eq!(scheduler.load().pages.free, 24);
    assert!(scheduler.plan_step().unwrap().is_none());
}

#[test]
fn requests_that_can_never_run_are_refused_by_name() {
    let options = options(pool(10), MAX_MODEL_LEN, 16, 8);
    let mut scheduler = Scheduler::new(options).unwrap();
    assert_eq!(scheduler.submit(request(0, 1)), Err(Refusal::EmptyPrompt));
    assert_eq!(scheduler.submit(request(4, 0)), Err(Refusal::NothingToGenerate));
    let refusal = scheduler.submit(request(48, 1));
    assert_eq!(refusal, Err(Refusal::PromptTooLong { prompt: 48, max_model_len: 48 }));
    let unknown = Request { prompt: vec![1, 97], ..request(0, 1) };
    let refusal = scheduler.submit(unknown);
    assert_eq!(refusal, Err(Refusal::Token { token: 97, position: 1, vocab_size: 97 }));
    // 47 tokens: 6 full blocks, and 6 sliding ones for the window, a chunk of 16 and the block that they begin within.
    let refusal = scheduler.submit(request(40, 40));
    assert_eq!(refusal, Err(Refusal::PoolTooSmall { needed: 12, tokens: 47, pages: 10 }));
    assert!(scheduler.submit(request(24, 8)).is_ok());
}

#[test]
fn a_full_queue_refuses_and_takes_again_once_one_leaves() {
    let mut scheduler = Scheduler::new(options(pool(64), MAX_MODEL_LEN, 16, 8)).unwrap();
    let first = scheduler.submit(request(4, 2)).unwrap();
    for _ in 1..4096 {
        scheduler.submit(request(4, 2)).unwrap();
    }
    assert_eq!(scheduler.submit(request(4, 2)), Err(Refusal::QueueFull { limit: 4096 }));
    assert!(scheduler.cancel(first));
    assert!(!scheduler.cancel(first));
    assert!(scheduler.submit(request(4, 2)).is_ok());
}

#[test]
fn a_cancelled_request_frees_its_pages_at_once_while_its_step_runs() {
    let mut scheduler = Scheduler::new(options(pool(24), MAX_MODEL_LEN, 64, 8)).unwrap();
    let id = scheduler.submit(request(15, 4)).unwrap();
    let batch = scheduler.plan_step().unwrap().unwrap();
    assert_eq!(scheduler.load().pages.used, 6);
    assert!(scheduler.cancel(id));
    assert_eq!(scheduler.load().pages.free, 24);
    assert_eq!(scheduler.commit(&batch, &[1]).unwrap(), []);
    assert!(scheduler.plan_step().unwrap().is_none());
}

#[test]
fn a_commit_that_does_not_fit_changes_nothing() {
    let mut scheduler = Scheduler::new(options(pool(24), MAX_MODEL_LEN, 64, 8)).unwrap();
    scheduler.submit(request(15, 4)).unwrap();
    let batch = scheduler.plan_step().unwrap().unwrap();
    assert_eq!(scheduler.plan_step(), Err(StepError::InFlight(0)));
    assert_eq!(scheduler.commit(&batch, &[]), Err(CommitError::Count { found: 0, wanted: 1 }));
    assert_eq!(scheduler.commit(&batch, &[97]), Err(CommitError::Token { token: 97, vocab_size: 97 }));
    assert_eq!(scheduler.commit(&batch, &[5]).unwrap().len(), 1);
    assert_eq!(scheduler.commit(&batch, &[5]), Err(CommitError::Step { found: 0 }));
}

#[test]
fn limits_without_a_compiled_step_are_refused() {
    let mut options = options(pool(24), MAX_MODEL_LEN, 64, 8);
    options.max_num_seqs = 9;
    let error = Scheduler::new(options).unwrap_err();
    assert_eq!(error, OptionsError::Shape { tokens: 64, sequences: 9 });
}

#[test]
fn batches_have_the_shapes_of_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smoke");
    gemma4_model::seeded::write(&path, 0).unwrap();
    let config = Config::from_json(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
    let program = |tokens, requests| StepOptions {
        mesh: Mesh { data: 1, model: 1 },
        experts: ExpertSharding::Tensor,
        dtype: DType::F32,
        quantization: None,
        kv: KvLayout::new(&config, 1, DType::F32, 8).unwrap(),
        pages: 64,
        tokens,
        sequences: requests,
        rows: requests,
        max_model_len: 96,
        query_tile: 16.min(tokens),
        layers: LayerForm::Unrolled,
        per_layer_table: PerLayerTable::Device,
        kernels: Kernels::Hlo,
        fast_prefill: false,
        trace: false,
    };
    let programs = [program(8, 8), program(32, 4), program(32, 8)];
    let limits = gemma4_plan::Scheduler {
        max_model_len: 96,
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        bucket_padding_gap: 0,
        prefix_caching: true,
        chunked_prefill: true,
        chunked_mm_input: false,
        kv_sharing_fast_prefill: false,
        async_scheduling: None,
    };
    let window = config.text.sliding_window;
    let options = SchedulerOptions::new(&limits, None, &programs, config.text.vocab_size, window).unwrap();
    let mut scheduler = Scheduler::new(options).unwrap();
    let mut seen = Vec::new();
    scheduler.submit(request(50, 3)).unwrap();
    for others in [0, 2, 5] {
        for _ in 0..others {
            scheduler.submit(request(1, 9)).unwrap();
        }
        let batch = scheduler.plan_step().unwrap().unwrap();
        let shape = batch.shape();
        let is_its = |options: &&StepOptions| {
            let (tokens, sequences) = (usize::try_from(options.tokens), usize::try_from(options.sequences));
            (tokens, sequences) == (Ok(shape.tokens), Ok(shape.sequences))
        };
        let program = programs.iter().find(is_its).unwrap();
        seen.push((shape.tokens, shape.sequences));
        let mut inputs = 0;
        for parameter in step(&config, program).unwrap().parameters {
            if let ParameterRole::Input(input) = parameter.role {
                let wanted = parameter.shape.elements().unwrap();
                assert_eq!(u64::try_from(batch.input(input).len()).unwrap(), wanted, "{}", parameter.name);
                inputs += 1;
            }
        }
        assert_eq!(inputs, 13);
        scheduler.commit(&batch, &vec![60; batch.logits()]).unwrap();
    }
    assert_eq!(seen, [(32, 4), (32, 4), (8, 8)]);
}
