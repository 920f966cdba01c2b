#!/usr/bin/env python3
"""What scripts/doc-commands runs the pages' commands with: a folder with the files that they name, a model hub on this machine, and,
under their names in the folder bin, stand-ins for programs that are not here.

  podman    `build` reads the file and looks for what it copies, but builds nothing; `run` starts the program of this machine with the
            file's environment and a folder in place of /data. Not shown: the image, its user, published ports.
  sbatch    runs the script at once, task by task, with the variables of its #SBATCH line, and ends its steps when it is told to end.
  srun      starts one process for each task. Not shown of Slurm: queues, limits, nodes, GPUs; unknown flags are refused by both.
  hostname  knows the loopback address alone.
"""

import argparse
import contextlib
import functools
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.dont_write_bytecode = True
from markdown_links import ROOT  # noqa: E402

PLAN = """schema: 1
layers: 3
budget: {ratio: 0.5}
prefill:
  - {layers: 0-1, policy: h2o, share: 1}
  - {layers: 2, policy: tova, share: 2}
"""
COMMIT, JOB = "0123456789abcdef0123456789abcdef01234567", "4711"
RULER = ("niah", "variable_tracking", "common_words_extraction", "freq_words_extraction", "qa")
RULER_ENTRY = """'{}': {{
    'tokens_to_generate': 8, 'template': 'Some things are here: {{context}} Tell {{query}}.', 'answer_prefix': ' It is'
}},
"""


def folder(program, place):
    """Makes `place` a folder in which the pages' commands find what they name."""
    (place / "bin").mkdir()
    (place / "bin/polykv").symlink_to(program)
    own = program.parent / "own-polykv"
    if own.exists():
        (place / "bin/own-polykv").symlink_to(own)
    for name in PROGRAMS:
        (place / "bin" / name).symlink_to(Path(__file__).resolve())
    for name in ("Cargo.lock", "Cargo.toml", "containers", "evals", "examples", "plans", "scripts", "tests"):
        (place / name).symlink_to(ROOT / name)
    handbook = (ROOT / "examples/handbook.txt").read_text(encoding="utf-8")
    texts = {"book.txt": handbook, "long.txt": handbook[:400], "texts/a.txt": handbook, "notes/a.txt": handbook, "novels/a.txt": handbook,
             "mine.yaml": PLAN, "plan.yaml": PLAN, "a.yaml": PLAN, "b.yaml": PLAN.replace("0.5", "0.25"), "key": "secret\n",
             "home/.polykv-key": "secret\n", "PaulGrahamEssays.json": json.dumps({"text": handbook}),
             "RULER/scripts/data/synthetic/constants.py": "TASKS = {\n" + "".join(map(RULER_ENTRY.format, RULER)) + "}\n",
             "RULER/scripts/data/synthetic/niah.py": 'needle = "The {type_needle_v} of {key}: {value}."\nhaystack = "Moss grows."\n'}
    for name, text in texts.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text, encoding="utf-8")
    # Its dry run makes data in LongBench's format, even where it only prints its commands.
    made = [place / "scripts/reproduce", "--dry-run", "--print", "--out", place / "made-up"]
    subprocess.run(made, check=True, capture_output=True)
    (place / "LongBench").symlink_to(place / "made-up/made-up-longbench")
    models(program, place)


