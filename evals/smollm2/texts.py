#!/usr/bin/env python3
"""Makes the texts that run.py calibrates and tests on, from copies of your own, and checks them against what results/ names.

Calibration: the contexts of the first samples of MiniLongBench's narrativeqa (3), gov_report (6) and qmsum (3), a JSONL file of
`prompt`s each. Test: the end of char-rnn's tinyshakespeare input.txt, apart from what earlier plans had been tested on.
"""

import argparse
import hashlib
import json
import pathlib

# Task, name and number of the texts, what stands before and after the context in a prompt.
CONTEXTS = [
    ("qmsum", "meeting", 3, "Transcript:\n", "\n\nNow, answer"),
    ("gov_report", "report", 6, "Report:\n", "\n\nNow, write"),
    ("narrativeqa", "story", 3, "Story: ", "\n\nNow, answer the question"),
]


def calibration(folder):
    """Names and texts."""
    for task, name, count, before, after in CONTEXTS:
        lines = (folder / f"{task}.jsonl").read_text().splitlines()[:count]
        for number, line in enumerate(lines):
            prompt = json.loads(line)["prompt"]
            yield f"{name}-{number}.txt", prompt[prompt.index(before) + len(before):prompt.rindex(after)]


def test(plays):
    later = plays[plays.index("\n\n", len(plays) // 5):]
    return later[later.index("\n\n", 3 * (len(later) // 16)):]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minilongbench", type=pathlib.Path, help="folder of its JSONL files")
    parser.add_argument("plays", type=pathlib.Path, help="input.txt")
    parser.add_argument("out", type=pathlib.Path, help="folder for calibration/*.txt and test.txt")
    args = parser.parse_args()
    measured = json.loads((pathlib.Path(__file__).parent / "results" / "0.25.json").read_text())["settings"]
    (args.out / "calibration").mkdir(parents=True, exist_ok=True)
    texts = [(f"calibration/{name}", text) for name, text in sorted(calibration(args.minilongbench))]
    wanted = [*measured["calibration_sha256"], measured["test_sha256"]]
    for (name, text), sha256 in zip([*texts, ("test.txt", test(args.plays.read_text()))], wanted, strict=True):
        (args.out / name).write_text(text)
        same = hashlib.sha256(text.encode()).hexdigest() == sha256
        print(f"{name}: {len(text):,} characters, {'as measured' if same else 'NOT what was measured'}")


if __name__ == "__main__":
    main()
