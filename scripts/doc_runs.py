"""The tables of scripts/doc-commands: how each command of the pages is run.

RUN: page, the command or its start (as typed, spaces folded), replacements that make it small, what its output must hold. In this order;
what an earlier one wrote is there for later ones. {"": X} puts X behind the command.

ELSEWHERE: page, the command or its start, the file that runs it, with all of its flags, and why it is not run here.
"""

from doc_standins import two_ports

PORT = two_ports()
TINY, REAL = "tests/fixtures/tiny-llama31", "smollm2-135m"
SHORT = " --length 400 --limit 1 --depth 0.5 --device cpu"
TINY_EXAMPLES = "--examples 2 --evidence 4 --length 400 --continuation 16"
FEW = f" {TINY_EXAMPLES} --device cpu"
PARTS = f"-m {TINY} --data book.txt --budget-ratio 0.25 --policies h2o,tova{FEW}"
GPU, CPU = "--device cuda --dtype bf16", "--device cpu"
BENCH = {REAL: TINY, "-p 512 -n 128 -d 0,2048": "-p 64 -n 8 -d 0,300"}
RANDOM = {"llama-3.1-8b": REAL, GPU: f"{CPU} --dtype bf16", "": " -p 16 -n 2 -d 0 -r 1"}
OWN_PLAN = {"plans/smollm2-135m-12.5.yaml": "mine.yaml", REAL: TINY}

