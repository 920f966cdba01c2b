"""The policies: what each protects, and how it scores the entries of a layer.

Every policy is the one of the same name in polykv-core/src/policy, which names the paper; letters in shapes are those of
`view`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from .params import counting, odd, one_of, real
from .view import Layer, Protect, window_scores


@dataclass(frozen=True)
class Policy:
    """Decides which entries of a layer stay."""

    name: ClassVar[str]

    def protect(self, budget: int) -> Protect:
        """What stays whatever its score, under a budget of `budget` entries per KV head."""
        return Protect()

    def score(self, layer: Layer, budget: int) -> Tensor:
        """The score of every entry under a budget of `budget` entries per KV head, `[b, H, n]`; the highest stay."""
        raise NotImplementedError


@dataclass(frozen=True)
class StreamingLlm(Policy):
    """The first positions and the latest."""

    name = "streaming-llm"
    sinks: int = counting(4)

    def protect(self, budget: int) -> Protect:
        return Protect(sinks=self.sinks, recent=1)

    def score(self, layer: Layer, budget: int) -> Tensor:
        return layer.positions.float().expand(layer.stored_keys.shape[:3])


def pooled(scores: Tensor, window: int, kernel: int, pool: str) -> Tensor:
    """Pools scores `[b, H, n]` over `kernel` neighbours. The last `window` neither change nor reach their neighbours."""
    old = scores.shape[-1] - window
    if kernel == 1 or old <= 0:
        return scores
    of = functional.max_pool1d if pool == "max" else functional.avg_pool1d
    return torch.cat([of(scores[..., :old], kernel, stride=1, padding=kernel // 2), scores[..., old:]], dim=-1)


@dataclass(frozen=True)
class SnapKv(Policy):
    """What the last `window` queries attend to, pooled over neighbours; the window itself always stays."""

    name = "snapkv"
    window: int = counting(32, least=1)
    kernel: int = odd(7)
    pool: str = one_of("max", "max", "avg")

    def protect(self, budget: int) -> Protect:
        return Protect(recent=self.window)

    def score(self, layer: Layer, budget: int) -> Tensor:
        sums, _ = window_scores(layer, self.window)
        return pooled(sums, self.window, self.kernel, self.pool)


@dataclass(frozen=True)
class PyramidKv(SnapKv):
    """As snapkv, with a smaller window."""

    name = "pyramidkv"
    window: int = counting(8, least=1)


@dataclass(frozen=True)
class Cake(Policy):
    """Mean and variance of the last queries' attention, averaged over neighbours; the window itself always stays."""

    name = "cake"
    window: int = counting(32, least=1)
    kernel: int = odd(5)
    gamma: float = real(200.0, 0.0, 1e6)

    def protect(self, budget: int) -> Protect:
        return Protect(recent=self.window)

    def score(self, layer: Layer, budget: int) -> Tensor:
        sums, variances = window_scores(layer, self.window)
        scores = sums / min(self.window, layer.seen) + variances * self.gamma
        return pooled(scores, self.window, self.kernel, "avg")


@dataclass(frozen=True)
class Tova(Policy):
    """What the last query attends to, one set for all heads."""

    name = "tova"
    protect_last: int = counting(0)

    def protect(self, budget: int) -> Protect:
        return Protect(recent=self.protect_last)

    def score(self, layer: Layer, budget: int) -> Tensor:
        row = layer.window(1)  # [b, H, g, 1, n]
        return row.mean(dim=(1, 2, 3)).unsqueeze(1).expand(layer.stored_keys.shape[:3])


@dataclass(frozen=True)
class H2o(Policy):
    """What all queries attended to, and the latest entries for `recent_fraction` of the budget."""

    name = "h2o"
    recent_fraction: float = real(0.5, 0.0, 1.0)
    normalize: bool = one_of(False, True, False)

    def protect(self, budget: int) -> Protect:
        return Protect(recent=int(budget * self.recent_fraction))

    def score(self, layer: Layer, budget: int) -> Tensor:
        sums = layer.attention_sums
        return sums / (layer.seen - layer.positions) if self.normalize else sums


@dataclass(frozen=True)
class Scissorhands(Policy):
    """What most of the last `history` queries paid at least the average of their attention."""

    name = "scissorhands"
    history: int = counting(400, least=1, most=65536)
    recent: int = counting(10)

    def protect(self, budget: int) -> Protect:
        return Protect(recent=self.recent)

    def score(self, layer: Layer, budget: int) -> Tensor:
        hits = torch.zeros(layer.stored_keys.shape[:3], device=layer.stored_keys.device)
        for first, logits in layer.blocks(max(layer.seen - self.history, 0)):
            end = logits.shape[-1]
            visible = torch.arange(first + 1, end + 1, device=logits.device).float()
            # The average is 1 / visible; the slack is for the rounding of float32.
            least = logits.logsumexp(dim=-1) - (visible.log() + 1e-6)
            hits[..., :end] += (logits >= least.unsqueeze(-1)).float().sum(dim=(2, 3))
        return hits / (logits.shape[2])


