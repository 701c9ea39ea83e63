//! The KV pool from the outside, against a model that remembers what every page holds.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{HashMap, HashSet};

use gemma4_engine::pool::{BlockKeys, OutOfPages, PageCounts, Pool, PoolError, PoolOptions, SequenceBlocks};
use gemma4_model::kv::KvLayout;
use gemma4_model::{AttentionKind, Config, DType};
use proptest::prelude::*;

/// What a page holds: the kind, and the tokens from the start of the sequence to the end of what is written of the block.
type Contents = (AttentionKind, usize, Vec<u32>, Vec<u8>);

/// The kinds that the model has layers of.
fn kinds(options: &PoolOptions) -> impl Iterator<Item = AttentionKind> + use<> {
    let options = *options;
    AttentionKind::ALL.into_iter().filter(move |kind| options.block(*kind) > 0)
}

struct Live {
    tokens: Vec<u32>,
    prompt: usize,
    salt: Vec<u8>,
    keys: BlockKeys,
    blocks: SequenceBlocks,
}

struct World {
    options: PoolOptions,
    pool: Pool,
    live: Vec<Live>,
    contents: HashMap<usize, Contents>,
}

#[derive(Clone, Debug)]
enum Operation {
    /// A sequence of the first tokens of a text, with a last token of its own.
    Admit {
        text: u32,
        tokens: usize,
        last: u32,
        salt: u8,
    },
    /// Compute some tokens of a sequence; new ones are generated once its prompt is done.
    Compute {
        which: usize,
        tokens: usize,
    },
    Release {
        which: usize,
    },
}

impl World {
    fn new(options: PoolOptions) -> Self {
        World { options, pool: Pool::new(options).unwrap(), live: Vec::new(), contents: HashMap::new() }
    }

    fn admit(&mut self, tokens: Vec<u32>, salt: &[u8]) -> usize {
        let mut keys = BlockKeys::new(salt);
        let prompt = tokens.len();
        let blocks = self.pool.admit(&mut keys, &tokens, prompt, usize::MAX);
        let hit = blocks.written();
        assert!(hit < prompt, "a token is left to compute");
        // What was hit is what the sequence would have written.
        let oldest = (hit + 1).saturating_sub(self.options.window);
        for kind in kinds(&self.options) {
            let from = if kind == AttentionKind::Full { 0 } else { oldest };
            for position in from..hit {
                let block = position / self.options.block(kind);
                let page = blocks.page(kind, block).expect("a block of the hit");
                let end = (block + 1) * self.options.block(kind);
                assert_eq!(self.contents[&page], (kind, block, tokens[..end].to_vec(), salt.to_vec()));
            }
        }
        self.live.push(Live { tokens, prompt, salt: salt.to_vec(), keys, blocks });
        self.check();
        hit
    }

    /// Computes up to `count` tokens; `false` if there are too few pages, which must change no count of used pages upwards.
    fn compute(&mut self, which: usize, count: usize) -> bool {
        let holders = self.holders();
        let live = &mut self.live[which];
        let start = live.blocks.written();
        while live.tokens.len() < start + count && start >= live.prompt {
            live.tokens.push(u32::try_from(live.tokens.len() % 5).unwrap());
        }
        let end = live.tokens.len().min(start + count);
        let held: HashSet<usize> =
            AttentionKind::ALL.into_iter().flat_map(|kind| live.blocks.pages(kind).collect::<Vec<_>>()).collect();
        let before = self.pool.counts();
        match self.pool.reserve(&mut live.blocks, end) {
            Ok(_) => {}
            Err(OutOfPages { wanted, available }) => {
                assert!(wanted > available && available >= before.free + before.cached);
                self.check();
                return false;
            }
        }
        for kind in kinds(&self.options) {
            for page in live.blocks.pages(kind).filter(|page| !held.contains(page)) {
                assert!(!holders.contains_key(&page), "a page of another sequence was taken");
            }
            let block = self.options.block(kind);
            let window = if kind == AttentionKind::Full { 0 } else { (start + 1).saturating_sub(self.options.window) };
            for number in window / block..end.div_ceil(block) {
                let page = live.blocks.page(kind, number).expect("a block that the step needs");
                if (number + 1) * block > start {
                    let tokens = live.tokens[..end.min((number + 1) * block)].to_vec();
                    let shared = holders.get(&page).is_some_and(|count| *count > 1);
                    assert!(!shared, "a shared page is written");
                    self.contents.insert(page, (kind, number, tokens, live.salt.clone()));
                }
            }
        }
        self.pool.written(&mut live.blocks, &mut live.keys, &live.tokens[..end]);
        self.check();
        true
    }

