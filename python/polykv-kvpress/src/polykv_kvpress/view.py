"""What a policy sees of a layer at the end of the prompt, and the choice of entries by their scores.

Letters in shapes: b sequences, Hq query heads, H KV heads, g = Hq / H query heads per KV head, n entries (one per token of
the prompt, in order of position), d head dimension. Everything is computed in float32, as in PolyKV.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .errors import PlanError

BLOCK = 256
"""Queries whose attention over all entries exists at a time."""

LARGEST, LOWEST = torch.finfo(torch.float32).max, torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Layer:
    """One attention layer at the end of the prompt.

    `module` is the attention module, `hidden [b, n, hidden]` its input, `stored_keys` and `stored_values [b, H, n, d]` what is
    in the cache (keys after the rotary embedding), `rotary` its cosines and sines `[b, n, rotated]`.
    """

    index: int
    module: nn.Module
    hidden: Tensor
    stored_keys: Tensor
    stored_values: Tensor
    rotary: tuple[Tensor, Tensor]

    @property
    def seen(self) -> int:
        """The number of tokens, which is the number of entries."""
        return self.stored_keys.shape[2]

    @cached_property
    def keys(self) -> Tensor:
        """The keys in float32, `[b, H, n, d]`."""
        return self.stored_keys.float()

    @cached_property
    def values(self) -> Tensor:
        """The values in float32, `[b, H, n, d]`."""
        return self.stored_values.float()

    @cached_property
    def positions(self) -> Tensor:
        """The positions of the entries, `[n]`."""
        return torch.arange(self.seen, device=self.stored_keys.device)

    def plain_queries(self, first: int, end: int) -> Tensor:
        """The queries of the tokens `first..end` before the rotary embedding, `[b, Hq, end - first, d]`."""
        module, hidden = self.module, self.hidden[:, first:end]
        if hasattr(module, "q_proj"):
            queries = module.q_proj(hidden)
        else:
            # Phi-3 projects queries, keys and values at once; the queries come first.
            queries = module.qkv_proj(hidden)[..., : module.o_proj.in_features]
        queries = queries.unflatten(-1, (-1, module.head_dim))
        if hasattr(module, "q_norm"):
            queries = module.q_norm(queries)
        return queries.transpose(1, 2).float()

    def queries(self, first: int, end: int) -> Tensor:
        """The queries of the tokens `first..end` after the rotary embedding, `[b, Hq, end - first, d]`."""
        plain = self.plain_queries(first, end)
        if not getattr(self.module, "use_rope", True):
            return plain
        cos, sin = (part[:, first:end].unsqueeze(1).float().to(plain.device) for part in self.rotary)
        # A model may rotate only the first elements of a head.
        turned, rest = plain[..., : cos.shape[-1]], plain[..., cos.shape[-1] :]
        low, high = turned.chunk(2, dim=-1)
        return torch.cat([turned * cos + torch.cat([-high, low], dim=-1) * sin, rest], dim=-1)

    def logits(self, first: int, end: int) -> Tensor:
        """The scaled products of the queries `first..end` with the first `end` keys, `[b, H, g, end - first, end]`.

        What a query does not see is minus infinity.
        """
        batch, heads, _, size = self.keys.shape
        queries = self.queries(first, end).view(batch, heads, -1, end - first, size)
        products = queries @ self.keys[:, :, :end].unsqueeze(2).transpose(3, 4) * self.module.scaling
        cap = getattr(self.module, "attn_logit_softcapping", None)
        if cap is not None:
            products = cap * torch.tanh(products / cap)
        future = self.positions[:end] > self.positions[first:end].unsqueeze(1)
        return products.masked_fill(future, float("-inf"))

    def window(self, count: int) -> Tensor:
        """The attention of the last `count` queries, or of all if there are fewer: `[b, H, g, min(count, n), n]`."""
        return self.logits(max(self.seen - count, 0), self.seen).softmax(dim=-1)

    def blocks(self, first: int) -> Iterator[tuple[int, Tensor]]:
        """The logits of all queries from `first` on, block by block: each block's first query and its logits."""
        for start in range(first, self.seen, BLOCK):
            yield start, self.logits(start, min(start + BLOCK, self.seen))

    def turned_back(self, keys: Tensor, future: int) -> Tensor:
        """The keys `[b, H, n, d]` times the transpose of the mean rotation over the `future` positions after the prompt.

        Their products with queries before the rotary embedding are the mean of those with the queries rotated for each of
        these positions. Raises `PlanError` for a model whose rotary embedding has no list of frequencies.
        """
        rotary = self.module.rotary_emb
        frequencies = getattr(rotary, "inv_freq", None)
        if not isinstance(frequencies, Tensor):
            field = f"rotary embedding of layer {self.index}"
            raise PlanError(field, type(rotary).__name__, "one with inv_freq, for policy expected-attention", "model")
        # In float64, since angles grow with the position.
        half = frequencies.to(keys.device, torch.float64) / 2
        shrink = torch.where(half.sin().abs() < 1e-12, 1.0, (half * future).sin() / (half.sin() * future))
        shrink = shrink * rotary.attention_scaling
        angles = 2 * half * (self.seen + (future - 1) / 2)
        cos, sin = (angles.cos() * shrink).float(), (-angles.sin() * shrink).float()
        size = len(frequencies)
        low, high, rest = keys[..., :size], keys[..., size : 2 * size], keys[..., 2 * size :]
        return torch.cat([low * cos - high * sin, high * cos + low * sin, rest], dim=-1)

    @cached_property
    def attention_sums(self) -> Tensor:
        """The attention that each entry got from all queries, mean over the query group, `[b, H, n]`."""
        sums = torch.zeros(self.keys.shape[:3], device=self.keys.device)
        for _, logits in self.blocks(0):
            sums[..., : logits.shape[-1]] += logits.softmax(dim=-1).sum(dim=3).mean(dim=2)
        return sums


