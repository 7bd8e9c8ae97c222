"""Sizes and speeds in the unit that fits them."""

import pytest

from relax_inplace.byte_units import in_units, speed_in_units


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (6144, "6,144 bytes"),
        (12288, "12.3 kB"),
        (999_000, "999 kB"),
        (3_363_000, "3.36 MB"),
        (83_886_080, "83.9 MB"),
        (2_437_000_000, "2,437 MB"),
        (24_370_000_000, "24.4 GB"),
    ],
)
def test_sizes(size, text):
    assert in_units(size) == text


def test_speeds():
    assert speed_in_units(83_886_080, 0.02) == "4.19 GB/s"
    assert speed_in_units(4096, 0.0005) == "8.19 MB/s"
    assert speed_in_units(0, 0.0) == "0 bytes/s"
