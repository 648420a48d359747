"""Every way this product fails on purpose, on one screen.

    AdaptError                      exit code 2; the command line prints its one line
    ├── ConfigError                 an option, a task file, a target name
    ├── ModelImportError            a model that cannot be read, or must not be
    │   └── UnsupportedOperatorError    read, but holds operators no compiler here takes
    ├── DeviceError                 a device answered wrongly
    ├── DeviceUnreachableError      a device did not answer; what was asked of it need not be at fault
    ├── RunFolderError              a run folder cannot be written or does not belong to this run
    └── VerificationError           exit code 3; the artefact is not what it should be

A message is one line: what, got, expected, next step. Anything that is not an `AdaptError` is our bug and ends in a
traceback. Inside a search a failed build or run is data, never an exception (`gos_adapt.quantities.Measurement`), and
"does not apply" is a `Rejection`, never an exception.
"""

from __future__ import annotations

from dataclasses import dataclass


class AdaptError(Exception):
    """A failure the user can act on; its message is one line."""

    exit_code = 2


class ConfigError(AdaptError):
    """An option, a task file or a target name is wrong."""


class ModelImportError(AdaptError):
    """The model cannot be read, or must not be."""


class UnsupportedOperatorError(ModelImportError):
    """The model holds operators that cannot be compiled; the message names them all."""


class DeviceError(AdaptError):
    """The device answered, but not as it should."""


class DeviceUnreachableError(AdaptError):
    """The device did not answer, or stopped answering."""


class RunFolderError(AdaptError):
    """A run folder cannot be written, or belongs to another run."""


class VerificationError(AdaptError):
    """The artefact does not do what the report would claim."""

    exit_code = 3


def last_line(failure: BaseException) -> str:
    """Return what a foreign error says in the end, on one bounded line: the last words name the cause."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip() and not line.strip().startswith("#")]
    return (lines[-1] if lines else type(failure).__name__)[:300]


@dataclass(frozen=True)
class Rejection:
    """Why something does not apply: a value, not an error."""

    reason: str
