"""docs/surrogates.md: each surrogate has its formula and its picture, drawn by the code."""

from __future__ import annotations

import re
import runpy
import warnings
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "surrogates.md").read_text()

with warnings.catch_warnings():  # matplotlib's, on its first import
    warnings.simplefilter("ignore")
    DRAWING = runpy.run_path(str(DOCS / "draw_surrogates.py"))


@pytest.mark.parametrize("name", DRAWING["builtin"]())
def test_surrogate_is_documented_with_formula_and_picture(name: str) -> None:
    summary = re.search(rf"^\| \[`{name}`\]\(#{name}\) \| `.+`", PAGE, re.MULTILINE)
    assert summary, f"no line of '{name}' in the table"
    assert f"\n## {name}\n\n![{name}](images/surrogate-{name}.png)\n" in PAGE
    with Image.open(DOCS / "images" / f"surrogate-{name}.png") as picture:
        assert picture.format == "PNG"


def test_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    DRAWING["main"](tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in (DOCS / "images").glob("surrogate-*.png")}
    for name in drawn:
        assert (tmp_path / name).stat().st_size < 50_000
        with Image.open(tmp_path / name) as new, Image.open(DOCS / "images" / name) as old:
            assert new.size == old.size