def models(program, place):
    """What the hub has, and what lies in the container's volume."""
    pulled = subprocess.run([program, "pull", "smollm2-135m"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    (place / "volumes/polykv/cache").mkdir(parents=True)
    (place / "volumes/polykv/cache/polykv").symlink_to(Path(pulled).parent.parent)
    llama, file = (place / "hub" / name / "resolve/main" for name in ("meta-llama/Llama-3.1-8B-Instruct", "ORG/NAME"))
    for branch in (llama, file):
        branch.mkdir(parents=True)
        (branch.parent / COMMIT).symlink_to(branch)
    (file / "FILE.gguf").symlink_to(pulled)
    tiny = ROOT / "tests/fixtures/tiny-llama31"
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        shutil.copy(tiny / name, llama)
    # RULER's prompts have more tokens than the context of the fixture.
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8")) | {"max_position_embeddings": 4096}
    (llama / "config.json").write_text(json.dumps(config), encoding="utf-8")


class Files(http.server.SimpleHTTPRequestHandler):
    """ORG/NAME/resolve/REVISION/FILE, as a hub has it."""

    def end_headers(self):
        self.send_header("X-Repo-Commit", COMMIT)
        super().end_headers()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def hub(place):
    """The address of a hub with the files of a folder, for as long as the context lasts."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=place))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def two_ports():
    """A port that is free, as is the next one."""
    while True:
        with socket.socket() as one, socket.socket() as next_one, contextlib.suppress(OSError, OverflowError):
            one.bind(("", 0))
            port = one.getsockname()[1]
            next_one.bind(("", port + 1))
            return port


def build(words):
    parser = argparse.ArgumentParser("podman build")
    parser.add_argument("-f", required=True, type=Path)
    parser.add_argument("-t", required=True)
    parser.add_argument("context", type=Path)
    args = parser.parse_args(words)
    text = re.sub(r"^#.*\n", "", args.f.read_text(encoding="utf-8"), flags=re.M).replace("\\\n", " ")
    stages, image = set(), {"environment": {}, "entry": []}
    for instruction, rest in re.findall(r"^([A-Z]+) +(.*)$", text, re.M):
        words = rest.split()
        if instruction == "FROM":
            stages.update(words[2:])
            image = {"environment": {}, "entry": []}
        elif instruction == "COPY" and words[0].startswith("--from="):
            if words[0].removeprefix("--from=") not in stages:
                sys.exit(f"{args.f}: no stage {words[0]}")
        elif instruction == "COPY":
            missing = [word for word in words[:-1] if not (args.context / word).exists()]
            if missing:
                sys.exit(f"{args.f}: not there: {missing}")
        elif instruction == "ENV":
            image["environment"] |= dict(word.split("=", 1) for word in shlex.split(rest))
        elif instruction == "ENTRYPOINT":
            image["entry"] = json.loads(rest)
    Path(f"image-{args.t}.json").write_text(json.dumps(image), encoding="utf-8")


def run(words):
    parser = argparse.ArgumentParser("podman run")
    parser.add_argument("--rm", action="store_true")
    for flag in ("-v", "-p", "-e"):
        parser.add_argument(flag, action="append", default=[])
    parser.add_argument("image")
    parser.add_argument("words", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    image = json.loads(Path(f"image-{args.image}.json").read_text(encoding="utf-8"))
    # Nothing else of this environment comes into a container.
    environment = {name: os.environ[name] for name in ["PATH", *args.e]} | image["environment"]
    command = [*image["entry"], *args.words]
    for volume in args.v:
        name, inside = volume.split(":")
        here = Path("volumes") / name
        (here / "sessions").mkdir(parents=True, exist_ok=True)
        moved = functools.partial(re.sub, rf"(?<!\S){inside}(?=/|$)", str(here.absolute()))
        command, environment = [moved(word) for word in command], {name: moved(value) for name, value in environment.items()}
    os.execvpe(command[0], command, environment)


def podman(words):
    {"build": build, "run": run}[words[0]](words[1:])


def sbatch(words):
    parser = argparse.ArgumentParser("sbatch", allow_abbrev=False)
    for flag in ("--parsable", "--requeue"):
        parser.add_argument(flag, action="store_true")
    for flag in ("cpus-per-task", "dependency", "gpus-per-task", "gres", "job-name", "mem", "signal", "time", "wrap"):
        parser.add_argument(f"--{flag}")
    parser.add_argument("--array", default="0-0")
    parser.add_argument("--ntasks", default="1")
    parser.add_argument("script", nargs="?", type=Path)
    args = parser.parse_args(words)
    if args.script:
        header = re.findall(r"^#SBATCH (.*)$", args.script.read_text(encoding="utf-8"), re.M)
        args = parser.parse_args([*shlex.split(" ".join(header)), *words])
    if args.dependency not in (None, f"afterok:{JOB}"):
        sys.exit(f"no such job: {args.dependency}")
    first, last = map(int, args.array.split("-"))
    step = Path("step.pid").absolute()
    # Where --signal does not say B:, the steps get it and the script does not.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(int(step.read_text()), signal.SIGTERM))
    for task in range(first, last + 1):
        environment = {**os.environ, "SLURM_NTASKS": args.ntasks, "SLURM_ARRAY_TASK_ID": str(task),
                       "SLURM_ARRAY_TASK_COUNT": str(last - first + 1)}
        # The standard output is for --parsable.
        command = ["bash", args.script] if args.script else ["sh", "-c", args.wrap]
        if subprocess.run(command, env=environment, stdout=sys.stderr).returncode:
            sys.exit(1)
    print(JOB if args.parsable else f"Submitted batch job {JOB}")


def srun(words):
    parser = argparse.ArgumentParser("srun", allow_abbrev=False)
    parser.add_argument("--output")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args(words)
    children, logs = [], []
    signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in children])
    Path("step.pid").write_text(str(os.getpid()))
    for number in range(int(os.environ.get("SLURM_NTASKS", 1))):
        environment = {**os.environ, "SLURM_PROCID": str(number)}
        if args.output:
            logs.append(Path(args.output.replace("%t", str(number))))
            with logs[-1].open("w") as log:
                children.append(subprocess.Popen(args.command, env=environment, stdout=log, stderr=log))
        else:
            children.append(subprocess.Popen(args.command, env=environment))
    # Who started the job reads there where its servers are.
    while not all("ready: " in log.read_text() or child.poll() is not None for log, child in zip(logs, children)):
        time.sleep(0.1)
    for log in logs:
        print(log.read_text(), file=sys.stderr, flush=True)
    sys.exit(any([child.wait() for child in children]))


def hostname(_):
    print("127.0.0.1 ")


PROGRAMS = {"podman": podman, "sbatch": sbatch, "srun": srun, "hostname": hostname}

if __name__ == "__main__":
    PROGRAMS[Path(sys.argv[0]).name](sys.argv[1:])
