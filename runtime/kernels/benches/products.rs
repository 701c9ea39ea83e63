//! Speed of the products alone.
//!
//! `cargo bench -p gemma4-kernels --bench products`; with `-- bounds`, what the machine allows alone; with `-- 32`, those of 32 rows alone; with `-- int8` or `-- int4`, of
//! integers.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a bench prints, and stops where it cannot go on")]

use std::time::Instant;

use gemma4_kernels::Weights;
use gemma4_kernels::linear::Inputs;
use gemma4_kernels::profile::bounds;
use gemma4_model::quantization::{GROUP, packed_words};
use half::bf16;

fn values(count: usize, modulus: usize) -> Vec<bf16> {
    (0..count).map(|index| bf16::from_f32((index % modulus) as f32 - modulus as f32 / 2.0)).collect()
}

fn main() {
    let wanted: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let [int8, int4] = ["int8", "int4"].map(|name| std::env::args().any(|argument| argument == name));
    if std::env::args().any(|argument| argument == "bounds") {
        let bounds = bounds();
        println!(
            "memory is read at {:.1} GB/s, products are made at {:.0} GFLOP/s",
            bounds.bytes_per_second / 1e9,
            bounds.operations_per_second / 1e9
        );
        return;
    }
    println!("rows  width  columns        ms   GFLOP/s  GB/s of weights");
    for (tokens, width, rows) in [
        (1, 1024, 8192),
        (1, 8192, 1024),
        (4, 1024, 8192),
        (8, 1024, 8192),
        (16, 1024, 8192),
        (32, 1024, 8192),
        (8, 8192, 1024),
        (16, 8192, 1024),
        (32, 8192, 1024),
        (512, 1024, 4096),
        (512, 4096, 1024),
        (512, 8192, 1024),
        (2048, 1024, 4096),
    ] {
        if !wanted.is_empty() && !wanted.contains(&tokens) {
            continue;
        }
        // More than the caches hold.
        let copies = if tokens < 100 { 24 } else { 4 };
        let (inputs, weights) = (values(tokens * width, 13), values(copies * rows * width, 11));
        let integers: Vec<i8> = (0..if int8 { weights.len() } else { 0 }).map(|at| (at % 11) as i8 - 5).collect();
        let words = packed_words(width);
        let packed: Vec<u16> =
            (0..if int4 { copies * rows * words } else { 0 }).map(|at| ((at * 0x9e37) >> 4) as u16).collect();
        let (scales, scales_of_groups) = (vec![0.5; rows], vec![bf16::ONE; copies * rows * width / GROUP]);
        let mut out = vec![bf16::ZERO; tokens * rows];
        let mut times: Vec<f64> = (0..3 * copies)
            .map(|round| {
                let of = |row: usize| round % copies * rows * row..(round % copies + 1) * rows * row;
                let weights = if int8 {
                    Weights::Int8 { values: &integers[of(width)], scales: &scales }
                } else if int4 {
                    Weights::Int4 { values: &packed[of(words)], scales: &scales_of_groups[of(width / GROUP)] }
                } else {
                    Weights::Elements(&weights[of(width)])
                };
                let start = Instant::now();
                Inputs::<bf16>::new(&inputs, width).product(weights, &mut out).expect("sizes that fit");
                start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let seconds = times[0];
        let of_row = match (int8, int4) {
            (true, _) => width,
            (_, true) => 2 * words + 2 * width / GROUP,
            _ => 2 * width,
        };
        let (work, bytes) = (2 * tokens * width * rows, of_row * rows);
        println!(
            "{tokens:4}  {width:5}  {rows:7}  {:8.3}  {:8.1}  {:6.1}",
            seconds * 1e3,
            work as f64 / seconds / 1e9,
            bytes as f64 / seconds / 1e9
        );
    }
}
