//! The KV cache.

use gemma4_model::DType;
use gemma4_model::config::AttentionKind::{Full, Sliding};
use gemma4_model::kv::{Capacity, KvError, KvLayout};
use serde_json::json;

use crate::data::{B12, B26, B31, E2B, E4B, FIXTURES, config, edited};

fn layout(bytes: &[u8], tp: u64, block: u32) -> KvLayout {
    KvLayout::new(&config(bytes), tp, DType::Bf16, block).expect("a layout")
}

#[test]
fn bytes_per_token_match_the_published_sizes() {
    // KiB per token in bfloat16: full layers, sliding layers. Full layers of the three large ones store values alone.
    let expected = [(E2B, 6, 12), (E4B, 16, 40), (B12, 8, 320), (B26, 10, 200), (B31, 40, 800)];
    for (bytes, full, sliding) in expected {
        let layout = layout(bytes, 1, 32);
        assert_eq!(layout.bytes_per_token(Full), full * 1024);
        assert_eq!(layout.bytes_per_token(Sliding), sliding * 1024);
        let half = KvLayout::new(&config(bytes), 1, DType::F8E4M3, 32).expect("a layout");
        assert_eq!(half.bytes_per_token(Full), full * 512);
    }
}

#[test]
fn sequences_cost_what_the_window_leaves() {
    // GiB of one sequence of 32768 and of 131072 tokens, in hundredths; pages add less than three blocks.
    let expected = [(E2B, 19, 76), (E4B, 52, 202), (B12, 56, 131), (B26, 51, 145), (B31, 203, 578)];
    for (bytes, short, long) in expected {
        let layout = layout(bytes, 1, 32);
        for (tokens, hundredths) in [(32768, short), (131_072, long)] {
            let found = layout.blocks_for_sequence(tokens, 0) * layout.page_bytes_per_device();
            let exact = hundredths * (1_u64 << 30) / 100;
            let slack = exact / 20 + 3 * layout.page_bytes_per_device();
            assert!(found + exact / 50 > exact && found < exact + slack, "{found} for {exact}");
        }
    }
    // With blocks of 16: 103 full pages of 320 tokens, 64 sliding ones and one for misalignment.
    let layout = layout(B31, 1, 16);
    assert_eq!(layout.tokens_per_block(Full), 320);
    assert_eq!(layout.blocks_for_sequence(32768, 0), 103 + 65);
}

#[test]
fn blocks_of_both_kinds_fill_the_same_page() {
    for (bytes, full) in [(E2B, 64), (E4B, 80), (B12, 1280), (B26, 640), (B31, 640)] {
        let layout = layout(bytes, 1, 32);
        assert_eq!(layout.tokens_per_block(Sliding), 32);
        assert_eq!(layout.tokens_per_block(Full), full);
        assert_eq!(layout.page_bytes_per_device(), 32 * layout.bytes_per_token(Sliding));
        assert_eq!(layout.wasted_bytes_per_page(Full), 0);
        assert_eq!(layout.wasted_bytes_per_page(Sliding), 0);
    }
    // 320 KiB hold 20 tokens of E4B's full layers, of which a multiple of 8 is used.
    let layout = layout(E4B, 1, 8);
    assert_eq!(layout.tokens_per_block(Full), 16);
    assert_eq!(layout.wasted_bytes_per_page(Full), 4 * 16 * 1024);
}

#[test]
fn heads_are_dealt_out_or_repeated() {
    // E2B has one head: four devices store it four times.
    let e2b = layout(E2B, 4, 32);
    assert_eq!(e2b.bytes_per_token(Sliding), 12 * 1024);
    assert_eq!(e2b.bytes_per_token_on_all_devices(Sliding), 48 * 1024);
    assert_eq!(e2b.block_shape(0), Some(vec![32, 2, 1, 256]));
    assert_eq!(e2b.block_shape(4), Some(vec![64, 2, 1, 512]));
    // Layer 15 borrows from layer 13.
    assert_eq!((e2b.block_shape(15), e2b.block_offset(15)), (None, None));
    assert_eq!(e2b.block_shape(35), None);
    // 31B on eight devices: 16 sliding heads give two each, 4 full heads one each, twice.
    let b31 = layout(B31, 8, 16);
    assert_eq!(b31.block_shape(0), Some(vec![16, 2, 2, 256]));
    assert_eq!(b31.bytes_per_token(Sliding), 100 * 1024);
    assert_eq!(b31.bytes_per_token(Full), 10 * 1024);
    assert_eq!(b31.bytes_per_token_on_all_devices(Full), 80 * 1024);
    assert_eq!(b31.block_shape(5), Some(vec![160, 1, 1, 512]));
}

