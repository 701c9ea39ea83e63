//! Products of rows and a matrix.
//!
//! Blocks of 32 rows of the matrix, and of as many elements of them as stay in a cache, meet all rows of the input, two tiles of them at
//! a time. While one block is multiplied the next one is read and put where it stays: what memory does and what tiles do goes on side by
//! side, and each line of weights is read once and in the order of memory.

use std::arch::x86_64::{
    __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_setzero_si512, _mm512_storeu_si512,
};
use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use super::lines::Row;
use super::packed::{Packed, Right};
use super::{BLOCK, Left, Lines, Meanwhile, PAIRS, SIDE, Sums, Tiles};
use crate::avx512::turn;

/// Streams in which weights are read.
const STREAMS: usize = 4;
/// Rows of a block that one of them is.
const ROWS_OF_STREAM: usize = BLOCK / STREAMS;
/// Lines of each stream that are fetched before they are read.
const AHEAD: usize = 16;
/// Those of each row where tiles are loaded in place.
const AHEAD_IN_PLACE: usize = 4;
/// Lines of rows so narrow that blocks of them stay in the first cache.
const NARROW: usize = 16;

/// 32 elements of a row.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u16; PAIRS]);

/// Sums of two tiles of the input.
type Both = [[Sums; 2]; 2];

/// What a thread needs for products.
#[derive(Default)]
struct Room {
    /// The block that is multiplied, and the next one, each `[row][line]` with rows a [`pitch`] apart.
    blocks: [Vec<Line>; 2],
    /// Sums that are not done, `[block][two tiles of the input]`.
    sums: Vec<Both>,
}

thread_local! {
    static ROOM_OF_THREAD: RefCell<Room> = RefCell::default();
}

/// Lines from one row of a block to the next: odd, so that rows do not push each other out of the caches.
const fn pitch(depth: usize) -> usize {
    depth | 1
}

/// A part of a matrix that is multiplied at a time.
#[derive(Clone, Copy)]
struct Step {
    /// Of which matrix.
    matrix: usize,
    /// The first row.
    row: usize,
    /// The first line of rows.
    first: usize,
    /// How many lines.
    depth: usize,
}

/// The steps of a product: all rows of some lines, those of all matrices side by side, then of the next lines.
#[derive(Clone, Copy)]
struct Steps {
    /// Blocks of rows of all matrices.
    blocks: usize,
    matrices: usize,
    /// Lines of a row.
    deep: usize,
    /// Lines of a step.
    depth: usize,
}

impl Steps {
    fn step(self, number: usize) -> Option<Step> {
        let first = number / self.blocks.max(1) * self.depth;
        (first < self.deep).then(|| Step {
            matrix: number % self.blocks % self.matrices,
            row: number % self.blocks / self.matrices * BLOCK,
            first,
            depth: self.depth.min(self.deep - first),
        })
    }
}

/// Some sums `[row of the input][row of the matrix]`, 32 of either.
#[repr(C, align(64))]
pub(crate) struct Square([[f32; BLOCK]; BLOCK]);

impl Square {
    /// Those of so many rows of the input; rows lie [`BLOCK`] apart.
    pub(crate) fn rows(&mut self, count: usize) -> &mut [f32] {
        &mut self.0.as_flattened_mut()[..count.min(BLOCK) * BLOCK]
    }
}

