"""The kinds of attention: what each keeps in the cache, its tensors, and its cost.

The page pool, the page table, the stored form, the plan, the footprint and `inspect` use only the interface of
`AttentionSpec`. A new kind is a class here, a file of mathematics in `models`, a line in `models/attention.py`, and a
kernel.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from earthshine.spec.tensor import TensorSpec, Use

MOST_CHECKPOINTS = 2  # of a sequence's recurrent state: lengths at which it can be cut
STATES_PER_SEQUENCE = MOST_CHECKPOINTS + 2  # and the state that a step reads and the one that it writes


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of the cache that grows by one row of `width` values per token, in the activations' dtype. It may be cut
    at any token."""

    name: str
    width: int


@dataclass(frozen=True, slots=True)
class State:
    """A part of the cache of constant size: `shape` values after a sequence's last token, in fp32 or in the
    activations' dtype. It can only be extended."""

    name: str
    shape: tuple[int, ...]
    fp32: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)


Kept = Sequence[Sequence[Rows | State]]  # by layer


class AttentionSpec(Protocol):
    """The attention of one layer. This is the interface for everything outside `models`."""

    @property
    def kept(self) -> tuple[Rows | State, ...]:
        """What a sequence keeps in the cache of this layer."""
        ...

    @property
    def facts(self) -> Mapping[str, object]:
        """Its sizes by name, for display."""
        ...

    @property
    def score_rows(self) -> int:
        """The number of one token's query rows that share a cached row, which a kernel computes together."""
        ...

    @property
    def decode_macs(self) -> int:
        """Multiply-adds of a new token for each token that it attends to, over cached rows as stored."""
        ...

    @property
    def prefill_macs(self) -> int:
        """As `decode_macs`, with compressed keys and values expanded: the form with the fewest operations."""
        ...

    @property
    def token_macs(self) -> int:
        """Multiply-adds of a new token on a recurrent state, which involve neither a weight nor another token."""
        ...

    @property
    def activation_values(self) -> int:
        """The most values that exist at the same time for one token of a prompt."""
        ...

    @property
    def gathered_values(self) -> int:
        """Values per token of the context that attention in fp32 copies from its page and pads."""
        ...

    def tensors(self, hidden: int) -> Iterator[TensorSpec]:
        """Its weights, in the order of a forward pass; names are without the layer's prefix."""
        ...


@dataclass(frozen=True, slots=True)
class YarnSpec:
    """Static YaRN: at every length (arXiv 2309.00071).

    `attention_factor`, of cosines and sines; where None, it follows from `mscale` and `mscale_all_dim`.
    """

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    attention_factor: float | None = None


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding over `dim` values. Which two values make a pair is the attention's.

    `theta` None: these values are used without rotation (NoPE).
    """

    dim: int
    theta: float | None
    yarn: YarnSpec | None


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-Head Latent Attention (DeepSeek-V2, section 2.1). `q_lora_rank` None: queries come from one matrix.

    It rotates interleaved pairs (2i, 2i + 1).
    """

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

    @property
    def kept(self) -> tuple[Rows | State, ...]:
        return (Rows("latent", self.latent_dim),)

    @property
    def facts(self) -> Mapping[str, object]:
        return {
            "attention": "latent (MLA)",
            "n_heads": self.n_heads,
            "q_lora_rank": self.q_lora_rank,
            "kv_lora_rank": self.kv_lora_rank,
            "rope_dim": self.rope.dim,
            "yarn_factor": self.rope.yarn.factor if self.rope.yarn else None,
        }

    @property
    def score_rows(self) -> int:
        return self.n_heads

    @property
    def decode_macs(self) -> int:
        """Absorbed: a score takes latent_dim products per head, its value kv_lora_rank."""
        return self.n_heads * (self.latent_dim + self.kv_lora_rank)

    @property
    def prefill_macs(self) -> int:
        return self.n_heads * (self.qk_dim + self.v_dim)

    @property
    def token_macs(self) -> int:
        return 0

    @property
    def activation_values(self) -> int:
        queries = self.n_heads * (2 * self.qk_dim + 2 * self.v_dim)
        return queries + 2 * (self.q_lora_rank or 0) + 3 * self.latent_dim

    @property
    def gathered_values(self) -> int:
        """The latent, padded as a key and as a value."""
        return 2 * self.latent_dim + self.kv_lora_rank

    def tensors(self, hidden: int) -> Iterator[TensorSpec]:
        q_out = self.n_heads * self.qk_dim
        if self.q_lora_rank is None:
            yield TensorSpec("q", (q_out, hidden), linear=True)
        else:
            yield TensorSpec("q_a", (self.q_lora_rank, hidden), linear=True)
            yield TensorSpec("q_a_norm", (self.q_lora_rank,))
            yield TensorSpec("q_b", (q_out, self.q_lora_rank), linear=True)
        yield TensorSpec("kv_a", (self.latent_dim, hidden), linear=True)
        yield TensorSpec("kv_a_norm", (self.kv_lora_rank,))
        # Absorbed attention splits it by head.
        kv_b = (self.n_heads * (self.nope_dim + self.v_dim), self.kv_lora_rank)
        yield TensorSpec("kv_b", kv_b, linear=True, use=Use.PLAIN)
        yield TensorSpec("o", (hidden, self.n_heads * self.v_dim), linear=True)


