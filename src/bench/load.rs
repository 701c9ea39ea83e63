//! Sends the requests of a point: in a closed loop, where each user waits for an answer, or in an open one, where requests
//! come whether or not those before are answered.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep_until};

use super::request::{Outcome, Request, Target, send};

/// Each user sends its requests one after another; all begin at once.
pub(super) async fn closed(target: &Target, users: Vec<Vec<Request>>) -> (Vec<Outcome>, Duration) {
    let begin = Instant::now();
    let users = users.into_iter().map(|requests| async move {
        let mut outcomes = Vec::with_capacity(requests.len());
        for request in requests {
            outcomes.push(send(target, &request, Instant::now()).await);
        }
        outcomes
    });
    let outcomes = join_all(users).await.into_iter().flatten().collect();
    (outcomes, begin.elapsed())
}

/// Each request is sent so long after the beginning. Its times count from when it was due: what waited before it was sent
/// waited for the endpoint too.
pub(super) async fn open(target: &Target, arrivals: Vec<(Duration, Request)>) -> (Vec<Outcome>, Duration) {
    let begin = Instant::now();
    let requests = arrivals.into_iter().map(|(after, request)| async move {
        let due = begin + after;
        sleep_until(due).await;
        send(target, &request, due).await
    });
    let outcomes = join_all(requests).await;
    (outcomes, begin.elapsed())
}

/// When requests arrive: `count` of them, at random moments that depend on none before (a Poisson process), `rate` a second.
pub(super) fn arrivals(count: u64, rate: f64, seed: u64) -> Vec<Duration> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut at = 0.0;
    let next = |_| {
        at += -(1.0 - rng.f64()).ln() / rate;
        Duration::try_from_secs_f64(at).unwrap_or(Duration::MAX)
    };
    (0..count).map(next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate_and_as_irregularly_as_they_should() {
        let times = arrivals(20_000, 50.0, 7);
        assert_eq!(times, arrivals(20_000, 50.0, 7));
        assert_ne!(times, arrivals(20_000, 50.0, 8));
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let spread = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // Of an exponential distribution mean and deviation are the same.
        assert!((mean - 0.02).abs() < 0.0006 && (spread - 0.02).abs() < 0.0008, "{mean} {spread}");
    }
}
