"""The file of references."""

import numpy as np
from hub_dpo.references import _read, _write


def test_a_damaged_file_has_no_values_and_never_other_ones(tmp_path):
    file, values = tmp_path / "references.npz", {bytes([n] * 16): np.full(n, -n / 7, np.float32) for n in (1, 2, 5)}
    _write(file, values)

    def same(found) -> bool:
        return found.keys() == values.keys() and all(np.array_equal(found[digest], values[digest]) for digest in values)

    assert same(_read(file, True))
    whole = file.read_bytes()
    for length in range(0, len(whole), 61):
        file.write_bytes(whole[:length])
        assert _read(file, True) == {}
    random = np.random.default_rng(0)
    for place, bit in zip(random.integers(len(whole), size=120), random.integers(8, size=120), strict=True):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        file.write_bytes(damaged)
        found = _read(file, True)
        assert found == {} or same(found), (place, bit)
