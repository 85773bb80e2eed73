"""Fixtures that tests of several commands need."""

import json

import pytest

from looking import packets_of
from terminals import run_here
from wire import write_capture


@pytest.fixture
def look(tmp_path):
    """Look at a capture of heaps with this layout; return the numbers, or what it prints."""

    def look_at(layout, payloads, *args, code=0, as_json=True):
        (tmp_path / "array.toml").write_text(layout.to_toml(), "utf-8")
        capture = write_capture(tmp_path / "capture.pcap", packets_of(payloads, layout.time.step))
        options = ["--json"] if as_json else []
        text = run_here("look", capture, "-l", str(tmp_path / "array.toml"), *options, *map(str, args), code=code)
        return json.loads(text) if as_json and not code else text

    return look_at
