"""The mathematics of the models, in torch, readable beside the papers: rope, mla, ffn, then the decoder over them.

Reads the spec and calls kernels. Files and conversations stay behind three protocols: Trunk, Experts and Context.
"""

from earthshine.models.decoder import Context, Decoder
from earthshine.models.ffn import Experts, Ffn, Moe
from earthshine.models.mla import Mla, MlaWeights, Query
from earthshine.models.trunk import LayerWeights, ResidentTrunk, Trunk

__all__ = [
    "Context",
    "Decoder",
    "Experts",
    "Ffn",
    "LayerWeights",
    "Mla",
    "MlaWeights",
    "Moe",
    "Query",
    "ResidentTrunk",
    "Trunk",
]
