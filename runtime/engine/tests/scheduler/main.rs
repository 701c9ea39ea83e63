//! The scheduler from the outside: every request gets the tokens that it gets alone, and no page is lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod drafts;
mod fake;
mod limits;

use std::collections::HashMap;

use fake::{Fake, VOCAB, alone, options, speculating};
use gemma4_engine::pool::PoolOptions;
use gemma4_engine::scheduler::{Finish, Refusal, Request, RequestId, Scheduler, SchedulerOptions};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::time::Duration;

const MAX_MODEL_LEN: usize = 48;

/// A request that arrives before a step, and goes away before another one.
#[derive(Clone, Debug)]
struct Arrival {
    step: usize,
    cancelled: Option<usize>,
    request: Request,
}

/// Prompts that share prefixes: the head of one of three texts, and a tail of its own.
fn requests() -> impl Strategy<Value = Request> {
    let tail = prop::collection::vec(0..u32::try_from(VOCAB).unwrap(), 0..12);
    let stop = prop::collection::vec(0..u32::try_from(VOCAB).unwrap(), 0..4);
    (0_u32..3, 0_usize..32, tail, 1_usize..24, stop, 0_u8..2).prop_map(|(text, head, tail, max_tokens, stop, salt)| {
        let mut prompt: Vec<u32> = (0..u32::try_from(head).unwrap()).map(|at| (at * (text + 3)) % 89).collect();
        prompt.extend(tail);
        prompt.push(text);
        Request { prompt, max_tokens, stop_tokens: stop, salt: vec![salt; usize::from(salt)] }
    })
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0_usize..40, prop::option::weighted(0.2, 0_usize..30), requests());
    let arrival = arrival.prop_map(|(step, after, request)| Arrival {
        step,
        cancelled: after.map(|after| step + after),
        request,
    });
    prop::collection::vec(arrival, 1..24)
}

/// Pools from a few pages to plenty, blocks of different lengths, windows down to a single token.
fn schedulers() -> impl Strategy<Value = SchedulerOptions> {
    let blocks = prop::sample::select(vec![(4, 4), (6, 4), (8, 2), (3, 5), (16, 8)]);
    let drafts = prop::option::of(1_usize..6);
    (blocks, 1_usize..20, 1_usize..40, 1_usize..24, 1_usize..9, any::<bool>(), drafts).prop_map(
        |((full_block, sliding_block), window, spare, tokens, requests, prefix_caching, drafts)| {
            let mut pool = PoolOptions { pages: 1, full_block, sliding_block, window, prefix_caching };
            // The smallest pool that takes the longest request, and a little more.
            pool.pages = pool.pages_for(MAX_MODEL_LEN, tokens.min(MAX_MODEL_LEN)) + spare - 1;
            speculating(pool, MAX_MODEL_LEN, tokens, requests, drafts)
        },
    )
}

