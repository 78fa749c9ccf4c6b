"""A model as frozen values: read strictly from config.json, and what follows from them alone.

`load_spec` reads a checkpoint's config, `trunk_tensors` and `expert_shapes` name its tensors, and `footprint` computes
its size and FLOPs. Importing this package loads no torch. A config key that no family knows is refused by name.
"""

from earthshine.spec.attention import AttentionSpec, GqaSpec, KdaSpec, MlaSpec, RopeSpec, Rows, State, YarnSpec
from earthshine.spec.config import load_spec, read_config, spec_from_config
from earthshine.spec.footprint import (
    Footprint,
    decode_flops_per_token,
    expert_bytes,
    expert_params,
    footprint,
    prefill_flops_per_token,
)
from earthshine.spec.layout import expert_shapes, layer_tensors, moe_layers, trunk_tensors
from earthshine.spec.model import (
    DenseSpec,
    LayerSpec,
    ModelSpec,
    MoeSpec,
    RouterSpec,
    Scoring,
)
from earthshine.spec.tensor import TensorSpec, Use
from earthshine.storage import Storage

__all__ = [
    "AttentionSpec",
    "DenseSpec",
    "Footprint",
    "GqaSpec",
    "KdaSpec",
    "LayerSpec",
    "MlaSpec",
    "ModelSpec",
    "MoeSpec",
    "RopeSpec",
    "RouterSpec",
    "Rows",
    "Scoring",
    "State",
    "Storage",
    "TensorSpec",
    "Use",
    "YarnSpec",
    "decode_flops_per_token",
    "expert_bytes",
    "expert_params",
    "expert_shapes",
    "footprint",
    "layer_tensors",
    "load_spec",
    "moe_layers",
    "prefill_flops_per_token",
    "read_config",
    "spec_from_config",
    "trunk_tensors",
]
