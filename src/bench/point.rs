//! The points of a sweep: how many users or arrivals, each with how many tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::words::commas;

/// The users of the full sweep.
pub const USERS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/// The contexts of the full sweep, in tokens.
pub const CONTEXTS: [u64; 12] = [8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384];

/// Who sends requests.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// So many users, each of whom sends the next request when the last one is answered.
    Users(u64),
    /// So many requests a second on average, whatever becomes of those before.
    PerSecond(f64),
}

impl fmt::Display for Load {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Load::Users(1) => write!(formatter, "1 user"),
            Load::Users(users) => write!(formatter, "{} users", commas(*users)),
            Load::PerSecond(rate) => write!(formatter, "{rate} requests/s"),
        }
    }
}

impl Load {
    /// Users, or requests a second.
    pub(crate) fn number(self) -> f64 {
        match self {
            Load::Users(users) => users as f64,
            Load::PerSecond(rate) => rate,
        }
    }
}

/// A point of a sweep.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Who sends.
    pub load: Load,
    /// Tokens of a sequence, prompt and output together.
    pub context: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} x {} tokens", self.load, commas(self.context))
    }
}

impl Point {
    /// Tokens of a prompt and of an answer: `output` of them are generated, of a short context half.
    pub fn tokens(self, output: u64) -> (u64, u64) {
        let output = output.min(self.context / 2).max(1);
        (self.context.saturating_sub(output), output)
    }

    /// Why the point cannot run where a sequence has at most `longest` tokens and all together at most `pool`.
    pub fn does_not_fit(self, longest: Option<u64>, pool: Option<u64>) -> Option<String> {
        if let Some(longest) = longest.filter(|longest| self.context > *longest) {
            return Some(format!("a sequence has at most {} tokens", commas(longest)));
        }
        // Arrivals wait for room like the users of a service; only the length of one is known.
        let sequences = match self.load {
            Load::Users(users) => users,
            Load::PerSecond(_) => 1,
        };
        let wanted = sequences.saturating_mul(self.context);
        let pool = pool.filter(|pool| wanted > *pool)?;
        Some(format!("{} tokens do not fit the KV pool of {}", commas(wanted), commas(pool)))
    }
}

/// All points of a sweep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// One row each.
    pub loads: Vec<Load>,
    /// One column each.
    pub contexts: Vec<u64>,
    /// Only the points from the longest context of the first row to the shortest of the last.
    pub diagonal: bool,
}

impl Grid {
    /// Its points, row by row.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let columns = self.contexts.len();
        self.loads.iter().enumerate().flat_map(move |(row, &load)| {
            let wanted = self.contexts.iter().enumerate();
            let wanted = wanted.filter(move |(column, _)| !self.diagonal || row + column + 1 == columns);
            wanted.map(move |(_, &context)| Point { load, context })
        })
    }

    /// Row and column of a point.
    fn place(&self, point: Point) -> Option<(usize, usize)> {
        let row = self.loads.iter().position(|load| *load == point.load)?;
        let column = self.contexts.iter().position(|context| *context == point.context)?;
        Some((row, column))
    }

    /// Steps between two points, along rows and columns.
    pub(crate) fn distance(&self, one: Point, other: Point) -> Option<usize> {
        let ((row, column), (other_row, other_column)) = self.place(one).zip(self.place(other))?;
        Some(row.abs_diff(other_row) + column.abs_diff(other_column))
    }

    /// Whether two points are next to each other in a row or a column.
    pub(crate) fn are_neighbours(&self, one: Point, other: Point) -> bool {
        self.distance(one, other) == Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Grid {
        Grid { loads: USERS.map(Load::Users).to_vec(), contexts: CONTEXTS.to_vec(), diagonal: false }
    }

    #[test]
    fn context_is_prompt_and_output_together() {
        for point in full().points() {
            let (prompt, output) = point.tokens(16);
            assert_eq!(prompt + output, point.context);
            assert!(prompt > 0 && output > 0);
        }
        assert_eq!(Point { load: Load::Users(1), context: 8 }.tokens(16), (4, 4));
        assert_eq!(Point { load: Load::Users(1), context: 16384 }.tokens(16), (16368, 16));
    }

    #[test]
    fn the_diagonal_has_equal_work_at_every_point() {
        let points: Vec<Point> = Grid { diagonal: true, ..full() }.points().collect();
        assert_eq!(points.len(), 12);
        assert!(points.iter().all(|point| point.load.number() * point.context as f64 == 16384.0));
    }

    #[test]
    fn what_does_not_fit_says_why() {
        let point = Point { load: Load::Users(32), context: 16384 };
        assert_eq!(point.does_not_fit(Some(16384), Some(1 << 20)), None);
        let reason = point.does_not_fit(Some(16384), Some(1 << 18)).expect("a reason");
        assert_eq!(reason, "524,288 tokens do not fit the KV pool of 262,144");
        let reason = point.does_not_fit(Some(8192), None).expect("a reason");
        assert_eq!(reason, "a sequence has at most 8,192 tokens");
        assert_eq!(Point { load: Load::PerSecond(1000.0), ..point }.does_not_fit(None, Some(16384)), None);
    }
}
