"""Tables show numbers in three digits, and what is not there as a dash."""

import math

from senet.system.table import markdown, text


def test_tables() -> None:
    header, rows = ("net", "images/s"), [("a|b", 1234.5), ("c", None), ("d", math.pi)]
    assert text(header, rows).splitlines() == ["net  images/s", "a|b     1,234", "c           -", "d        3.14"]
    assert markdown(header, rows).splitlines()[2] == "| a\\|b | 1,234 |"