def window_scores(layer: Layer, window: int) -> tuple[Tensor, Tensor]:
    """The sum and the variance of each entry's attention over the last `window` queries, mean over the query group.

    Both are `[b, H, n]`.
    """
    attention = layer.window(window)
    count = attention.shape[3]
    mean = attention.mean(dim=3)
    squares = (attention - mean.unsqueeze(3)).square().sum(dim=3)
    return mean.mean(dim=2) * count, squares.mean(dim=2) / (max(count, 2) - 1)


@dataclass(frozen=True)
class Protect:
    """How many entries at both ends of the prompt stay whatever their score."""

    sinks: int = 0
    recent: int = 0

    @property
    def count(self) -> int:
        """The number of entries in a prompt that is long enough for both ends."""
        return self.sinks + self.recent

    def mask(self, positions: Tensor) -> Tensor:
        """True for the protected ones of the positions 0 to n - 1, `[n]`."""
        return (positions < self.sinks) | (positions >= positions.shape[0] - self.recent)


def best(scores: Tensor, count: int) -> Tensor:
    """The `count` entries with the highest `scores [b, H, n]` in order of position, `[b, H, count]`.

    Of equal scores the later entry stays, on every device: `topk` leaves that open.
    """
    order = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    return (scores.shape[-1] - 1 - order).sort(dim=-1).values


def stage(layer: Layer, scores: Tensor, protect: Protect, taken: Tensor | None, count: int) -> Tensor:
    """True for the `count` entries that one stage of a policy takes, `[b, H, n]`.

    First come those that `protect` names, then those with the highest `scores [b, H, n]`; those in `taken [b, H, n]` last.
    """
    scores = scores.masked_fill(protect.mask(layer.positions), LARGEST)
    if taken is not None:
        scores = scores.masked_fill(taken, LOWEST)
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.scatter(-1, best(scores, min(count, layer.seen)), True)


def in_stages(stages: list[Tensor], rest: Tensor) -> Tensor:
    """One score `[b, H, n]` for a policy that chooses in stages: earlier stages stand higher, `rest` ranks the others."""
    for index, taken in enumerate(stages):
        rest = rest.masked_fill(taken, 1e37 * (len(stages) - index))
    return rest
