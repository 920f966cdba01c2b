"""Plan files: what is read, which budgets come out, and what is refused with which words."""

import json
import os
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cases import plan_text
from polykv_kvpress import PlanError, PlanFile, PlanPress
from polykv_kvpress.apportion import largest_remainder
from polykv_kvpress.budget import _pyramid
from polykv_kvpress.composed import MERGING, POLICIES
from transformers import GemmaConfig, LlamaConfig, MistralConfig

BINARY = os.environ.get("POLYKV_BIN")
REPOSITORY = Path(__file__).parents[3]


def config(layers: int = 3, **fields: Any) -> LlamaConfig:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320}
    return LlamaConfig(num_hidden_layers=layers, **(sizes | fields))


def press(text: str, **options: Any) -> PlanPress:
    return PlanPress(PlanFile.parse(text), config(), **options)


def plan(*rules: str, budget: str = "{tokens: 64}", fields: str = "") -> str:
    return plan_text(3, budget, fields, list(rules) or ["0-2, policy: tova"])


def test_the_readme_s_plan_has_the_readme_s_budgets() -> None:
    smollm2 = config(30, hidden_size=576, num_attention_heads=9, num_key_value_heads=3, vocab_size=49152)
    found = PlanPress.from_file(REPOSITORY / "plans" / "smollm2-135m-12.5.yaml", smollm2).budgets(1772)
    # The README counts the 14 new tokens too, which stay.
    assert [entries + 14 for entries in found[:10]] == [163, 69, 184, 69, 145, 256, 153, 389, 275, 196]
    assert sum(entries + 14 for entries in found) == 235.5 * 30
    assert max(found) + 14 == 727


def test_every_plan_of_the_repository_is_read() -> None:
    paths = sorted((REPOSITORY / "plans").glob("*.yaml"))
    assert len(paths) >= 8
    for path in paths:
        if "\nheads:" in path.read_text():
            # Budgets of KV heads, for which no press has a place.
            with pytest.raises(PlanError, match="a field of content is"):
                PlanFile.read(path)
        else:
            assert PlanFile.read(path).prefill


def test_splits_by_hand() -> None:
    assert largest_remainder(10, [1, 2, 4]) == [1, 3, 6]
    assert largest_remainder(11, [1, 1, 1]) == [4, 4, 3]
    assert _pyramid(3 * 128, 4000, 8, 3) == [242, 128, 14]
    assert _pyramid(3 * 128, 200, 8, 3) == [200, 128, 56]
    assert _pyramid(3 * 128, 100, 8, 3) == [128] * 3
    assert _pyramid(50, 100, 8, 1) == [50]


@pytest.mark.parametrize(
    ("text", "budgets"),
    [
        (plan(budget="{tokens: 64}"), [64, 64, 64]),
        (plan(budget="{total: 100}"), [34, 33, 33]),
        (plan(budget="{ratio: 0.5}"), [500, 500, 500]),
        (plan(budget="{ratio: 0.02}", fields="at_least: 30"), [30, 30, 30]),
        (plan(budget="{ratio: 0.5}", fields="at_least: 30"), [500, 500, 500]),
        # An entry is a key and a value of two KV heads with 16 numbers of two bytes each: 128 bytes.
        (plan(budget="{bytes: 12900}"), [34, 33, 33]),
        (plan("0, policy: full", "1-2, policy: tova", budget="{ratio: 0.5}"), [None, 250, 250]),
        (plan("0, policy: full", "1-2, policy: tova", fields="allow_full_extra: true"), [None, 64, 64]),
        (plan("0, policy: tova, tokens: 90", "1-2, policy: h2o, tokens: 51"), [90, 51, 51]),
        (plan("0, policy: tova, tokens: 90", "1-2, policy: full", budget="{tokens: 700}"), [90, None, None]),
        ("schema: 1\nlayers: 3\nbudget: {ratio: 5e-1}\n", [None, None, None]),
    ],
)
def test_budgets_by_hand(text: str, budgets: list[int | None]) -> None:
    assert press(text).budgets(1000) == budgets


