"""Whole runs: generation, kvpress' pipeline, masks, batches, and what is refused at run time."""

import gc
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from cases import FIXTURES, load, plan_text, prompt, run
from kvpress import KVPressTextGenerationPipeline
from polykv_kvpress import PlanError, PlanFile, PlanPress
from transformers import AutoTokenizer, DynamicCache, LlamaConfig, LlamaForCausalLM, PreTrainedModel

RULES = ["0, policy: h2o, share: 1", "1, policy: snapkv, share: 2, params: {window: 8}", "2, policy: tova, share: 3"]
PLAN = PlanFile.parse(plan_text(3, "{ratio: 0.3}", "", RULES))
TOKENS = prompt("tiny-llama31", "run")


@pytest.fixture(params=["eager", "sdpa"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return load("tiny-llama31", request.param)


def lengths(cache: Any) -> list[int]:
    return [layer.keys.shape[2] for layer in cache.layers]


@torch.no_grad()
def logits_after(
    model: PreTrainedModel, cache: Any, tokens: list[int], at_once: bool, position: int = len(TOKENS)
) -> torch.Tensor:
    """The last logits after these tokens, given at once or one by one from a position on."""
    parts = [tokens] if at_once else [[token] for token in tokens]
    for part in parts:
        positions = torch.arange(position, position + len(part)).unsqueeze(0)
        logits = model(torch.tensor([part]), past_key_values=cache, position_ids=positions).logits
        position += len(part)
    return logits[0, -1]


@torch.no_grad()
def compressed(press: PlanPress, model: PreTrainedModel) -> DynamicCache:
    cache = DynamicCache()
    with press(model):
        model(torch.tensor([TOKENS]), past_key_values=cache)
    return cache


def test_the_cache_holds_what_the_plan_says(model: PreTrainedModel) -> None:
    press = PlanPress(PLAN, model)
    cache = compressed(press, model)
    assert lengths(cache) == press.budgets(len(TOKENS)) == [23, 45, 67]
    whole = DynamicCache()
    with torch.no_grad():
        model(torch.tensor([TOKENS]), past_key_values=whole)
    for layer, kept in enumerate(press.kept()):
        index = kept.unsqueeze(-1).expand(-1, -1, -1, 16)
        # The first layers' cuts do not change what the later ones see of the prompt.
        torch.testing.assert_close(cache.layers[layer].keys, whole.layers[layer].keys.gather(2, index))
        torch.testing.assert_close(cache.layers[layer].values, whole.layers[layer].values.gather(2, index))


def test_tokens_at_once_see_what_tokens_one_by_one_see(model: PreTrainedModel) -> None:
    # The first layer has the smallest budget: transformers' own mask would be too narrow for the others.
    press = PlanPress(PLAN, model)
    tokens = TOKENS[:9]
    together = logits_after(model, compressed(press, model), tokens, at_once=True)
    apart = logits_after(model, compressed(press, model), tokens, at_once=False)
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-4)
    if model.config._attn_implementation == "sdpa":
        # One new token needs no mask there, so that this is what transformers does by itself.
        press.release()
        torch.testing.assert_close(logits_after(model, compressed(PlanPress(PLAN, model), model), tokens, False), apart)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("windows_in_cache", [True, False])
def test_layers_with_windows_see_their_windows(attention: str, windows_in_cache: bool) -> None:
    # The first layer evicts, by whose cache transformers counts positions; two layers with windows follow.
    model, tokens = load("tiny-qwen2", attention), prompt("tiny-qwen2", "windows")

    def after(plan: PlanFile, at_once: bool) -> torch.Tensor:
        press, cache = PlanPress(plan, model), DynamicCache(config=model.config) if windows_in_cache else DynamicCache()
        with press(model), torch.no_grad():
            model(torch.tensor([tokens[:80]]), past_key_values=cache)
        return logits_after(model, cache, tokens[80:], at_once, position=80)

    cut = PlanFile.parse(plan_text(3, "{tokens: 26}", "", ["0, policy: tova", "1-2, policy: full"]))
    torch.testing.assert_close(after(cut, True), after(cut, False), rtol=1e-4, atol=1e-4)
    whole = PlanFile.parse(plan_text(3, "{ratio: 1}", "", ["0-2, policy: full"]))
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0, -1]
    torch.testing.assert_close(after(whole, True), wanted, rtol=1e-4, atol=1e-4)


