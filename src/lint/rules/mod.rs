//! The rules, one file each.

/// What every rule file needs.
mod prelude {
    pub(super) use crate::diagnostic::{Diagnostic, Severity};
    pub(super) use crate::lint::rule::{Context, Rule};
    #[allow(unused_imports, reason = "not every rule needs both")]
    pub(super) use crate::words::{commas, gib};

    /// Declares `RULE` with the page of the same name.
    macro_rules! rule {
        ($code:literal, $severity:ident, $summary:literal) => {
            /// The rule.
            pub(super) const RULE: Rule = Rule {
                code: $code,
                severity: Severity::$severity,
                summary: $summary,
                page: include_str!(concat!("../../../docs/rules/", $code, ".md")),
                check,
            };
        };
    }
    pub(super) use rule;
}

macro_rules! rules {
    ($($module:ident),* $(,)?) => {
        $(mod $module;)*
        /// Every rule, in the order of its code.
        pub const RULES: &[super::Rule] = &[$($module::RULE),*];
    };
}

rules![
    batched_tokens_below_seqs,
    batched_tokens_multimodal_floor,
    batched_tokens_not_a_bucket,
    block_size_below_minimum,
    bundled_text_only,
    compile_cache_bucket,
    compile_cache_missing,
    compile_cache_volatile,
    compile_time,
    does_not_fit,
    dtype_float16,
    engine_hardware_mismatch,
    engine_too_old,
    env_shadows_key,
    environ_validation,
    external_ip_missing_nat,
    extra_arg_shadows_key,
    fast_prefill_no_effect,
    flex_start_duration,
    flex_start_unavailable,
    floating_image,
    fp8_kv_no_gain,
    fp8_kv_partial_gain,
    fp8_kv_v5e,
    ignored_engine_flag,
    ignored_environment,
    image_engine_mismatch,
    key_without_effect,
    kv_head_replication,
    localhost_name,
    max_len_cliff,
    max_len_exceeds_model,
    min_token_bucket,
    multi_host,
    multimodal_unused,
    name_mismatch,
    ngram_async_scheduling,
    ngram_bounds,
    ngram_startup_memory,
    open_port_without_key,
    open_to_world,
    padding_gap_shape,
    parser_unsupported,
    per_layer_table_replicated,
    pip_at_start,
    plane_unavailable,
    pool_below_workload,
    program_headroom,
    quantized_weights_unmeasured,
    removed_engine_flag,
    reserved_without_reservation,
    secret_missing,
    shm_size_invalid,
    shm_size_no_effect,
    speculative_method_unsupported,
    spot_dearer,
    stats_disabled,
    tensor_parallel_devices,
    tensor_parallel_heads,
    tensor_parallel_no_gain,
    tool_choice_without_parser,
    unknown_engine_flag,
    utilization_low,
    valid_for_flex,
    vision_tower_heads,
    weight_quantization_unsupported,
    weights_in_ram,
    zone_missing,
];
