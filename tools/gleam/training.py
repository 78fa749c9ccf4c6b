"""One training run of gleam: parameters, the step through the project's decoder, evaluation, and its saved state."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gleam.dialogues import Dialogue, batches
from gleam.experts import TrainedExperts
from gleam.muon import Muon
from torch import Tensor
from torch.nn import functional

from earthshine.models import Decoder
from earthshine.spec import ModelSpec
from earthshine.spec.layout import trunk_tensors


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates rise over `warmup` steps and fall linearly to 2% of their peak at `steps`."""

    steps: int
    warmup: int = 30
    quantize_from: float = 0.6  # share of the run after which the experts train as INT4
    muon: float = 4e-3
    adam: float = 3e-3
    bias: float = 2e-3  # the router bias's step (DeepSeek-V3's gamma, larger for a run this short)

    def factor(self, step: int) -> float:
        rise = min(1.0, (step + 1) / self.warmup)
        return rise * max(0.02, 1 - step / self.steps)


def _initial(spec: ModelSpec, generator: torch.Generator) -> dict[str, Tensor]:
    """Norms at one, router biases at zero, matrices at in^-0.5, those that write to the residual stream at half."""
    params = {}
    for tensor in trunk_tensors(spec):
        last = tensor.name.rsplit(".", 1)[-1]
        if last.endswith("norm"):
            value = torch.ones(tensor.shape)
        elif last == "router_bias":
            value = torch.zeros(tensor.shape)
        else:
            value = torch.randn(tensor.shape, generator=generator) * tensor.shape[-1] ** -0.5
            value *= 0.5 if last in ("o", "down") else 1.0
        params[tensor.name] = value
    return params


class Run:
    """All that changes in training. Matrices are fp32 masters, used in `dtype`; router and bias stay fp32."""

    def __init__(self, spec: ModelSpec, schedule: Schedule, device: str, dtype: torch.dtype, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec, self.schedule, self.dtype, self.device = spec, schedule, dtype, device
        self.step, self.epoch = 0, 0
        self.trunk = {name: value.to(device) for name, value in _initial(spec, generator).items()}
        self.experts = TrainedExperts(spec, generator, device)
        self._biases = {name: value for name, value in self.trunk.items() if name.endswith("router_bias")}
        learned = {name: value for name, value in self.trunk.items() if name not in self._biases}
        for value in learned.values():
            value.requires_grad_()
        plain = [v for name, v in learned.items() if v.dim() == 1 or name in ("embed", "head")]
        matrices = [v for name, v in learned.items() if v.dim() == 2 and name not in ("embed", "head")]
        self._optimizers = [
            (Muon([*matrices, *self.experts.params.values()], schedule.muon), schedule.muon),
            (torch.optim.AdamW(plain, schedule.adam, betas=(0.9, 0.95), weight_decay=0.01), schedule.adam),
        ]

    def decoder(self) -> Decoder:
        """The project's decoder over the present weights; gradients reach the masters through the casts."""
        wide = {tensor.name for tensor in trunk_tensors(self.spec) if tensor.in_fp32}
        weights = {name: value if name in wide else value.to(self.dtype) for name, value in self.trunk.items()}
        return Decoder(self.spec, weights, self.experts)

    def _logits(self, tokens: Tensor, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and targets at the places whose next token is learned: fp32 [n, vocab], int64 [n]."""
        decoder = self.decoder()
        positions = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        hidden = decoder.hidden(tokens[:, :-1], positions)
        return decoder.logits(hidden[learned[:, 1:]]), tokens[:, 1:][learned[:, 1:]]

    def train_step(self, tokens: Tensor, learned: Tensor) -> float:
        """One update; returns the mean loss in nats per learned token."""
        factor = self.schedule.factor(self.step)
        self.experts.quantized = self.step >= self.schedule.quantize_from * self.schedule.steps
        loss = functional.cross_entropy(*self._logits(tokens.to(self.device), learned.to(self.device)))
        loss.backward()
        for optimizer, peak in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._balance(factor)
        self.step += 1
        return float(loss.detach())

    def _balance(self, factor: float) -> None:
        """DeepSeek-V3, section 2.1.2: overloaded experts lose, underloaded ones gain a fixed step of bias."""
        for layer, load in self.experts.take_load().items():
            bias = self._biases[f"layers.{layer}.router_bias"]
            bias += self.schedule.bias * factor * torch.sign(load.mean() - load)

    @torch.no_grad()
    def exact_matches(self, dialogues: list[Dialogue], tokens_a_batch: int = 8192) -> int:
        """Dialogues whose every learned token is the most likely one, which is what greedy decoding would write."""
        matches = 0
        self.experts.quantized = True
        for tokens, learned in batches(dialogues, tokens_a_batch, random.Random(0)):
            logits, targets = self._logits(tokens.to(self.device), learned.to(self.device))
            wrong = (logits.argmax(-1) != targets).cpu()
            row = learned[:, 1:].nonzero()[:, 0]
            matches += len(tokens) - len(set(row[wrong].tolist()))
        self.experts.take_load()
        return matches

    def save(self, path: Path) -> None:
        """All that a resumed run needs, replaced in one step."""
        state: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "trunk": self.trunk,
            "experts": self.experts.params,
            "optimizers": [optimizer.state_dict() for optimizer, _ in self._optimizers],
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.epoch = state["step"], state["epoch"]
        with torch.no_grad():
            for mine, saved in ((self.trunk, state["trunk"]), (self.experts.params, state["experts"])):
                for name, value in mine.items():
                    value.copy_(saved[name])
        for (optimizer, _), saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
