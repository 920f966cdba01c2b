#!/usr/bin/env python3
"""Writes tests/fixtures/kvpress-plans.json: what kvpress under PlanPress keeps of prompts, for PolyKV's own tests.

    python tests/fixture.py

One JSON object. `versions` are those of the libraries. `cases` is a list of objects with

    name    in words; unique together with model
    model   the folder of a tiny model beside the file; weights and cache in float32
    plan    a plan file (YAML) with prefill rules only
    prompt  the token ids, in one sequence
    kept    [layer][KV head][entry]: the positions that stay after the prompt, ascending; null for layers with `policy: full`

A prompt in which a choice is nearly a tie is refused: another machine's rounding could choose otherwise.
"""

import json
from importlib.metadata import version

import torch
from cases import FIXTURES, cases, load, run
from polykv_kvpress import PlanFile, PlanPress, press, view

LEAST_GAP = 1e-5
"""The least difference between the last score that stays and the first that goes, in parts of the larger one."""


class Gaps:
    """Watches every choice of entries."""

    def __init__(self) -> None:
        self.smallest = float("inf")
        self.choose = view.best
        view.best = press.best = self.best

    def best(self, scores: torch.Tensor, count: int) -> torch.Tensor:
        if count < scores.shape[-1]:
            ordered = scores.sort(dim=-1, descending=True).values
            last, first = ordered[..., count - 1], ordered[..., count]
            # Exact ties have a rule: the later entry stays. Marks of protected entries are no scores.
            parts = ((last - first) / last.abs())[(last > first) & (last.abs() < 1e30)]
            self.smallest = min([self.smallest, *parts.tolist()])
        return self.choose(scores, count)


def main() -> None:
    torch.set_num_threads(1)
    gaps, models, stored, near = Gaps(), {}, [], []
    for case in cases():
        if case.model not in models:
            models[case.model] = load(case.model)
        model = models[case.model]
        gaps.smallest = float("inf")
        kept = run(PlanPress(PlanFile.parse(case.plan), model), model, case.prompt)
        print(f"{case}: smallest gap {gaps.smallest:.1e}")
        if gaps.smallest < LEAST_GAP:
            near.append(str(case))
        stored.append({"name": case.name, "model": case.model, "plan": case.plan, "prompt": case.prompt, "kept": kept})
    if near:
        raise SystemExit(f"near ties, change their numbers in ATTEMPTS of cases.py: {near}")
    versions = {name: version(name).split("+")[0] for name in ("torch", "transformers", "kvpress")}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in stored)
    path = FIXTURES / "kvpress-plans.json"
    path.write_text(f'{{"versions":{json.dumps(versions)},"cases":[\n{lines}\n]}}\n')
    print(f"{path.name}: {len(stored)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
