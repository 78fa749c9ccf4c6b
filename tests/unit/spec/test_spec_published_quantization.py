"""The quantisation blocks that Earthshine writes are the published ones and read back as what they were written for."""

import pytest

from earthshine.spec import spec_from_config
from earthshine.spec.families.quantization import published_quantization
from earthshine.storage import Storage


def test_int4_is_kimis_block(k26):
    assert published_quantization(Storage.INT4_GROUP32) == k26["text_config"]["quantization_config"]


@pytest.mark.parametrize("storage", list(Storage))
def test_a_block_reads_back(k2_instruct, storage):
    config = {**k2_instruct, "quantization_config": published_quantization(storage)}
    assert spec_from_config(config).expert_storage is storage
