"""Damaged models and awkward surroundings: one or two plain sentences and an exit code, never a traceback or a hang."""

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from earthshine.engine import load_model
from earthshine.errors import BlobError, CheckpointError
from earthshine.hub import GLEAM
from earthshine.kv import KVBlob
from earthshine.plan import PlanArgs

RUN = [sys.executable, "-c", "from earthshine.cli import main; main()"]


def assert_refused(found, message, code=1):
    """`found`: exit code, standard output, standard error."""
    assert found[0] == code, found
    assert "Traceback" not in found[2]
    assert message in found[2]
    assert len(found[2]) < 3000


@pytest.fixture
def copy(tmp_path):
    """gleam in a folder of one's own."""
    return shutil.copytree(GLEAM, tmp_path / "gleam")


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reweigh(folder, change):
    """Rewrites the weights after `change` has altered some tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_config_larger_than_its_files_is_refused_at_once(earthshine, copy):
    assert_refused(earthshine("inspect", edit(copy, num_hidden_layers=4096, n_routed_experts=65536)), "missing")


def test_a_tokenizer_of_another_release_is_refused(earthshine, copy):
    """A hundred more ranks would shift every control token."""
    lines = (copy / "tiktoken.model").read_text().splitlines()
    (copy / "tiktoken.model").write_text("\n".join(lines[:-100]) + "\n")
    (copy / "tokenizer_config.json").unlink()
    assert_refused(earthshine("chat", copy, "-p", "hello"), "do not fit")
    (copy / "text").write_text("some words")
    assert_refused(earthshine("score", copy, copy / "text"), "do not fit")


def test_published_digits_are_never_rounded_silently(copy):
    def widen(tensors):
        name = "language_model.lm_head.weight"
        tensors[name] = tensors[name].float() * 1.001

    reweigh(copy, widen)
    with pytest.raises(CheckpointError, match=r"head.*fp32"):
        load_model(copy)
    assert load_model(copy, PlanArgs(dtype="fp32")).decoder.dtype is torch.float32


def test_a_score_of_nan_is_refused(earthshine, copy):
    reweigh(copy, lambda tensors: tensors["language_model.model.embed_tokens.weight"].fill_(float("nan")))
    (copy / "text").write_text("some words")
    assert_refused(earthshine("score", copy, copy / "text"), "damaged")


def test_a_norm_that_holds_nan_is_named(earthshine, copy):
    reweigh(copy, lambda tensors: tensors["language_model.model.norm.weight"][3:4].fill_(float("nan")))
    assert_refused(earthshine("chat", copy, "-p", "hello"), "language_model.model.norm.weight")


@pytest.mark.parametrize(
    "change", [{"rope_theta": 40000.0}, {"num_experts_per_tok": 5}, {"routed_scaling_factor": 2.0}], ids=str
)
def test_a_state_of_another_config_is_refused(copy, change):
    mine, other = load_model(GLEAM), load_model(edit(copy, **change))
    session = mine.session(64)
    session.sync([1, 2, 3])
    with pytest.raises(BlobError):
        other.session(64).restore(session.snapshot())


def test_a_state_of_other_weights_is_refused(copy):
    name = "language_model.model.layers.2.self_attn.o_proj.weight"
    changed = load_model(reweigh(copy, lambda tensors: tensors[name][0].neg_()))
    session = load_model(GLEAM).session(64)
    session.sync([1, 2, 3])
    with pytest.raises(BlobError):
        changed.session(64).restore(session.snapshot())


def test_a_pipe_in_place_of_a_state_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "state")
    with pytest.raises(BlobError):
        KVBlob.load(tmp_path / "state")


def test_endless_input_is_refused(earthshine):
    with open("/dev/zero", "rb") as zeros:
        assert_refused(earthshine("chat", stdin=zeros), "more than", code=2)
    assert_refused(earthshine("score", "gleam", "/dev/zero"), "more than", code=2)


@pytest.mark.parametrize("model", ["~nosuchuser/x", "a" * 5000])
def test_a_model_with_an_impossible_name_is_refused(earthshine, model):
    assert_refused(earthshine("chat", model, "-p", "hello"), "earthshine: ")


@pytest.mark.parametrize(
    ("redirection", "code"), [("<&-", 2), ("-p hello >&-", 1), ("-p hello >/dev/full", 1)], ids=str
)
def test_closed_and_full_streams_are_plain_failures(redirection, code):
    """Python itself starts differently with a closed stream, so this starts a new process."""
    command = f"{sys.executable} -c 'from earthshine.cli import main; main()' chat {redirection}"
    done = subprocess.run(["bash", "-c", command], stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert_refused((done.returncode, "", done.stderr), "earthshine: ", code)


def test_a_context_beyond_reason_is_wrong_use(earthshine):
    assert_refused(earthshine("inspect", "--context", "1" + "0" * 400), "--context must be between", code=2)


@pytest.mark.parametrize("memory", [None, "4TiB"], ids=["default", "claimed"])
def test_a_tensor_larger_than_memory_is_a_sentence(forker, copy, memory):
    """Refused by the plan, also where more memory is claimed than there is."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); "
    edit(copy, vocab_size=2**31 - 1)
    with (copy / "model.safetensors").open("rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header = {name: entry for name, entry in header.items() if name != "__metadata__"}
    position = 0
    for name, entry in header.items():
        rows = 2**31 - 1 if name.endswith(("embed_tokens.weight", "lm_head.weight")) else None
        size = rows * 512 if rows else entry["data_offsets"][1] - entry["data_offsets"][0]
        entry["shape"] = [rows, 256] if rows else entry["shape"]
        entry["data_offsets"] = [position, position + size]
        position += size
    text = json.dumps(header).encode()
    with (copy / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)  # holes: next to nothing on disk
    command = [sys.executable, "-c", limit + RUN[2], "chat", str(copy), "-p", "hello"]
    command += ["--memory", memory] if memory else []
    done = forker.run(command, text=True)
    assert_refused((done.returncode, done.stdout, done.stderr), "memory", code=2)


def test_an_interrupt_ends_quietly(forker):
    pipe = subprocess.PIPE
    process = forker.popen([*RUN, "chat"], stdin=pipe, stdout=pipe, stderr=pipe)
    process.stdin.write(b"list files")
    process.stdin.flush()
    while struct.unpack("i", fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))) != (0,):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)  # it has begun to read its question, which has no end yet
    _, shown = process.communicate(timeout=300)
    assert process.returncode in (130, -signal.SIGINT)
    assert b"Traceback" not in shown
