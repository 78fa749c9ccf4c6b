"""A trained gleam as a folder in Kimi-K2.6's published format, ready to be opened like any other checkpoint."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from checkpoints.writer import published_tensors, tensor_shapes, write_checkpoint
from gleam.architecture import N_RANKS, VOCAB_SIZE, config
from gleam.training import Run
from torch import Tensor

from earthshine.spec import ModelSpec
from earthshine.text import Tokenizer, load_tokenizer

_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


class _Trained(Mapping[str, Tensor]):
    """The run's tensors by Earthshine's names: the trunk in bf16, router biases and experts (to be packed) in fp32."""

    def __init__(self, run: Run) -> None:
        self._run, self._names = run, tensor_shapes(run.spec)

    def __getitem__(self, name: str) -> Tensor:
        layer, _, rest = name.partition(".experts.")
        if rest:
            expert, part = rest.split(".")
            if part == "down":
                return self._run.experts.params[f"{layer}.experts.down"][int(expert)].detach()
            return self._run.experts.params[f"{layer}.experts.gate_up"][
                int(expert), ("gate", "up").index(part)
            ].detach()
        value = self._run.trunk[name].detach()
        return value if name.endswith("router_bias") else value.to(torch.bfloat16)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    named = {
        str(token): {"content": tokenizer.decode([token]), "special": tokenizer.is_special(token)}
        for token in range(N_RANKS, VOCAB_SIZE)
        if not tokenizer.decode([token]).startswith("<|reserved_token_")
    }
    return {
        "added_tokens_decoder": named,
        "bos_token": "[BOS]",
        "clean_up_tokenization_spaces": False,
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def export(run: Run, vocabulary: Path, target: Path) -> None:
    """Writes all but the model card into `target`, which must hold no weights yet."""
    spec: ModelSpec = run.spec
    write_checkpoint(target, published_tensors(spec, _Trained(run)), shard_bytes=1 << 30)
    shutil.copy(vocabulary / "tiktoken.model", target / "tiktoken.model")
    shutil.copy(_TEMPLATE, target / "chat_template.jinja")
    _write_json(target / "config.json", config())
    _write_json(target / "tokenizer_config.json", _tokenizer_config(load_tokenizer(target)))
    _write_json(
        target / "generation_config.json", {"do_sample": False, "eos_token_id": N_RANKS + 2, "max_length": 4096}
    )
