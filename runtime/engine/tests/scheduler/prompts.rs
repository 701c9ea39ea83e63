//! Logprobs of prompts: how many rows of logits a step takes for them, and what is left for others.

use super::*;

const ROWS: usize = 8;

fn pool() -> PoolOptions {
    PoolOptions { pages: 200, full_block: 8, sliding_block: 4, window: 4, prefix_caching: true }
}

/// Steps of up to 32 tokens of up to eight sequences, with a row of logits for each.
fn scheduler() -> Scheduler {
    Scheduler::new(options(pool(), MAX_MODEL_LEN, 32, ROWS)).unwrap()
}

fn request(tokens: usize, max_tokens: usize, prompt_logprobs: bool) -> Request {
    let prompt = (0..u32::try_from(tokens).unwrap()).map(|at| at % 50).collect();
    Request { prompt, max_tokens, prompt_logprobs, ..Request::default() }
}

/// Runs a step. For each of its parts: its tokens, its rows of a prompt, its rows that a token is sampled from.
fn step(scheduler: &mut Scheduler) -> Vec<(usize, usize, usize)> {
    let Some(batch) = scheduler.plan_step().unwrap() else { return Vec::new() };
    scheduler.commit(&batch, &vec![60; batch.logits()]).unwrap();
    batch.parts().iter().map(|part| (part.rows.len(), part.scored.len(), part.logits.len())).collect()
}

#[test]
fn alone_a_prompt_takes_all_rows_and_its_last_one_samples() {
    let mut scheduler = scheduler();
    scheduler.submit(request(20, 2, true)).unwrap();
    assert_eq!(step(&mut scheduler), [(8, 8, 0)]);
    assert_eq!(step(&mut scheduler), [(8, 8, 0)]);
    assert_eq!(step(&mut scheduler), [(4, 3, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 0, 1)]);
    assert_eq!(step(&mut scheduler), []);
}

#[test]
fn a_prompt_that_nothing_follows_computes_all_but_its_last_token() {
    let mut scheduler = scheduler();
    let id = scheduler.submit(request(9, 0, true)).unwrap();
    let batch = scheduler.plan_step().unwrap().unwrap();
    let part = &batch.parts()[0];
    assert_eq!((part.rows.len(), part.scored.as_slice()), (8, [1, 2, 3, 4, 5, 6, 7, 8].as_slice()));
    let progress = scheduler.commit(&batch, &[0; 8]).unwrap();
    assert_eq!(progress.len(), 1);
    assert_eq!((progress[0].request, progress[0].sampled, progress[0].finish), (id, None, Some(Finish::MaxTokens)));
    assert_eq!((step(&mut scheduler), scheduler.load().pages.used), (Vec::new(), 0));
    // Nothing is generated, so the longest sequence has room for the whole prompt.
    assert!(scheduler.submit(request(MAX_MODEL_LEN, 0, true)).is_ok());
    let refusal = Refusal::PromptTooLong { prompt: MAX_MODEL_LEN + 1, max_model_len: MAX_MODEL_LEN };
    assert_eq!(scheduler.submit(request(MAX_MODEL_LEN + 1, 0, true)), Err(refusal));
    assert_eq!(scheduler.submit(request(1, 0, true)), Err(Refusal::NothingToGenerate));
    assert_eq!(scheduler.submit(request(9, 0, false)), Err(Refusal::NothingToGenerate));
}

#[test]
fn others_keep_a_row_each_and_prompts_share_the_rest_in_their_order() {
    let mut scheduler = scheduler();
    scheduler.submit(request(2, 20, false)).unwrap();
    scheduler.submit(request(30, 1, true)).unwrap();
    scheduler.submit(request(30, 1, true)).unwrap();
    scheduler.submit(request(5, 20, false)).unwrap();
    // Four places, so four rows are left; the older prompt has them, the younger one its own.
    assert_eq!(step(&mut scheduler), [(2, 0, 1), (5, 5, 0), (1, 1, 0), (5, 0, 1)]);
    assert_eq!(step(&mut scheduler), [(1, 0, 1), (5, 5, 0), (1, 1, 0), (1, 0, 1)]);
    // Who waits may begin with the next step, and would need a row.
    for _ in 0..2 {
        scheduler.submit(request(5, 20, false)).unwrap();
    }
    let next = step(&mut scheduler);
    assert_eq!(next[..3], [(1, 0, 1), (3, 3, 0), (1, 1, 0)]);
    assert_eq!(next[3..], [(1, 0, 1), (5, 0, 1), (5, 0, 1)]);
}

#[test]
fn a_full_step_lets_every_prompt_go_on_by_a_token() {
    let mut scheduler = scheduler();
    for _ in 0..ROWS + 3 {
        scheduler.submit(request(20, 1, true)).unwrap();
    }
    assert_eq!(step(&mut scheduler), [(1, 1, 0); ROWS]);
}

#[test]
fn a_cached_prefix_is_left_alone_and_what_is_computed_can_be_found() {
    let mut scheduler = scheduler();
    let mut cached = |prompt_logprobs| {
        scheduler.submit(request(33, 1, prompt_logprobs)).unwrap();
        let batch = scheduler.plan_step().unwrap().unwrap();
        let cached = batch.started()[0].cached_tokens;
        scheduler.commit(&batch, &vec![60; batch.logits()]).unwrap();
        while !step(&mut scheduler).is_empty() {}
        let totals = scheduler.load().totals;
        (cached, totals.prefix_queries, totals.prefix_hits)
    };
    assert_eq!(cached(true), (0, 0, 0));
    assert_eq!(cached(false), (32, 33, 32));
    assert_eq!(cached(true), (0, 33, 32));
    assert_eq!(cached(false), (32, 66, 64));
}
