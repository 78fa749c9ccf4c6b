"""The model families: which reader each `model_type` has, and what other known families would need.

A family is a short file of mapping and refusals. A config of any other family is Unsupported; the message says what is
missing.
"""

from collections.abc import Callable

from earthshine.errors import SpecError, Unsupported
from earthshine.spec.families.deepseek import read_flat
from earthshine.spec.families.kimi_k25 import read_kimi_k25
from earthshine.spec.families.kimi_linear import read_kimi_linear
from earthshine.spec.families.qwen3 import read_qwen3_moe
from earthshine.spec.model import ModelSpec
from earthshine.untrusted import shown

FAMILIES: dict[str, Callable[[dict[str, object]], ModelSpec]] = {
    "deepseek_v3": read_flat,
    "kimi_k2": read_flat,
    "kimi_k25": read_kimi_k25,
    "kimi_linear": read_kimi_linear,
    "qwen3_moe": read_qwen3_moe,
}

# Known by name: what each would need that is not implemented.
NOT_IMPLEMENTED = {
    "deepseek_v2": "softmax routing limited to groups by their best expert",
    "deepseek_v32": "the sparse-attention (DSA) indexer",
    "deepseek_v4": "compressed-key attention, hyper-connections, hash-routed layers and fp4 experts",
    "glm4_moe": "grouped-query attention with partial rotation",
    "glm4_moe_lite": "a reader and checks for this family's latent attention",
    "glm_moe_dsa": "the sparse-attention (DSA) indexer",
    "gpt_oss": "grouped-query attention with sinks, and mxfp4 experts",
    "kimi_k3": "attention residuals, output gates in latent attention, latent experts, SiTU and mxfp4 experts",
    "minimax_m3": "block-sparse grouped-query attention",
    "qwen3_5_moe": "gated delta attention and gated grouped-query attention",
    "qwen3_next": "gated delta attention and gated grouped-query attention",
}


def read_model(config: dict[str, object]) -> ModelSpec:
    """The spec of a parsed config.json by its `model_type`. Raises SpecError, or Unsupported naming what is missing."""
    family = config.get("model_type")
    if not isinstance(family, str):
        state = f"is {shown(family)}" if "model_type" in config else "is missing"
        raise SpecError(f"config.json: model_type {state}; it must name a model family, such as 'kimi_k25'.")
    reader = FAMILIES.get(family)
    if reader is not None:
        return reader(config)
    if family in NOT_IMPLEMENTED:
        raise Unsupported(f"The model family {family} is not implemented: it needs {NOT_IMPLEMENTED[family]}.")
    readable = ", ".join(sorted(FAMILIES))
    raise Unsupported(f"The model family {shown(family)} is unknown. Those that can be read are {readable}.")
