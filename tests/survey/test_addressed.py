"""Items whose values are in the payload tell no heaps apart: `inspect` says which, and what would help."""

from __future__ import annotations

import struct

import pytest

from speadrx.survey.propose import propose
from wire import heap, survey_of


def obstacle_of(items: list[tuple[int, int]], form: str) -> str | None:
    """Why heaps of three sources at 16 times get no layout, if the values of these items are in the payload."""
    packets = []
    for number in range(48):
        data = b"".join(struct.pack(form, number % 3) for _ in items) + bytes(64)
        addressed = [(item, (place,)) for item, place in items]
        packets += heap(number + 1, [(0x1600, number // 3 * 64), *addressed, (0x4300, (len(data) - 64,))], data)
    (stream,) = survey_of(packets).streams()
    return propose(stream).obstacle


@pytest.mark.parametrize(
    ("items", "form", "said"),
    [
        ([(0x4101, 0)], ">Q", "Items 0x4101 (feng_id), 0x4300 (feng_raw) are addressed"),
        ([(0x77, 0), (0x78, 4)], "<I", "Items 0x77 (unknown), 0x78 (unknown), 0x4300 (feng_raw) are addressed"),
    ],
)
def test_addressed_items_are_named(items: list[tuple[int, int]], form: str, said: str) -> None:
    obstacle = obstacle_of(items, form)
    assert obstacle is not None
    assert said in obstacle
    assert f"items = {{ {items[0][0]:#x} = " in obstacle


def test_the_data_alone_are_not_named() -> None:
    obstacle = obstacle_of([], ">Q")
    assert obstacle is not None
    assert "addressed" not in obstacle
