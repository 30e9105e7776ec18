"""What the engine says in messages: commands to Node Zero, and what it tells of a training.

A ``SphereMessage`` is a record of 64 bytes: type, priority, sphere, ticket, step and four numbers.
"""

from __future__ import annotations

from enum import IntEnum

URGENT, NORMAL, NOTICE = 0, 1, 2  # priorities: the least is taken first
ALL_SPHERES = -1


class MessageType(IntEnum):
    """The types there are, group by group; what their numbers hold stands beside them.

    START to STATS are commands, with a ticket; the others, and SPAWN, TERMINATE and REBALANCE
    without one, are told to whoever subscribes.
    """

    # work
    START = 1
    PAUSE = 2
    RESUME = 3
    STOP = 4
    CHECKPOINT = 5
    SET = 6  # setting, value
    # statistics
    STATS = 16
    # hierarchy: sphere, or all
    SPAWN = 32
    TERMINATE = 33
    REBALANCE = 34
    # gradient
    GRADIENT = 48  # norm before clipping, learning rate
    # weights
    WEIGHTS = 64  # version published
    # boundary
    BOUNDARY = 80  # crossings in the step
    # epoch and batch
    EPOCH = 96  # epochs done
    BATCH = 97  # loss, tokens, seconds
    # error
    ERROR = 112
    # shutdown
    SHUTDOWN = 128


class Setting(IntEnum):
    """What SET can change while a training runs."""

    LEARNING_RATE = 0
    BATCH_SIZE = 1
    EPOCHS = 2
    EVALUATION_INTERVAL = 3
    SEQ_LEN = 4
    LAYERS = 5  # may only grow
