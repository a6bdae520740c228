"""Lines of metrics.jsonl when a run is resumed."""

import pytest

from gantx.training import metrics_file


def test_lines_newer_than_the_state_or_cut_off_go():
    lines = ['{"images": 8, "seconds": 1}', '{"images": 16}', '{"images": 24}', '{"imag']
    assert [line for line, _ in metrics_file.kept_lines(lines, 16)] == lines[:2]


@pytest.mark.parametrize(
    "line",
    [
        *("[]", "1", "[" * 10_000),
        *(f'{{"images": {value}}}' for value in ('"8"', "Infinity", "true", "-1", "1" + "0" * 400)),
    ],
)
def test_what_is_no_line_of_ours(line):
    assert metrics_file.parse(line) is None


def test_a_line_without_seconds_is_no_report():
    assert metrics_file.is_report(metrics_file.parse('{"images": 8, "seconds": 1.5}'))
    assert not metrics_file.is_report(metrics_file.parse('{"images": 8}'))
    assert not metrics_file.is_report(metrics_file.parse('{"images": 8, "seconds": null}'))
    assert metrics_file.is_score(
        metrics_file.parse('{"images": 8, "scores": {"kid": -1}, "protocol_hash": ""}')
    )
    assert not metrics_file.is_score(metrics_file.parse('{"images": 8, "scores": {"fid": "x"}}'))
