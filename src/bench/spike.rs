//! Points that are slow for their shape: slower by far than points with more to do.
//!
//! A service may take longer for more users or longer sequences. What it may not do is to take much longer for a point than
//! for another one with no fewer users and no shorter context; that is a program compiled late, a pool that thrashes, or a
//! shape that hits a slow path. At the edge of what fits there is no such point, and the slowest neighbour stands in: twice
//! the users take twice as long at most.

use serde::Serialize;

use super::point::Point;
use super::record::{Run, Status};

/// So many times as slow is a spike.
pub const FACTOR: f64 = 3.0;

/// And so many seconds slower at least: beneath, it is the machine's noise.
pub const SECONDS: f64 = 0.25;

/// A point that is slow for its shape.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spike {
    /// The point.
    pub point: Point,
    /// Its median time to the end of an answer.
    pub seconds: f64,
    /// How many times as slow it is.
    pub factor: f64,
    /// As this point.
    pub than: Point,
    /// Which takes so long.
    pub than_seconds: f64,
}

/// The spikes of a run, the worst first.
pub fn spikes(run: &Run) -> Vec<Spike> {
    // Points with failures may be slow; what they are held against has to have passed.
    let times = run.points.iter().filter_map(|measured| {
        let end_to_end = measured.figures.as_ref()?.end_to_end?;
        Some((measured.point, end_to_end.p50, measured.status == Status::Passed))
    });
    let times: Vec<(Point, f64, bool)> = times.collect();
    let mut spikes: Vec<Spike> =
        times.iter().filter_map(|&(point, seconds, _)| spike(run, &times, point, seconds)).collect();
    spikes.sort_by(|left, right| right.factor.total_cmp(&left.factor));
    spikes
}

/// The spike that `point` is, if it is one.
fn spike(run: &Run, times: &[(Point, f64, bool)], point: Point, seconds: f64) -> Option<Spike> {
    let others: Vec<(Point, f64)> = times
        .iter()
        .filter(|(other, _, passed)| *passed && *other != point)
        .map(|(other, time, _)| (*other, *time))
        .collect();
    let by_time = |left: &&(Point, f64), right: &&(Point, f64)| left.1.total_cmp(&right.1);
    let has_more = |other: Point| other.load.number() >= point.load.number() && other.context >= point.context;
    let (than, than_seconds) = match others.iter().filter(|(other, _)| has_more(*other)).min_by(by_time) {
        Some(found) => *found,
        None => *others.iter().filter(|(other, _)| run.settings.grid.are_neighbours(point, *other)).max_by(by_time)?,
    };
    let factor = seconds / than_seconds;
    let is_spike = factor > FACTOR && seconds - than_seconds > SECONDS;
    is_spike.then_some(Spike { point, seconds, factor, than, than_seconds })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::bench::account::{Distribution, Figures};
    use crate::bench::endpoint::Facts;
    use crate::bench::point::{CONTEXTS, Grid, Load, USERS};
    use crate::bench::record::Settings;

    /// A full sweep whose points take as long as `seconds` says; those without are skipped.
    fn run(seconds: impl Fn(u64, u64) -> Option<f64>) -> Run {
        let facts = Facts { url: String::new(), model: String::new(), max_model_len: None, kv_pool: None, plan: None };
        let grid = Grid { loads: USERS.map(Load::Users).to_vec(), contexts: CONTEXTS.to_vec(), diagonal: false };
        let settings =
            Settings { grid, output_tokens: 16, requests_per_user: 1, seconds: 0.0, warm_up: 0, timeout: 1.0, seed: 0 };
        let mut run = Run::new(String::new(), BTreeMap::new(), facts, settings);
        for measured in &mut run.points {
            let Load::Users(users) = measured.point.load else { continue };
            let Some(seconds) = seconds(users, measured.point.context) else { continue };
            let mut figures = Figures::of(Vec::new(), Duration::ZERO);
            figures.end_to_end = Distribution::of(vec![seconds]);
            measured.figures = Some(figures);
            measured.status = Status::Passed;
        }
        run
    }

    /// Time that grows with the work, and with the square of the context.
    fn smooth(users: u64, context: u64) -> Option<f64> {
        let (users, context) = (users as f64, context as f64);
        (users * context <= 262_144.0).then_some(0.01 + users * (context * 1e-5 + context * context * 1e-8))
    }

    #[test]
    fn more_work_alone_is_no_spike() {
        assert_eq!(spikes(&run(smooth)), []);
    }

    #[test]
    fn a_stall_at_one_point_is_found_wherever_it_is() {
        for (users, context) in [(256, 512), (1, 8), (64, 4096), (2048, 128), (16, 16384)] {
            let stalled = |u, c| smooth(u, c).map(|time| if (u, c) == (users, context) { time + 132.0 } else { time });
            let found = spikes(&run(stalled));
            assert_eq!(found.len(), 1, "{users} x {context}: {found:?}");
            assert_eq!(found[0].point, Point { load: Load::Users(users), context });
            assert!(found[0].factor > FACTOR);
        }
    }

    #[test]
    fn a_row_of_stalls_hides_none_of_them() {
        let stalled =
            |users, context| smooth(users, context).map(|time| if context == 512 { time + 60.0 } else { time });
        let found = spikes(&run(stalled));
        assert!(found.iter().all(|spike| spike.point.context == 512));
        // The last of the row has only its neighbours to be held against, and one of them is slow too.
        assert!(found.len() >= 9, "{found:?}");
    }

    #[test]
    fn noise_of_milliseconds_is_no_spike() {
        let noisy =
            |users, context| smooth(users, context).map(|time| if (users, context) == (1, 8) { 0.2 } else { time });
        assert_eq!(spikes(&run(noisy)), []);
    }
}
