#!/usr/bin/env python3
"""Speed of llama.cpp on a checkpoint: another reference beside `cargo bench -p gemma4-model --bench step`.

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
    pip download --no-deps --no-binary llama-cpp-python llama-cpp-python && tar xf llama_cpp_python-*.tar.gz
    pip install torch transformers safetensors    # for the converter and for --compare
    python scripts/llama_cpp_bench.py CHECKPOINT --gguf FOLDER \\
        --converter llama_cpp_python-*/vendor/llama.cpp/convert_hf_to_gguf.py [--type bf16] [--compare] \\
        [--steps 8] [--prefill 512 2048] [--decode 1 8 32] [--context 512] [--flash-attention auto]

The first run converts the checkpoint with llama.cpp's own converter, and later ones do so where the checkpoint is newer. The
steps are those of `transformers_bench.py`: prefill is one prompt from an empty cache, with the logits of its last token;
decode is one token for each of a batch of sequences with `--context` tokens in the cache, each sequence with a cache of its
own. Medians, then the tokens per second of the fastest step; the longest resident set comes last.

`--compare` measures no speed: it prints how far the logits are from those of transformers on the same checkpoint. With
`--type f32`, weights and cache are exact in llama.cpp, but some operators are not (GELU is a table of float16). Random models
of many layers make much of any rounding, so beside it stands what some roundings alone do in transformers.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
ERROR = 4
RECIPE = "`CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python`"
# Rows whose logits are compared, the last ones of a prompt that is longer than the sliding windows of small models.
COMPARED_TOKENS, COMPARED_ROWS = 640, 64

try:
    import llama_cpp
except ImportError:
    sys.exit(f"llama_cpp is not installed: {RECIPE}")


@llama_cpp.llama_log_callback
def log(level: int, text: bytes, _data) -> None:
    """Keeps llama.cpp to its errors."""
    if level == ERROR:
        sys.stderr.write(text.decode(errors="replace"))


def peak_mebibytes() -> float:
    """The longest resident set so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def converted(checkpoint: Path, folder: Path, element_type: str, converter: Path | None) -> Path:
    """The checkpoint as GGUF, made where it is absent or older than the weights."""
    path = folder / f"{checkpoint.name}-{element_type}.gguf"
    # Other programs keep their own forms of the weights in folders beside these.
    files = (file for file in checkpoint.iterdir() if file.suffix in {".json", ".safetensors"})
    newest = max((file.stat().st_mtime for file in files), default=0)
    if path.exists() and path.stat().st_mtime >= newest:
        return path
    if converter is None:
        sys.exit(f"{path} is absent or older than {checkpoint}: name llama.cpp's convert_hf_to_gguf.py with --converter")
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    command = [sys.executable, converter, checkpoint, "--outtype", element_type, "--outfile", part]
    # A process of its own, so that its memory is not counted.
    outcome = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if outcome.returncode != 0:
        sys.exit(f"the conversion failed:\n{outcome.stdout}")
    part.rename(path)
    return path


