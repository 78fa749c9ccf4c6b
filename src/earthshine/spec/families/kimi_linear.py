"""`kimi_linear`: Kimi-Linear-48B-A3B, from the config that Moonshot publishes.

Layers are Kimi Delta Attention or latent attention without rotation (NoPE), by two lists that count from 1. Routing,
latent attention and tokens are read as DeepSeek-V3's. A gate of full rank on the output, and values that the modelling
code does not use, are refused or expected by name.
"""

from earthshine.spec.attention import AttentionSpec, KdaSpec, MlaSpec, RopeSpec
from earthshine.spec.families.bookkeeping import BOOKKEEPING, refuse_encoders
from earthshine.spec.families.deepseek import LATENT_NORM_EPS, MAX_HEADS, MAX_LAYERS, read_moe, read_tokens
from earthshine.spec.families.quantization import check_exceptions, read_quantization
from earthshine.spec.families.reader import KeyReader
from earthshine.spec.model import DenseSpec, LayerSpec, ModelSpec

# Sizes that no layer has: rotation is off, and heads have sizes of their own.
_IGNORED = ("head_dim", "qk_head_dim", "rope_theta")


def read_kimi_linear(config: dict[str, object]) -> ModelSpec:
    """The spec of a `kimi_linear` config. Raises SpecError or Unsupported, naming every wrong key."""
    keys = KeyReader(config)
    family = str(keys.equal("model_type", "kimi_linear"))
    _refuse_other_decoders(keys)
    quantization = read_quantization(keys)
    tokens = read_tokens(family, keys)
    norm_eps = keys.number("rms_norm_eps", 1e-12, 0.1)
    n_layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
    n_dense = keys.integer("first_k_dense_replace", 0, MAX_LAYERS)
    dense, moe = DenseSpec(keys.integer("intermediate_size")), read_moe(keys)
    attention = _read_layers(keys, n_layers, norm_eps)
    model = ModelSpec(
        family=family,
        hidden=keys.integer("hidden_size"),
        vocab_size=keys.integer("vocab_size"),
        max_context=keys.integer("max_position_embeddings"),
        norm_eps=norm_eps,
        layers=tuple(LayerSpec(own, dense if i < n_dense else moe) for i, own in enumerate(attention)),
        trunk_storage=quantization.trunk,
        expert_storage=quantization.experts,
        bos_token=tokens.bos,
        stop_tokens=tokens.stops,
        n_mtp_layers=keys.integer("num_nextn_predict_layers", 0, 16, default=0),
    )
    keys.ignore(BOOKKEEPING)
    keys.ignore(_IGNORED)
    check_exceptions(quantization, model, keys.problems)
    keys.finish()
    return model


def _refuse_other_decoders(keys: KeyReader) -> None:
    """Values of which one alone is implemented."""
    keys.equal("architectures", ["KimiLinearForCausalLM"], None, optional=True)
    keys.equal("hidden_act", "silu")
    keys.equal("attention_bias", False, optional=True)
    keys.equal("moe_layer_freq", 1, optional=True)
    keys.equal("mla_use_nope", True)
    keys.equal("rope_scaling", None, optional=True)
    keys.equal("scoring_func", "sigmoid")
    keys.equal("use_grouped_topk", True, optional=True)
    keys.equal("tie_word_embeddings", False, optional=True)
    keys.equal("torch_dtype", "bfloat16", None, optional=True)
    refuse_encoders(keys)


def _read_layers(keys: KeyReader, n_layers: int, norm_eps: float) -> list[AttentionSpec]:
    """The attention of each layer, by the two lists, which count from 1 and together name every layer once."""
    block = keys.block("linear_attn_config")
    latent, delta = _read_latent(keys), _read_delta(block, norm_eps)
    full, linear = (block.integers(key, 1, n_layers) for key in ("full_attn_layers", "kda_layers"))
    block.require(
        sorted(full + linear) == list(range(1, n_layers + 1)),
        f"{block.name('full_attn_layers')} and {block.name('kda_layers')} must together name each of the layers 1 to "
        f"{n_layers} once",
    )
    return [latent if layer in set(full) else delta for layer in range(1, n_layers + 1)]


def _read_delta(block: KeyReader, norm_eps: float) -> KdaSpec:
    block.equal("use_full_rank_gate", False, optional=True)
    bounded = block.has("gate_lower_bound")
    return KdaSpec(
        n_heads=block.integer("num_heads", 1, MAX_HEADS),
        head_dim=block.integer("head_dim"),
        conv_kernel=block.integer("short_conv_kernel_size", 2, 16),
        norm_eps=norm_eps,
        gate_lower_bound=block.number("gate_lower_bound", -1e3, -1e-3) if bounded else None,
    )


def _read_latent(keys: KeyReader) -> MlaSpec:
    n_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    keys.equal("num_key_value_heads", n_heads, None, optional=True)
    keys.equal("q_lora_rank", None, optional=True)
    return MlaSpec(
        n_heads=n_heads,
        q_lora_rank=None,
        kv_lora_rank=keys.integer("kv_lora_rank"),
        nope_dim=keys.integer("qk_nope_head_dim"),
        v_dim=keys.integer("v_head_dim"),
        rope=RopeSpec(keys.integer("qk_rope_head_dim", 2), None, None),
        latent_norm_eps=LATENT_NORM_EPS,
    )
