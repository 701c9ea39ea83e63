#!/usr/bin/env python3
"""What vLLM's own argument parser makes of the shipped profiles: tests/fixtures/vllm-parser.json.

Called with the path of gemma4ctl. Prints {profile: {"version", "argv", "parsed": {option: value}}} for every shipped
profile that runs vLLM; `parsed` has the options that the command line names. A command line that the parser refuses
has `refused` in place of `parsed`.

Runs inside an environment with one release of vllm-tpu; VLLM_OVERLAYS names a folder with other releases without
their dependencies (`pip install --no-deps --target FOLDER/0.25 vllm-tpu==0.25.0`). .ci/slow makes both.
No accelerator is needed.
"""

import importlib.metadata
import json
import os
import subprocess
import sys


def parse(argvs: dict[str, list[str]]) -> dict[str, dict]:
    """In this process's vLLM."""
    try:
        from vllm.entrypoints.openai.cli_args import make_arg_parser
    except ModuleNotFoundError:  # moved by 0.29
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    by_flag = {flag: action.dest for action in parser._actions for flag in action.option_strings}
    try:
        parser.parse_args(["--no-such-option"])
    except SystemExit:
        pass
    else:
        sys.exit("this parser takes any option: its answers mean nothing")
    answers = {}
    for name, argv in argvs.items():
        assert argv[:2] == ["vllm", "serve"], argv
        dests = {"model_tag"} | {by_flag[word] for word in argv[2:] if word in by_flag}
        try:
            namespace = vars(parser.parse_args(argv[2:]))
        except SystemExit as error:
            answers[name] = {"refused": str(error)}
            continue
        answers[name] = {"parsed": {dest: namespace[dest] for dest in sorted(dests)}}
    return answers


def shipped(gemma4ctl: str) -> dict[str, dict]:
    """Version and command line of every shipped profile that runs vLLM."""

    def ask(*arguments: str) -> str:
        return subprocess.run([gemma4ctl, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout

    cases = {}
    for profile in json.loads(ask("profiles", "--format", "json"))["profiles"]:
        engine = json.loads(ask("plan", profile["name"], "--format", "json"))["engine"]
        if engine["kind"] != "bundled":
            cases[profile["name"]] = {"version": engine["version"], "argv": engine["argv"]}
    return cases


def main() -> None:
    if sys.argv[1:] == ["--parse"]:
        json.dump(parse(json.load(sys.stdin)), sys.stdout, default=str)
        return
    cases = shipped(sys.argv[1])
    installed = importlib.metadata.version("vllm-tpu")
    for version in sorted({case["version"] for case in cases.values()}):
        argvs = {name: case["argv"] for name, case in cases.items() if case["version"] == version}
        environment = dict(os.environ, JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", HF_HUB_OFFLINE="1")
        if installed != version + ".0":
            environment["PYTHONPATH"] = os.path.join(os.environ["VLLM_OVERLAYS"], version)
            if not os.path.isdir(environment["PYTHONPATH"]):
                sys.exit(f"{environment['PYTHONPATH']}: vLLM {version} is not there")
        command = [sys.executable, __file__, "--parse"]
        given = json.dumps(argvs)
        done = subprocess.run(command, input=given, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        # Libraries greet on standard output; the answer is the last line.
        for name, answer in json.loads(done.stdout.splitlines()[-1]).items():
            cases[name].update(answer)
    json.dump(dict(sorted(cases.items())), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
