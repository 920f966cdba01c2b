"""Attention masks for caches whose layers hold different numbers of entries.

transformers builds one mask for all layers, as wide as the first layer's cache, and counts positions by it. Where a plan gives
layers different budgets, that mask does not fit the others when several new tokens come at once, or with eager attention.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .errors import PlanError


def fit_masks(modules: Iterable[tuple[nn.Module, int | None]]) -> list[RemovableHandle]:
    """Gives each attention module a mask as wide as its own cache, from now on. Remove the handles to undo that.

    Beside each module is its sliding window in tokens, `None` if it sees everything.
    """
    return [module.register_forward_pre_hook(partial(_fit, window), with_kwargs=True) for module, window in modules]


def check_padding(mask: Any) -> None:
    """Raises `PlanError` if a mask hides tokens of a prompt: padded batches are not supported."""
    if not isinstance(mask, Tensor):
        return
    last = mask[..., -1, :] if mask.ndim == 4 else mask
    hidden = last.logical_not() if last.dtype == torch.bool or mask.ndim == 2 else last < 0
    if hidden.any():
        raise PlanError("attention_mask", "a batch with padding", "sequences of the same length", "prompt")


def _fit(
    window: int | None, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    mask, cache = kwargs.get("attention_mask"), kwargs.get("past_key_values")
    if mask is None or cache is None:
        return None
    held = _entries(cache, module.layer_idx)
    if held == 0:
        return None
    if not isinstance(mask, Tensor):
        raise PlanError("attn_implementation", type(mask).__name__, "sdpa, eager or flash_attention_2", "model")
    if window is None:
        check_padding(mask)
    if mask.ndim != 4:
        return None
    tokens = mask.shape[2]
    # Every entry is before every new token, and new tokens see each other causally.
    visible = torch.ones(tokens, held + tokens, dtype=torch.bool, device=mask.device).tril(held)
    if window is not None:
        # Layers with a window hold the latest tokens without a gap.
        visible = visible.triu(held - window + 1)
    if mask.dtype != torch.bool:
        visible = torch.zeros_like(visible, dtype=mask.dtype).masked_fill(~visible, torch.finfo(mask.dtype).min)
    return args, kwargs | {"attention_mask": visible.expand(mask.shape[0], 1, -1, -1)}


def _entries(cache: Any, layer: int) -> int:
    """Entries that the cache holds of a layer."""
    if layer >= len(cache.layers):
        return 0
    of_layer = cache.layers[layer]
    # A layer with a window counts the tokens that it has seen, not those that it holds.
    if getattr(of_layer, "is_sliding", False) and of_layer.is_initialized:
        return of_layer.keys.shape[-2]
    return of_layer.get_seq_length()