class Session:
    """A model with a cache for some sequences, each with room for `length` tokens."""

    def __init__(self, model, args: argparse.Namespace, sequences: int, length: int) -> None:
        params = llama_cpp.llama_context_default_params()
        # The cache is divided among the sequences, and each part is rounded up to this many tokens.
        params.n_ctx = sequences * -(-length // 256) * 256
        params.n_seq_max = sequences
        params.n_batch = max(length, sequences)
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = FLASH_ATTENTION[args.flash_attention]
        if args.type == "f32":
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self.model, self.sequences, self.batch = model, sequences, llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        self.context = llama_cpp.llama_init_from_model(model, params)
        if not self.context:
            sys.exit(f"llama.cpp makes no context for {sequences} sequences of {length} tokens")
        self.memory = llama_cpp.llama_get_memory(self.context)

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)

    def step(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Computes rows of token, position, sequence and whether logits are wanted."""
        self.batch.n_tokens = len(rows)
        for index, (token, position, sequence, logits) in enumerate(rows):
            self.batch.token[index], self.batch.pos[index] = token, position
            self.batch.n_seq_id[index], self.batch.seq_id[index][0] = 1, sequence
            self.batch.logits[index] = logits
        status = llama_cpp.llama_decode(self.context, self.batch)
        if status != 0:
            sys.exit(f"llama_decode gave {status} for {len(rows)} rows")
        llama_cpp.llama_synchronize(self.context)

    def prefill(self, tokens: list[int], rows_with_logits: int = 1) -> None:
        """One prompt of sequence 0 from an empty cache."""
        llama_cpp.llama_memory_clear(self.memory, False)
        first = len(tokens) - rows_with_logits
        self.step([(token, position, 0, position >= first) for position, token in enumerate(tokens)])

    def logits(self, tokens: list[int], rows: int) -> list[list[float]]:
        """Logits of the last rows of a prompt."""
        self.prefill(tokens, rows)
        vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        return [llama_cpp.llama_get_logits_ith(self.context, row - rows)[:vocabulary] for row in range(rows)]

    def share(self) -> None:
        """Copies the cache of sequence 0 to all."""
        for sequence in range(1, self.sequences):
            llama_cpp.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)

    def decode(self, tokens: list[int], position: int) -> None:
        """One token for each sequence."""
        self.step([(token, position, sequence, True) for sequence, token in enumerate(tokens)])


def measure(model, args: argparse.Namespace, tokens) -> None:
    """Prints the speed of the steps."""

    def seconds(run) -> tuple[float, float]:
        """Time that passed, and time that the cores computed: the second tells more on a machine that others use too."""
        start, computed = time.perf_counter(), time.process_time()
        run()
        return time.perf_counter() - start, time.process_time() - computed

    def report(what: str, count: int, runs: list[tuple[float, float]]) -> None:
        (passed, computed), least = (statistics.median(times) for times in zip(*runs[1:])), min(runs[1:])[0]
        figures = f"{passed * 1e3:9.1f} ms {computed * 1e3:9.1f} core ms {count / passed:9.1f} tokens/s"
        print(f"{what}: {figures} {count / least:9.1f} at best", flush=True)

    for length in args.prefill:
        session, prompt = Session(model, args, 1, length), tokens(length)
        report(f"prefill {length:5}", length, [seconds(lambda: session.prefill(prompt)) for _ in range(4)])
        session.close()
    for batch in args.decode:
        session = Session(model, args, batch, args.context + args.steps + 1)
        session.prefill(tokens(args.context))
        session.share()
        row = tokens(batch)
        positions = range(args.context, args.context + args.steps + 1)
        report(f"decode b{batch:4}", batch, [seconds(lambda at=at: session.decode(row, at)) for at in positions])
        session.close()
    print(f"peak resident set: {peak_mebibytes():.0f} MiB")


def compare(model, args: argparse.Namespace, tokens) -> None:
    """Prints how far logits are from those of transformers in float32, and how far roundings in transformers take these."""
    import torch
    import transformers

    prompt, rows = tokens(COMPARED_TOKENS), COMPARED_ROWS
    session = Session(model, args, 1, len(prompt))
    found = torch.tensor(session.logits(prompt, rows))
    session.close()
    config = transformers.AutoConfig.from_pretrained(args.checkpoint)
    model_class = getattr(transformers, config.architectures[0])
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)

    def logits(dtype: torch.dtype, activations: torch.dtype) -> torch.Tensor:
        reference = model_class.from_pretrained(args.checkpoint, dtype=dtype).eval()
        for module in reference.modules():
            if isinstance(getattr(module, "act_fn", None), torch.nn.Module):
                module.act_fn.register_forward_hook(lambda _module, _inputs, output: output.to(activations).to(dtype))
        with torch.inference_mode():
            return reference(input_ids=torch.tensor([prompt]), logits_to_keep=rows).logits[0].float()

    exact = logits(torch.float32, torch.float32)
    size = exact.square().mean().sqrt()
    print(f"{rows} rows of logits after {len(prompt) - rows} tokens, {size:.3f} in the root of the mean square")
    print("distance from transformers in float32: root of the mean square, the most, rows whose best token is the same")

    def distance(name: str, values: torch.Tensor) -> None:
        apart, same = (values - exact).abs(), (values.argmax(-1) == exact.argmax(-1)).sum()
        print(f"{name}: {apart.square().mean().sqrt():.4f} {apart.max():.4f} {same} of {rows}", flush=True)

    distance(f"llama.cpp in {args.type}", found)
    distance("transformers with GELU in float16", logits(torch.float32, torch.float16))
    distance("transformers in bfloat16", logits(torch.bfloat16, torch.bfloat16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--gguf", type=Path, required=True, help="folder for converted checkpoints")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--type", choices=["bf16", "f16", "f32", "q8_0"], default="bf16", help="of the converted weights")
    parser.add_argument("--compare", action="store_true", help="logits with those of transformers, instead of measuring")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--decode", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--flash-attention", choices=FLASH_ATTENTION, default="auto")
    args = parser.parse_args()
    if not (args.checkpoint / "config.json").is_file():
        parser.error(f"{args.checkpoint} is no checkpoint: it has no config.json")
    path = converted(args.checkpoint, args.gguf, args.type, args.converter)
    llama_cpp.llama_log_set(log, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(os.fsencode(path), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}; this version may be older than the architecture")
    print(f"{path.name}: llama-cpp-python {llama_cpp.__version__}, {args.threads} threads")
    print(llama_cpp.llama_print_system_info().decode())
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def tokens(count: int) -> list[int]:
        return random.Random(count).choices(range(2048, vocabulary), k=count)

    (compare if args.compare else measure)(model, args, tokens)
    llama_cpp.llama_model_free(model)


if __name__ == "__main__":
    main()
