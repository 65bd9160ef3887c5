"""Which examples share a row: best fit, longest first."""

from __future__ import annotations

import bisect

import numpy as np


def best_fit(lengths: np.ndarray, size: int) -> list[list[int]]:
    """Rows of at most `size` tokens: the indices of the examples in each.

    The longest example comes first, into the row that it fills best; none is cut. The same lengths
    give the same rows.
    """
    rows: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # the rows that have so much room
    rooms: list[int] = []  # its keys, in order
    for index in np.argsort(-lengths.astype(np.int64), kind="stable").tolist():
        length = int(lengths[index])
        place = bisect.bisect_left(rooms, length)
        if place == len(rooms):
            row, room = len(rows), size
            rows.append([])
        else:
            room = rooms[place]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[place]
        rows[row].append(index)
        if left := room - length:
            if left not in with_room:
                bisect.insort(rooms, left)
            with_room.setdefault(left, []).append(row)
    return rows
