#!/usr/bin/env python3
"""Ask other memory estimators about Gemma 4 and compare them with exact arithmetic.

    python3 scripts/estimators.py > scripts/estimators.json

Needs no model, no accelerator and no network except for installing the pinned packages of
estimators-requirements.txt into .tools/estimators (skipped while that file is unchanged).
Each estimator's own code is run on configs in the published form of config.json. All numbers
are for one sequence, bf16 weights and cache, one device.

Estimators in the output:
  hf-mem           its cache formula. It reads weights from the checkpoint's own headers on the
                   Hub, which are exact, so there is nothing to predict: null.
  aiconfigurator   the memory model of its SDK (package aiconfigurator-core), the one that
                   `aiconfigurator cli estimate --detail memory` prints.
  exact            layer arithmetic: sliding layers hold at most one window, layers that share
                   another layer's cache hold none. Weights are those of the text model.
  exact-vllm-tpu   the same layers as vLLM lays them out on one TPU device, where sliding layers
                   reserve the full sequence too.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import venv
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = Path(__file__).resolve().with_name("estimators-requirements.txt")
VENV = ROOT / ".tools" / "estimators"
INSTALL_ERROR = "GEMMA4CTL_ESTIMATORS_INSTALL_ERROR"

PACKAGES = ["aiconfigurator-core", "hf-mem"]
SEQUENCES = [32_768, 131_072]
BF16 = 2
VOCABULARY = 262_144
HEAD_DIM = {"sliding_attention": 256, "full_attention": 512}

# One performance table is needed to build aiconfigurator's model; weights and cache do not depend on it.
AIC_TABLE = ("h200_sxm", "vllm", "0.24.0")


def config(hidden, layers, period, window, heads, kv_heads, mlp, *, shared=0, global_kv_heads=None,
           per_layer_width=0, wide_mlp=False, experts=None, unified=False):
    """A config.json in the published form, reduced to what sizes depend on."""
    kind = "gemma4_unified" if unified else "gemma4"
    count, top_k, expert_mlp = experts or (None, None, None)
    layer_types = ["full_attention" if i % period == period - 1 else "sliding_attention" for i in range(layers)]
    return {
        "architectures": [f"Gemma4{'Unified' if unified else ''}ForConditionalGeneration"],
        "dtype": "bfloat16",
        "model_type": kind,
        "text_config": {
            "attention_k_eq_v": global_kv_heads is not None,
            "dtype": "bfloat16",
            "enable_moe_block": experts is not None,
            "global_head_dim": HEAD_DIM["full_attention"],
            "head_dim": HEAD_DIM["sliding_attention"],
            "hidden_size": hidden,
            "hidden_size_per_layer_input": per_layer_width,
            "intermediate_size": mlp,
            "layer_types": layer_types,
            "max_position_embeddings": 131_072 if shared else 262_144,
            "model_type": f"{kind}_text",
            "moe_intermediate_size": expert_mlp,
            "num_attention_heads": heads,
            "num_experts": count,
            "num_global_key_value_heads": global_kv_heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "num_kv_shared_layers": shared,
            "sliding_window": window,
            "tie_word_embeddings": True,
            "top_k_experts": top_k,
            "use_double_wide_mlp": wide_mlp,
            "vocab_size": VOCABULARY,
            "vocab_size_per_layer_input": VOCABULARY,
        },
        "tie_word_embeddings": True,
    }


MODELS = {
    "E2B": config(1536, 35, 5, 512, 8, 1, 6144, shared=20, per_layer_width=256, wide_mlp=True),
    "E4B": config(2560, 42, 6, 512, 8, 2, 10_240, shared=18, per_layer_width=256),
    "12B": config(3840, 48, 6, 1024, 16, 8, 15_360, global_kv_heads=1, unified=True),
    "26B-A4B": config(2816, 30, 6, 1024, 16, 8, 2112, global_kv_heads=2, experts=(128, 8, 704)),
    "31B": config(5376, 60, 6, 1024, 32, 16, 21_504, global_kv_heads=4),
}


def layers(text):
    """(type, K/V heads, head size, owns a cache) of every layer."""
    owning = text["num_hidden_layers"] - text["num_kv_shared_layers"]
    for index, kind in enumerate(text["layer_types"]):
        full = kind == "full_attention" and text["attention_k_eq_v"]
        heads = text["num_global_key_value_heads"] if full else text["num_key_value_heads"]
        yield kind, heads, HEAD_DIM[kind], index < owning


def exact_cache(text, tokens, bounded):
    """Cache bytes of one sequence; `bounded` keeps no more than the window on sliding layers."""
    total = 0
    for kind, heads, size, owns in layers(text):
        kept = min(tokens, text["sliding_window"]) if bounded and kind == "sliding_attention" else tokens
        total += 2 * heads * size * BF16 * kept if owns else 0
    return total


def exact_weights(text):
    """Bytes of the text model: tied embedding once, per-layer embeddings, no unused K/V tensors."""
    hidden, width, mlp = text["hidden_size"], text["hidden_size_per_layer_input"], text["intermediate_size"]
    count = text["num_hidden_layers"]
    total = VOCABULARY * hidden + hidden  # embedding, final norm
    if width:
        total += VOCABULARY * count * width + count * width * hidden + width  # table, projection, norm
    for kind, heads, size, owns in layers(text):
        query = text["num_attention_heads"] * size
        total += 2 * hidden * query + size  # q, o, q norm
        if owns:
            shares_v = kind == "full_attention" and text["attention_k_eq_v"]
            total += hidden * heads * size * (1 if shares_v else 2) + size  # k, v, k norm
        total += 3 * hidden * mlp * (2 if text["use_double_wide_mlp"] and not owns else 1)
        total += 4 * hidden + 1  # norms, layer scalar
        if width:
            total += 2 * hidden * width + hidden  # gate, projection, norm
        if text["enable_moe_block"]:
            experts = text["num_experts"]
            total += 3 * hidden * text["moe_intermediate_size"] * experts
            total += hidden * experts + hidden + experts + 3 * hidden  # router, its scales, norms
    return total * BF16


def ask_exact(model, tokens):
    text = model["text_config"]
    return exact_cache(text, tokens, True), exact_weights(text), "sliding layers hold one window; text weights"


def ask_exact_tpu(model, tokens):
    return exact_cache(model["text_config"], tokens, False), None, "sliding layers reserve the full sequence"


def ask_hf_mem(model, tokens):
    from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size, resolve_kv_cache_dtype
    from hf_mem.safetensors.metadata import SafetensorsMetadata

    text = model["text_config"]
    nothing = SafetensorsMetadata(components={}, param_count=0, bytes_count=0)
    dtype = resolve_kv_cache_dtype(text, "auto", nothing, "gemma-4")
    size = compute_safetensors_kv_cache_size(text, dtype, tokens)
    return size, None, "weights are read from the checkpoint, not predicted"


def ask_aiconfigurator(model, tokens):
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.memory import KVCacheEstimator
    from aiconfigurator_core.sdk.models import get_model

    sizes = dict(tp_size=1, pp_size=1, attention_dp_size=1, moe_tp_size=1, moe_ep_size=1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(model))
        built = get_model(folder, build_model_config(kvcache_quant_mode="bfloat16", **sizes), AIC_TABLE[1])
        memory = KVCacheEstimator.from_request(folder, *AIC_TABLE, max_num_tokens=1, max_batch_size=1, **sizes)
    note = "weights count the tied head beside the embedding"
    if model["text_config"]["num_kv_shared_layers"]:
        note += "; shared caches, per-layer embeddings and wide MLPs are not modelled"
    return int(built.get_kvcache_bytes_per_sequence(tokens)), int(memory.breakdown["weights_bytes"]), note


ESTIMATORS = {
    "aiconfigurator": ask_aiconfigurator,
    "exact": ask_exact,
    "exact-vllm-tpu": ask_exact_tpu,
    "hf-mem": ask_hf_mem,
}


def ask(name, model, tokens):
    """One row's numbers; an estimator that cannot answer says why, in the first sentence of its error."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # keep our stdout pure JSON
            return ESTIMATORS[name](model, tokens)
    except ImportError as error:
        return None, None, f"not installed: {os.environ.get(INSTALL_ERROR) or error}"
    except Exception as error:  # whatever their code raises is the answer
        return None, None, f"unsupported: {str(error).split('. ')[0].strip() or type(error).__name__}"


