//! An 8-bit KV cache that halves some layers and not others.

use super::prelude::*;

rule!("fp8-kv-partial-gain", Info, "an 8-bit KV cache that saves less than half for this model at this parallelism");

fn check(context: &Context<'_>, findings: &mut Vec<Diagnostic>) {
    let resolved = context.resolved;
    if !context.on_tpu() || resolved.memory.kv_dtype.bits() != 8 {
        return;
    }
    let tp = u64::from(resolved.tensor.max(1));
    let (mut wide, mut narrow, mut whole, mut layers) = (0_u64, 0_u64, 0_u64, 0_u64);
    for (_, layer) in resolved.model.config.text.owning_layers() {
        // Entries of one device: K and V of each head; four 8-bit entries share a row.
        let entries = 2 * (layer.kv_heads.max(tp) / tp);
        let width = layer.head_dim.next_multiple_of(128) * tp;
        let (bits16, bits8) = (entries * width * 2, entries.next_multiple_of(4) * width);
        wide += bits16;
        narrow += bits8;
        layers += 1;
        whole += u64::from(bits8 == bits16);
    }
    // No saving at all is the matter of fp8-kv-no-gain.
    if narrow >= wide || narrow * 2 <= wide {
        return;
    }
    let percent = (wide - narrow) * 100 / wide;
    findings.push(
        RULE.finding(
            context.at("memory.kv_cache_dtype"),
            format!("fp8 KV saves {percent} %, not half: {whole} of {layers} layers have one KV head on a device and gain nothing, so a token costs {} bytes on all chips together instead of {}", commas(narrow), commas(wide)),
        )
        .help("worth it if the pool is what limits you; otherwise `bfloat16` keeps full accuracy"),
    );
}
