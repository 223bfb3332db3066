"""Tables show numbers in three digits, and what is not there as a dash."""

import math

from senet.system.table import markdown, text


def test_tables() -> None:
    header, rows = ("net", "images/s"), [("a|b", 1234.5), ("c", None), ("d", math.pi)]
    assert text(header, rows).splitlines() == ["net  images/s", "a|b     1,234", "c           -", "d        3.14"]
    assert markdown(header, rows).splitlines()[2] == "| a\\|b | 1,234 |"


def test_words_stand_to_the_left_and_numbers_to_the_right() -> None:
    rows = [("loader", 3096, "10.3", "busy"), ("net", 226.0, "141.4", "the same images")]
    assert text(("", "images/s", "ms", ""), rows).splitlines() == [
        "        images/s     ms",
        "loader     3,096   10.3  busy",
        "net          226  141.4  the same images",
    ]
