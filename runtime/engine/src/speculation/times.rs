//! Whether drafts pay: expected tokens a second, by what steps took.
//!
//! **The rule.** Every token that a step has to compute anyway counts one, and a draft token the chance that it is kept. Of no
//! drafts and of as many as each program holds, most promising first, the choice with the most tokens a second is taken; drafts
//! have to promise a twentieth more than none, since times vary. So where added rows make a step slower than what they bring,
//! nothing is drafted, for each program and size of batch by itself.
//!
//! **What a step takes** is the median of its last five times in this process, sampling included, by program and number of
//! tokens to an eighth. Until there are three, a step without drafts is run as it is; one with drafts takes the time of the
//! nearest number of tokens of its program, and if there is none, that of the step without drafts, and so is tried. Times that
//! were not renewed for 256 steps are forgotten, so what was slow once gets another try.

use std::collections::HashMap;
use std::time::Duration;

use crate::scheduler::StepShape;

/// Times that count.
const KEPT: usize = 5;
/// Times from which on there is a median.
const ENOUGH: usize = 3;
/// Steps after which a time is forgotten.
const FRESH: u64 = 256;
/// What drafts have to bring over none.
const MARGIN: f64 = 1.05;

/// A kind of step, as far as its time goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Work {
    shape: StepShape,
    /// Real tokens, rounded up to an eighth of their power of two.
    tokens: usize,
}

impl Work {
    /// A step of `tokens` real tokens in the program of `shape`.
    #[must_use]
    pub fn new(shape: StepShape, tokens: usize) -> Self {
        let grain = (tokens.next_power_of_two() / 8).max(1);
        Self { shape, tokens: tokens.next_multiple_of(grain) }
    }
}

/// A step with drafts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Draft tokens.
    pub drafts: usize,
    /// How many of them are kept, as far as one can tell.
    pub gain: f64,
    /// What has to be computed.
    pub work: Work,
}

/// What steps took.
#[derive(Clone, Debug, Default)]
pub struct StepTimes {
    times: HashMap<Work, Times>,
    steps: u64,
}

#[derive(Clone, Debug, Default)]
struct Times {
    seconds: Vec<f64>,
    /// The oldest of them.
    next: usize,
    /// The step that the last one is of.
    last: u64,
}

impl StepTimes {
    /// Notes that a step took so long.
    pub fn record(&mut self, work: Work, took: Duration) {
        self.steps += 1;
        let times = self.times.entry(work).or_default();
        if self.steps.saturating_sub(times.last) > FRESH {
            times.seconds.clear();
            times.next = 0;
        }
        times.last = self.steps;
        let seconds = took.as_secs_f64();
        match times.seconds.get_mut(times.next) {
            Some(oldest) => *oldest = seconds,
            None => times.seconds.push(seconds),
        }
        times.next = (times.next + 1) % KEPT;
    }

    /// How many draft tokens a step is best run with, of `choices` in ascending order, beside a step `plain` of `tokens`
    /// tokens without drafts.
    #[must_use]
    pub fn best(&self, tokens: usize, plain: Work, choices: &[Choice]) -> usize {
        let Some(without) = self.seconds(plain) else { return 0 };
        // Far below 2^52.
        let tokens = tokens as f64;
        let (mut drafts, mut rate) = (0, MARGIN * tokens / without);
        for choice in choices {
            let seconds = self.seconds(choice.work).or_else(|| self.nearest(choice.work));
            let with = (tokens + choice.gain) / seconds.unwrap_or(without);
            if with > rate {
                (drafts, rate) = (choice.drafts, with);
            }
        }
        drafts
    }

    /// The median of what a step took lately; `None` if there are too few times.
    fn seconds(&self, work: Work) -> Option<f64> {
        let times = self.times.get(&work)?;
        if times.seconds.len() < ENOUGH || self.steps.saturating_sub(times.last) > FRESH {
            return None;
        }
        let mut sorted = times.seconds.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }

    /// The time of the nearest number of tokens of the same program.
    fn nearest(&self, work: Work) -> Option<f64> {
        let same = self.times.keys().filter(|other| other.shape == work.shape);
        let known =
            same.filter_map(|other| Some((other.tokens.abs_diff(work.tokens), other.tokens, self.seconds(*other)?)));
        known.min_by_key(|(distance, tokens, _)| (*distance, *tokens)).map(|(_, _, seconds)| seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::{Choice, FRESH, StepTimes, Work};
    use crate::scheduler::StepShape;
    use std::time::Duration;

    fn work(tokens: usize) -> Work {
        let rows = tokens.next_power_of_two();
        let shape =
            StepShape { tokens: 64, sequences: 8, rows, query_tile: 16, items: 12, full_table: 4, sliding_table: 4 };
        Work::new(shape, tokens)
    }

    fn record(times: &mut StepTimes, work: Work, micros: u64) {
        (0..3).for_each(|_| times.record(work, Duration::from_micros(micros)));
    }

    fn drafts(gain: f64) -> [Choice; 1] {
        [Choice { drafts: 12, gain, work: work(16) }]
    }

    #[test]
    fn drafts_are_tried_and_then_taken_where_they_bring_more_than_they_cost() {
        let mut times = StepTimes::default();
        assert_eq!(times.best(4, work(4), &drafts(6.0)), 0, "the step without drafts comes first");
        record(&mut times, work(4), 100);
        assert_eq!(times.best(4, work(4), &drafts(6.0)), 12, "tried");
        assert_eq!(times.best(4, work(4), &drafts(0.1)), 0, "not worth a try");
        record(&mut times, work(16), 200);
        assert_eq!(times.best(4, work(4), &drafts(6.0)), 12, "2.5 times the tokens in twice the time");
        assert_eq!(times.best(4, work(4), &drafts(3.0)), 0, "1.75 times the tokens in twice the time");
    }

    #[test]
    fn the_program_with_the_most_tokens_a_second_wins() {
        let mut times = StepTimes::default();
        record(&mut times, work(4), 100);
        record(&mut times, work(8), 110);
        record(&mut times, work(16), 300);
        let few = Choice { drafts: 4, gain: 3.0, work: work(8) };
        let many = Choice { drafts: 12, gain: 7.0, work: work(16) };
        assert_eq!(times.best(4, work(4), &[few, many]), 4);
        // Another number of tokens of the same program costs what the nearest did.
        let more = Choice { drafts: 10, gain: 6.5, work: work(14) };
        assert_eq!(times.best(4, work(4), &[few, more, many]), 4);
    }

    #[test]
    fn what_was_slow_once_gets_another_try() {
        let mut times = StepTimes::default();
        record(&mut times, work(4), 100);
        record(&mut times, work(16), 1_000);
        assert_eq!(times.best(4, work(4), &drafts(6.0)), 0);
        (0..=FRESH).for_each(|_| times.record(work(4), Duration::from_micros(100)));
        assert_eq!(times.best(4, work(4), &drafts(6.0)), 12);
    }

    #[test]
    fn one_time_that_is_far_off_changes_nothing() {
        let mut times = StepTimes::default();
        record(&mut times, work(4), 100);
        record(&mut times, work(16), 110);
        times.record(work(16), Duration::from_secs(1));
        assert_eq!(times.best(4, work(4), &drafts(6.0)), 12);
    }
}
