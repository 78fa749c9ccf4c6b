"""The mathematics of the models, in torch, readable beside the papers: rope, mla, gqa, ffn, then the decoder over them.

Reads the spec and calls kernels. Files and sequences stay behind three protocols: Trunk, Experts and States.
"""

from earthshine.models.attention import Attention, attention_of
from earthshine.models.decoder import Decoder, result_of
from earthshine.models.experts import Experts, GroupedExperts
from earthshine.models.ffn import Ffn, Moe
from earthshine.models.gqa import Gqa, GqaWeights
from earthshine.models.mla import Mla, MlaWeights, Query
from earthshine.models.state import LayerState, Recurrent, Run, States
from earthshine.models.trunk import LayerWeights, ResidentTrunk, Trunk

__all__ = [
    "Attention",
    "Decoder",
    "Experts",
    "Ffn",
    "Gqa",
    "GqaWeights",
    "GroupedExperts",
    "LayerState",
    "LayerWeights",
    "Mla",
    "MlaWeights",
    "Moe",
    "Query",
    "Recurrent",
    "ResidentTrunk",
    "Run",
    "States",
    "Trunk",
    "attention_of",
    "result_of",
]
