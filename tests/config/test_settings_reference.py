"""docs/settings.md lists every setting, and says of each what it means."""

from pathlib import Path

from helpers.settings_reference import reference

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_that_of_the_sections():
    """If not: PYTHONPATH=.:tests python -m helpers.settings_reference > docs/settings.md."""
    assert PAGE.read_text(encoding="utf-8") == reference()


def test_every_setting_has_a_meaning():
    rows = [line for line in reference().splitlines() if line.startswith("| `")]
    assert len(rows) > 200
    assert not [row for row in rows if row.endswith("|  |")]
