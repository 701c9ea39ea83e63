//! Runs the points of a sweep, one after another.

use std::time::{Duration, Instant};

use super::account::Figures;
use super::endpoint::{Endpoint, EndpointError};
use super::load;
use super::point::{Load, Point};
use super::prompt::Prompts;
use super::record::{Measured, Run, Settings, Status, now};
use super::request::{Request, Target, send};

/// How often it is looked whether the sweep is to stop.
const POLL: Duration = Duration::from_millis(50);

/// Why a sweep ended.
#[derive(Debug)]
pub enum End {
    /// No point waits.
    Complete,
    /// It was told to stop. The point under way has no figures.
    Stopped,
    /// The endpoint does not answer any more. A point that nobody answered at all has no figures.
    Gone(EndpointError),
}

/// What happens in a sweep.
#[derive(Debug)]
pub enum News<'a> {
    /// A point begins.
    Begins(&'a Measured),
    /// A point is done.
    Done(&'a Measured),
}

/// A sweep of an endpoint.
#[derive(Debug)]
pub struct Sweep<'a> {
    /// The endpoint.
    pub endpoint: &'a Endpoint,
    /// Ids of tokens to make prompts of.
    pub tokens: &'a [u32],
    /// Whether to stop.
    pub stop: fn() -> bool,
}

impl Sweep<'_> {
    /// Measures the points of `run` that wait, in order, and tells of each; the first error of `tell` ends the sweep.
    ///
    /// # Errors
    /// Those of `tell`.
    pub async fn go_on<E>(
        &self,
        run: &mut Run,
        mut tell: impl FnMut(&Run, News<'_>) -> Result<(), E>,
    ) -> Result<End, E> {
        let settings = run.settings.clone();
        let limit = Duration::try_from_secs_f64(settings.timeout).unwrap_or(Duration::MAX);
        let target = self.endpoint.target(&run.endpoint.model, limit);
        let counts: Vec<u64> = run.points.iter().map(|measured| requests(&settings, measured.point)).collect();
        let all = counts.iter().map(|count| count + settings.warm_up).sum();
        let prompts = Prompts::new(self.tokens, settings.seed, all);
        let mut number = 0;
        for index in 0..run.points.len() {
            let first = number;
            number += counts.get(index).copied().unwrap_or(0) + settings.warm_up;
            let Some(measured) = run.points.get(index).filter(|measured| measured.status == Status::Waiting) else {
                continue;
            };
            tell(run, News::Begins(measured))?;
            let requests = (first..number).map(|number| Request {
                prompt: prompts.prompt(number, measured.prompt_tokens),
                output: measured.output_tokens,
            });
            let work = point(&target, &settings, measured.point, requests.collect());
            let figures = tokio::select! {
                figures = work => figures,
                () = stopped(self.stop) => return Ok(End::Stopped),
            };
            if !figures.passed()
                && let Err(error) = self.endpoint.is_there().await
            {
                // A point that brought the service down is a result, one that found it down is none.
                if !figures.is_unreachable() {
                    self.keep(run, index, figures, &mut tell)?;
                }
                return Ok(End::Gone(error));
            }
            self.keep(run, index, figures, &mut tell)?;
        }
        run.ended.get_or_insert_with(now);
        Ok(End::Complete)
    }

    fn keep<E>(
        &self,
        run: &mut Run,
        index: usize,
        figures: Figures,
        tell: &mut impl FnMut(&Run, News<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if let Some(measured) = run.points.get_mut(index) {
            measured.status = if figures.passed() { Status::Passed } else { Status::Failed };
            measured.figures = Some(figures);
        }
        match run.points.get(index) {
            Some(measured) => tell(run, News::Done(measured)),
            None => Ok(()),
        }
    }
}

/// Requests of a point that count.
fn requests(settings: &Settings, point: Point) -> u64 {
    match point.load {
        Load::Users(users) => users.saturating_mul(settings.requests_per_user),
        // As many as come in that time on average.
        Load::PerSecond(rate) => ((rate * settings.seconds).round() as u64).max(1),
    }
}

/// Runs one point.
async fn point(target: &Target, settings: &Settings, point: Point, mut requests: Vec<Request>) -> Figures {
    let warm_up = usize::try_from(settings.warm_up).unwrap_or(usize::MAX).min(requests.len());
    let counted = requests.split_off(warm_up);
    for request in requests {
        // What goes wrong here goes wrong with what is counted too, and is told then.
        send(target, &request, tokio::time::Instant::now()).await;
    }
    let (outcomes, seconds) = match point.load {
        Load::Users(users) => {
            let mut queues: Vec<Vec<Request>> = (0..users).map(|_| Vec::new()).collect();
            let count = queues.len().max(1);
            for (index, request) in counted.into_iter().enumerate() {
                if let Some(queue) = queues.get_mut(index % count) {
                    queue.push(request);
                }
            }
            load::closed(target, queues).await
        }
        Load::PerSecond(rate) => {
            let times = load::arrivals(counted.len() as u64, rate, settings.seed ^ point.context);
            load::open(target, times.into_iter().zip(counted).collect()).await
        }
    };
    Figures::of(outcomes, seconds)
}

async fn stopped(stop: fn() -> bool) {
    while !stop() {
        tokio::time::sleep(POLL).await;
    }
}

/// Guesses how long the points that wait will take: each as long as the nearest one that was measured, by its work.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    took: Vec<(Point, f64)>,
}

impl Default for Clock {
    fn default() -> Self {
        Self { began: Instant::now(), took: Vec::new() }
    }
}

impl Clock {
    /// A point begins.
    pub fn begins(&mut self) {
        self.began = Instant::now();
    }

    /// It is done.
    pub fn done(&mut self, point: Point) {
        self.took.push((point, self.began.elapsed().as_secs_f64()));
    }

    /// Time left; `None` as long as nothing was measured.
    pub fn left(&self, run: &Run) -> Option<Duration> {
        let waiting = run.points.iter().filter(|measured| measured.status == Status::Waiting);
        let guess = |point: Point| -> Option<f64> {
            let nearest = self.took.iter().min_by_key(|(other, _)| run.settings.grid.distance(point, *other))?;
            Some(nearest.1 * (work(point) / work(nearest.0)).max(1.0))
        };
        let seconds = waiting.map(|measured| guess(measured.point)).sum::<Option<f64>>()?;
        Duration::try_from_secs_f64(seconds).ok()
    }
}

/// How much there is to do at a point.
fn work(point: Point) -> f64 {
    point.load.number() * point.context as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::point::Grid;

    #[test]
    fn an_open_loop_has_as_many_requests_as_come_in_its_time() {
        let settings = Settings {
            grid: Grid { loads: Vec::new(), contexts: Vec::new(), diagonal: false },
            output_tokens: 16,
            requests_per_user: 3,
            seconds: 10.0,
            warm_up: 0,
            timeout: 1.0,
            seed: 0,
        };
        let count = |load| requests(&settings, Point { load, context: 8 });
        assert_eq!((count(Load::PerSecond(2.5)), count(Load::PerSecond(0.01)), count(Load::Users(4))), (25, 1, 12));
    }
}
