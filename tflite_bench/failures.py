"""What can go wrong between this machine and a phone, each with its exit status."""

from enum import IntEnum

from mela_jax.errors import UserError


class Failure(IntEnum):
    """The exit statuses of ``tflite_bench.android``."""

    OK = 0
    BAD_INPUT = 2
    NO_ADB = 10
    ADB_FAILED = 11
    NO_DEVICE = 12
    UNAUTHORIZED = 13
    OFFLINE = 14
    SEVERAL_DEVICES = 15
    MISSING_BINARY = 16
    WRONG_ABI = 17
    NO_SPACE = 18
    CRASHED = 19
    TIMEOUT = 20
    DEVICE_LOST = 21
    CORRUPT_PUSH = 22
    UNREADABLE_LOG = 23
    FLAG_IGNORED = 24
    OUTPUTS_DIFFER = 25
    TOO_HOT = 26
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


# After these nothing more can be asked of the device: its other models are not tried.
ENDS_THE_DEVICE = frozenset(
    {
        Failure.ADB_FAILED,
        Failure.NO_DEVICE,
        Failure.UNAUTHORIZED,
        Failure.OFFLINE,
        Failure.DEVICE_LOST,
    }
)


class BenchmarkError(UserError):
    """A failure with its exit status; the message is one line with the remedy.

    Attributes:
        failure: which failure it is, and so the exit status.
    """

    def __init__(self, failure: Failure, message: str):
        super().__init__(" ".join(message.split()))
        self.failure = failure
