import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tests_that_guard_against_each_fault_are_there() -> None:
    page = (ROOT / "docs/concepts/trust.md").read_text()
    rows = [
        row
        for row in page.partition("## The tests")[2].partition("\n## ")[0].splitlines()
        if row[:1] == "|"
    ][2:]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(?:([\w/]+\.py)::)?(test_\w+)`", row)
        assert named, row
        file = ""
        for path, test in named:
            file = path or file
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"
