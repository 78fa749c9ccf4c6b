"""The values of a synthesised model's tensors, chosen so that activations and routing resemble a real model's.

Weights are scaled so that activations stay of order 1 at any depth: a matrix keeps its input's size, what each layer
adds to the residual stream shrinks as n_layers ** -0.5, attention is far from uniform, and logits have a deviation of
4, which leaves a most likely token. A sparse filling writes only what makes a step meaningful; see `SparseFilling`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from checkpoints.writer import Streamed
from synthesis import streams
from synthesis.routing import skewed_bias

from earthshine.spec import ModelSpec, MoeSpec, trunk_tensors
from earthshine.storage import Storage
from earthshine.weights.checkpoint.names import Published
from earthshine.weights.shards import TORCH_DTYPES

Pieces = Iterable[tuple[int, streams.Piece]]
Maker = Callable[[], Pieces]

_NORM_SPREAD = 0.1
_LOGIT_DEVIATION = 4.0
_QUERY_GAIN = 1.6
_SWIGLU_SIZE = 0.6  # root mean square of silu(g) * u for standard normal g and u
_FP32 = (".router_bias", ".a_log", ".dt_bias")  # as DeepSeek and Kimi publish them
BLOCK_BYTES = 4096  # of ext4, the least that a written piece takes


def _placed(pieces: Iterable[streams.Piece]) -> Iterator[tuple[int, streams.Piece]]:
    position = 0
    for piece in pieces:
        yield position, piece
        position += len(piece)


def _nothing() -> Pieces:
    return ()


@dataclass(frozen=True, slots=True)
class Filling:
    """Every tensor of `spec` in full. `skew` is Zipf's exponent of expert popularity, 0 for no router bias at all."""

    spec: ModelSpec
    seed: int
    skew: float = 0.0

    def tensors(self, published: Published) -> list[tuple[str, Streamed]]:
        """The published tensors of one of Earthshine's, declared; their bytes are made when they are written."""
        made = []
        for index, (part, make) in enumerate(zip(published.parts, self._makers(published), strict=True)):
            wide = index == 0 and published.name.endswith(_FP32)
            made.append((part.name, Streamed(TORCH_DTYPES["F32" if wide else part.dtypes[0]], part.shape, make)))
        return made

    def disk_bytes(self, nbytes: int, n_experts: int) -> int:
        """The most disk space for tensors of `nbytes` with `n_experts` experts in all layers."""
        return nbytes

    def _makers(self, published: Published) -> tuple[Maker, ...]:
        if len(published.shape) == 1:
            return (partial(self._vector, published),)
        names = [part.name for part in published.parts]
        rows, columns = published.shape
        gain = self._gain(published.name) * columns**-0.5
        if published.storage is Storage.INT4_GROUP32:
            size = gain / streams.int4_deviation()
            shape = np.array([rows, columns], dtype=np.int32).view(np.uint8).data
            return (
                partial(self._made, streams.int4_codes, names[0], rows * columns // 2),
                partial(self._made, streams.bf16_scales, names[1], rows * columns // 32, size),
                lambda: [(0, shape)],
            )
        if published.storage is Storage.FP8_BLOCK128:
            size = gain / streams.e4m3_deviation()
            high, wide = published.parts[1].shape
            return (
                partial(self._made, streams.e4m3_codes, names[0], rows * columns),
                partial(self._made, streams.fp32_scales, names[1], high * wide, size),
            )
        return (partial(self._made, streams.bf16_values, names[0], rows * columns, gain),)

    def _made(self, make: Callable[..., Iterator[streams.Piece]], name: str, *what: float) -> Pieces:
        return _placed(make(streams.Stream(self.seed, name), *what))

    def _vector(self, published: Published) -> Pieces:
        if not published.name.endswith(_FP32):
            return self._made(streams.bf16_values, published.parts[0].name, published.shape[0], _NORM_SPREAD, 1.0)
        make = self._bias if published.name.endswith(".router_bias") else self._decay
        return [(0, make(published).astype(np.float32).view(np.uint8).data)]

    def _decay(self, published: Published) -> np.ndarray:
        """Of delta attention, in the ranges that it is trained from: rates of 1 to 16, steps of 0.001 to 0.1."""
        drawn = self._generator(published).random(published.shape[0])
        if published.name.endswith(".a_log"):
            return np.asarray(np.log(1 + 15 * drawn))
        return np.asarray(np.log(np.expm1(np.exp(np.log(0.001) + np.log(100) * drawn))))  # softplus gives the step

    def _bias(self, published: Published) -> np.ndarray:
        (n_experts,) = published.shape
        moe = self.spec.layers[int(published.name.split(".")[1])].ffn
        if not self.skew or not isinstance(moe, MoeSpec):
            return np.zeros(n_experts)
        order = self._generator(published).permutation(n_experts)
        return skewed_bias(n_experts, moe.top_k, self.skew, order)

    def _generator(self, published: Published) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(streams.Stream(self.seed, published.parts[0].name).take(16)))

    def _gain(self, name: str) -> float:
        """By how much a matrix enlarges an input of size 1, were its columns independent."""
        if name == "embed":
            return float(self.spec.hidden**0.5)  # its rows are not summed over
        if name == "head":
            return _LOGIT_DEVIATION
        if name.endswith((".q", ".q_b")):
            return _QUERY_GAIN
        added = float(self.spec.n_layers**-0.5)
        if name.endswith(".o"):
            return added
        if not name.endswith(".down"):
            return 1.0
        layer, _, rest = name.removeprefix("layers.").partition(".")
        moe = self.spec.layers[int(layer)].ffn
        if rest.startswith("experts.") and isinstance(moe, MoeSpec):
            # The weighted sum of top_k independent experts should be of size 1 before `added`.
            mean = 1 / moe.top_k if moe.router.normalize else 1.0
            added /= moe.router.scale * mean * moe.top_k**0.5
        return added / _SWIGLU_SIZE


class SparseFilling(Filling):
    """Names, shapes and headers of the whole model, and holes for nearly all data: zeros that take no disk space.

    Written for real are the norms, the router biases (with a little noise, so that layers differ), the shapes of INT4
    tensors, and the first 256 columns of every router and of 2048 rows of embedding and head. Attention and FFN then
    add exactly zero, a token's hidden state is its embedding in every layer, and the router sends different tokens to
    different experts. Row i + 1 of the head is row i of the embedding, so greedy decoding counts: after id i comes
    i + 1, stop tokens left out. Other ids have a zero embedding: they are all routed alike, and id 0 follows.
    """

    __slots__ = ()
    _COLUMNS = 256
    _ROWS = 2048
    _BIAS_NOISE = 0.01
    _NEXT_LOGIT = 20.0

    def disk_bytes(self, nbytes: int, n_experts: int) -> int:
        """Two blocks per written row, one per shape tensor (three per expert), vectors in full and a block around
        each."""
        vectors = [tensor.size for tensor in trunk_tensors(self.spec) if len(tensor.shape) == 1]
        blocks = 2 * (n_experts + 2 * self._ROWS) + 3 * n_experts + 2 * len(vectors)
        return BLOCK_BYTES * blocks + 4 * sum(vectors)

    def _makers(self, published: Published) -> tuple[Maker, ...]:
        if len(published.shape) == 1:
            return (partial(self._vector, published),)
        makers: list[Maker] = [_nothing] * len(published.parts)
        if published.storage is Storage.INT4_GROUP32:
            makers[2] = super()._makers(published)[2]
        elif published.name == "embed":
            makers[0] = partial(self._rows_of, self._embedding(), published, self._counted())
        elif published.name == "head":
            ids = self._counted()
            rows = np.roll(self._embedding(), 1, axis=0) * (self._NEXT_LOGIT / self.spec.hidden)
            makers[0] = partial(self._rows_of, rows, published, ids)
        elif published.name.endswith(".router"):
            deviation = self.spec.hidden**-0.5
            values = partial(self._block, published.parts[0].name, published.shape[0], deviation)
            makers[0] = lambda: self._rows_of(values(), published, range(published.shape[0]))
        return tuple(makers)

    def _bias(self, published: Published) -> np.ndarray:
        noise = self._generator(published).standard_normal(published.shape[0]) * self._BIAS_NOISE
        return super()._bias(published) + noise

    def _counted(self) -> list[int]:
        """The ids whose embedding is written."""
        return [token for token in range(min(self._ROWS, self.spec.vocab_size)) if token not in self.spec.stop_tokens]

    def _columns(self) -> int:
        return min(self._COLUMNS, self.spec.hidden)

    def _embedding(self) -> np.ndarray:
        """fp32 [ids, columns], so large that a row has size 1 over all of hidden."""
        return self._block("embedding", len(self._counted()), (self.spec.hidden / self._columns()) ** 0.5)

    def _block(self, name: str, rows: int, deviation: float) -> np.ndarray:
        pieces = streams.bf16_values(streams.Stream(self.seed, name), rows * self._columns(), deviation)
        raw = torch.frombuffer(bytearray(b"".join(pieces)), dtype=torch.bfloat16)
        return raw.float().reshape(rows, -1).numpy()

    def _rows_of(self, values: np.ndarray, published: Published, ids: Iterable[int]) -> Pieces:
        """`values` as the first columns of the rows `ids` of a bf16 matrix."""
        stride = 2 * published.shape[1]
        bits = torch.from_numpy(values).bfloat16().view(torch.uint8).numpy()
        return [(row * stride, bits[index].data) for index, row in enumerate(ids)]
