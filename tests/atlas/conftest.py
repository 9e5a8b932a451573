"""A small package folder of its own, to try things out on."""

from pathlib import Path

import pytest

from tests.atlas.small_package import MIXER, SYSTEM, a_card, put_card, put_source


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "regardant"
    put_card(folder, a_card("moth", provides={"moth": "regardant.sequence.moth:Moth"}))
    put_card(folder, a_card("bare", kind="vision"))
    put_card(
        folder,
        a_card("twins", provides={"left": "regardant.grid.left:Left", "right": "regardant.grid.right:Right"}),
    )
    put_card(
        folder,
        a_card("yardstick", kind="baseline", provides={"yardstick": "regardant.sequence.yardstick:Yard"}),
        "baselines",
    )
    put_source(folder, "regardant.sequence.moth", SYSTEM)
    put_source(folder, "regardant.core.mixer", MIXER)
    return folder
