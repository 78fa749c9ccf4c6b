"""Train gleam, the small model that ships inside, and export it in Kimi-K2.6's published format.

python tools/train_gleam.py --data pages.jsonl --run runs/gleam            # trains, resumes what is there
python tools/train_gleam.py --data pages.jsonl --run runs/gleam --export src/earthshine/gleam
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from gleam.architecture import N_RANKS, config
from gleam.dialogues import Scribe, batches, epoch
from gleam.everyday import everyday
from gleam.export import export
from gleam.split import SEED, split
from gleam.tldr import SMALL_TALK, Pair, read_pairs
from gleam.training import Run, Schedule
from gleam.vocab import train_vocabulary, write_vocabulary

from earthshine.spec import spec_from_config
from earthshine.text import load_tokenizer


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pages.jsonl of the tldr pages")
    parser.add_argument("--run", type=Path, required=True, help="folder for the vocabulary and the training state")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens per batch, padding included")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--export", type=Path, help="write the published format here; trains only what is missing")
    return parser.parse_args()


def _vocabulary(folder: Path, pairs: list[Pair]) -> None:
    path = folder / "tiktoken.model"
    if not path.exists():
        texts = [text for pair in pairs for text in (pair.question, pair.command, pair.name)]
        write_vocabulary(path, train_vocabulary([*texts, *SMALL_TALK, *SMALL_TALK.values()], N_RANKS))


def _report(run: Run, seen: list[Pair], unseen: list[Pair], scribe: Scribe) -> str:
    rates = []
    for pairs in (seen, unseen):
        sample = random.Random(1).sample(pairs, 500)
        matches = run.exact_matches([scribe.dialogue([(pair.question, pair.command)]) for pair in sample])
        rates.append(f"{matches / 5:.1f}%")
    return f"exact match: seen {rates[0]}, unseen {rates[1]}"


def main() -> None:
    options = _arguments()
    options.run.mkdir(parents=True, exist_ok=True)
    seen, unseen = split(read_pairs(options.data))
    _vocabulary(options.run, seen)
    scribe = Scribe(load_tokenizer(options.run))
    rng = random.Random(SEED)
    tasks = everyday({text.lower() for pair in unseen for text in (pair.question, pair.command)})
    size = sum(1 for _ in batches(epoch(seen, tasks, scribe, rng), options.tokens, rng))
    schedule = Schedule(steps=size * options.epochs)
    run = Run(spec_from_config(config()), schedule, options.device, torch.bfloat16, SEED)
    state = options.run / "state.pt"
    if state.exists():
        run.resume(state)
    print(f"{len(seen)} pairs, {size} steps an epoch, {schedule.steps} steps; at step {run.step}", flush=True)
    while run.step < schedule.steps:
        _train_epoch(run, seen, tasks, scribe, options.tokens)
        run.save(state)
        print(f"epoch {run.epoch}: {_report(run, seen, unseen, scribe)}", flush=True)
    if options.export:
        export(run, options.run, options.export)


def _train_epoch(run: Run, seen: list[Pair], tasks: list[tuple[str, str]], scribe: Scribe, tokens_a_batch: int) -> None:
    rng = random.Random(SEED + 1 + run.epoch)
    started, done, total = time.monotonic(), 0, 0.0
    for index, (tokens, learned) in enumerate(batches(epoch(seen, tasks, scribe, rng), tokens_a_batch, rng)):
        if run.step >= run.schedule.steps:
            break
        total += run.train_step(tokens, learned)
        done += tokens.numel()
        if index % 20 == 19:
            rate = done / (time.monotonic() - started)
            share = 100 * run.step / run.schedule.steps
            print(f"{share:5.1f}%  step {run.step}  loss {total / 20:.3f}  {rate:,.0f} tokens/s", flush=True)
            total = 0.0
    run.epoch += 1


if __name__ == "__main__":
    main()