def test_masks_go_with_the_press(model: PreTrainedModel) -> None:
    hooks = [layer.self_attn._forward_pre_hooks for layer in model.model.layers]
    press = PlanPress(PLAN, model)
    for _ in range(2):
        compressed(press, model)
        assert [len(each) for each in hooks] == [1, 1, 1]
    # kvpress takes its own back at the end of the context.
    assert not any(layer.self_attn._forward_hooks for layer in model.model.layers)
    press.release()
    assert not any(hooks)
    compressed(press, model)
    del press
    gc.collect()
    assert not any(hooks)


def test_generate_and_the_pipeline_run(model: PreTrainedModel) -> None:
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "tiny-llama31")
    model.generation_config.eos_token_id = model.config.eos_token_id = -1
    press = PlanPress(PLAN, model)
    ids = torch.tensor([TOKENS])
    with press(model):
        found = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=2)
    assert found.shape == (1, len(TOKENS) + 6)
    pipeline = KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer)
    # Every question comes after the context, whatever was asked before.
    questions = ["What is kept?", "And what not?", "What is kept?"]
    answers = pipeline("The cache keeps keys and values. " * 12, questions=questions, press=press, max_new_tokens=8)
    first, second, third = answers["answers"]
    assert first == third != second


def test_a_batch_is_what_its_sequences_are(model: PreTrainedModel) -> None:
    press, other = PlanPress(PLAN, model), prompt("tiny-llama31", "other")
    alone = [run(press, model, tokens) for tokens in (TOKENS, other)]
    with press(model), torch.no_grad():
        model(torch.tensor([TOKENS, other]), use_cache=True)
    for row, wanted in enumerate(alone):
        assert [kept[row].tolist() for kept in press.kept()] == wanted


def test_low_precision_keeps_the_same_numbers() -> None:
    model = load("tiny-llama31", "sdpa").to(torch.bfloat16)
    press = PlanPress(PLAN, model)
    cache = compressed(press, model)
    assert lengths(cache) == press.budgets(len(TOKENS))
    assert cache.layers[0].keys.dtype == torch.bfloat16


def test_offloaded_weights_score_the_same() -> None:
    wanted = run(PlanPress(PLAN, load("tiny-llama31")), load("tiny-llama31"), TOKENS)
    model = cpu_offload(load("tiny-llama31"), execution_device=torch.device("cpu"))
    assert model.model.layers[0].self_attn.q_proj.weight.is_meta
    assert run(PlanPress(PLAN, model), model, TOKENS) == wanted
    plan = PlanFile.parse(plan_text(3, "{ratio: 0.3}", "", ["0, policy: tova", "1-2, policy: criticalkv"]))
    with pytest.raises(PlanError, match="output projection of layer 1 is .*; allowed: a weight in memory, for criticalkv"):
        run(PlanPress(plan, model), model, TOKENS)


def test_padding_is_refused(model: PreTrainedModel) -> None:
    mask = torch.ones(1, len(TOKENS), dtype=torch.long)
    mask[0, :3] = 0
    with PlanPress(PLAN, model)(model), pytest.raises(PlanError, match="a batch with padding; allowed: sequences of the same"):
        model(torch.tensor([TOKENS]), attention_mask=mask, use_cache=True)


def test_scores_that_are_not_numbers_are_refused(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0] = float("nan")
    with pytest.raises(PlanError, match="a score of policy snapkv in layer 1 is NaN"):
        run(PlanPress(PLAN, model), model, TOKENS)


def test_another_model_is_refused(model: PreTrainedModel) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    other = LlamaForCausalLM(LlamaConfig(vocab_size=9, num_hidden_layers=3, **sizes))
    with pytest.raises(PlanError, match="model is 'llama-3x2q2kv16d-32h-9v'; allowed: 'llama-3x4q2kv16d-64h-320v'"):
        run(PlanPress(PLAN, model), other, TOKENS[:5])


def test_budgets_are_checked_before_anything_is_evicted(model: PreTrainedModel) -> None:
    plan = PlanFile.parse(plan_text(3, "{ratio: 0.1}", "", ["0, policy: full", "1-2, policy: tova"]))
    with pytest.raises(PlanError, match="at most the total of 45"):
        run(PlanPress(plan, model), model, TOKENS)
