//! The scheduler from the outside: every request gets the tokens that it gets alone, and no page is lost.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod drafts;
mod fake;
mod limits;
mod prompts;

use std::collections::HashMap;

use fake::{Fake, VOCAB, alone, options, rows, speculating};
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
    // Some want logprobs of the prompt, and some of those nothing else.
    let wanted = prop_oneof![4 => (1_usize..24, Just(false)), 1 => (0_usize..24, Just(true))];
    (0_u32..3, 0_usize..32, tail, wanted, stop, 0_u8..2).prop_map(|(text, head, tail, wanted, stop, salt)| {
        let mut prompt: Vec<u32> = (0..u32::try_from(head).unwrap()).map(|at| (at * (text + 3)) % 89).collect();
        prompt.extend(tail);
        prompt.push(text);
        let (max_tokens, prompt_logprobs) = wanted;
        // There is nothing to say of a prompt of one token.
        let max_tokens = max_tokens.max(usize::from(prompt.len() == 1));
        Request { prompt, max_tokens, prompt_logprobs, stop_tokens: stop, salt: vec![salt; usize::from(salt)] }
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

/// What happened in a run beside what the scheduler counts.
#[derive(Debug, Default)]
struct Seen {
    /// Rows of logits of prompts.
    scored: usize,
    /// Times that a prompt was computed again from its start, or from a prefix in the cache, with some of its logprobs given.
    again: [usize; 2],
}

/// Runs all requests to their ends and holds them against what they get alone. Returns the scheduler as it ended.
fn simulate(options: &SchedulerOptions, arrivals: &[Arrival]) -> (Scheduler, Seen) {
    let mut scheduler = Scheduler::new(options.clone()).unwrap();
    let mut fake = Fake::new(options);
    let mut ids: Vec<Option<RequestId>> = vec![None; arrivals.len()];
    let mut got: HashMap<RequestId, Vec<u32>> = HashMap::new();
    let mut finished: HashMap<RequestId, Finish> = HashMap::new();
    // Tokens of prompts whose logits were given, with what the model has for them.
    let mut scored: HashMap<RequestId, Vec<(u32, u32)>> = HashMap::new();
    let mut seen = Seen::default();
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
        // While there are tokens left, everybody that runs goes on: nobody takes the rows of others, or waits for them.
        if tokens < options.max_num_batched_tokens {
            assert_eq!(batch.parts().len(), after.running);
        }
        assert!(batch.parts().iter().all(|part| !part.rows.is_empty()));
        for started in batch.started() {
            let request = arrivals.iter().zip(&ids).find(|(_, id)| **id == Some(started.request)).unwrap().0;
            if !request.request.prompt_logprobs {
                continue;
            }
            let given = scored.get(&started.request).map_or(0, Vec::len);
            let all = given + 1 == request.request.prompt.len();
            assert!(all || started.cached_tokens <= given, "a prefix hides the logits of a prompt");
            if given > 0 && !all {
                seen.again[usize::from(started.cached_tokens > 0)] += 1;
            }
        }
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
        for part in batch.parts().iter().filter(|part| !cancelled.contains(&part.request)) {
            let of_part = part.scored.iter().copied().zip(part.scored_rows().map(|row| sampled[row]));
            scored.entry(part.request).or_default().extend(of_part);
            seen.scored += part.scored.len();
        }
        for progress in scheduler.commit(&batch, &sampled).unwrap() {
            assert!(!cancelled.contains(&progress.request), "a token for a request that is gone");
            got.entry(progress.request).or_default().extend(progress.sampled.map(|(_, token)| token));
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
        let scored = scored.remove(id).unwrap_or_default();
        let wanted: Vec<(u32, u32)> = request.prompt[1..].iter().copied().zip(rows(options, &request.prompt)).collect();
        if cancelled.contains(id) {
            assert!(expected.starts_with(&tokens) && wanted.starts_with(&scored));
            continue;
        }
        assert_eq!(scored, if request.prompt_logprobs { wanted } else { Vec::new() }, "each once and in order");
        assert_eq!(tokens, expected, "{request:?}");
        let stopped = expected.last().is_some_and(|last| request.stop_tokens.contains(last));
        let finish = match request.prompt.len() + request.max_tokens {
            _ if stopped => Finish::Stop,
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
    (scheduler, seen)
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
    let (mut scored, mut again) = (0, [0; 2]);
    for _ in 0..60 {
        let tree = (schedulers(), arrivals()).new_tree(&mut runner).unwrap();
        let (options, arrivals) = tree.current();
        let (scheduler, seen) = simulate(&options, &arrivals);
        scored += seen.scored;
        again = [again[0] + seen.again[0], again[1] + seen.again[1]];
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
    assert!(scored > 500 && again.iter().all(|times| *times > 2), "{scored} {again:?}");
    assert!(drafted > 300 && accepted > 100 && declined > 300, "{drafted} {accepted} {declined}");
}

#[test]
fn the_same_calls_give_the_same_steps() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..10 {
        let (options, arrivals) = (schedulers(), arrivals()).new_tree(&mut runner).unwrap().current();
        let (first, second) = (simulate(&options, &arrivals).0.load(), simulate(&options, &arrivals).0.load());
        assert_eq!(first, second);
    }
}
