"""The errors the package raises on purpose: one line each, with the exit code the command uses."""

import unicodedata


class CrystallineError(Exception):
    """Something failed that no argument caused; the command ends with ``exit_code``."""

    exit_code = 1


class UsageError(CrystallineError, ValueError):
    """An argument, a path or a setting is wrong; nothing was changed."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration value breaks a rule: names the field, the value and one that works."""


class DataError(UsageError):
    """The training text is missing, unreadable or empty."""


class CheckpointError(CrystallineError):
    """A checkpoint is missing, damaged or could not be written."""


class StoreError(CrystallineError):
    """The queue and history of a model cannot be read or written; what was there is as it was."""


class NumericsError(CrystallineError):
    """Training or a model in use produced a value that is not finite; no checkpoint is touched."""


class QueueClosed(CrystallineError):
    """The queue was closed; for a receiver: and nothing is left in it."""


class QueueCorrupt(CrystallineError):
    """The memory is not a queue, or something else has written to it."""


class QueueAlone(CrystallineError):
    """Every other process that joined the queue is dead: waiting would never end."""


class Interrupted(CrystallineError):
    """Training was stopped by a signal after its checkpoint was written."""

    exit_code = 130


def tame(text: str, keep: str = "") -> str:
    """The text with every character escaped that would break a line or steer a terminal.

    Names of files and the words of a model may hold anything; ``keep`` are let through.
    """
    wild = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        ascii(c)[1:-1] if unicodedata.category(c) in wild and c not in keep else c for c in text
    )
