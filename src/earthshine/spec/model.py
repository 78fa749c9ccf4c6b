"""A model as frozen values, without behaviour beyond arithmetic on themselves.

A family reader (`spec.families`) makes these from a config.json; all other packages read only these. Shapes are written
[out, in], as checkpoints store a linear layer.
"""

from dataclasses import dataclass
from enum import StrEnum

from earthshine.spec.attention import AttentionSpec, Rows, State
from earthshine.storage import FP32_BYTES, Storage


class Scoring(StrEnum):
    """How router logits become scores."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """How a token's experts are chosen and weighed.

    Sigmoid: `noaux_tc` (DeepSeek-V3, equations 12 to 16); a bias selects, it never weighs. Softmax: over all
    experts, without a bias or groups (Qwen3-MoE).
    """

    n_groups: int
    groups_kept: int
    normalize: bool
    scale: float
    scoring: Scoring = Scoring.SIGMOID

    @property
    def has_bias(self) -> bool:
        return self.scoring is Scoring.SIGMOID


@dataclass(frozen=True, slots=True)
class DenseSpec:
    intermediate: int


@dataclass(frozen=True, slots=True)
class MoeSpec:
    n_experts: int
    top_k: int
    intermediate: int
    shared_intermediate: int  # of all shared experts together, which are stored as one; 0 for none
    router: RouterSpec


@dataclass(frozen=True, slots=True)
class LayerSpec:
    attention: AttentionSpec
    ffn: DenseSpec | MoeSpec


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole model. `trunk_storage` and `expert_storage` say how linear layers are published."""

    family: str  # model_type of the config, such as "kimi_k25"
    hidden: int
    vocab_size: int
    max_context: int
    norm_eps: float
    layers: tuple[LayerSpec, ...]
    trunk_storage: Storage
    expert_storage: Storage
    bos_token: int | None
    stop_tokens: tuple[int, ...]  # sorted; generation ends at any of them
    n_mtp_layers: int = 0  # published after the layers for multi-token prediction; their weights are skipped by name

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def kept(self) -> tuple[tuple[Rows | State, ...], ...]:
        """What a sequence keeps in the cache, by layer."""
        return tuple(layer.attention.kept for layer in self.layers)

    @property
    def row_values(self) -> int:
        """Values that each token keeps in the cache, over all layers."""
        return sum(part.width for layer in self.kept for part in layer if isinstance(part, Rows))

    def state_bytes(self, value_bytes: int) -> int:
        """Bytes of a sequence's recurrent state, over all layers; `value_bytes`: of an activation."""
        states = [part for layer in self.kept for part in layer if isinstance(part, State)]
        return sum(state.size * (FP32_BYTES if state.fp32 else value_bytes) for state in states)
