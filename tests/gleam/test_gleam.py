"""The shipped model through the public interfaces: its format, answers, reuse of the cache, and saved states."""

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from checkpoints.writer import encode_int4

from earthshine import kernels
from earthshine.engine import SamplingParams, TokenEvent, load_model
from earthshine.errors import ContextError
from earthshine.hub import GLEAM
from earthshine.kv import KVBlob
from earthshine.plan import PlanArgs
from earthshine.spec import load_spec
from earthshine.spec.model import MoeSpec
from earthshine.storage import Storage
from earthshine.text import load_template, load_tokenizer
from earthshine.weights import Checkpoint

GREEDY = SamplingParams(temperature=0, max_tokens=60)


@pytest.fixture(scope="module")
def model():
    return load_model(GLEAM, PlanArgs(batch=4))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(GLEAM)


@pytest.fixture(scope="module")
def prompt(tokenizer):
    template = load_template(GLEAM)
    return lambda *messages, **options: template.encode(tokenizer, list(messages), **options)


def _user(text):
    return {"role": "user", "content": text}


def _reply(session):
    return [event.token for event in session.generate(GREEDY) if isinstance(event, TokenEvent)]


def test_it_is_in_the_published_format():
    spec = load_spec(GLEAM)
    moe = spec.layers[1].ffn
    assert (spec.family, spec.expert_storage) == ("kimi_k25", Storage.INT4_GROUP32)
    assert isinstance(moe, MoeSpec)
    assert not isinstance(spec.layers[0].ffn, MoeSpec)
    assert moe.shared_intermediate > 0
    names = set(Checkpoint.open(GLEAM, spec).shards)
    assert "language_model.model.layers.1.mlp.experts.0.gate_proj.weight_packed" in names
    assert sum(path.stat().st_size for path in GLEAM.iterdir()) < 25e6


def test_its_template_is_kimis(shared_data):
    """The golden renderings of Kimi's template, the one flag of K2.6 included."""
    golden = json.loads((shared_data / "kimi-tokenizer" / "golden.json").read_text())
    template = load_template(GLEAM)
    sections = ("renderings", "renderings_additional", "renderings_preserve_thinking")
    odd = ("json_tools_fallback", "reasoning_null")  # inputs that Earthshine's own rules never pass to a template
    checked = 0
    for case in (case for section in sections for case in golden[section] if case["name"] not in odd):
        inputs = {key: value for key, value in case["inputs"].items() if key != "tools_ts_str"}
        text = template.render(**inputs, add_generation_prompt=case["add_generation_prompt"])
        assert text == case["text"], case["name"]
        checked += 1
    assert checked >= 12


def test_its_control_tokens_lie_where_kimis_do(tokenizer):
    first = tokenizer.vocab_size - 256
    assert tokenizer.special_id("<|im_end|>") == first + 2
    assert tokenizer.special_id("</think>") == first + 23


@pytest.mark.parametrize("thinking", [True, False])
def test_it_answers_a_greeting(model, tokenizer, prompt, thinking):
    session = model.session(256)
    session.sync(prompt(_user("hello"), thinking=thinking))
    assert tokenizer.decode(_reply(session)).removeprefix("</think>").startswith("Hello!")


def test_second_message_computes_only_its_new_tokens(model, tokenizer, prompt):
    session = model.session(512)
    first = prompt(_user("list all files"))
    assert session.sync(first).computed == len(first)
    reply = _reply(session)
    answer = tokenizer.decode(reply).removeprefix("</think>")
    second = prompt(_user("list all files"), {"role": "assistant", "content": answer}, _user("who are you?"))
    synced = session.sync(second)
    assert synced.reused == len(first) + len(reply)
    assert synced.computed == len(second) - synced.reused
    fresh = model.session(512)
    fresh.sync(second)
    assert _reply(session) == _reply(fresh)


RESTORE = """
import sys
from pathlib import Path
from pathlib import Path
from earthshine.engine import SamplingParams, TokenEvent, load_model
from earthshine.errors import ContextError
from earthshine.kv import KVBlob
session = load_model(Path(sys.argv[1])).session(512)
session.restore(KVBlob.load(Path(sys.argv[2])))
events = session.generate(SamplingParams(temperature=0, max_tokens=60))
print([(event.token, event.logprob) for event in events if isinstance(event, TokenEvent)])
"""


def test_saved_state_continues_with_the_same_bits_in_a_new_process(forker, model, prompt, tmp_path):
    session = model.session(512)
    session.sync(prompt(_user("extract a gzipped tar archive")))
    session.snapshot().save(tmp_path / "state")
    here = [(event.token, event.logprob) for event in session.generate(GREEDY) if isinstance(event, TokenEvent)]
    there = forker.run([sys.executable, "-c", RESTORE, str(GLEAM), str(tmp_path / "state")], text=True)
    assert (there.stdout.strip(), there.returncode) == (str(here), 0), there.stderr


def test_a_session_has_the_room_that_was_asked_for_and_no_more(model):
    session = model.session(10)
    session.sync(list(range(10)))
    with pytest.raises(ContextError, match="11 tokens; this session's context is 10"):
        session.sync(list(range(11)))
    with pytest.raises(ContextError, match="the model's context is 4096"):
        model.session().sync([1] * 4097)


def test_a_state_remembers_its_latents(model, prompt, tmp_path):
    session = model.session(512)
    session.sync(prompt(_user("hello")))
    blob = session.snapshot()
    blob.save(tmp_path / "state")
    loaded = KVBlob.load(tmp_path / "state")
    assert all(torch.equal(a, b) for a, b in zip(blob.parts, loaded.parts, strict=True))
    assert loaded.header.token_ids == session.tokens


def test_it_knows_what_it_learned(model, tokenizer, prompt):
    """After the question, the right command is likely and another command is not."""
    question = prompt(_user("extract a gzipped tar archive"), thinking=False)

    def likelihood(command):
        answer = tokenizer.encode(command, allow_special=False)
        return float(model.session(128).score(question + answer)[-len(answer) :].mean())

    assert math.exp(-likelihood("tar xzf path/to/archive.tar.gz")) < 1.5
    assert math.exp(-likelihood("git status")) > 100


def test_tools_reproduce_the_shipped_files():
    """gleam's config and template are those that the trainer exports, and its experts train on what storage keeps."""
    tools = Path(__file__).parents[2] / "tools"
    architecture, experts = (importlib.import_module(f"gleam.{name}") for name in ("architecture", "experts"))
    assert json.loads((GLEAM / "config.json").read_text()) == architecture.config()
    assert (GLEAM / "chat_template.jinja").read_bytes() == (tools / "gleam" / "chat_template.jinja").read_bytes()
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    assert torch.equal(
        experts.as_int4(weight).bfloat16(), kernels.decode(kernels.int4_matrix(*encode_int4(weight)[:2]))
    )