@pytest.mark.skipif(BINARY is None, reason="POLYKV_BIN names no program")
def test_budgets_of_many_plans_are_those_of_the_program(tmp_path: Path) -> None:
    generator = random.Random(5)
    (tmp_path / "config.json").write_text(json.dumps(config(7, max_position_embeddings=4096).to_dict()))
    for _ in range(60):
        tokens = generator.randint(200, 4000)
        text = random_plan(generator, tokens)
        (tmp_path / "plan.yaml").write_text(text)
        command = [str(BINARY), "plan", "memory", "--model", str(tmp_path), "-p", str(tokens), "--plan", "plan.yaml"]
        options = ["--new-tokens", "1", "--dtype", "f16", "--json"]
        done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True)
        try:
            budgets = PlanPress(PlanFile.parse(text), config(7)).budgets(tokens)
        except PlanError as error:
            # The program names the same field, value and limit.
            assert str(error).removeprefix("plan: ") in done.stderr, text
            continue
        assert done.returncode == 0, done.stderr
        found = [1 + (tokens if budget is None else min(budget, tokens)) for budget in budgets]
        assert found == json.loads(done.stdout)["plan"]["kept"], text


def random_plan(generator: random.Random, tokens: int) -> str:
    amounts = {"tokens": generator.randint(20, 600), "ratio": round(generator.uniform(0.01, 0.9), 3)}
    amounts |= {"total": generator.randint(100, 9000), "bytes": generator.randint(20_000, 900_000)}
    unit = generator.choice(list(amounts))
    online, full = generator.random() < 0.3, generator.random() < 0.3
    rules = []
    for layer in range(7):
        if full and generator.random() < 0.3:
            rules.append(f"{layer}, policy: full")
            continue
        share = "" if online else f", share: {generator.choice([1, 0.3, round(generator.uniform(0.01, 40), 4)])}"
        rules.append(f"{layer}, policy: {generator.choice(['h2o', 'knorm', 'pyramidkv', 'streaming-llm'])}{share}")
    fields = ["online: pyramid"] * online + ["allow_full_extra: true"] * (generator.random() < 0.5)
    fields += [f"at_least: {generator.randint(1, 200)}"] * (generator.random() < 0.3)
    return plan_text(7, f"{{{unit}: {amounts[unit]}}}", "\n".join(fields), rules)


