from __future__ import annotations

import pytest

from phenoscape_tune.data.channels import RGB, Channels


def bands(*wavelengths: float) -> Channels:
    return Channels(tuple(f"{wave:g} nm" for wave in wavelengths), wavelengths=wavelengths)


@pytest.mark.parametrize(
    ("there", "here", "difference"),
    [
        (RGB, RGB, None),
        (RGB, Channels(("red", "green")), "3 channels there, 2 here"),
        (RGB, Channels(("red", "green", "uv")), "channel 2 is 'blue' there, 'uv' here"),
        (bands(400, 410, 420), bands(404, 414, 424), None),
        (bands(400, 410, 420), bands(400, 410, 426), "channel 2 is at 420 nm there, at 426 nm here"),
        (bands(500), bands(600), "channel 0 is '500 nm' there, '600 nm' here"),
        (bands(400, 410), Channels(("band 0", "band 1")), "channel 0 is '400 nm' there, 'band 0' here"),
    ],
)
def test_how_channels_differ(there: Channels, here: Channels, difference: str | None) -> None:
    assert there.difference(here) == difference
