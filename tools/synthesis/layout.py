"""The order of tensors in shards, as far as it is known of the published checkpoints.

Moonshot publishes one shard per layer, then one with embedding, norm and head, then for Kimi-K2.5 and later one with
the projector and one with the vision tower (64 shards for K2.6). Inside a shard, tensors lie as the safetensors library
sorts them, by dtype and then by name: of an INT4 expert the codes lie together and the scales lie together elsewhere.
"""

from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from typing import Any

import torch
from checkpoints.writer import Streamed, shards_by_size
from synthesis.filling import Filling

from earthshine.spec import ModelSpec, MoeSpec
from earthshine.weights.checkpoint.names import Published, published_expert, published_trunk

Entry = tuple[str, Streamed]
Shapes = dict[str, tuple[int, ...]]

# The library puts the widest dtypes first; these are all that a synthesised model has.
_DTYPE_ORDER = (torch.float32, torch.int32, torch.bfloat16, torch.float8_e4m3fn)
_VISION_SIZES = ("vt_hidden_size", "vt_num_hidden_layers", "vt_intermediate_size", "patch_size",
                 "init_pos_emb_height", "init_pos_emb_width", "text_hidden_size")  # fmt: skip
_MOST_VISION = 2**14  # of any size above, so that the names stay few; published ones have up to 7168


def shards(filling: Filling, shard_bytes: int | None) -> Iterator[list[Entry]]:
    """The shards of a model in order: one per layer and one for the rest, or, given a size, cut by it in that order."""
    whole = (_entries(filling, group) for group in _groups(filling.spec))
    if shard_bytes is not None:
        whole = shards_by_size(chain.from_iterable(whole), shard_bytes)  # type: ignore[assignment]
    for shard in whole:
        yield sorted(shard, key=lambda entry: (_DTYPE_ORDER.index(entry[1].dtype), entry[0]))


def _groups(spec: ModelSpec) -> Iterator[list[Published]]:
    """Each layer's tensors, then those of no layer."""
    rest: list[Published] = []
    for layer, trunk in groupby(published_trunk(spec), _layer):
        if layer is None:
            rest += trunk
            continue
        moe = spec.layers[layer].ffn
        experts = (
            [published_expert(spec, layer, moe, i) for i in range(moe.n_experts)] if isinstance(moe, MoeSpec) else []
        )
        yield [*trunk, *chain.from_iterable(experts)]
    yield rest


def _layer(published: Published) -> int | None:
    return int(published.name.split(".")[1]) if published.name.startswith("layers.") else None


def _entries(filling: Filling, group: Iterable[Published]) -> list[Entry]:
    return [entry for published in group for entry in filling.tensors(published)]


def vision_shards(config: dict[str, Any]) -> list[list[Entry]]:
    """The projector and the vision tower of a Kimi-K2.5 config as holes, one shard each; none for other configs.

    Names and shapes are those of the published checkpoint (335 tensors, 471,143,920 values).
    """
    sizes = config.get("vision_config")
    if config.get("model_type") != "kimi_k25" or not isinstance(sizes, dict):
        return []
    found = [size for size in map(sizes.get, _VISION_SIZES) if type(size) is int and 0 < size <= _MOST_VISION]
    if len(found) < len(_VISION_SIZES):
        return []
    hidden, n_blocks, inner, patch, high, wide, text = found
    joined = 4 * hidden  # the projector takes 2 x 2 patches
    projector: Shapes = {"pre_norm": (hidden,), "proj.0": (joined, joined), "proj.2": (text, joined)}
    block: Shapes = {
        "norm0": (hidden,), "norm1": (hidden,), "wqkv": (3 * hidden, hidden), "wo": (hidden, hidden),
        "mlp.fc0": (inner, hidden), "mlp.fc1": (hidden, inner),
    }  # fmt: skip
    tower: Shapes = {"patch_embed.proj": (hidden, 3, patch, patch), "encoder.final_layernorm": (hidden,)}
    tower |= {f"encoder.blocks.{i}.{name}": shape for i in range(n_blocks) for name, shape in block.items()}
    position = _hole("vision_tower.patch_embed.pos_emb.weight", (high, wide, hidden))
    return [_biased("mm_projector", projector), sorted([*_biased("vision_tower", tower), position])]


def _biased(module: str, shapes: Shapes) -> list[Entry]:
    """A weight and a bias of as many values as the weight has rows for each name."""
    weights = (_hole(f"{module}.{name}.weight", shape) for name, shape in shapes.items())
    biases = (_hole(f"{module}.{name}.bias", shape[:1]) for name, shape in shapes.items())
    return sorted([*weights, *biases], key=lambda entry: entry[0])


def _hole(name: str, shape: tuple[int, ...]) -> Entry:
    return name, Streamed(torch.bfloat16, shape, tuple)
