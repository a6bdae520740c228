"""stderr that goes away, is full, or is not read."""

import io
import os

import pytest

from gantx.io import streams


class Broken(io.StringIO):
    def write(self, *text):
        raise OSError(28, "No space left on device")

    flush = isatty = write


@pytest.mark.parametrize("stream", [None, Broken(), io.StringIO()])
def test_text_is_lost_without_an_error(stream):
    if isinstance(stream, io.StringIO) and not isinstance(stream, Broken):
        stream.close()
    unfailing = streams.Unfailing(stream)
    assert unfailing.write("text") == 4
    unfailing.flush()


def test_a_working_stream_gets_everything():
    stream = io.StringIO()
    streams.Unfailing(stream).write("text")
    assert stream.getvalue() == "text"
    assert not streams.Unfailing(stream).isatty()
    assert streams.Unfailing(stream).closed is False


@pytest.mark.skipif(os.name != "posix", reason="pipes cannot be asked here")
def test_a_full_pipe_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(streams, "PATIENCE", 0.01)
    reading, writing = os.pipe()
    with open(writing, "w") as stream:  # noqa: PTH123
        unfailing = streams.Unfailing(stream)
        for _ in range(300):
            unfailing.write("x" * 1000)
            unfailing.flush()
        os.read(reading, 1 << 20)
        unfailing.write("read again")
        unfailing.flush()
        assert os.read(reading, 1 << 20).endswith(b"read again")
    os.close(reading)
