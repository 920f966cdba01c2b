"""What a plan needs to know of a model, read from its configuration."""

from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from .errors import PlanError
from .plan import PlanFile, shown

FAMILIES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "gemma2": "gemma2",
    "gemma3_text": "gemma3",
    "phi3": "phi3",
    "smollm3": "smollm3",
}
"""The model types whose attention this package knows, with the family's name in PolyKV's fingerprints."""


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model's cache.

    `windows` has one number per layer: how many tokens a query sees, itself included (`None`: all). `fingerprint` is what
    PolyKV's plans state under `model`.
    """

    kv_heads: int
    head_dim: int
    windows: tuple[int | None, ...]
    fingerprint: str

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self.windows)

    @staticmethod
    def of(model: PreTrainedModel | PretrainedConfig) -> "ModelShape":
        """The shape of a model or of a configuration. Raises `PlanError` for a family whose attention is not known."""
        config = getattr(model, "config", model).get_text_config(decoder=True)
        if config.model_type not in FAMILIES:
            raise PlanError("model_type", shown(config.model_type), ", ".join(FAMILIES), "model")
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        window = getattr(config, "sliding_window", None)
        # A window that holds the whole context hides nothing.
        if window is not None and window >= config.max_position_embeddings:
            window = None
        # Without types of layers transformers gives every layer the window, if there is one.
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
        family = FAMILIES[config.model_type]
        return ModelShape(
            kv_heads=kv_heads,
            head_dim=size,
            windows=tuple(window if kind == "sliding_attention" else None for kind in kinds),
            fingerprint=f"{family}-{layers}x{heads}q{kv_heads}kv{size}d-{config.hidden_size}h-{config.vocab_size}v",
        )

    def check(self, plan: PlanFile) -> None:
        """Raises `PlanError` for a plan with another number of layers, and for one that states another model."""
        if plan.layers != self.layers:
            raise PlanError("layers", plan.layers, f"{self.layers}, the model's")
        if plan.model is not None and plan.model != self.fingerprint:
            raise PlanError("model", f"'{plan.model}'", f"'{self.fingerprint}', the model in use")

    def entry_bytes(self, batch: int, element: int) -> int:
        """Bytes of one entry in one layer: key and value of all KV heads of `batch` sequences, `element` bytes a number."""
        return 2 * batch * self.kv_heads * self.head_dim * element
