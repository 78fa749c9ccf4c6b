"""Quantisation blocks are written as their publishers do, and read back as what they were written for."""

import pytest
from checkpoints.quantization import published_quantization

from earthshine.spec import spec_from_config
from earthshine.storage import QUANTISED, Storage


def test_int4_is_kimis_block(k26):
    assert published_quantization(Storage.INT4_GROUP32) == k26["text_config"]["quantization_config"]


@pytest.mark.parametrize("storage", [Storage.BF16, *QUANTISED])
def test_a_block_reads_back(k2_instruct, storage):
    config = {**k2_instruct, "quantization_config": published_quantization(storage)}
    assert spec_from_config(config).expert_storage is storage