def version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def enter_venv():
    """Restart inside .tools/estimators, installing it first where the requirements have changed."""
    if Path(sys.prefix).resolve() == VENV.resolve():
        return
    python, stamp = VENV / "bin" / "python", VENV / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    environment = dict(os.environ, PYTHONWARNINGS="ignore", HF_HUB_OFFLINE="1")
    if not (stamp.is_file() and stamp.read_text() == wanted):
        print(f"estimators: installing {REQUIREMENTS.name} into {VENV.relative_to(ROOT)}", file=sys.stderr)
        venv.create(VENV, clear=True, with_pip=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS]
        result = subprocess.run(pip, stderr=subprocess.PIPE, text=True)
        if result.returncode == 0:
            stamp.write_text(wanted)
        else:
            errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            environment[INSTALL_ERROR] = errors[-1] if errors else f"pip ended with {result.returncode}"
            print(f"estimators: {environment[INSTALL_ERROR]}", file=sys.stderr)
    os.execve(python, [str(python), __file__, *sys.argv[1:]], environment)


def main():
    enter_venv()
    cases = []
    for model, published in MODELS.items():
        for tokens in SEQUENCES:
            for name in ESTIMATORS:
                cache, weights, note = ask(name, published, tokens)
                cases.append({"model": model, "sequence_tokens": tokens, "estimator": name,
                              "kv_bytes": cache, "weights_bytes": weights, "note": note})
    versions = {package: version(package) for package in PACKAGES}
    print(json.dumps({"versions": versions, "cases": cases}, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