/// `sum[token][row] = weights[row] . inputs[token]` for some tokens, the first a multiple of 16, and some matrices side by side that are
/// of one shape. Calls `take` with sums of each matrix, the first row of the matrices and the first token, counted from that of
/// `tokens`; what they hold of rows and tokens that there are not is anything.
///
/// # Safety
/// [`super::request`] has returned true, the processor has AVX-512 with bfloat16, and rows of the matrices are as wide as those of the
/// input.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(crate) unsafe fn products<const N: usize>(
    inputs: &Packed,
    tokens: Range<usize>,
    weights: [Lines<'_>; N],
    mut take: impl FnMut(&mut [Square; N], usize, usize),
) {
    let (rows, deep) = (weights.iter().map(Lines::rows).min().unwrap_or(0), inputs.deep());
    debug_assert!(weights.iter().all(|weights| weights.width().div_ceil(PAIRS) == deep), "other rows");
    let (first_tile, pairs) = (tokens.start / SIDE, tokens.len().div_ceil(BLOCK));
    // Tiles of a part, of the first and the second half of a pair.
    let right = |pair: usize, first: usize| {
        let at = first_tile + 2 * pair;
        let is_wide = pair * BLOCK + SIDE < tokens.len();
        (inputs.tiles(at, first), is_wide.then(|| inputs.tiles(at + 1, first)))
    };
    if pairs == 0 || rows == 0 {
        return;
    }
    // SAFETY: the caller vouches for it.
    let tiles = unsafe { Tiles::new() };
    if pairs == 1 || deep <= NARROW {
        // SAFETY: as above.
        let done = unsafe { in_place(&tiles, &right, [pairs, deep, inputs.part()], &weights, &mut take) };
        if done {
            return;
        }
    }
    let steps = Steps { blocks: N * rows.div_ceil(BLOCK), matrices: N, deep, depth: inputs.part() };
    ROOM_OF_THREAD.with_borrow_mut(|Room { blocks: [block, next], sums }| {
        let lines = BLOCK * pitch(steps.depth);
        for block in [&mut *block, &mut *next] {
            block.resize(block.len().max(lines), Line([0; PAIRS]));
        }
        sums.resize(sums.len().max(steps.blocks * pairs), [[Sums::ZERO; 2]; 2]);
        let (mut block, mut next) = (block, next);
        let mut squares = [const { Square([[0.0; BLOCK]; BLOCK]) }; N];
        let mut feed = Feed::new(weights, rows, steps);
        // SAFETY: the caller vouches for the instructions.
        unsafe { Reading::new(&mut feed, block, 1).finish() };
        for (number, step) in (0..).map_while(|number| Some((number, steps.step(number)?))) {
            let mut reading = Reading::new(&mut feed, next, pairs * step.depth);
            let left = Left { start: block.as_ptr().cast(), stride: pitch(step.depth) * PAIRS };
            let place = number % steps.blocks * pairs;
            let is_last = step.first + step.depth == deep && step.matrix == N - 1;
            for pair in 0..pairs {
                let (first, second) = right(pair, step.first);
                tiles.begin(if step.first == 0 { None } else { Some(&sums[place + pair]) }, second.is_some());
                // SAFETY: all rows have as many lines.
                unsafe {
                    match second {
                        Some(second) => tiles.wide(left, [first, second], &mut reading),
                        None => tiles.narrow(left, first, &mut reading),
                    }
                }
                tiles.end(&mut sums[place + pair], second.is_some());
                if is_last {
                    for (matrix, square) in squares.iter_mut().enumerate() {
                        turn_back(&sums[place + pair - (N - 1 - matrix) * pairs], second.is_some(), square);
                    }
                    take(&mut squares, step.row, pair * BLOCK);
                }
            }
            // SAFETY: the caller vouches for the instructions.
            unsafe { reading.finish() };
            (block, next) = (next, block);
        }
    });
}

