"""What a model is: frozen values with no behaviour beyond arithmetic on themselves.

A family reader (`spec.families`) makes these from a config.json; everything above reads only these.
Shapes are written [out, in], as checkpoints store a linear layer.
"""

from dataclasses import dataclass
from enum import StrEnum

FP8_BLOCK = 128  # rows and columns that share one scale
INT4_GROUP = 32  # consecutive columns that share one scale
INT8_GROUP = 128  # the same where the trunk is held in int8, which is no published form


class Storage(StrEnum):
    """How a linear layer's values are stored."""

    BF16 = "bf16"
    FP8_BLOCK128 = "fp8-128x128"  # e4m3 [out, in], fp32 scale [ceil(out/128), ceil(in/128)]
    INT4_GROUP32 = "int4-g32"  # 8 offset-binary nibbles an int32 [out, in/8], bf16 scale [out, in/32]


@dataclass(frozen=True, slots=True)
class YarnSpec:
    """Static YaRN as DeepSeek applies it: at every length (arXiv 2309.00071)."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding over interleaved pairs (2i, 2i+1) of `dim` values."""

    dim: int
    theta: float
    yarn: YarnSpec | None


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-Head Latent Attention (DeepSeek-V2, section 2.1). `q_lora_rank` None: queries come from one matrix."""

    n_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    v_dim: int
    rope: RopeSpec
    latent_norm_eps: float  # of the norms on the query's and the key's low-rank values

    @property
    def qk_dim(self) -> int:
        return self.nope_dim + self.rope.dim

    @property
    def latent_dim(self) -> int:
        """Values cached for a token and layer: the normalised latent, then the rotated key."""
        return self.kv_lora_rank + self.rope.dim


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Sigmoid `noaux_tc` routing (DeepSeek-V3, equations 12 to 16); the bias selects, it never weighs."""

    n_groups: int
    groups_kept: int
    normalize: bool
    scale: float


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
    attention: MlaSpec
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
    def latent_dim(self) -> int:
        """Of the first layer; every family so far has one attention shape throughout."""
        return self.layers[0].attention.latent_dim
