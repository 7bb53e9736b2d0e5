"""The errors a user meets. Each says what, expected, got and likely cause, and is understood without a traceback."""


class SaccadeError(Exception):
    """Base of every error that is raised on purpose. `exit_code` is what the command line ends with."""

    exit_code = 2


class ConfigError(SaccadeError, ValueError):
    """A config file, a `--set` or an option that cannot be used."""


class WireError(SaccadeError, ValueError):
    """Bytes that are not the message they should be."""


class BusError(SaccadeError, OSError):
    """An address that cannot be used, most often because another run holds it."""


class AddressInUse(BusError):
    """Another process holds it."""


class KeyFileError(SaccadeError, OSError):
    """Keys of the bus that are missing, damaged, open to other users, or another machine's."""


class NotRunning(SaccadeError, TimeoutError):
    """Nobody answers on the bus."""

    exit_code = 1


class CommandFailed(SaccadeError, RuntimeError):
    """The controller understood a command and could not do it."""

    exit_code = 1


class RobotError(SaccadeError, RuntimeError):
    """A robot that cannot be found, built or driven."""


class RobotFailure(RobotError):
    """A robot that was driven and then failed: the run ends with the robot held."""

    exit_code = 1


class MismatchError(SaccadeError, ValueError):
    """A policy and a robot that do not fit each other."""


class RecordingError(SaccadeError, OSError):
    """A recording that cannot be written on: a full disk, most often. What was written before stays readable."""

    exit_code = 1


class ReportError(SaccadeError, OSError):
    """What was found cannot be written after the work: a full disk, most often."""

    exit_code = 1


class MeasurementError(SaccadeError, RuntimeError):
    """A measurement that could not be taken to its end."""

    exit_code = 1


class PageError(SaccadeError, OSError):
    """A page that cannot be served, most often because its port is in use. The run goes on without it."""

    exit_code = 1