    fn release(&mut self, which: usize) {
        let live = self.live.remove(which);
        self.pool.release(live.blocks, &live.keys);
        self.check();
    }

    fn holders(&self) -> HashMap<usize, usize> {
        let mut holders = HashMap::new();
        for live in &self.live {
            for kind in AttentionKind::ALL {
                live.blocks.pages(kind).for_each(|page| *holders.entry(page).or_default() += 1);
            }
        }
        holders
    }

    /// Every page is counted once, and pages with several holders hold the same for all.
    fn check(&self) {
        let holders = self.holders();
        let PageCounts { free, cached, used } = self.pool.counts();
        assert_eq!(free + cached + used, self.options.pages);
        assert_eq!(used, holders.len(), "used pages are those that somebody holds");
        assert!(holders.keys().all(|page| *page < self.options.pages));
        for live in &self.live {
            for kind in kinds(&self.options) {
                let (block, first) = (self.options.block(kind), live.blocks.first_block(kind));
                for (number, page) in (first..).zip(live.blocks.pages(kind)) {
                    assert_eq!(live.blocks.page(kind, number), Some(page));
                    let end = live.blocks.written().min((number + 1) * block);
                    if number * block < end {
                        let expected = (kind, number, live.tokens[..end].to_vec(), live.salt.clone());
                        assert_eq!(self.contents[&page], expected, "a page lost what its holder needs");
                    }
                }
            }
        }
    }
}