@dataclass(frozen=True, slots=True)
class GqaSpec:
    """Grouped-query attention (arXiv 2305.13245) with an RMS norm over each head of queries and keys (Qwen3).

    n_heads / n_kv_heads query heads in a row share a key head. It rotates the first `rope.dim` values of a head, in
    halves: the pair (i, i + rope.dim / 2).
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    rope: RopeSpec
    norm_eps: float

    @property
    def kept(self) -> tuple[Rows | State, ...]:
        """For each key head its key, after norm and rotation, then its value."""
        return (Rows("key_value", self.n_kv_heads * 2 * self.head_dim),)

    @property
    def facts(self) -> Mapping[str, object]:
        return {
            "attention": "grouped-query (GQA)",
            "n_heads": self.n_heads,
            "n_kv_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "rope_dim": self.rope.dim,
            "yarn_factor": self.rope.yarn.factor if self.rope.yarn else None,
        }

    @property
    def score_rows(self) -> int:
        return self.n_heads // self.n_kv_heads

    @property
    def decode_macs(self) -> int:
        return 2 * self.n_heads * self.head_dim

    @property
    def prefill_macs(self) -> int:
        return self.decode_macs

    @property
    def token_macs(self) -> int:
        return 0

    @property
    def activation_values(self) -> int:
        """Queries as multiplied, normed and attended; keys and values as multiplied, normed and joined."""
        return (3 * self.n_heads + 6 * self.n_kv_heads) * self.head_dim

    @property
    def gathered_values(self) -> int:
        """Keys and values of every key head, gathered and padded."""
        return 4 * self.n_kv_heads * self.head_dim

    def tensors(self, hidden: int) -> Iterator[TensorSpec]:
        queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        yield TensorSpec("q", (queries, hidden), linear=True)
        yield TensorSpec("q_norm", (self.head_dim,))
        yield TensorSpec("k", (keys, hidden), linear=True)
        yield TensorSpec("k_norm", (self.head_dim,))
        yield TensorSpec("v", (keys, hidden), linear=True)
        yield TensorSpec("o", (hidden, queries), linear=True)


@dataclass(frozen=True, slots=True)
class KdaSpec:
    """Kimi Delta Attention (arXiv 2510.26692): a delta rule whose state decays per channel.

    `conv_kernel`: of the short causal convolution on queries, keys and values. `gate_lower_bound`: the least logarithm
    of a channel's decay; None where it has no bound.
    """

    n_heads: int
    head_dim: int  # of keys and of values
    conv_kernel: int
    norm_eps: float  # of the norm over each head of the output
    gate_lower_bound: float | None = None

    @property
    def dim(self) -> int:
        """Of all heads."""
        return self.n_heads * self.head_dim

    @property
    def kept(self) -> tuple[Rows | State, ...]:
        """The delta rule's state by head [key, value], and the inputs of the convolution before the next token."""
        return (
            State("delta", (self.n_heads, self.head_dim, self.head_dim), fp32=True),
            State("convolution", (self.conv_kernel - 1, 3 * self.dim), fp32=False),
        )

    @property
    def facts(self) -> Mapping[str, object]:
        return {
            "attention": "delta rule (KDA)",
            "n_heads": self.n_heads,
            "head_dim": self.head_dim,
            "conv_kernel": self.conv_kernel,
        }

    @property
    def score_rows(self) -> int:
        return 1

    @property
    def decode_macs(self) -> int:
        return 0

    @property
    def prefill_macs(self) -> int:
        return 0

    @property
    def token_macs(self) -> int:
        """Of each value of the state: its decay, its part of k^T S, of the update and of S^T q; and the convolution."""
        return 4 * self.dim * self.head_dim + 3 * self.dim * self.conv_kernel

    @property
    def activation_values(self) -> int:
        """The convolution's inputs and their copy in one piece, decay, gate, and the output before and after it."""
        return 10 * self.dim

    @property
    def gathered_values(self) -> int:
        return 0

    def tensors(self, hidden: int) -> Iterator[TensorSpec]:
        for part in ("q", "k", "v"):
            yield TensorSpec(part, (self.dim, hidden), linear=True)
        for part in ("q_conv", "k_conv", "v_conv"):
            stored = (self.dim, 1, self.conv_kernel)
            yield TensorSpec(part, (self.dim, self.conv_kernel), use=Use.PLAIN, published_shape=stored)
        yield TensorSpec("f_a", (self.head_dim, hidden), linear=True)
        yield TensorSpec("f_b", (self.dim, self.head_dim), linear=True)
        yield TensorSpec("b", (self.n_heads, hidden), linear=True)
        a_log = (1, 1, self.n_heads, 1)
        yield TensorSpec("a_log", (self.n_heads,), use=Use.FP32, published_fp32=True, published_shape=a_log)
        yield TensorSpec("dt_bias", (self.dim,), use=Use.FP32, published_fp32=True)
        yield TensorSpec("g_a", (self.head_dim, hidden), linear=True)
        yield TensorSpec("g_b", (self.dim, self.head_dim), linear=True)
        yield TensorSpec("o_norm", (self.head_dim,))
        yield TensorSpec("o", (hidden, self.dim), linear=True)
