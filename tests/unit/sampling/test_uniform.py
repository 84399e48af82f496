from __future__ import annotations

import numpy as np
import pytest
from numpy.random import Generator, Philox

from mm2c_runtime.sampling.uniform import TokenUniform


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**63, 2**64 - 1])
@pytest.mark.parametrize("index", [0, 1, 2, 1000, 2**40])
def test_is_numpys_philox_keyed_by_seed_and_counter(seed: int, index: int):
    assert TokenUniform()(seed, index) == Generator(Philox(key=seed, counter=index)).random()


def test_does_not_remember():
    uniform = TokenUniform()
    first = [uniform(7, i) for i in range(20)]
    for i in np.random.default_rng(0).permutation(20):
        uniform(8, int(i))
        assert uniform(7, int(i)) == first[i]
    assert len(set(first)) == 20
    assert all(0 <= u < 1 for u in first)
