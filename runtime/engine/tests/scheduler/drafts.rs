//! Drafts: what a step computes of them, what becomes of it, and when none is computed.

use super::*;
use gemma4_engine::scheduler::OptionsError;
use gemma4_engine::speculation::SpeculationOptions;

fn pool(pages: usize) -> PoolOptions {
    PoolOptions { pages, full_block: 8, sliding_block: 4, window: 4, prefix_caching: false }
}

/// Steps of up to 16 tokens of two sequences, with up to three draft tokens each.
fn scheduler(pages: usize) -> Scheduler {
    Scheduler::new(speculating(pool(pages), MAX_MODEL_LEN, 16, 2, Some(3))).unwrap()
}

fn repeating(max_tokens: usize) -> Request {
    Request { prompt: vec![7, 8, 9, 7, 8, 9, 7, 8, 9], max_tokens, ..Request::default() }
}

/// Runs a step that continues 7 8 9 for ever, and takes what `seconds` says by its rows of logits. Returns the draft tokens
/// of the step and the tokens that came.
fn step(scheduler: &mut Scheduler, seconds: impl Fn(usize) -> f64) -> Option<(usize, usize)> {
    let batch = scheduler.plan_step().unwrap()?;
    let next = |part: &gemma4_engine::scheduler::Part| {
        let first = part.end;
        part.logits.clone().enumerate().map(move |(at, _)| 7 + u32::try_from((first + at) % 3).unwrap())
    };
    let sampled: Vec<u32> = batch.parts().iter().flat_map(next).collect();
    let drafts = batch.parts().iter().map(|part| part.draft.len()).sum();
    let tokens = scheduler.commit(&batch, &sampled).unwrap().len();
    scheduler.record(&batch, Duration::from_secs_f64(seconds(batch.logits())));
    Some((drafts, tokens))
}

#[test]
fn a_draft_that_is_right_brings_its_tokens_and_one_more() {
    let mut scheduler = scheduler(64);
    scheduler.submit(repeating(33)).unwrap();
    let mut steps = Vec::new();
    while let Some(step) = step(&mut scheduler, |_| 0.001) {
        steps.push(step);
    }
    // The prompt's step and three more are measured without drafts; each size of step is measured by itself.
    assert_eq!(steps[..4], [(0, 1); 4]);
    assert_eq!(steps[4..11], [(3, 4); 7]);
    // Then one token is left, for which no draft has room.
    assert_eq!(steps[11..], [(0, 1)]);
    let totals = scheduler.speculation().unwrap();
    assert_eq!((totals.drafts, totals.draft_tokens, totals.accepted_tokens), (7, 21, 21));
    assert_eq!(totals.accepted_per_position, [7, 7, 7]);
    assert_eq!(scheduler.load().pages.free, 64);
}

#[test]
fn nothing_is_drafted_from_a_stop_token_on() {
    // In the prompt every token is followed by 9.
    let run = |stop_tokens| {
        let mut scheduler = scheduler(64);
        let prompt = vec![1, 9, 2, 9, 3, 9, 4, 9, 5, 9, 6, 9, 7, 9, 8, 9];
        scheduler.submit(Request { prompt, stop_tokens, ..repeating(9) }).unwrap();
        for token in 1..9 {
            let batch = scheduler.plan_step().unwrap().unwrap();
            scheduler.commit(&batch, &vec![token; batch.logits()]).unwrap();
            scheduler.record(&batch, Duration::from_millis(1));
        }
        scheduler.speculation().unwrap().draft_tokens
    };
    assert_eq!(run(vec![9]), 0);
    assert!(run(vec![]) > 0);
}

#[test]
fn where_rows_cost_more_than_they_bring_nothing_is_drafted() {
    let mut scheduler = scheduler(64);
    scheduler.submit(repeating(39)).unwrap();
    // Four rows take eight times as long as one.
    let slow = |rows| if rows > 1 { 0.008 } else { 0.001 };
    let mut drafts = Vec::new();
    while let Some((drafted, _)) = step(&mut scheduler, slow) {
        drafts.push(drafted);
    }
    // Two programs have rows for drafts, and each is tried three times, for a median.
    assert_eq!(drafts[..10], [0, 0, 0, 0, 3, 3, 3, 1, 1, 1]);
    assert!(drafts[10..].iter().all(|drafted| *drafted == 0), "{drafts:?}");
    assert!(scheduler.speculation().unwrap().declined_tokens > 50);
}

#[test]
fn drafts_that_are_seldom_right_are_given_up() {
    let mut scheduler = scheduler(200);
    let mut drafts = Vec::new();
    for _ in 0..12 {
        scheduler.submit(repeating(39)).unwrap();
    }
    // One of eight tokens without order, so that there is nearly always a match and it is nearly always wrong.
    let mut state = 1_u64;
    while let Some(batch) = scheduler.plan_step().unwrap() {
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from(state >> 61).unwrap()
        };
        let sampled: Vec<u32> = (0..batch.logits()).map(|_| random()).collect();
        drafts.push(batch.parts().iter().map(|part| part.draft.len()).sum::<usize>());
        scheduler.commit(&batch, &sampled).unwrap();
        // Drafts cost half a step.
        scheduler.record(&batch, Duration::from_micros(if batch.logits() > 2 { 1_500 } else { 1_000 }));
    }
    let (early, late) = drafts.split_at(drafts.len() / 2);
    let count = |drafts: &[usize]| drafts.iter().sum::<usize>();
    assert!(count(early) > 10 && count(late) * 4 < count(early), "{drafts:?}");
}

#[test]
fn drafts_take_no_page_that_a_sequence_needs() {
    // Two sequences that just fit: drafts may not push one of them out.
    let run = |drafts| {
        let pool = PoolOptions { window: 40, ..pool(30) };
        let options = speculating(pool, MAX_MODEL_LEN, 16, 2, drafts);
        let mut scheduler = Scheduler::new(options).unwrap();
        scheduler.submit(repeating(30)).unwrap();
        scheduler.submit(repeating(30)).unwrap();
        while step(&mut scheduler, |_| 0.001).is_some() {}
        scheduler.load().totals.preemptions
    };
    assert_eq!((run(None), run(Some(3))), (0, 0));
}

#[test]
fn drafts_that_cannot_be_made_are_refused() {
    for (num_tokens, lookup_min, lookup_max) in [(0, 1, 1), (MAX_MODEL_LEN, 1, 1), (3, 0, 2), (3, 3, 2), (3, 1, 65)] {
        let speculation = SpeculationOptions { num_tokens, lookup_min, lookup_max };
        let options = SchedulerOptions { speculation: Some(speculation), ..options(pool(24), MAX_MODEL_LEN, 16, 2) };
        assert_eq!(Scheduler::new(options).unwrap_err(), OptionsError::Speculation(speculation));
    }
}