#[test]
fn parts_of_a_page_follow_one_another() {
    let sources = FIXTURES.iter().map(|fixture| fixture.published);
    for bytes in sources.chain([E2B, E4B, B12, B26, B31]) {
        let config = config(bytes);
        for tp in [1, 2, 4] {
            let layout = layout(bytes, tp, 8);
            for kind in [Sliding, Full] {
                let mut end = 0;
                for (layer, _) in config.text.owning_layers_of(kind) {
                    assert_eq!(layout.block_offset(layer), Some(end));
                    let shape = layout.block_shape(layer).expect("it owns keys and values");
                    end += shape.iter().product::<u64>() * 2;
                }
                let page = layout.page_bytes_per_device();
                assert_eq!(end + layout.wasted_bytes_per_page(kind), page);
            }
        }
    }
}

#[test]
fn sequences_count_window_slack_and_misalignment() {
    // E2B: W = 512, sliding blocks of 32, full blocks of 64.
    let layout = layout(E2B, 1, 32);
    assert_eq!(layout.blocks_for_sequence(0, 0), 0);
    assert_eq!(layout.blocks_for_sequence(1, 0), 2);
    assert_eq!(layout.blocks_for_sequence(512, 0), 8 + 16);
    assert_eq!(layout.blocks_for_sequence(513, 0), 9 + 17);
    assert_eq!(layout.blocks_for_sequence(4096, 0), 64 + 17);
    assert_eq!(layout.blocks_for_sequence(4096, 1024), 64 + 48 + 1);
    // A chunk longer than the sequence: no more than all blocks.
    assert_eq!(layout.blocks_for_sequence(1024, 4096), 16 + 32);
    assert_eq!(layout.blocks_for_sequence(u64::MAX, u64::MAX), (1 << 58) + (1 << 59));
    let expected = Capacity { sequences: 12, tokens: 12 * 4096 };
    assert_eq!(layout.capacity(1000, 4096, 0), expected);
    assert_eq!(layout.capacity(80, 4096, 0), Capacity { sequences: 0, tokens: 0 });
}

#[test]
fn models_with_one_kind_have_one_kind_of_block() {
    let full = vec!["full_attention"; 35];
    let bytes =
        edited(E2B, &[("/text_config/layer_types", json!(full)), ("/text_config/num_kv_shared_layers", json!(0))]);
    let only_full = layout(&bytes, 1, 16);
    assert_eq!((only_full.tokens_per_block(Full), only_full.tokens_per_block(Sliding)), (16, 0));
    assert_eq!(only_full.wasted_bytes_per_page(Sliding), 0);
    assert_eq!(only_full.blocks_for_sequence(100, 0), 7);

    let mut config = config(E2B);
    config.text.layers.retain(|layer| layer.kind == Sliding && layer.owns_kv());
    let only_sliding = KvLayout::new(&config, 1, DType::Bf16, 16).expect("a layout");
    assert_eq!(only_sliding.tokens_per_block(Full), 0);
    assert_eq!(only_sliding.blocks_for_sequence(100_000, 0), 33);

    config.text.layers.clear();
    let error = KvLayout::new(&config, 1, DType::Bf16, 16);
    assert!(matches!(error, Err(KvError::Size(_))));
}

#[test]
fn unusable_layouts_are_refused() {
    let config = config(B26);
    for block_size in [0, 4, 12, 1 << 17] {
        let error = KvLayout::new(&config, 1, DType::Bf16, block_size);
        assert_eq!(error, Err(KvError::BlockSize { block_size }));
    }
    for dtype in [DType::I8, DType::I4, DType::F8E8M0, DType::Bool] {
        assert_eq!(KvLayout::new(&config, 1, dtype, 32), Err(KvError::DType(dtype)));
    }
    for devices in [0, 3] {
        let error = KvLayout::new(&config, devices, DType::Bf16, 32);
        assert_eq!(error, Err(KvError::Heads { layer: 0, heads: 8, devices }));
    }
}