@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """What queries to come can be expected to attend to, times the values' norms; the first `sinks` entries stay."""

    name = "expected-attention"
    future: int = counting(512, least=1)
    sinks: int = counting(4)
    epsilon: float = real(0.01, 0.0, 1e6)

    def protect(self, budget: int) -> Protect:
        return Protect(sinks=self.sinks)

    def score(self, layer: Layer, budget: int) -> Tensor:
        batch, heads, seen, size = layer.keys.shape
        if seen > self.sinks:
            queries = layer.plain_queries(self.sinks, seen)
            mean = queries.mean(dim=2, keepdim=True)
            squares = (queries - mean).transpose(2, 3) @ (queries - mean)  # [b, Hq, d, d]
            # Turning the keys back is the same as turning mean and covariance forth.
            keys = layer.turned_back(layer.keys, self.future).unsqueeze(2)  # [b, H, 1, n, d]
            linear = (mean.view(batch, heads, -1, 1, size) @ keys.transpose(3, 4)).squeeze(3) / size**0.5
            spread = ((keys @ squares.view(batch, heads, -1, size, size)) * keys).sum(dim=-1)
            logits = linear + spread / (2 * size * (seen - self.sinks))  # [b, H, g, n]
        else:
            logits = torch.zeros(batch, heads, 1, seen, device=layer.keys.device)
        expected = logits.masked_fill(layer.positions < self.sinks, -1e30).softmax(dim=-1).mean(dim=2)
        return (expected + self.epsilon) * layer.values.norm(dim=-1)


@dataclass(frozen=True)
class LagKv(Policy):
    """Keys and values that stand out from the partition of `lag` entries that follows theirs."""

    name = "lagkv"
    lag: int = counting(128, least=2, most=4096)
    sinks: int = counting(4)

    def protect(self, budget: int) -> Protect:
        return Protect(sinks=self.sinks)

    def score(self, layer: Layer, budget: int) -> Tensor:
        batch, heads, seen, _ = layer.keys.shape
        sinks = min(self.sinks, seen)
        partitions = (seen - sinks) // self.lag
        scores = torch.ones(batch, heads, seen, device=layer.keys.device)
        if partitions < 2:
            scores[..., sinks:] = (layer.positions[sinks:] - sinks).float() / max(seen - sinks, 1)
            return scores
        spread = self._spread(layer.keys, sinks, partitions) + self._spread(layer.values, sinks, partitions)
        # Of equal spreads the later entry ranks higher, as a stable sort has it.
        ranks = spread.argsort(dim=-1, stable=True).argsort(dim=-1).float() / self.lag
        scores[..., sinks : sinks + (partitions - 1) * self.lag] = ranks.flatten(2)
        return scores

    def _spread(self, x: Tensor, sinks: int, partitions: int) -> Tensor:
        """The softmax over each partition but the last of its entries' deviations, `[b, H, partitions - 1, lag]`."""
        x = x[:, :, sinks : sinks + partitions * self.lag]
        x = x.unflatten(2, (partitions, self.lag))
        this, following = x[:, :, :-1], x[:, :, 1:]
        low = following.amin(dim=3, keepdim=True)
        # A channel that is constant says nothing; it must not divide by zero.
        reach = (following.amax(dim=3, keepdim=True) - low).clamp_min(1e-12)
        return ((this - low) / reach).std(dim=-1).softmax(dim=-1)


@dataclass(frozen=True)
class KNorm(Policy):
    """Keys of small norm."""

    name = "knorm"

    def score(self, layer: Layer, budget: int) -> Tensor:
        return -layer.keys.norm(dim=-1)


@dataclass(frozen=True)
class KeyDiff(Policy):
    """Keys that differ from the mean of the head's keys, each scaled to unit norm."""

    name = "keydiff"

    def score(self, layer: Layer, budget: int) -> Tensor:
        anchor = functional.normalize(layer.keys, dim=-1).mean(dim=2, keepdim=True)
        return -functional.cosine_similarity(layer.keys, anchor, dim=-1)


@dataclass(frozen=True)
class Random(Policy):
    """A hash of seed, layer, head and position: the same entries as in PolyKV, on every device."""

    name = "random"
    seed: int = counting(0, most=(1 << 64) - 1)

    def score(self, layer: Layer, budget: int) -> Tensor:
        batch, heads, seen, _ = layer.stored_keys.shape
        start = _splitmix(self.seed ^ _splitmix(layer.index))
        of_heads = [_splitmix(start ^ _splitmix(head)) for head in range(heads)]
        words = [_splitmix(position) for position in range(seen)]
        # Twenty-four bits are exact in float32.
        rows = [[(_splitmix(head ^ word) >> 40) / (1 << 24) for word in words] for head in of_heads]
        return torch.tensor(rows, device=layer.stored_keys.device).expand(batch, heads, seen)


def _splitmix(x: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
    mask = (1 << 64) - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)
