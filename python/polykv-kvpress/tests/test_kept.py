"""Kept positions against PolyKV: by its program, if POLYKV_BIN names one, and by the committed fixture."""

import json
import os
import struct
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import FIXTURES, Case, cases, load, run, text_of, write_model
from polykv_kvpress import PlanFile, PlanPress
from transformers import PreTrainedModel

BINARY = os.environ.get("POLYKV_BIN")
CASES = cases()


@cache
def model_of(name: str) -> PreTrainedModel:
    return load(name)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {model: write_model(model, root) for model in {case.model for case in CASES}}


def session_of(case: Case, model: Path, folder: Path, new_tokens: int) -> dict[str, Any]:
    """What the program holds after a case and some new tokens, the last of which is chosen and not fed."""
    (folder / "plan.yaml").write_text(case.plan)
    (folder / "prompt").write_text(text_of(case.prompt))
    options = ["--raw", "--device", "cpu", "--dtype", "f32", "-n", str(new_tokens), "--no-stats"]
    files = ["--plan", "plan.yaml", "--file", "prompt", "--save-session", "session"]
    command = [str(BINARY), "generate", "--model", str(model), *options, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = read_session(folder / "session")
    assert numbers["tokens"][0][: len(case.prompt)] == case.prompt
    return numbers


@pytest.mark.skipif(BINARY is None, reason="POLYKV_BIN names no program")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kept_positions_are_those_of_the_program(case: Case, folders: dict[str, Path], tmp_path: Path) -> None:
    numbers = session_of(case, folders[case.model], tmp_path, new_tokens=1)
    found = run(press_of(case), model_of(case.model), case.prompt)
    wanted = [numbers[f"layer.{layer}.positions"][0] for layer in range(len(found))]
    for layer, (kept, theirs) in enumerate(zip(found, wanted, strict=True)):
        if kept is not None:
            assert kept == theirs, f"layer {layer}"


@pytest.mark.skipif(BINARY is None, reason="POLYKV_BIN names no program")
@pytest.mark.parametrize("case", {case.model: case for case in CASES}.values(), ids=str)
def test_new_tokens_are_those_of_the_program(case: Case, folders: dict[str, Path], tmp_path: Path) -> None:
    tokens = session_of(case, folders[case.model], tmp_path, new_tokens=13)["tokens"][0]
    model, ids = model_of(case.model), torch.tensor([case.prompt])
    with press_of(case)(model):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert found[0, : len(tokens)].tolist() == tokens


@pytest.mark.parametrize("case", CASES, ids=str)
def test_kept_positions_are_those_of_the_fixture(case: Case) -> None:
    stored = json.loads((FIXTURES / "kvpress-plans.json").read_text())["cases"]
    (wanted,) = [entry for entry in stored if (entry["model"], entry["name"]) == (case.model, case.name)]
    assert (wanted["plan"], wanted["prompt"]) == (case.plan, case.prompt)
    assert run(press_of(case), model_of(case.model), case.prompt) == wanted["kept"]


def press_of(case: Case) -> PlanPress:
    return PlanPress(PlanFile.parse(case.plan), model_of(case.model))


def read_session(path: Path) -> dict[str, Any]:
    """The tensors of whole numbers in a session of PolyKV, which is a safetensors file, as nested lists."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    numbers = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "U32":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            flat = list(struct.unpack(f"<{(end - start) // 4}I", content[start:end]))
            numbers[name] = nested(flat, entry["shape"])
    return numbers


def nested(flat: list[int], shape: list[int]) -> list[Any]:
    if len(shape) == 1:
        return flat
    size = len(flat) // shape[0]
    return [nested(flat[i * size : (i + 1) * size], shape[1:]) for i in range(shape[0])]