RUN = [
    ("README.md", "cargo run --release -p polykv-cli -- generate", {}, "silver walnut"),
    ("README.md", "polykv calibrate", {"MODEL": TINY, "": FEW + " --policies h2o,tova,snapkv:window=8"}, "plan"),
    ("README.md", "polykv eval", {"MODEL": TINY, "": SHORT}, "pyramidkv"),
    ("README.md", "polykv chat", {REAL: TINY, "": " -n 8"}, ""),
    ("README.md", "polykv serve", {}, ""),

    ("docs/benchmarks.md", "polykv eval",
     {"MODEL": TINY, "--budget 512": "--budget 64", "results": "bench", "": " --max-length 300"}, "hotpotqa"),

    ("docs/calibration.md", "polykv calibrate -m smollm2-135m --data book.txt --budget",
     {REAL: TINY, "--out found": "--out c1", "": FEW}, ""),
    ("docs/calibration.md", "polykv calibrate -m smollm2-135m --data book.txt notes/",
     {REAL: TINY, "--out found": "--out c2", "": FEW}, ""),
    ("docs/calibration.md", "polykv generate",
     {REAL: TINY, "found/": "c2/", "examples/handbook.txt": "long.txt", "": " -n 8"}, ""),

    ("docs/chat.md", "polykv chat -m smollm2-135m --policy", {REAL: TINY, "": " -n 8"}, ""),
    ("docs/chat.md", "polykv chat -m MODEL", {"MODEL": TINY, "": " -n 8"}, ""),
    ("docs/chat.md", "printf", {REAL: TINY, "polykv chat": "polykv chat -n 8"}, ""),

    ("docs/commands.md", "polykv generate -m smollm2-135m -f", {"-f long.txt": "-f book.txt", "": " -n 4"}, ""),
    ("docs/commands.md", "polykv bench -m", BENCH, "tova"),
    ("docs/commands.md", "polykv bench --random-weights", RANDOM, "tova"),
    ("docs/commands.md", "polykv generate -m smollm2-135m -p",
     {REAL: TINY, "20000": "600", "--budget 512": "--budget 64"}, "entries per layer"),
    ("docs/commands.md", "polykv plan memory", {}, "starter"),

    ("docs/deployment.md", "POLYKV_API_KEY=$(cat key) polykv serve", {REAL: TINY}, ""),
    ("docs/deployment.md", "podman build", {}, ""),
    ("docs/deployment.md", "podman run --rm -v polykv:/data polykv pull", {}, "SmolLM2"),
    ("docs/deployment.md", "podman run --rm -v polykv:/data -p", {"podman run": "POLYKV_API_KEY=secret podman run"}, ""),

    ("docs/evaluation.md", "polykv eval -m smollm2-135m --task ppl", {REAL: TINY, "1024": "256", "": " --limit 1"}, "tova"),
    ("docs/evaluation.md", "polykv eval -m smollm2-135m --task needle", {REAL: TINY, "1000,2000": "300,400", "": " --limit 1"}, "mine"),
    ("docs/evaluation.md", "polykv eval -m smollm2-135m --task fidelity",
     {REAL: TINY, "": " --limit 1 --length 128 --continuation 16"}, '"tasks"'),
    ("docs/evaluation.md", "polykv eval -m smollm2-135m --task longbench",
     {REAL: TINY, "3500": "300", "128,256,512": "48,64,96", "results": "longbench"}, "hotpotqa"),

    ("docs/own-policies.md", "cargo run --release -p own-policy -- plan show", {}, "strided"),
    ("docs/own-policies.md", "cargo run --release -p own-policy -- eval", {REAL: TINY, "--length 500 --limit 2": SHORT}, "strided"),

    ("docs/quick-start.md", "cargo run --release -p polykv-cli -- generate", {"": " -n 2"}, ""),
    ("docs/quick-start.md", "polykv chat", {"": " -n 8"}, ""),
    ("docs/quick-start.md", "polykv serve", {REAL: TINY}, ""),
    ("docs/quick-start.md", "polykv calibrate", {REAL: TINY, "--out found": "--out quick", "": FEW + " --policies h2o,tova"}, ""),
    ("docs/quick-start.md", "polykv eval", {REAL: TINY, "found/": "quick/", "": SHORT}, ""),
    ("docs/quick-start.md", "polykv generate",
     {REAL: TINY, "found/": "quick/", "examples/handbook.txt": "long.txt", "": " -n 8"}, ""),

    # Fetches the model, which the jobs below then use without the hub.
    ("docs/reproduce.md", "scripts/reproduce --model",
     {GPU: CPU, "--budgets 512": "--budgets 96", "4096,8192,16384": "1500",
      "": f""" --calibrate "--policies h2o,tova {TINY_EXAMPLES}" --singles tova,h2o --phases both --shuffles 2"""
          """ --longbench-flags "--limit 1 --max-length 300" --ruler-flags "--limit 1 --only niah_single_2,vt" """}, "its shuffles"),
    ("docs/reproduce.md", "scripts/reproduce --dry-run", {}, "its shuffles"),

    ("docs/deployment.md", "#!/bin/bash #SBATCH --job-name=polykv-serve",
     {GPU: CPU, "8100": str(PORT), "20GiB": "1GiB"}, f"ready: http://127.0.0.1:{PORT + 1}"),

    ("docs/serving.md", "polykv serve", {}, ""),

    ("docs/sessions.md", "polykv generate -m smollm2-135m -f", OWN_PLAN | {"": " -n 8"}, ""),
    ("docs/sessions.md", "polykv generate -m smollm2-135m --session", {REAL: TINY, "": " -n 8"}, "compressed"),

    ("docs/sharding.md", "polykv calibrate … --shard I/N", {"…": PARTS, "I/N": "0/2", "part-I": "part-0"}, ""),
    ("docs/sharding.md", "polykv calibrate … --shard I/N", {"…": PARTS, "I/N": "1/2", "part-I": "part-1"}, ""),
    ("docs/sharding.md", "polykv calibrate … --shards",
     {"calibrate …": f"calibrate {PARTS}", " … ": " ", "--out found": "--out c3"}, ""),
    # The second time there is nothing left to do.
    ("docs/sharding.md", "#!/bin/bash",
     {GPU: CPU, "--array=0-7": "--array=0-1", "plans/*.yaml": "[ab].yaml", "512": "96 --max-length 300 --limit 1"}, "shard"),
    ("docs/sharding.md", "job=$(sbatch --parsable eval.sbatch)", {"": "; echo job $job"}, "job 4711"),
    ("docs/sharding.md", "sbatch --dependency", {"$job": "4711"}, "hotpotqa"),
    ("docs/sharding.md", "polykv eval merge", {"results/all": "results/more"}, "hotpotqa"),

    ("docs/reference.md", "polykv generate -m smollm2-135m -p", {REAL: TINY, "": " -n 4"}, ""),
    ("docs/reference.md", "polykv generate -m smollm2-135m -f", OWN_PLAN | {"": " -n 4"}, ""),
    ("docs/reference.md", "polykv generate -m model.gguf -f", {"model.gguf": TINY, "--budget 512": "--budget 48", "": " -n 4"}, ""),
    ("docs/reference.md", "polykv generate -m model.gguf -p", {"model.gguf": TINY, "": " -n 4"}, "compressed"),
    ("docs/reference.md", "polykv chat -m smollm2-135m --policy tova --budget 256", {REAL: TINY, "": " -n 8"}, ""),
    ("docs/reference.md", "polykv chat -m smollm2-135m --policy tova --budget 256 --system", {REAL: TINY, "": " -n 8"}, ""),
    ("docs/reference.md", "polykv serve -m smollm2-135m", {REAL: TINY}, ""),
    ("docs/reference.md", "polykv serve -m model.gguf", {"model.gguf": TINY, "1024": "64"}, ""),
    ("docs/reference.md", "polykv eval -m smollm2-135m --task ppl", {REAL: TINY, "1024": "256", "": " --limit 1"}, "tova"),
    ("docs/reference.md", "polykv eval -m smollm2-135m --task needle", OWN_PLAN | {"--out results": "--out needles", "": SHORT}, "tova"),
    ("docs/reference.md", "polykv eval merge", {"results/all": "results/again"}, "hotpotqa"),
    ("docs/reference.md", "polykv pull", {}, REAL),
    ("docs/reference.md", "polykv pull smollm2-135m", {}, ""),
    ("docs/reference.md", "polykv pull ORG/NAME", {}, "FILE.gguf"),
    ("docs/reference.md", "polykv bench -m smollm2-135m", BENCH, "h2o"),
    ("docs/reference.md", "polykv bench --random-weights", RANDOM, "tova"),
    ("docs/reference.md", "polykv calibrate -m smollm2-135m --data texts/ --budget-ratio",
     {REAL: TINY, "--out found": "--out r1", "": FEW}, ""),
    ("docs/reference.md", "polykv calibrate -m smollm2-135m --data texts/ --objective",
     {REAL: TINY, "window=16": "window=4", "--out found": "--out r2", "": FEW}, ""),
    *(("docs/reference.md", f"polykv plan {what}", {}, "") for what in ("show", "diff", "shuffle", "memory")),
    ("docs/reference.md", "polykv completions bash", {"~/.local/share/bash-completion/completions/polykv": "completions.bash"}, ""),
    ("docs/reference.md", "polykv completions zsh", {"~/.zfunc/_polykv": "completions.zsh"}, ""),

    ("plans/README.md", "polykv calibrate -m smollm2-135m --dtype f32",
     {REAL: TINY, "texts/calibration": "texts", "--examples 12 --evidence 32 --length 1200 --continuation 128": TINY_EXAMPLES,
      "--refine 76": "--refine 3", "--out found": "--out c4"}, "plan"),
    ("plans/README.md", "polykv calibrate -m smollm2-135m --device cpu",
     {REAL: TINY, "--dtype native": "--dtype f32", "texts/calibration": "texts", "--examples 16 --length 1500": "--examples 2 --length 300 --continuation 12",
      "0.0625": "0.25", "--out found": "--out c5"}, "by parts"),
    ("plans/README.md", "polykv calibrate -m smollm2-135m --heads",
     {REAL: TINY, "--dtype native": "--dtype f32", "texts/calibration": "texts", "--examples 10 --evidence 12 --length 900": TINY_EXAMPLES,
      "0.0625": "0.25", "window=16": "window=4", "--refine 8": "--refine 1", "--out found": "--out c6"}, "by parts"),
]

ELSEWHERE = [
    ("README.md", "scripts/test", ".ci/run", "minutes"),
    ("docs/quick-start.md", "scripts/test", ".ci/run", "minutes"),
    ("docs/deployment.md", "smg launch", "scripts/replicas", "a program that need not be here, and two replicas"),
    ("docs/deployment.md", "scripts/replicas", "scripts/replicas", "itself, by hand: it needs HAProxy"),
]