/// Runs all requests to their ends and holds them against what they get alone. Returns the scheduler as it ended.
fn simulate(options: &SchedulerOptions, arrivals: &[Arrival]) -> Scheduler {
    let mut scheduler = Scheduler::new(options.clone()).unwrap();
    let mut fake = Fake::new(options);
    let mut ids: Vec<Option<RequestId>> = vec![None; arrivals.len()];
    let mut got: HashMap<RequestId, Vec<u32>> = HashMap::new();
    let mut finished: HashMap<RequestId, Finish> = HashMap::new();
    let mut cancelled = Vec::new();
    for step in 0_usize.. {
        assert!(step < 20_000, "requests that never end");
        for (arrival, id) in arrivals.iter().zip(&mut ids) {
            if arrival.step == step && arrival.request.prompt.len() < MAX_MODEL_LEN {
                *id = Some(scheduler.submit(arrival.request.clone()).unwrap());
            }
        }
        let leaving = |while_running: bool| {
            let leaves = move |(at, arrival): &(usize, &Arrival)| {
                arrival.cancelled == Some(step) && (at % 2 == 0) == while_running
            };
            let leaving = arrivals.iter().enumerate().filter(leaves);
            leaving.filter_map(|(at, _)| ids[at]).collect::<Vec<_>>()
        };
        let leave = |scheduler: &mut Scheduler, id, finished: &HashMap<_, _>, cancelled: &mut Vec<_>| {
            let was_there = scheduler.cancel(id);
            assert_eq!(was_there, !finished.contains_key(&id));
            if was_there {
                cancelled.push(id);
            }
        };
        for id in leaving(false) {
            leave(&mut scheduler, id, &finished, &mut cancelled);
        }
        let before = scheduler.load();
        let Some(batch) = scheduler.plan_step().unwrap() else {
            let load = scheduler.load();
            assert_eq!((load.running, load.waiting), (0, 0), "nothing to do while requests wait");
            if step > 80 { break } else { continue }
        };
        let after = scheduler.load();
        let preempted = usize::try_from(after.totals.preemptions - before.totals.preemptions).unwrap();
        if preempted > 0 {
            assert_eq!(after.waiting, before.waiting + preempted, "a step that preempts begins nothing");
        }
        let shape = batch.shape();
        let tokens: usize = batch.parts().iter().map(|part| part.rows.len()).sum();
        assert!(tokens <= options.max_num_batched_tokens && tokens <= shape.tokens);
        assert!(batch.parts().len() <= options.max_num_seqs && batch.parts().len() <= shape.sequences);
        // No smaller shape would do.
        for smaller in options.shapes.iter().filter(|other| *other < shape) {
            let holds = smaller.tokens >= tokens && smaller.sequences >= batch.parts().len();
            let holds = holds && smaller.rows >= batch.logits();
            assert!(!holds, "{smaller:?} holds {batch:?}");
        }
        for id in leaving(true) {
            leave(&mut scheduler, id, &finished, &mut cancelled);
        }
        let sampled = fake.run(&batch);
        for progress in scheduler.commit(&batch, &sampled).unwrap() {
            assert!(!cancelled.contains(&progress.request), "a token for a request that is gone");
            got.entry(progress.request).or_default().push(progress.token);
            if let Some(finish) = progress.finish {
                assert_eq!(finished.insert(progress.request, finish), None);
            }
        }
        // Times without any order, so that drafts pay now and then.
        scheduler.record(&batch, Duration::from_micros(step as u64 * 7919 % 13 + 1));
        let pages = scheduler.load().pages;
        assert_eq!(pages.free + pages.cached + pages.used, options.pool.pages);
    }
    for (arrival, id) in arrivals.iter().zip(&ids) {
        let Some(id) = id else { continue };
        let request = &arrival.request;
        let end = (request.prompt.len() + request.max_tokens).min(MAX_MODEL_LEN);
        let expected = alone(options, &request.prompt, end, &request.stop_tokens);
        let tokens = got.remove(id).unwrap_or_default();
        if cancelled.contains(id) {
            assert!(expected.starts_with(&tokens));
            continue;
        }
        assert_eq!(tokens, expected, "{request:?}");
        let last = expected.last().unwrap();
        let finish = match request.prompt.len() + request.max_tokens {
            _ if request.stop_tokens.contains(last) => Finish::Stop,
            wanted if wanted >= MAX_MODEL_LEN => Finish::ModelLength,
            _ => Finish::MaxTokens,
        };
        assert_eq!(finished.get(id), Some(&finish));
    }
    let pages = scheduler.load().pages;
    assert_eq!(pages.used, 0, "pages that nobody gave back");
    if !options.pool.prefix_caching {
        assert_eq!(pages.cached, 0);
    }
    scheduler
}

proptest! {
    // About 30,000 requests.
    #![proptest_config(ProptestConfig::with_cases(2_500))]

    #[test]
    fn every_request_gets_the_tokens_that_it_gets_alone(options in schedulers(), arrivals in arrivals()) {
        simulate(&options, &arrivals);
    }
}

/// The random runs above are worth something only if they meet what is hard.
#[test]
fn random_runs_meet_preemptions_hits_and_windows() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut preemptions, mut hits, mut reclaimed) = (0, 0, 0);
    let (mut drafted, mut accepted, mut declined) = (0, 0, 0);
    for _ in 0..60 {
        let tree = (schedulers(), arrivals()).new_tree(&mut runner).unwrap();
        let (options, arrivals) = tree.current();
        let scheduler = simulate(&options, &arrivals);
        let totals = scheduler.load().totals;
        if let Some(speculation) = scheduler.speculation() {
            drafted += speculation.draft_tokens;
            accepted += speculation.accepted_tokens;
            declined += speculation.declined_tokens;
            assert_eq!(speculation.accepted_per_position.iter().sum::<u64>(), speculation.accepted_tokens);
        }
        preemptions += totals.preemptions;
        hits += totals.prefix_hits;
        reclaimed += totals.window_blocks_reclaimed;
    }
    assert!(preemptions > 100 && hits > 500 && reclaimed > 500, "{preemptions} {hits} {reclaimed}");
    assert!(drafted > 300 && accepted > 100 && declined > 300, "{drafted} {accepted} {declined}");
}

#[test]
fn the_same_calls_give_the_same_steps() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..10 {
        let (options, arrivals) = (schedulers(), arrivals()).new_tree(&mut runner).unwrap().current();
        let (first, second) = (simulate(&options, &arrivals).load(), simulate(&options, &arrivals).load());
        assert_eq!(first, second);
    }
}