/// The same with weights of which tiles are loaded where they lie, unless they cannot be; it pays where they meet few rows of the input or
/// are narrow. Returns whether they were. `right` gives the tiles of a part of a pair, from one of `deep` on.
///
/// # Safety
/// As for [`products`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn in_place<'r, const N: usize>(
    tiles: &Tiles,
    right: &impl Fn(usize, usize) -> (&'r [Right], Option<&'r [Right]>),
    [pairs, deep, part]: [usize; 3],
    weights: &[Lines<'_>; N],
    take: &mut impl FnMut(&mut [Square; N], usize, usize),
) -> bool {
    let mut squares = [const { Square([[0.0; BLOCK]; BLOCK]) }; N];
    let mut sums = [[Sums::ZERO; 2]; 2];
    let rows = weights.iter().map(|weights| weights.in_place().map_or(0, |rows| rows.rows())).min().unwrap_or(0);
    // The last rows are a block that is filled up.
    let mut rest = [const { Vec::new() }; N];
    let left_of = |matrix: usize, row: usize| {
        let rows = weights.get(matrix)?.in_place()?;
        (row + BLOCK <= rows.rows()).then(|| Left { start: rows.row(row).as_ptr(), stride: rows.stride() })
    };
    for row in (0..rows).step_by(BLOCK) {
        for pair in 0..pairs {
            let is_wide = right(pair, 0).1.is_some();
            for matrix in 0..N {
                let left = left_of(matrix, row).unwrap_or_else(|| {
                    let rest = &mut rest[matrix];
                    if rest.is_empty() {
                        rest.resize(BLOCK * deep * PAIRS, bf16::ZERO);
                        for (at, to) in rest.chunks_exact_mut(deep * PAIRS).enumerate().take(rows - row) {
                            if let Some(rows) = weights[matrix].in_place() {
                                to.copy_from_slice(rows.row(row + at));
                            }
                        }
                    }
                    Left { start: rest.as_ptr(), stride: deep * PAIRS }
                });
                let next = if matrix + 1 < N { left_of(matrix + 1, row) } else { left_of(0, row + BLOCK) };
                // For the first pair; then they are in the caches.
                let mut ahead = match pair {
                    0 => Ahead { left, next, at: AHEAD_IN_PLACE, deep },
                    _ => Ahead { left, next: None, at: deep, deep },
                };
                tiles.begin(None, is_wide);
                for first in (0..deep).step_by(part) {
                    // SAFETY: all rows have as many lines.
                    unsafe {
                        match right(pair, first) {
                            (one, Some(second)) => tiles.wide(left.at(first), [one, second], &mut ahead),
                            (one, None) => tiles.narrow(left.at(first), one, &mut ahead),
                        }
                    }
                }
                tiles.end(&mut sums, is_wide);
                turn_back(&sums, is_wide, &mut squares[matrix]);
            }
            take(&mut squares, row, pair * BLOCK);
        }
    }
    rows > 0
}

/// Fetches lines of 32 rows some time before tiles of them are loaded.
struct Ahead {
    left: Left,
    /// The rows that come next.
    next: Option<Left>,
    /// The next line, and how many rows have.
    at: usize,
    deep: usize,
}

impl Meanwhile for Ahead {
    #[inline(always)]
    unsafe fn go_on(&mut self) {
        if self.at >= self.deep {
            let Some(next) = self.next else { return };
            (self.left, self.next, self.at) = (next, None, self.at - self.deep);
        }
        for row in 0..BLOCK {
            // SAFETY: every such processor has it, and it has no effect that can be seen, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.left.at(self.at).row(row).cast()) };
        }
        self.at += 1;
    }
}

