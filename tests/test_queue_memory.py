"""The message queue in memory that was spoilt: an error, never a hang or a wild write."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from queue_case import (
    CLAIMED,
    FREE,
    FULL,
    HEAD_BYTES,
    PARTICIPANTS,
    READING,
    RINGS,
    SPARE,
    memory_for,
    slot_offset,
    tickets,
    watchdog,
    word,
)  # fmt: skip

from crystalline._queue import MessageQueue, SphereMessage
from crystalline.errors import CrystallineError, QueueClosed, QueueCorrupt

__all__ = ["watchdog"]



def test_a_spoilt_head_is_refused() -> None:
    memory = memory_for(2)
    MessageQueue(2, buffer=memory)
    MessageQueue(2, buffer=memory, create=False)
    for i in range(40):
        spoilt = memory_for(2)
        spoilt[:] = memory
        spoilt[i] ^= 0x10
        with pytest.raises(QueueCorrupt):
            MessageQueue(buffer=spoilt, create=False)
    for size in (0, 8, HEAD_BYTES, MessageQueue.bytes_needed(2) - 1):
        with pytest.raises(QueueCorrupt):
            MessageQueue(buffer=memory[:size], create=False)
    struct.pack_into("=Q", memory, slot_offset(2, 3, 1), word(2, FREE))
    with pytest.raises(QueueCorrupt):
        MessageQueue(buffer=memory, create=False)


@pytest.mark.parametrize(
    "wrong",
    [word(1, FREE), word(2, FULL), word(-2, FULL), word(-2, CLAIMED, 1), word(-4, READING, 1),
     word(0, CLAIMED, 0), word(0, CLAIMED, 64), word(0, CLAIMED, 1000), word(6, FREE)],
)  # fmt: skip
def test_an_impossible_word_is_an_error_for_the_receiver(wrong: int) -> None:
    memory = memory_for(2)
    queue = MessageQueue(2, buffer=memory)
    struct.pack_into("=Q", memory, slot_offset(2, 0, 0), wrong)
    if wrong == word(2, FULL):  # as if sent in the next round: the head follows
        assert queue.receive() is None
        return
    with pytest.raises(QueueCorrupt, match="something else wrote"):
        queue.receive()


@pytest.mark.parametrize(
    "wrong", [word(1, FREE), word(-2, FREE), word(4, FREE), word(-4, FULL), word(-2, READING, 9)]
)
def test_an_impossible_word_is_an_error_for_the_sender(wrong: int) -> None:
    memory = memory_for(2)
    queue = MessageQueue(2, buffer=memory)
    struct.pack_into("=Q", memory, slot_offset(2, 0, 0), wrong)
    with pytest.raises(QueueCorrupt):
        queue.send(SphereMessage(1, 0))


@given(
    st.lists(st.tuples(st.integers(5, (HEAD_BYTES + 16 * 64) // 8 - 1),
                       st.integers(0, 2**64 - 1) | st.integers(0, 2**20)), min_size=1, max_size=4),
    st.integers(0, 12),
)  # fmt: skip
@settings(max_examples=examples(150), deadline=None)
def test_nothing_written_into_the_memory_hangs_or_reaches_beyond(
    spoils: list[tuple[int, int]], before: int
) -> None:
    memory = memory_for(4)
    queue = MessageQueue(4, buffer=memory)
    for i in range(before):
        queue.send(SphereMessage(1, i % 3))
    for at, value in spoils:
        struct.pack_into("=Q", memory, 8 * at, value)
    for i in range(24):
        try:
            if i % 4 < 2:
                queue.send(SphereMessage(1, i % 3))
            else:
                queue.receive()
            queue.counters()
        except (QueueCorrupt, QueueClosed):
            pass
    assert (memory[-SPARE:] == 0xA5).all()


def test_positions_go_on_past_their_48_bits() -> None:
    memory, start = memory_for(4), 2**48 - 6
    queue = MessageQueue(4, buffer=memory)
    for ring in range(4):
        struct.pack_into("=Q", memory, RINGS + 128 * ring, start)
        struct.pack_into("=Q", memory, RINGS + 128 * ring + 64, start)
        for position in range(start, start + 4):
            struct.pack_into("=Q", memory, slot_offset(4, ring, position % 4), word(position, FREE))
    for ticket in range(12):
        for offset in range(4):
            assert queue.send(SphereMessage(1, ticket=4 * ticket + offset))
        assert not queue.send(SphereMessage(1))
        assert tickets(queue) == [4 * ticket + offset for offset in range(4)]


def test_the_sixty_fifth_living_process_is_refused() -> None:
    memory = memory_for(2)
    MessageQueue(2, buffer=memory)
    with subprocess.Popen(["sleep", "100"]) as other:
        stat = Path(f"/proc/{other.pid}/stat").read_text()
        identity = int(stat.rsplit(")", 1)[1].split()[19]) << 22 | other.pid
        for i in range(64):
            struct.pack_into("=Q", memory, PARTICIPANTS + 8 * i, identity)
        try:
            with pytest.raises(CrystallineError, match="64 living processes"):
                MessageQueue(buffer=memory, create=False)
        finally:
            other.kill()
    MessageQueue(buffer=memory, create=False)
    for i in range(64):
        struct.pack_into("=Q", memory, PARTICIPANTS + 8 * i, identity + i)
    assert MessageQueue(buffer=memory, create=False).send(SphereMessage(1))
