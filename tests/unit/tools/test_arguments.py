"""Arguments that cannot be are one line."""

from __future__ import annotations

import argparse

import pytest

from tools.arguments import whole_number


@pytest.mark.parametrize("text", ["0", "41", "-1", "x", "1.5", ""])
def test_what_is_no_number_of_the_range_is_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=whole_number(1, 40))
    with pytest.raises(SystemExit):
        parser.parse_args([f"--texts={text}"])
    assert capsys.readouterr().err.endswith(f"argument --texts: must be a whole number of 1 to 40, got {text}\n")
    assert parser.parse_args(["--texts", "40"]).texts == 40
