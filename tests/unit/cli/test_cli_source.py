"""Which folder a name means, and what is refused before a weight is read, through the commands themselves."""

import json
import shutil
from pathlib import Path

import pytest

from earthshine.hub import GLEAM


def _cache(tmp_path: Path, *revisions: str) -> Path:
    """gleam in the hub's cache, its blobs on another disk."""
    root, disk = tmp_path / "cache" / "models--org--gleam", tmp_path / "disk"
    disk.mkdir()
    root.mkdir(parents=True)
    (root / "blobs").symlink_to(disk)
    for path in GLEAM.iterdir():
        if path.is_file():
            shutil.copy(path, disk / path.name)
    for revision in revisions:
        (root / "snapshots" / revision).mkdir(parents=True)
        for path in disk.iterdir():
            (root / "snapshots" / revision / path.name).symlink_to(f"../../blobs/{path.name}")
    return root


def test_the_root_of_a_cached_repository_means_its_only_snapshot(earthshine, tmp_path):
    root = _cache(tmp_path, "aaaa")
    code, out, err = earthshine("inspect", root, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["weights"]
    assert earthshine("chat", root, "-p", "hello")[1].startswith("Hello!")


def test_several_snapshots_are_chosen_by_refs_main_or_named(earthshine, tmp_path):
    root = _cache(tmp_path, "aaaa", "bbbb")
    code, _, err = earthshine("inspect", root)
    assert code == 1
    assert "aaaa" in err
    assert "bbbb" in err
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("bbbb")
    assert earthshine("inspect", root)[0] == 0


def test_weights_quantised_by_their_own_file_alone_are_refused_by_name(earthshine, tmp_path):
    folder = Path(shutil.copytree(GLEAM, tmp_path / "gleam"))
    (folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    for command in (["inspect", folder], ["chat", folder, "-p", "hello"]):
        code, _, err = earthshine(*command)
        assert code == 1
        assert "hf_quant_config.json: quantization.quant_algo is 'NVFP4'" in err


@pytest.mark.parametrize("wrong", ["family", "tokenizer"])
def test_an_unsupported_config_is_refused_before_a_weight_is_read(earthshine, tmp_path, wrong):
    """The weights are damaged too, which nobody gets to see."""
    folder = Path(shutil.copytree(GLEAM, tmp_path / "gleam"))
    (folder / "model.safetensors").write_bytes(b"")
    config = json.loads((folder / "config.json").read_text())
    if wrong == "family":
        config["model_type"] = "qwen3_next"
    else:
        config["text_config"]["vocab_size"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = earthshine("chat", folder, "-p", "hello")
    assert code == 1
    assert ("qwen3_next is not implemented" if wrong == "family" else "do not fit the model's") in err


def test_gguf_is_refused_by_name(earthshine, tmp_path):
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    for folder in (alone, beside):
        folder.mkdir()
        (folder / "q.GGUF").write_bytes(b"GGUF")
    for name in ("config.json", "tiktoken.model", "tokenizer_config.json"):
        shutil.copy(GLEAM / name, beside)
    for command in (
        ["inspect", alone],
        ["inspect", alone / "q.GGUF"],
        ["inspect", "absent.gguf"],
        ["inspect", beside, "--hash"],
        ["chat", beside, "-p", "hello"],
    ):
        assert earthshine(*command) == (1, "", "earthshine: GGUF is not read; use the published safetensors.\n")
    assert earthshine("inspect", beside)[0] == 0, "a config alone is enough"
    shutil.copy(GLEAM / "model.safetensors", beside)
    assert earthshine("inspect", beside)[0] == 0


@pytest.mark.parametrize("command", [["inspect"], ["plan", "--machine", "mini-24gb"], ["chat", "-p", "hello"]])
def test_empty_model_is_refused_as_such(earthshine, command):
    code, out, err = earthshine(*command, "")
    assert (code, out) == (1, "")
    assert (
        err == "earthshine: MODEL is empty; give a folder, a Hugging Face id such as moonshotai/Kimi-K2.6, or gleam.\n"
    )