/// Where the lines of a product are read: rows of a block in several streams side by side, which memory gives faster than one.
struct Cursor<'a, const N: usize> {
    weights: [Lines<'a>; N],
    /// How many each matrix has.
    rows: usize,
    steps: Steps,
    /// The step's number, and the step unless it is behind the last.
    number: usize,
    step: Option<Step>,
    /// The row of each stream that is read, and its next line.
    row: usize,
    at: usize,
    /// This row of the matrix in each stream, unless there is none.
    of: [Option<Row<'a>>; STREAMS],
}

impl<'a, const N: usize> Cursor<'a, N> {
    fn new(weights: [Lines<'a>; N], rows: usize, steps: Steps) -> Self {
        let (step, of) = (steps.step(0), [None; STREAMS]);
        let mut cursor = Cursor { weights, rows, steps, number: 0, step, row: 0, at: 0, of };
        cursor.find();
        cursor
    }

    #[inline(always)]
    fn find(&mut self) {
        let Some(step) = self.step else { return };
        for stream in 0..STREAMS {
            let row = step.row + stream * ROWS_OF_STREAM + self.row;
            self.of[stream] = if row < self.rows { Some(self.weights[step.matrix].row(row)) } else { None };
        }
    }

    /// Goes to the next line of each stream. Returns whether it is of the same step.
    #[inline(always)]
    fn advance(&mut self, step: Step) -> bool {
        self.at += 1;
        if self.at < step.depth {
            return true;
        }
        (self.at, self.row) = (0, self.row + 1);
        let is_over = self.row == ROWS_OF_STREAM;
        if is_over {
            (self.row, self.number) = (0, self.number + 1);
            self.step = self.steps.step(self.number);
        }
        self.find();
        !is_over
    }
}

/// Reads one block after the other, some lines at a time.
struct Feed<'a, const N: usize> {
    /// What is read next, and what is fetched next.
    read: Cursor<'a, N>,
    fetch: Cursor<'a, N>,
}

impl<'a, const N: usize> Feed<'a, N> {
    fn new(weights: [Lines<'a>; N], rows: usize, steps: Steps) -> Self {
        let mut feed = Feed { read: Cursor::new(weights, rows, steps), fetch: Cursor::new(weights, rows, steps) };
        for _ in 0..AHEAD {
            feed.fetch();
        }
        feed
    }

    /// Fetches a line of each stream.
    #[inline(always)]
    fn fetch(&mut self) {
        let Some(step) = self.fetch.step else { return };
        for stream in 0..STREAMS {
            if let Some(of) = self.fetch.of[stream] {
                of.fetch(step.first + self.fetch.at);
            }
        }
        self.fetch.advance(step);
    }

    /// Reads a line of each stream. Returns whether there are more of this step.
    #[inline(always)]
    unsafe fn read(&mut self, to: &mut [Line]) -> bool {
        self.fetch();
        let Some(step) = self.read.step else { return false };
        let (pitch, at) = (pitch(step.depth), self.read.at);
        for stream in 0..STREAMS {
            let place = (stream * ROWS_OF_STREAM + self.read.row) * pitch + at;
            // SAFETY: the caller vouches for the instructions; a line is 64 bytes.
            unsafe {
                let line = match self.read.of[stream] {
                    Some(of) => of.line(step.first + at),
                    None => _mm512_setzero_si512(),
                };
                _mm512_storeu_si512((&raw mut to[place]).cast(), line);
            }
        }
        self.read.advance(step)
    }
}

/// A step that is read.
struct Reading<'a, 'w, const N: usize> {
    feed: &'a mut Feed<'w, N>,
    /// Where its block is put.
    to: &'a mut [Line],
    /// Whether there is more to read.
    is_open: bool,
    /// Lines of a stream, in parts of which one is read at a time. Lines are due when there are as many as parts.
    lines: usize,
    parts: usize,
    due: usize,
}

impl<'a, 'w, const N: usize> Reading<'a, 'w, N> {
    /// Reads the next step, in so many parts.
    fn new(feed: &'a mut Feed<'w, N>, to: &'a mut [Line], parts: usize) -> Self {
        let lines = feed.read.step.map_or(0, |step| ROWS_OF_STREAM * step.depth);
        Reading { feed, to, is_open: lines > 0, lines, parts: parts.max(1), due: 0 }
    }

    /// Reads what is left.
    ///
    /// # Safety
    /// The processor has AVX-512 with bfloat16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
    unsafe fn finish(&mut self) {
        while self.is_open {
            // SAFETY: the caller vouches for the instructions.
            self.is_open = unsafe { self.feed.read(self.to) };
        }
    }
}

impl<const N: usize> Meanwhile for Reading<'_, '_, N> {
    #[inline(always)]
    unsafe fn go_on(&mut self) {
        self.due += self.lines;
        while self.is_open && self.due >= self.parts {
            // SAFETY: the caller vouches for the instructions.
            self.is_open = unsafe { self.feed.read(self.to) };
            self.due -= self.parts;
        }
    }
}

/// Sums of tiles, in the order of the result.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn turn_back(sums: &[[Sums; 2]; 2], is_wide: bool, square: &mut Square) {
    for tokens in 0..1 + usize::from(is_wide) {
        for half in 0..2 {
            let mut rows: [__m512i; SIDE] = [_mm512_setzero_si512(); SIDE];
            for row in 0..SIDE {
                // SAFETY: 64 bytes.
                rows[row] = unsafe { _mm512_loadu_si512(sums[tokens][half].0[row].as_ptr().cast()) };
            }
            let rows = turn(rows);
            for row in 0..SIDE {
                let to = &mut square.0[tokens * SIDE + row].as_chunks_mut::<SIDE>().0[half];
                // SAFETY: 64 bytes.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), rows[row]) };
            }
        }
    }
}
