#!/usr/bin/env python3
"""Speed of Hugging Face transformers on a checkpoint: the reference beside `cargo bench -p gemma4-model --bench step`.

    pip install torch transformers
    python scripts/transformers_bench.py CHECKPOINT [--steps 8] [--prefill 512 2048] [--decode 1 8 32] [--context 512]

Prefill is one prompt from an empty cache, with the logits of its last token. Decode is one token for each of a batch of
sequences with `--context` tokens in the cache. Medians; the longest resident set comes last.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers


def peak_mebibytes() -> float:
    """The longest resident set so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--decode", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = transformers.AutoConfig.from_pretrained(args.checkpoint)
    model_class = getattr(transformers, config.architectures[0])
    model = model_class.from_pretrained(args.checkpoint, dtype=torch.bfloat16).eval()
    vocabulary = config.get_text_config().vocab_size
    print(f"{args.checkpoint.name}: transformers {transformers.__version__}, torch {torch.__version__}, {args.threads} threads")

    def tokens(batch: int, length: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(length)
        return torch.randint(2048, vocabulary, (batch, length), generator=generator)

    def seconds(run) -> tuple[float, float]:
        """Time that passed, and time that the cores computed: the second tells more on a machine that others use too."""
        start, computed = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - start, time.process_time() - computed

    def report(what: str, count: int, runs: list[tuple[float, float]]) -> None:
        passed, computed = (statistics.median(times) for times in zip(*runs[1:]))
        print(f"{what}: {passed * 1e3:9.1f} ms {computed * 1e3:9.1f} core ms {count / passed:9.1f} tokens/s", flush=True)

    with torch.inference_mode():
        for length in args.prefill:
            ids = tokens(1, length)
            runs = [seconds(lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)) for _ in range(3)]
            report(f"prefill {length:5}", length, runs)
        for batch in args.decode:
            # One prompt whose cache is copied for all, in chunks, so that its activations stay out of the peak.
            cache = None
            for part in tokens(1, args.context).split(128, dim=1):
                cache = model(input_ids=part, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values
            cache.batch_repeat_interleave(batch)
            ids = tokens(batch, 1)
            runs = []
            for _ in range(args.steps + 1):
                runs.append(seconds(lambda: model(input_ids=ids, past_key_values=cache, use_cache=True)))
            report(f"decode b{batch:4}", batch, runs)
    print(f"peak resident set: {peak_mebibytes():.0f} MiB")


if __name__ == "__main__":
    main()