REFUSED = [
    ("schema: 2\nlayers: 3\nbudget: {tokens: 9}", "schema is 2; allowed: 1"),
    (plan() + "extra: 1\n", "a field of content is 'extra'"),
    ("layers: [", "content is not a plan"),
    (plan() + "layers: 3\n", "the key layers comes twice"),
    (plan() + "[1, 2]: 3\n", "a key that is a list or a map"),
    ("a: !!int b", "content is not a plan"),
    ("[" * 5000, "content is not a plan"),
    (plan(budget="{tokens: 064}"), "budget.tokens is '064'; allowed: a whole number from 1"),
    (plan(budget="{tokens: 0}"), "budget.tokens is 0; allowed: a whole number from 1"),
    (plan(budget="{ratio: 1.5}"), "budget.ratio is 1.5; allowed: above 0 and at most 1"),
    (plan(budget="{ratio: .nan}"), "budget.ratio is nan"),
    (plan(budget="{share: 1}"), "a field of budget is 'share'; allowed: tokens, total, ratio, bytes"),
    (plan(fields="at_least: 1048577"), "at_least is 1048577; allowed: a whole number from 0 to 1048576"),
    (plan("0-1, policy: tova"), "prefill is without a rule for layer 2"),
    (plan("0-2, policy: tova", "1, policy: h2o"), "repeats layer 1 of prefill[0]"),
    (plan("0-3, policy: tova"), "prefill[0].layers is 0-3; allowed: layers 0 to 2"),
    (plan("0-2, policy: tova, share: 0"), "prefill[0].share is 0; allowed: above 0"),
    (plan("0-2, policy: full, share: 1"), "prefill[0].share is given for policy full"),
    (plan("0-2, policy: tova, share: 1, tokens: 64"), "prefill[0].tokens is given beside share"),
    (plan("0, policy: tova, tokens: 64", "1-2, policy: h2o"), "tokens in some rules and shares in others"),
    (plan("0-2, policy: tova, tokens: 60"), "sum of prefill tokens is 180; allowed: 192, 3 layers times 64"),
    (plan("0-2, policy: tova, tokens: 60", budget="{ratio: 0.5}"), "allowed: budget.tokens or budget.total"),
    (plan("0-2, policy: tova, share: 2", fields="online: pyramid"), "pyramid beside tokens or shares"),
    (plan(fields="online: cake"), "allocator (online) is 'cake', which has to see every layer"),
    (plan(fields="online: dynamic"), "allowed: pyramid, or no allocator and shares"),
    (plan(fields="online: uniform"), "allocator (online) is 'uniform'"),
    (plan(fields="model: llama-4x"), "model is 'llama-4x'; allowed: 'llama-3x4q2kv16d-64h-320v'"),
    (plan("0-1, policy: tova", "2, policy: d2o"), "prefill policy of layer 2 is 'd2o', which merges"),
    (plan("0-2, policy: cam"), "prefill policy of layer 0 is 'cam', which merges"),
    (plan("0-2, policy: tvoa"), "prefill policy of layer 0 is 'tvoa'; allowed: full, streaming-llm, snapkv"),
    (plan("0-2, policy: snapkv, params: {windw: 3}"), "(prefill policy of layer 0) is 'windw'; allowed: window"),
    (plan("0-2, policy: snapkv, params: {kernel: 4}"), "kernel of policy snapkv (prefill policy of layer 0) is 4"),
    (plan("0-2, policy: snapkv, params: {pool: min}"), "is 'min'; allowed: max or avg"),
    (plan("0-2, policy: h2o, params: {normalize: 1}"), "(prefill policy of layer 0) is 1; allowed: true or false"),
    (plan("0-2, policy: h2o, params: {recent_fraction: 1.5}"), "is 1.5; allowed: a number from 0.0 to 1.0"),
    (plan("0-2, policy: knorm, params: {a: 1}"), "is 'a'; allowed: none"),
    (plan("0-2, policy: criticalkv, params: {base: d2o}"), "base of policy criticalkv (prefill policy of layer 0) is 'd2o'"),
    (plan("0-2, policy: blend, params: {policies: 'tova:1,full:1'}"), "is 'full'; allowed: policies that evict"),
    (plan("0-2, policy: blend, params: {policies: 'tova:x,h2o:1'}"), "share of tova in policy 0"),
    (plan("0-2, policy: blend, params: {policies: tova}"), "allowed: 2 to 16 policies"),
    (plan("0-2, policy: snapkv, tokens: 20", budget="{total: 60}"),
     "prefill budget of layer 0 is 20; allowed: at least 32, what policy snapkv protects"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_refused_by_name(text: str, words: str) -> None:
    with pytest.raises(PlanError) as error:
        press(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (plan("0-2, policy: snapkv", budget="{ratio: 0.1}"), "prefill budget of layer 0 is 10; allowed: at least 32"),
        (plan("0-1, policy: full", "2, policy: tova", budget="{ratio: 0.5}"), "is 200; allowed: at most the total of 150"),
        (plan(budget="{bytes: 200}"), "prefill budget of layer 1 is 0; allowed: at least 1"),
    ],
)
def test_budgets_that_do_not_fit_a_prompt_are_refused(text: str, words: str) -> None:
    with pytest.raises(PlanError) as error:
        press(text).budgets(100)
    assert words in str(error.value)


def test_decode_rules_are_refused_unless_ignored() -> None:
    text = plan() + "decode:\n  - {layers: 0, policy: full}\n  - {layers: 1-2, policy: cam}\n"
    with pytest.raises(PlanError, match="decode is policy cam for layers 1-2; allowed: .*ignore_decode=True"):
        press(text)
    assert press(text, ignore_decode=True).budgets(100) == [64] * 3
    assert press(plan() + "decode:\n  - {layers: 0-2, policy: full}\n").budgets(100) == [64] * 3


def test_models_that_do_not_fit_are_refused() -> None:
    windows = MistralConfig(num_hidden_layers=3, sliding_window=128, max_position_embeddings=4096)
    with pytest.raises(PlanError, match="layer 0 is tova in a layer with a sliding window of 128 tokens; allowed: full"):
        PlanPress(PlanFile.parse(plan()), windows)
    # A window as long as the context hides nothing.
    windows = MistralConfig(num_hidden_layers=3, sliding_window=4096, max_position_embeddings=4096)
    assert PlanPress(PlanFile.parse(plan()), windows).budgets(100) == [64] * 3
    with pytest.raises(PlanError, match="layers is 3; allowed: 4, the model's"):
        PlanPress(PlanFile.parse(plan()), config(4))
    with pytest.raises(PlanError, match="model_type is 'gemma'; allowed: llama, mistral"):
        PlanPress(PlanFile.parse(plan()), GemmaConfig(num_hidden_layers=3))


def test_a_file_is_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "found.yaml"
    path.write_text("schema: 3")
    with pytest.raises(PlanError, match="found.yaml: schema is 3; allowed: 1"):
        PlanPress.from_file(path, config())
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(PlanError, match="found.yaml: content is no text"):
        PlanPress.from_file(path, config())


def test_the_readme_lists_every_policy() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    for name in [*POLICIES, *MERGING, "full"]:
        assert f"| `{name}` |" in text, name
