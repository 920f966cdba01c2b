"""The press that runs the prefill rules of a plan."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from kvpress import BasePress, ScorerPress
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from .budget import layer_rules, resolve
from .errors import PlanError
from .masks import check_padding, fit_masks
from .model import ModelShape
from .plan import PlanFile
from .policies import Policy
from .view import Layer, best


class LayerPress(ScorerPress):
    """The press of one layer: a policy and the number of entries per KV head that it keeps of the prompt at hand.

    `positions [batch, kv_heads, entries]` are those kept of the latest prompt, in ascending order. The compression ratio of
    `ScorerPress` means nothing here: a plan states whole numbers of entries.
    """

    def __init__(self, layer: int, policy: Policy) -> None:
        super().__init__()
        self.layer = layer
        self.policy = policy
        self.budget = 1
        self.positions: Tensor | None = None

    @torch.no_grad()
    def score(
        self, module: nn.Module, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: dict[str, Any]
    ) -> Tensor:
        """Scores `[batch, kv_heads, tokens]` in float32; what the policy protects has infinity.

        Raises `PlanError` for a score that is NaN.
        """
        layer = Layer(self.layer, module, hidden_states, keys, values, kwargs.get("position_embeddings"))
        scores = self.policy.score(layer, self.budget)
        if scores.isnan().any():
            field = f"a score of policy {self.policy.name} in layer {self.layer}"
            raise PlanError(field, "NaN", "numbers, of finite keys and values", "model")
        return scores.masked_fill(self.policy.protect(self.budget).mask(layer.positions), float("inf"))

    @torch.no_grad()
    def compress(
        self, module: nn.Module, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, kv_heads, tokens, head_dim]` cut to `budget` entries, in order of position."""
        batch, heads, tokens, _ = keys.shape
        if self.budget >= tokens:
            self.positions = torch.arange(tokens, device=keys.device).expand(batch, heads, -1)
            return keys, values
        scores = self.score(module, hidden_states, keys, values, attentions, kwargs)
        self.positions = best(scores, self.budget)
        index = self.positions.unsqueeze(-1)
        cut = (x.gather(2, index.expand(-1, -1, -1, x.shape[-1])).contiguous() for x in (keys, values))
        return next(cut), next(cut)


class PlanPress(BasePress):
    """Runs the prefill rules of a PolyKV plan: every layer has its own policy and its own number of entries.

    `with press(model): ...` compresses every prompt that goes through the model in one pass from an empty cache; tokens after
    it are appended and stay. `layers` has the `LayerPress` of each layer, `None` where the plan says `full`.

    A press belongs to models of one shape. From its first use on it also gives the model's attention layers masks of the
    width of their own caches, until `release` is called or the press is no longer referred to: transformers itself has one
    width for all layers.
    """

    def __init__(
        self, plan: PlanFile, model: PreTrainedModel | PretrainedConfig, *, ignore_decode: bool = False
    ) -> None:
        """A press for this plan and a model or its configuration.

        Raises `PlanError` for a plan of another model, for everything in its prefill rules that this package does not run,
        for rules that evict in a layer with a sliding window, and for decode rules, unless `ignore_decode` is true: then
        nothing is evicted after the prompt.
        """
        self.plan = plan
        self.shape = ModelShape.of(model)
        self.shape.check(plan)
        decode = next((rule for rule in plan.decode if not rule.keeps), None)
        if decode is not None and not ignore_decode:
            found = f"policy {decode.policy} for layers {decode.first}-{decode.last}"
            raise PlanError("decode", found, "no decode rules (kvpress evicts after the prompt), or ignore_decode=True")
        self._rules = layer_rules(plan)
        for layer, (rule, window) in enumerate(zip(self._rules, self.shape.windows, strict=True)):
            if rule.policy is not None and window is not None:
                found = f"{rule.policy.name} in a layer with a sliding window of {window} tokens"
                raise PlanError(f"prefill policy of layer {layer}", found, "full")
        self.layers = [
            None if rule.policy is None else LayerPress(layer, rule.policy) for layer, rule in enumerate(self._rules)
        ]
        self._masked: weakref.WeakKeyDictionary[PreTrainedModel, weakref.finalize] = weakref.WeakKeyDictionary()

    @staticmethod
    def from_file(
        path: str | Path, model: PreTrainedModel | PretrainedConfig, *, ignore_decode: bool = False
    ) -> "PlanPress":
        """A press for the plan in a file. Raises `OSError`, and `PlanError` for a file that is no plan; see `PlanPress`."""
        return PlanPress(PlanFile.read(path), model, ignore_decode=ignore_decode)

    def budgets(self, tokens: int, *, batch: int = 1, dtype: torch.dtype = torch.bfloat16) -> list[int | None]:
        """Entries per KV head that each layer keeps of a prompt of `tokens` tokens; `None` where a layer keeps everything.

        `batch` sequences and the `dtype` of keys and values count where the plan states its budget in bytes. A number may be
        larger than the prompt. Raises `PlanError` for a prompt that the plan's budget does not fit.
        """
        entry = self.shape.entry_bytes(batch, dtype.itemsize)
        return resolve(self.plan, self._rules, tokens, self.shape.windows, entry)

    def kept(self) -> list[Tensor | None]:
        """The positions that each layer kept of the latest prompt, `[batch, kv_heads, entries]` in ascending order.

        `None` stands for a layer that keeps everything, and for one that has not seen a prompt.
        """
        return [None if press is None else press.positions for press in self.layers]

    def release(self) -> None:
        """Takes back the masks of this press from all models. Caches that it has cut then no longer fit their masks."""
        for undo in list(self._masked.values()):
            undo()
        self._masked.clear()

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        """Checks that the model has the shape that the plan was read for. Raises `PlanError` if it has another."""
        shape = ModelShape.of(model)
        if shape != self.shape:
            raise PlanError("model", f"'{shape.fingerprint}'", f"'{self.shape.fingerprint}', which the press was made for")

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        """Compresses the prompts that go through the model within this context."""
        with super().__call__(model):
            if model not in self._masked:
                inner = getattr(model.model, "language_model", model.model)
                modules = [layer.self_attn for layer in inner.layers]
                handles = fit_masks(zip(modules, self.shape.windows, strict=True))
                self._masked[model] = weakref.finalize(self, _remove, handles)
            yield

    def forward_hook(self, module: nn.Module, input: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """Cuts the cache of a layer that has just seen the whole prompt."""
        tokens = kwargs["hidden_states"].shape[1]
        press = self.layers[module.layer_idx]
        if press is None or int(kwargs["cache_position"][-1]) + 1 != tokens:
            return output
        check_padding(kwargs.get("attention_mask"))
        return super().forward_hook(module, input, kwargs, output)

    def compress(
        self, module: nn.Module, hidden_states: Tensor, keys: Tensor, values: Tensor, attentions: Any, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, kv_heads, tokens, head_dim]` of a layer, cut by the layer's own press."""
        press = self.layers[module.layer_idx]
        if press is None:
            return keys, values
        budget = self.budgets(keys.shape[2], batch=keys.shape[0], dtype=keys.dtype)[press.layer]
        press.budget = keys.shape[2] if budget is None else budget
        return press.compress(module, hidden_states, keys, values, attentions, kwargs)


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
