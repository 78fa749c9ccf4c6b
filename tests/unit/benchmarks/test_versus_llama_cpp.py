"""The comparison with llama.cpp: Q4_0 holds the published values, the words of --what, the knobs that are turned."""

from pathlib import Path

import numpy as np
import pytest
import torch
import versus_llama_cpp
from versus.published import Published, Refused, q4_0, widened

from earthshine.errors import UsageError
from earthshine.kernels import reference

MODEL = Path("anything")


def stored(rows, columns, scale):
    generator = torch.Generator().manual_seed(3)
    nibbles = torch.randint(0, 16, (rows, columns), generator=generator)
    words = (nibbles.reshape(rows, -1, 8) << (4 * torch.arange(8))).sum(-1)
    packed = words.to(torch.int64).numpy().astype(np.uint32).view(np.int32)
    scales = (torch.rand(rows, columns // 32, generator=generator) * scale).bfloat16()
    return packed, scales


def read_back(blocks):
    """float32 [rows, columns] of blocks of Q4_0, by its definition."""
    scale = blocks[..., :2].copy().view(np.float16).astype(np.float32)
    low, high = blocks[..., 2:] & 15, blocks[..., 2:] >> 4
    values = np.concatenate([low, high], -1).astype(np.float32) - 8
    return (values * scale).reshape(len(blocks), -1)


def test_q4_0_holds_the_very_nibbles_and_scales():
    packed, scales = stored(6, 96, 0.02)
    bits = scales.view(torch.int16).numpy().view(np.uint16)
    blocks = q4_0(packed, bits)
    assert blocks.shape == (6, 3, 18)
    decoded = reference.decode_int4(torch.from_numpy(packed.copy()), scales)  # bf16, so rounded once more
    assert torch.equal(torch.from_numpy(read_back(blocks)).bfloat16(), decoded)
    assert len(np.unique(read_back(blocks))) > 100


@pytest.mark.parametrize("scale", [1e6, 1e-7, float("nan")])
def test_a_scale_that_float16_lacks_is_refused(scale):
    packed, scales = stored(2, 32, 0.02)
    scales[1, 0] = scale
    with pytest.raises(Refused, match="not exact in float16"):
        q4_0(packed, scales.view(torch.int16).numpy().view(np.uint16))


def test_bf16_bits_become_the_same_float32():
    values = torch.tensor([1.5, -0.0, 3e38, 1e-40]).bfloat16()
    assert np.array_equal(widened(values.view(torch.int16).numpy().view(np.uint16)), values.float().numpy())


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(Refused, match="not the checkpoint"):
        Published(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(Refused, match="not a safetensors"):
        Published(tmp_path)


class TestWords:
    def asked(self, *words, room=32768):
        return versus_llama_cpp.measurements(versus_llama_cpp.parsed([str(MODEL), *words]), room)

    def test_measurements(self):
        decode, far, prompt = self.asked("--what", "decode", "decode:16384", "prompt:512", "--tokens", "8")
        assert (decode.name, decode.tokens_each, decode.cold) == ("decode at no context", 1, False)
        assert (far.request["context"], far.request["tokens"], far.request["touch"]) == (16384, 8, 512)
        assert (prompt.tokens_each, prompt.request["tokens"], prompt.request["repeats"]) == (512, 512, 2)

    def test_contexts_end_with_the_model(self):
        contexts = [m.request["context"] for m in self.asked("--what", "context")]
        assert contexts == [0, 1024, 4096, 16384, 32768 - 32 - versus_llama_cpp.ROOM]

    def test_under_a_limit_everything_is_cold(self):
        decode, prompt = self.asked("--limit", "12GiB", "--what", "decode", "prompt:2048")
        assert decode.name == "decode at no context, under 12.00 GiB"
        assert (decode.cold, decode.limit_bytes, decode.request["cold"]) == (True, 12 << 30, True)
        assert "touch" not in decode.request
        assert (prompt.request["repeats"], prompt.request["cold"]) == (1, True)

    @pytest.mark.parametrize("word", ["decoding", "prompt", "prompt:0", "prompt:x", "decode:-1", "decode:32768"])
    def test_other_words_are_refused(self, word):
        with pytest.raises(UsageError, match=f"--what '?{word}"):
            self.asked("--what", word)


class TestKnobs:
    def values(self, *words, what="prompt:4096"):
        options = versus_llama_cpp.parsed([str(MODEL), "--what", what, *words])
        knobs = versus_llama_cpp.knobs(options, Path("python"), Path("model.gguf"))
        return knobs, knobs.values(versus_llama_cpp.measurements(options, 32768)[0])

    def test_in_memory(self):
        knobs, values = self.values()
        assert values == {"load": ["none", "mmap"], "repack": [True, False], "ubatch": [512, 2048, 4096],
                          "flash": [True, False]}  # fmt: skip
        side = knobs.make({name: options[0] for name, options in values.items()})
        assert side.setting == "load none, repacked, micro-batch 512, flash attention"
        assert side.settings["repack"] is True
        assert self.values(what="decode")[1]["ubatch"] == [512]

    def test_under_a_limit_and_fixed(self):
        _, values = self.values("--limit", "12GiB")
        assert (values["load"][0], values["repack"][0], values["ubatch"][0]) == ("mmap", False, 4096)
        _, values = self.values("--fixed")
        assert {len(options) for options in values.values()} == {1}


def test_missing_model_is_reported(capsys, tmp_path):
    assert versus_llama_cpp.main(["--work", str(tmp_path)]) == 2
    assert "Name the folder" in capsys.readouterr().err
    assert versus_llama_cpp.main([str(tmp_path), "--work", str(tmp_path)]) == 2
