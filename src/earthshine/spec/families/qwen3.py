"""`qwen3_moe`: Qwen3-30B-A3B and Qwen3-235B-A22B, from the configs that Qwen publishes and that transformers saves.

Anything but full attention in every layer, experts in every layer, plain RoPE or static YaRN and untied embeddings is
refused by name. What the config leaves out is what transformers' Qwen3MoeConfig takes it for.
"""

from earthshine.spec.attention import GqaSpec, RopeSpec, YarnSpec
from earthshine.spec.families.bookkeeping import BOOKKEEPING, refuse_encoders
from earthshine.spec.families.deepseek import MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, read_tokens
from earthshine.spec.families.quantization import check_exceptions, read_quantization
from earthshine.spec.families.reader import KeyReader
from earthshine.spec.model import LayerSpec, ModelSpec, MoeSpec, RouterSpec, Scoring

# Training's, and sizes of what `_refuse_other_decoders` has excluded.
_IGNORED = ("intermediate_size", "max_window_layers", "router_aux_loss_coef", "sliding_window")


def read_qwen3_moe(config: dict[str, object]) -> ModelSpec:
    """The spec of a `qwen3_moe` config. Raises SpecError or Unsupported, naming every wrong key."""
    keys = KeyReader(config)
    family = str(keys.equal("model_type", "qwen3_moe"))
    n_layers = keys.integer("num_hidden_layers", 1, MAX_LAYERS)
    _refuse_other_decoders(keys, n_layers)
    quantization = read_quantization(keys)
    tokens = read_tokens(family, keys)
    hidden, norm_eps = keys.integer("hidden_size"), keys.number("rms_norm_eps", 1e-12, 0.1)
    attention = _read_attention(keys, hidden, norm_eps)
    layer = LayerSpec(attention, _read_moe(keys))
    model = ModelSpec(
        family=family,
        hidden=hidden,
        vocab_size=keys.integer("vocab_size"),
        max_context=_read_context(keys, attention.rope.yarn),
        norm_eps=norm_eps,
        layers=(layer,) * n_layers,
        trunk_storage=quantization.trunk,
        expert_storage=quantization.experts,
        bos_token=tokens.bos,
        stop_tokens=tokens.stops,
    )
    keys.ignore(BOOKKEEPING)
    keys.ignore(_IGNORED)
    check_exceptions(quantization, model, keys.problems)
    keys.finish()
    return model


def _refuse_other_decoders(keys: KeyReader, n_layers: int) -> None:
    """Values of which one alone is implemented."""
    keys.equal("architectures", ["Qwen3MoeForCausalLM"], None, optional=True)
    keys.equal("hidden_act", "silu")
    keys.equal("attention_bias", False, optional=True)
    keys.equal("use_sliding_window", False, optional=True)
    if keys.has("layer_types") and keys.raw("layer_types") != ["full_attention"] * n_layers:
        keys.equal("layer_types", ["full_attention"])
    keys.equal("decoder_sparse_step", 1, optional=True)
    keys.equal("mlp_only_layers", [], None, optional=True)
    keys.equal("tie_word_embeddings", False, optional=True)
    keys.equal("torch_dtype", "bfloat16", None, optional=True)
    refuse_encoders(keys)


def _read_attention(keys: KeyReader, hidden: int, norm_eps: float) -> GqaSpec:
    n_heads = keys.integer("num_attention_heads", 1, MAX_HEADS)
    n_kv_heads = keys.integer("num_key_value_heads", 1, MAX_HEADS)
    keys.require(
        n_heads % n_kv_heads == 0,
        f"{keys.name('num_key_value_heads')} is {n_kv_heads}; it must divide num_attention_heads ({n_heads})",
    )
    head_dim = _read_head_dim(keys, hidden, n_heads)
    return GqaSpec(n_heads, n_kv_heads, head_dim, _read_rope(keys, head_dim), norm_eps)


def _read_head_dim(keys: KeyReader, hidden: int, n_heads: int) -> int:
    """Absent or null: hidden_size divided among the heads."""
    head_dim = keys.integer("head_dim", 2, default=max(2, hidden // n_heads))
    shared = keys.has("head_dim") or hidden == head_dim * n_heads
    keys.require(shared, f"head_dim is missing, and hidden_size ({hidden}) can't be divided among {n_heads} heads")
    keys.require(head_dim % 2 == 0, f"{keys.name('head_dim')} is {head_dim}; rotation needs an even number")
    return head_dim


def _read_rope(keys: KeyReader, dim: int) -> RopeSpec:
    """Both forms: rope_theta beside rope_scaling, and rope_parameters that holds both."""
    levels, yarn = [keys], None
    if keys.has("rope_scaling"):
        levels.append(keys.block("rope_scaling"))
        kind = levels[-1].equal("type", "default", "yarn")
        if kind != levels[-1].raw("type"):  # the other keys of a refused kind are not read
            levels[-1].waive()
        elif kind == "yarn":
            yarn = _read_yarn(levels[-1])
    thetas = [level.number("rope_theta", 2, 1e12) for level in levels if level.has("rope_theta")]
    thetas = thetas or [keys.number("rope_theta", 2, 1e12)]
    keys.require(len(set(thetas)) == 1, f"{levels[-1].name('rope_theta')} and {keys.name('rope_theta')} differ")
    return RopeSpec(dim, thetas[0], yarn)


def _read_yarn(block: KeyReader) -> YarnSpec:
    """As transformers computes it for models without an mscale of their own: queries and keys alike are enlarged by
    attention_factor, which is 0.1 ln(factor) + 1 where the config does not give it."""
    beta_slow = block.number("beta_slow", 1e-3, 1e6, default=1.0)
    beta_fast = block.number("beta_fast", 1e-3, 1e6, default=32.0)
    block.require(beta_fast >= beta_slow, f"{block.name('beta_fast')} must be at least beta_slow")
    block.equal("truncate", True, optional=True)
    given = block.has("attention_factor")
    return YarnSpec(
        factor=block.number("factor", 1, 1e6),
        original_context=block.integer("original_max_position_embeddings"),
        beta_fast=beta_fast,
        beta_slow=beta_slow,
        mscale=1.0,
        mscale_all_dim=0.0,
        attention_factor=block.number("attention_factor", 1e-3, 1e3) if given else None,
    )


def _read_context(keys: KeyReader, yarn: YarnSpec | None) -> int:
    """YaRN stretches the original context; Qwen's cards leave max_position_embeddings as it was."""
    published = keys.integer("max_position_embeddings")
    return published if yarn is None else max(published, int(yarn.factor * yarn.original_context))


def _read_moe(keys: KeyReader) -> MoeSpec:
    n_experts = keys.integer("n_routed_experts", 1, MAX_EXPERTS)
    top_k = keys.integer("num_experts_per_tok", 1, MAX_EXPERTS)
    keys.require(
        top_k <= n_experts,
        f"{keys.name('num_experts_per_tok')} is {top_k}; {keys.name('n_routed_experts')} is only {n_experts}",
    )
    return MoeSpec(
        n_experts=n_experts,
        top_k=top_k,
        intermediate=keys.integer("moe_intermediate_size"),
        shared_intermediate=0,
        router=RouterSpec(
            n_groups=1, groups_kept=1, normalize=keys.flag("norm_topk_prob"), scale=1.0, scoring=Scoring.SOFTMAX
        ),
    )
