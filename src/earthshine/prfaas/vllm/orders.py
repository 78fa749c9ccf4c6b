"""What the connector's scheduler half sends to its worker half in each step of vLLM.

Plain values, which vLLM may pickle on their way to another process.
"""

from dataclasses import dataclass, field


@dataclass
class Load:
    """Fetch the latents of `tokens` from `start` on, and store them in `blocks` (of all `tokens`, in order)."""

    request_id: str
    tenant: str
    tokens: list[int]
    start: int
    blocks: list[int]


@dataclass
class Chunk:
    """This step computes a prompt up to token `end`. Before it, `start` tokens are in the cache."""

    request_id: str
    start: int
    end: int
    blocks: list[int]  # of tokens 0 to `end`


@dataclass
class NewPrompt:
    """A prompt whose first chunk is in this step, or is again after a preemption."""

    request_id: str
    tenant: str
    tokens: list[int]
    held: bool  # a peer will ask for it after vLLM has finished it


@dataclass
class Orders:
    loads: list[Load] = field(default_factory=list)
    prompts: list[NewPrompt] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    preempted: set[str] = field(default_factory=set)
