"""What can go wrong on the model side, by where the bad thing enters.

Everything here inherits `VlaError` and the builtin a caller would expect. At start-up these end the process; in the
running encoder the service turns `EncodeError` into a reported fault, and nothing is published for that frame.
"""

from __future__ import annotations

from control.errors import SaccadeError


class VlaError(SaccadeError):
    """Base of every error of this folder."""


class FileFault(VlaError, ValueError):
    """A policy or model file is missing, damaged or of another kind: names file, expected, got, likely cause."""


class CaptureFault(VlaError, ValueError):
    """Captures that do not belong to the policy they are to judge."""


class TrainingFault(VlaError, ValueError):
    """A training that cannot begin as asked: its options, its batches or the folder it is to fill."""


class DeviceFault(VlaError, ValueError):
    """The device that was asked for is not there. It is never replaced by a slower one."""


class EncodeError(VlaError, ValueError):
    """This frame and instruction cannot be encoded; the next one may."""


class EncoderFault(VlaError, RuntimeError):
    """The encoder cannot go on; started anew it may."""


class PromptError(EncodeError):
    """An instruction that cannot be put before the model."""


class CameraError(EncodeError):
    """Frames without a camera the policy needs, or with one of another size."""


class NonFiniteFeatures(EncodeError):
    """The model returned NaN or infinity."""
