"""Rotary tables against the golden values of the published configurations."""

import math

import pytest
import torch

from earthshine.models.rope import RotaryTable, frequencies, magnitude, softmax_scale, yarn_range
from earthshine.spec import MlaSpec, RopeSpec, YarnSpec


def _rope(theta, factor, original, beta_fast, beta_slow):
    return RopeSpec(64, theta, YarnSpec(factor, original, beta_fast, beta_slow, 1.0, 1.0))


K26 = _rope(50000.0, 64.0, 4096, 32.0, 1.0)
K2_INSTRUCT = _rope(50000.0, 32.0, 4096, 1.0, 1.0)
DEEPSEEK = _rope(10000.0, 40.0, 4096, 32.0, 1.0)
K26_FREQUENCIES = """
1.0 7.131110849e-01 5.085274194e-01 3.626365398e-01 2.586001363e-01 1.844106238e-01 1.315052600e-01 9.377785861e-02
6.687403050e-02 4.377665595e-02 2.842795908e-02 1.828295561e-02 1.161915994e-02 7.274119271e-03 4.465848749e-03
2.670203391e-03 1.537296735e-03 8.346550446e-04 4.086459875e-04 1.583749910e-04 1.807023387e-05 1.288608408e-05
9.189209397e-06 6.552927083e-06 4.672964941e-06 3.332343099e-06 2.376330803e-06 1.694587837e-06 1.208429371e-06
8.617443796e-07 6.145194695e-07 4.382206456e-07
"""
DEEPSEEK_FREQUENCIES = """
1.0 7.498942093e-01 5.623413252e-01 4.216965034e-01 3.162277660e-01 2.371373706e-01 1.778279410e-01 1.333521432e-01
1.000000000e-01 7.498942093e-02 5.623413252e-02 3.900692657e-02 2.687936011e-02 1.837814622e-02 1.244795587e-02
8.334508951e-03 5.500000000e-03 3.561997494e-03 2.249365301e-03 1.370513636e-03 7.905694150e-04 4.149903985e-04
1.778279410e-04 3.333803580e-05 2.500000000e-05 1.874735523e-05 1.405853313e-05 1.054241259e-05 7.905694150e-06
5.928434264e-06 4.445698525e-06 3.333803580e-06
"""


def _mla(rope):
    return MlaSpec(64, 1536, 512, 128, 128, rope, 1e-6)


@pytest.mark.parametrize(
    ("rope", "golden"), [(K26, K26_FREQUENCIES), (DEEPSEEK, DEEPSEEK_FREQUENCIES)], ids=["K2.6", "DeepSeek-V3"]
)
def test_frequencies_are_golden(rope, golden):
    torch.testing.assert_close(frequencies(rope), torch.tensor([float(x) for x in golden.split()]), rtol=3e-7, atol=0)


def test_kimi_k2_instruct_is_a_step():
    """Plain frequencies up to pair 19, divided by the factor from pair 20 on."""
    plain = torch.tensor([50000.0 ** (-2 * i / 64) for i in range(32)])
    expected = torch.cat((plain[:20], plain[20:] / 32))
    torch.testing.assert_close(frequencies(K2_INSTRUCT), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize(("rope", "bounds"), [(K26, (8, 20)), (K2_INSTRUCT, (19, 20)), (DEEPSEEK, (10, 23))])
def test_ramp_bounds(rope, bounds):
    assert yarn_range(rope, rope.yarn) == bounds


@pytest.mark.parametrize(
    ("rope", "m", "scale"),
    [
        (K26, 1.415888308, 0.144679626),
        (K2_INSTRUCT, 1.346573590, 0.130860800),
        (DEEPSEEK, 1.368887945, 0.135233779),
    ],
)
def test_softmax_scale_is_golden(rope, m, scale):
    assert magnitude(rope.yarn.factor, 1.0) == pytest.approx(m, rel=1e-9)
    assert softmax_scale(_mla(rope)) == pytest.approx(scale, rel=1e-8)


def test_without_yarn_nothing_is_scaled():
    """Moonlight: plain frequencies, 192^-0.5."""
    rope = RopeSpec(64, 50000.0, None)
    assert softmax_scale(_mla(rope)) == pytest.approx(192**-0.5)
    assert float(frequencies(rope)[31]) == pytest.approx(50000.0 ** (-62 / 64))


def test_table_rotates_by_position_times_frequency():
    cos, sin = RotaryTable(K26).at(torch.tensor([0, 5000]))
    assert cos[0].tolist() == [1.0] * 32
    angle = 5000 * float(frequencies(K26)[10])
    assert float(cos[1, 10]) == pytest.approx(math.cos(angle), abs=2e-5)
    assert float(sin[1, 10]) == pytest.approx(math.sin(angle), abs=2e-5)


def test_the_table_is_scaled_where_the_two_mscales_differ():
    rope = RopeSpec(64, 50000.0, YarnSpec(64.0, 4096, 32.0, 1.0, 2.0, 0.5))
    cos, sin = RotaryTable(rope).at(torch.tensor([0, 3]))
    gain = (0.2 * math.log(64) + 1) / (0.05 * math.log(64) + 1)
    assert float(cos[0, 0]) == pytest.approx(gain)
    assert float(sin[1, 0]) == pytest.approx(gain * math.sin(3))


@pytest.mark.parametrize(
    ("yarn", "bounds"),
    [(YarnSpec(4.0, 6, 1.0, 1.0, 1.0, 1.0), (0, 0.001)), (YarnSpec(4.0, 65536, 10000.0, 1.0, 1.0, 1.0), (0, 7))],
)
def test_ramp_bounds_stay_within_the_dimensions_and_apart(yarn, bounds):
    theta = 10000.0 if yarn.original_context == 6 else 2.0
    rope = RopeSpec(8, theta, yarn)
    assert yarn_range(rope, yarn) == bounds
    assert frequencies(rope).isfinite().all()


def test_frequencies_are_made_in_double_precision():
    rope = RopeSpec(64, 50000.0, None)
    expected = torch.tensor([50000.0 ** (-2 * pair / 64) for pair in range(32)])
    assert torch.equal(frequencies(rope), expected)
