"""Proves one profile of each size with the TPU compiler and prints what it counts, as tests/fixtures/proofs.json has it.

Usage: python3 scripts/proofs.py GEMMA4CTL. Takes minutes a profile; needs x86-64 Linux.
"""

import json
import subprocess
import sys

PROFILES = ["e2b-v6e-1", "e2b-v6e-4", "12b-v6e-4", "turbo-stable", "31b-v6e-8"]


def prove(program: str, profile: str) -> dict:
    command = [program, "plan", profile, "--set", "engine.kind=bundled", "--prove", "--format", "json"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if result.returncode > 1:
        sys.exit(f"{profile}: exit code {result.returncode}")
    return json.loads(result.stdout)


def main() -> None:
    sizes, compilers = {}, set()
    for profile in PROFILES:
        plan = prove(sys.argv[1], profile)
        proof, budget = plan["proof"], plan["memory"]["per_device"]
        device = proof["per_device"]
        off = device["arguments"] / (budget["weights"] + budget["kv"]) - 1
        if abs(off) > 0.01:
            sys.exit(f"{profile}: the compiler's arguments are {off:+.2%} of the budget's weights and KV cache")
        compilers.add(proof["compiler"])
        sizes[profile] = {
            "topology": proof["topology"],
            "fits": proof["fits"],
            "budget": budget["weights"] + budget["kv"],
            **{key: device[key] for key in ["arguments", "temporaries", "code"]},
        }
    [compiler] = compilers
    print(json.dumps({"compiler": compiler, "profiles": sizes}, indent=2))


main()
