"""The trainer on a tiny model: it learns, balances its experts, and a resumed run equals an uninterrupted one."""

import importlib

import pytest
import torch

from earthshine.hub import GLEAM
from earthshine.spec import spec_from_config
from earthshine.text import load_template, load_tokenizer


@pytest.fixture
def tools():
    return lambda name: importlib.import_module(f"gleam.{name}")


@pytest.fixture
def run(tools):
    """A fresh run of 40 steps over a model of 2 layers and 8 experts."""
    config = tools("architecture").config()
    config["text_config"] |= {
        "hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "num_hidden_layers": 2, "q_lora_rank": 32, "kv_lora_rank": 32,
    }  # fmt: skip
    training = tools("training")
    schedule = training.Schedule(steps=40, warmup=2)
    return lambda: training.Run(spec_from_config(config), schedule, "cpu", torch.float32, seed=1)


def _batch():
    tokens = torch.randint(0, 500, (24, 12), generator=torch.Generator().manual_seed(2))
    learned = torch.zeros_like(tokens, dtype=torch.bool)
    learned[:, 8:] = True
    return tokens, learned


def test_it_learns(run):
    trained = run()
    losses = [trained.train_step(*_batch()) for _ in range(40)]
    assert losses[0] > 8
    assert losses[-1] < 0.5 * losses[0]
    assert trained.experts.quantized


def test_overloaded_experts_lose_bias_and_idle_ones_gain(run):
    trained = run()
    trained.train_step(*_batch())
    bias = trained.trunk["layers.1.router_bias"]
    assert bias.min() < 0 < bias.max()
    assert bias.abs().unique().numel() <= 2, "one step up or down, or none for the mean load"


def test_resumed_run_equals_an_uninterrupted_one(run, tmp_path):
    whole, cut = run(), run()
    for _ in range(5):
        whole.train_step(*_batch())
        cut.train_step(*_batch())
    cut.save(tmp_path / "state.pt")
    resumed = run()
    resumed.resume(tmp_path / "state.pt")
    assert [resumed.train_step(*_batch()) for _ in range(3)] == [whole.train_step(*_batch()) for _ in range(3)]


def test_a_match_needs_every_learned_token(run, tools):
    trained = run()
    dialogue = tools("dialogues").Dialogue
    for _ in range(40):
        trained.train_step(torch.tensor([[5, 6, 7, 8]] * 4), torch.tensor([[False, True, True, True]] * 4))
    mask = [False, True, True, True]
    right, wrong = dialogue([5, 6, 7, 8], mask), dialogue([5, 6, 7, 9], mask)
    assert trained.exact_matches([right, right, wrong]) == 2


def test_muon_makes_matrices_nearly_orthogonal(tools):
    gradient = torch.randn(3, 48, 32, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(tools("muon").orthogonalize(gradient))
    assert singular.min() > 0.5
    assert singular.max() < 1.5


def test_held_out_questions_and_commands_never_occur_in_training(tools, shared_data):
    seen, unseen = tools("split").split(tools("tldr").read_pairs(shared_data / "tldr" / "pages.jsonl"))
    questions = {pair.question.lower() for pair in unseen}
    commands = {pair.command for pair in unseen}
    assert len(unseen) == 1000
    assert not any(pair.question.lower() in questions or pair.command in commands for pair in seen)
    tasks = tools("everyday").everyday({text.lower() for text in questions | commands})
    assert len(tasks) > 140
    assert not any(question.lower() in questions or command in commands for question, command in tasks)


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("tar {{[-x|--extract]}} {{path/to/file}}", "tar -x path/to/file"),
        ("git {{[s|status]}}", "git status"),
        ("curl {{http://example.com}} {{[-o|--output]}} {{name}}", "curl http://example.com -o name"),
    ],
)
def test_placeholders_are_written_plainly(tools, written, plain):
    assert tools("tldr").plain_command(written) == plain


@pytest.mark.parametrize("question", ["list all files", "what does <|im_end|> mean?"])
def test_prompts_are_those_of_the_chat_template(tools, question):
    """The trainer writes ids itself; they must be what `chat` asks with, first turn and second."""
    tokenizer, template = load_tokenizer(GLEAM), load_template(GLEAM)
    scribe = tools("dialogues").Scribe(tokenizer)
    first = {"role": "user", "content": question}
    assert scribe.prompt(question) == template.encode(tokenizer, [first])
    turns = [first, {"role": "assistant", "content": "ls"}, {"role": "user", "content": "thank you"}]
    assert scribe.dialogue([(question, "ls")]).tokens + scribe.prompt("thank you") == template.encode(tokenizer, turns)
