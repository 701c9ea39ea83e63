#!/usr/bin/env python3
"""Speed of the bundled runtime through its server: starts it on a checkpoint and asks `gemma4ctl bench`.

    python3 scripts/server_speed.py CHECKPOINT [--gemma4ctl target/release/gemma4ctl] [--decode 1 8 32] [--prefill 512 2048]
        [--context 512] [--output-tokens 64] [--rounds 3] [--set KEY=VALUE ...] [--port 18080]

Decode is tokens per second of the given numbers of users, from the median time between two tokens.
Prefill is prompt tokens per second of one user, from the median time to the first token, with fast prefill and without. Mixed is
eight users whose prompts are computed beside the others' answers. Greedy, nothing kept between requests. The bench's own
reports stay in the folder that is printed last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

# Each run has prompts of its own: none is in the prefix cache.
SEEDS = itertools.count(1)


@contextmanager
def server(args: argparse.Namespace, folder: Path, name: str, settings: list[str]):
    """A server on a plan of the smoke profile with the checkpoint and these settings."""
    plan = folder / f"{name}.plan.json"
    most = max(args.prefill + [args.context]) + args.output_tokens + 64
    own = [
        f"server.port={args.port}",
        f"model.id={args.checkpoint.resolve()}",
        f"scheduler.max_model_len={1 << (most - 1).bit_length()}",
        f"scheduler.max_num_seqs={max(args.decode + [8])}",
        f"scheduler.max_num_batched_tokens={max(args.prefill)}",
    ]
    sets = [part for setting in own + args.set + settings for part in ("--set", setting)]
    command = [args.gemma4ctl, "plan", "smoke", *sets]
    planned = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    if planned.returncode != 0:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        sys.exit(f"{' '.join(command)} failed:\n{told.stdout}{told.stderr}")
    plan.write_text(planned.stdout)
    log = (folder / f"{name}.log").open("w")
    running = subprocess.Popen([args.gemma4ctl, "runtime", "serve", str(plan)], stdout=log, stderr=log)
    try:
        ready(args, running, log.name)
        yield
    finally:
        running.terminate()
        running.wait(timeout=60)
        log.close()


def ready(args: argparse.Namespace, running: subprocess.Popen, log: str) -> None:
    """Waits until the server answers."""
    end = time.monotonic() + args.patience
    while time.monotonic() < end:
        if running.poll() is not None:
            sys.exit(f"the server ended with {running.returncode}:\n{Path(log).read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{args.port}/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"the server was not ready after {args.patience} s; its log is {log}")


def bench(args: argparse.Namespace, report: Path, users: int, context: int, output: int) -> dict:
    """The figures of the only point of a run."""
    command = [
        *(args.gemma4ctl, "bench", f"http://127.0.0.1:{args.port}", "--out", str(report), "--seed", str(next(SEEDS))),
        *("--users", str(users), "--contexts", str(context + output), "--output-tokens", str(output)),
        *("--requests-per-user", str(args.rounds)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}{done.stdout}")
    [point] = json.loads(report.read_text())["points"]
    return point["figures"]


def row(what: str, speed: str, rest: str) -> None:
    print(f"| {what} | {speed} | {rest} |", flush=True)


def decode(args: argparse.Namespace, folder: Path) -> None:
    """Tokens of all users by the median time between two tokens of one, in which no prompt of another is computed."""
    for users in args.decode:
        figures = bench(args, folder / f"decode-{users}.json", users, args.context, args.output_tokens)
        between = figures["chunk_gap"]
        if figures["chunks"] < figures["output_tokens"]:
            sys.exit(f"{figures['chunks']} pieces for {figures['output_tokens']} tokens: gaps are not those between tokens")
        row(f"decode, {users} user{'' if users == 1 else 's'}", f"{users / between['p50']:.1f}", f"{between['p50'] * 1e3:.1f} ms between tokens")


def prefill(args: argparse.Namespace, folder: Path, name: str) -> None:
    """Tokens of a prompt by the time to its answer's first."""
    for length in args.prefill:
        first = bench(args, folder / f"{name}-{length}.json", 1, length, 4)["ttft"]
        row(f"prefill of {length}, {name}", f"{length / first['p50']:.0f}", f"first token after {first['p50'] * 1e3:.0f} ms")


def mixed(args: argparse.Namespace, folder: Path) -> None:
    """Prompts beside answers."""
    figures = bench(args, folder / "mixed.json", 8, args.context, args.output_tokens)
    first, between, gap = figures["ttft"], figures["inter_token"], figures["chunk_gap"]
    row(
        f"8 users, prompts of {args.context} beside decode",
        f"{figures['output_tokens_per_second']:.1f} out, {figures['prompt_tokens_per_second']:.0f} in",
        f"first token {first['p50']:.2f} s (99 %: {first['p99']:.2f}), between tokens {between['p50'] * 1e3:.0f} ms, "
        f"longest pause {gap['max']:.2f} s",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--gemma4ctl", default="target/release/gemma4ctl")
    parser.add_argument("--decode", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="requests of each user")
    parser.add_argument("--set", action="append", default=[], help="a setting of the profile, more than once if need be")
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--patience", type=int, default=600, help="seconds until the server has to be ready")
    args = parser.parse_args()
    if not (args.checkpoint / "config.json").is_file():
        sys.exit(f"{args.checkpoint} is no checkpoint: it has no config.json")
    if shutil.which(args.gemma4ctl) is None:
        sys.exit(f"{args.gemma4ctl} cannot be run: `cargo build --release`, or name another with --gemma4ctl")
    folder = Path(tempfile.mkdtemp(prefix="server-speed-"))
    print(f"{args.checkpoint.name}{''.join(' ' + setting for setting in args.set)}\n")
    print("| Through the server | tokens/s | |\n|---|---|---|", flush=True)
    with server(args, folder, "fast", []):
        decode(args, folder)
        prefill(args, folder, "fast prefill")
        mixed(args, folder)
    with server(args, folder, "all", ["scheduler.kv_sharing_fast_prefill=false"]):
        prefill(args, folder, "all rows in all layers")
    print(f"\nreports: {folder}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
