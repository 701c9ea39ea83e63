//! What narrow caches cost: the same prompts with keys and values in other types, logits and tokens held against each
//! other. The table is in docs/kv-cache.md; `cargo test -p gemma4-model --test parity caches -- --nocapture` prints it.

use gemma4_model::DType;
use gemma4_pjrt::Client;

use crate::golden::{FIXTURES, prompts};
use crate::runner::{How, Rows, Runner, argmax, client};
use crate::{DECODE, PREFILL, mean_distance, published};

/// Greedy tokens that are generated after each prompt.
const GENERATED: usize = 32;

/// What a model says with a cache of one type.
struct Said {
    /// Logits of every row of every prompt with its golden continuation: all see the same tokens.
    logits: Vec<Vec<f32>>,
    /// Its own greedy continuation of each prompt.
    tokens: Vec<Vec<i32>>,
}

fn say(client: &'static Client, name: &str, dtype: DType, kv_dtype: DType) -> Said {
    let how = How { dtype, kv_dtype, ..How::default() };
    let mut runner = Runner::new(client, &published(name), how);
    let prompts = prompts(name);
    let mut logits = Vec::new();
    for prompt in &prompts {
        let sequence = runner.add_sequence();
        let tokens = [&prompt.ids[..], &prompt.greedy[..GENERATED - 1]].concat();
        logits.extend(runner.step(PREFILL, &[(sequence, &tokens)], Rows::All).0);
        runner.release(sequence);
    }
    let (mut sequences, mut tokens) = (Vec::new(), Vec::new());
    for prompt in &prompts {
        let sequence = runner.add_sequence();
        sequences.push(sequence);
        let (logits, _) = runner.step(PREFILL, &[(sequence, &prompt.ids)], Rows::All);
        tokens.push(vec![argmax(logits.last().expect("logits"))]);
    }
    for _ in 1..GENERATED {
        let last: Vec<[i32; 1]> = tokens.iter().map(|tokens| [*tokens.last().expect("a token")]).collect();
        let chunks: Vec<(usize, &[i32])> =
            sequences.iter().zip(&last).map(|(sequence, token)| (*sequence, &token[..])).collect();
        let (logits, _) = runner.step(DECODE, &chunks, Rows::LastOfEach);
        tokens.iter_mut().zip(&logits).for_each(|(tokens, logits)| tokens.push(argmax(logits)));
    }
    Said { logits, tokens }
}

/// How far one cache's model is from another's.
struct Apart {
    /// Mean |difference| of logits.
    logits: f32,
    /// Share of rows with the same most likely token, when all see the same tokens.
    top_1: f32,
    /// Share of generated tokens before the first that differs, over the prompts.
    greedy: f32,
}

#[expect(clippy::cast_precision_loss, reason = "a few hundred rows and tokens")]
fn apart(one: &Said, other: &Said) -> Apart {
    let rows = one.logits.len() as f32;
    let pairs = || one.logits.iter().zip(&other.logits);
    let same = |(one, other): &(&Vec<i32>, &Vec<i32>)| one.iter().zip(*other).take_while(|(a, b)| a == b).count();
    let generated = (one.tokens.len() * GENERATED) as f32;
    Apart {
        logits: pairs().map(|(one, other)| mean_distance(one, other)).sum::<f32>() / rows,
        top_1: pairs().filter(|(one, other)| argmax(one) == argmax(other)).count() as f32 / rows,
        greedy: one.tokens.iter().zip(&other.tokens).map(|pair| same(&pair)).sum::<usize>() as f32 / generated,
    }
}

/// fp8 caches against a bfloat16 cache, the model computing in bfloat16; and bfloat16 against float32, as a scale.
#[test]
fn caches_of_narrow_types() {
    let Some(client) = client() else { return };
    println!("| Fixture | Cache | Against | Mean abs. logit difference | Top-1 agreement | Greedy agreement |");
    println!("|---|---|---|---|---|---|");
    for name in FIXTURES {
        let exact = say(client, name, DType::F32, DType::F32);
        let wide = say(client, name, DType::Bf16, DType::Bf16);
        let scale = apart(&wide, &exact);
        for (cache, against, one, other, factor, agreeing) in [
            ("bfloat16", "float32", &wide, &exact, 1.0, 0.9),
            // Four and five bits of mantissa less than bfloat16's seven; softmax and residual stream damp most of it.
            ("fp8_e4m3", "bfloat16", &say(client, name, DType::Bf16, DType::F8E4M3), &wide, 6.0, 0.75),
            ("fp8_e5m2", "bfloat16", &say(client, name, DType::Bf16, DType::F8E5M2), &wide, 10.0, 0.65),
        ] {
            let found = apart(one, other);
            let Apart { logits, top_1, greedy } = found;
            let line = format!(
                "| {name} | {cache} | {against} | {logits:.4} | {:.1} % | {:.1} % |",
                100.0 * top_1,
                100.0 * greedy
            );
            println!("{line}");
            assert!(logits <= factor * scale.logits && top_1 >= agreeing, "{line}");
        }
    }
}
