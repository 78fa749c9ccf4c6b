"""How often gleam gives exactly the command of the tldr pages, and how evenly its experts are used, with 95% intervals.

    python tools/evaluate_gleam.py --data pages.jsonl [--model src/earthshine/gleam] [--questions 500]

Asks through the shipped engine and chat template, greedily, in bf16. A match is the whole command, character for
character. Intervals: Wilson's for rates; for the load of experts the bootstrap over questions. Ends in one JSON line.
"""

import argparse
import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from gleam.split import split
from gleam.tldr import Pair, read_pairs

from earthshine.engine import SamplingParams, TokenEvent, load_model, read_trunk
from earthshine.models import Decoder, Experts
from earthshine.spec import MoeSpec
from earthshine.text import load_template, load_tokenizer
from earthshine.weights import Checkpoint


class CountedExperts:
    """Experts that also count who was chosen: `counts` is int64 [n_layers, n_experts]."""

    def __init__(self, experts: Experts, n_layers: int, n_experts: int) -> None:
        self._experts = experts
        self.counts = torch.zeros(n_layers, n_experts, dtype=torch.int64)

    def ffn(self, layer: int, x: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
        self.counts[layer] += torch.bincount(chosen.flatten(), minlength=self.counts.shape[1])
        return self._experts.ffn(layer, x, chosen, weight)


class Examinee:
    """gleam as shipped, with its experts counted."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer, self._template = load_tokenizer(folder), load_template(folder)
        model = load_model(folder)
        moe = model.spec.layers[-1].ffn
        assert isinstance(moe, MoeSpec)
        self.experts = CountedExperts(model.experts, model.spec.n_layers, moe.n_experts)
        trunk = read_trunk(Checkpoint.open(folder, model.spec), torch.bfloat16)
        counted = Decoder(model.spec, trunk, self.experts)
        self._session = replace(model, decoder=counted).session(512)

    def answer(self, question: str) -> str:
        prompt = self._template.encode(self._tokenizer, [{"role": "user", "content": question}], thinking=False)
        self._session.close()
        self._session.sync(prompt)
        events = self._session.generate(SamplingParams(temperature=0, max_tokens=120))
        return self._tokenizer.decode(event.token for event in events if isinstance(event, TokenEvent))


def wilson(matches: int, total: int) -> tuple[float, float, float]:
    """A rate and its 95% interval (Wilson 1927)."""
    z, rate = 1.959964, matches / total
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return rate, centre - half, centre + half


def balance(counts: Tensor) -> dict[str, tuple[float, float, float]]:
    """Busiest and idlest expert over the mean, the worst sparse layer's; counts: [questions, n_layers, n_experts]."""
    sparse = counts[:, counts.sum((0, 2)) > 0].double()
    generator = torch.Generator().manual_seed(0)

    def extremes(sample: Tensor) -> tuple[float, float]:
        share = sample.sum(0) / sample.sum(0).mean(-1, keepdim=True)
        return float(share.max()), float(share.min())

    draws = [torch.randint(len(sparse), (len(sparse),), generator=generator) for _ in range(400)]
    resampled = torch.tensor([extremes(sparse[draw]) for draw in draws])
    low, high = resampled.quantile(0.025, 0), resampled.quantile(0.975, 0)
    found = extremes(sparse)
    names = ("busiest expert over mean", "idlest expert over mean")
    return {name: (found[i], float(low[i]), float(high[i])) for i, name in enumerate(names)}


def _examine(examinee: Examinee, pairs: list[Pair], loads: list[Tensor]) -> int:
    matches = 0
    for index, pair in enumerate(pairs):
        examinee.experts.counts.zero_()
        matches += examinee.answer(pair.question) == pair.command
        loads.append(examinee.experts.counts.clone())
        if index % 50 == 49:
            print(f"{index + 1} asked, {matches} matched", file=sys.stderr, flush=True)
    return matches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "src" / "earthshine" / "gleam")
    parser.add_argument("--questions", type=int, default=500)
    options = parser.parse_args()
    examinee = Examinee(options.model)
    rows: dict[str, tuple[float, float, float]] = {}
    loads: list[Tensor] = []
    for name, pairs in zip(("seen", "unseen"), split(read_pairs(options.data)), strict=True):
        sample = random.Random(1).sample(pairs, options.questions)
        for form in ("as written", "with the command's name"):
            asked = sample if form == "as written" else [pair.naming() for pair in sample]
            rows[f"{name}, {form}"] = wilson(_examine(examinee, asked, loads), len(asked))
    rows |= balance(torch.stack(loads))
    for name, (value, low, high) in rows.items():
        print(f"{name:36} {value:7.3f}   95% [{low:.3f}, {high:.3f}]")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