fn text(text: u32, tokens: usize) -> Vec<u32> {
    (0..u32::try_from(tokens).unwrap()).map(|at| at * (text + 1) % 31).collect()
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let admit = (0_u32..3, 0_usize..40, 0_u32..4, 0_u8..2);
    let operation = prop_oneof![
        2 => admit.prop_map(|(text, tokens, last, salt)| Operation::Admit { text, tokens, last, salt }),
        5 => (any::<usize>(), 1_usize..20).prop_map(|(which, tokens)| Operation::Compute { which, tokens }),
        1 => any::<usize>().prop_map(|which| Operation::Release { which }),
    ];
    prop::collection::vec(operation, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_page_is_lost_or_owned_twice_and_hits_are_what_was_written(
        (full_block, sliding_block) in prop::sample::select(vec![(4, 4), (6, 4), (8, 2), (3, 5), (4, 0), (0, 4)]),
        window in 1_usize..14,
        pages in 4_usize..60,
        prefix_caching in any::<bool>(),
        operations in operations(),
    ) {
        let mut world = World::new(PoolOptions { pages, full_block, sliding_block, window, prefix_caching });
        for operation in operations {
            match operation {
                Operation::Admit { text: which, tokens, last, salt } => {
                    let mut tokens = text(which, tokens);
                    tokens.push(last);
                    let hit = world.admit(tokens, &[salt]);
                    assert!(prefix_caching || hit == 0);
                }
                Operation::Compute { which, tokens } if !world.live.is_empty() => {
                    let which = which % world.live.len();
                    if !world.compute(which, tokens) {
                        world.release(which);
                    }
                }
                Operation::Release { which } if !world.live.is_empty() => {
                    let which = which % world.live.len();
                    world.release(which);
                }
                _ => {}
            }
        }
        while !world.live.is_empty() {
            world.release(0);
        }
        assert_eq!(world.pool.counts().used, 0);
    }
}

fn options(pages: usize) -> PoolOptions {
    PoolOptions { pages, full_block: 8, sliding_block: 4, window: 9, prefix_caching: true }
}

/// Computes a sequence in chunks of 8, lets it generate `generated` tokens one by one, and releases it.
fn serve(world: &mut World, tokens: Vec<u32>, generated: usize) -> usize {
    let hit = world.admit(tokens, &[]);
    let which = world.live.len() - 1;
    while world.live[which].blocks.written() < world.live[which].prompt {
        assert!(world.compute(which, 8));
    }
    for _ in 0..generated {
        assert!(world.compute(which, 1));
    }
    world.release(which);
    hit
}

#[test]
fn a_prompt_is_found_again_up_to_its_last_whole_block() {
    let mut world = World::new(options(64));
    assert_eq!(serve(&mut world, text(1, 29), 20), 0);
    assert_eq!(serve(&mut world, text(1, 29), 0), 24);
    // A prompt that ends with a block leaves its last token to compute; one that goes on is hit at its end.
    assert_eq!(serve(&mut world, text(2, 32), 20), 0);
    assert_eq!(serve(&mut world, text(2, 32), 0), 24);
    assert_eq!(serve(&mut world, text(2, 40), 0), 32);
}

#[test]
fn a_salt_keeps_equal_tokens_apart() {
    let mut world = World::new(options(64));
    serve(&mut world, text(1, 29), 0);
    assert_eq!(world.admit(text(1, 29), b"an adapter"), 0);
    assert_eq!(world.admit(text(1, 29), &[]), 24);
}

#[test]
fn blocks_behind_a_window_go_first_and_those_at_the_end_of_a_prompt_stay() {
    // 33 prompt tokens and 30 generated: 8 full blocks at the end (the last not full), 16 sliding ones over time.
    let mut world = World::new(options(26));
    serve(&mut world, text(1, 33), 30);
    let cached = world.pool.counts();
    // The blocks that are not full can never be found.
    assert_eq!(cached, PageCounts { free: 26 - 7 - 15, cached: 22, used: 0 });
    // Another one takes what is free and 8 more: those that fell behind the window, but not the end of the prompt.
    let which = {
        world.admit(text(2, 30), &[]);
        world.live.len() - 1
    };
    assert!(world.compute(which, 30));
    assert_eq!(world.pool.counts().cached, 22 - 8);
    world.release(which);
    assert_eq!(world.admit(text(1, 33), &[]), 32);
    // In the middle of the prompt the window is gone, so there is no hit that the full layers alone would allow.
    let mut middle = text(1, 24);
    middle.push(30);
    assert_eq!(world.admit(middle, &[]), 0);
}

#[test]
fn the_end_of_a_prompt_outlasts_the_window_while_its_sequence_still_runs() {
    // 63 tokens: 8 full blocks and 3 sliding ones are held, 13 sliding ones cached, 2 pages free.
    let mut world = World::new(options(26));
    world.admit(text(1, 33), &[]);
    while world.live[0].blocks.written() < 63 {
        assert!(world.compute(0, if world.live[0].blocks.written() < 33 { 8 } else { 1 }));
    }
    assert_eq!(world.pool.counts(), PageCounts { free: 2, cached: 13, used: 11 });
    // 3 full blocks and 6 sliding ones, of which 7 evict something: not what stands before token 32.
    world.admit(text(2, 23), &[]);
    assert!(world.compute(1, 23));
    world.release(1);
    assert_eq!(world.admit(text(1, 33), &[]), 32);
}

#[test]
fn the_end_of_a_prompt_is_as_recent_as_the_full_blocks_of_its_sequence() {
    let mut world = World::new(options(26));
    serve(&mut world, text(1, 33), 30);
    assert_eq!(world.pool.counts(), PageCounts { free: 4, cached: 22, used: 0 });
    // 6 full blocks and 12 sliding ones: what is free, the 11 behind the window, and the 3 deepest full blocks.
    world.admit(text(2, 48), &[]);
    assert!(world.compute(0, 48));
    world.release(0);
    assert_eq!(world.admit(text(1, 33), &[]), 32);
}

#[test]
fn sliding_layers_hold_only_the_window_and_the_chunk() {
    let mut world = World::new(PoolOptions { prefix_caching: false, ..options(64) });
    world.admit(text(1, 200), &[]);
    while world.live[0].blocks.written() < 200 {
        assert!(world.compute(0, 8));
        let sliding = world.live[0].blocks.pages(AttentionKind::Sliding).len();
        assert!(sliding <= (9 + 8_usize).div_ceil(4) + 1);
        assert!(world.pool.counts().used <= options(64).pages_for(world.live[0].blocks.written(), 8));
    }
    assert_eq!(world.live[0].blocks.pages(AttentionKind::Full).len(), 25);
}

#[test]
fn pages_are_counted_as_the_plan_counts_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("smoke");
    gemma4_model::seeded::write(&path, 0).unwrap();
    let config = Config::from_json(&std::fs::read(path.join("config.json")).unwrap()).unwrap();
    let layout = KvLayout::new(&config, 1, DType::F32, 8).unwrap();
    let options = PoolOptions::new(&layout, config.text.sliding_window, 100, true).unwrap();
    for tokens in 0..300 {
        for chunk in [1, 3, 16, 64] {
            let count = layout.blocks_for_sequence(u64::try_from(tokens).unwrap(), u64::try_from(chunk).unwrap());
            assert_eq!(u64::try_from(options.pages_for(tokens, chunk)).unwrap(), count);
        }
    }
}

#[test]
fn sizes_that_make_no_pool_are_refused() {
    let refused = |options| Pool::new(options).unwrap_err();
    assert_eq!(refused(options(0)), PoolError { what: "pages", found: 0, wanted: "1 to 2^31-1" });
    assert_eq!(refused(PoolOptions { window: 0, ..options(4) }).what, "a window");
    assert_eq!(refused(PoolOptions { full_block: 0, sliding_block: 0, ..options(4) }).what, "blocks");
}
