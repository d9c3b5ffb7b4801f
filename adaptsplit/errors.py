"""Every error that adaptsplit raises on purpose.

    AdaptsplitError
    ├── ConfigError          a scenario, recipe or option that cannot be used          (exit code 2)
    ├── UnknownNameError     a name that no registry entry answers to                  (exit code 2)
    ├── DataError            a file whose content cannot be used                       (exit code 2)
    │   ├── LinkError        a link trace
    │   ├── ProfileError     a profile
    │   ├── ModelError       a model folder
    │   └── BundleError      a bundle (hash, signature, schema)
    ├── CodecError           bytes that are not a container of ours, or are damaged
    ├── MessageError         an MQTT message that is not ours, or is damaged
    ├── MissingExtraError    an optional dependency that is not installed              (exit code 1)
    └── RunError             something failed while it ran (broker unreachable, ...)   (exit code 1)

A message says the value met, what was expected, and the cure. ``exit_code`` is what the command line returns.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib

NPZ_FAULTS = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError, NotImplementedError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, tokenize.TokenError),  # the last two: numpy's parser of a npy header
)
"""What reading a damaged ``.npz`` may raise; readers turn each into an error of ours."""


class AdaptsplitError(Exception):
    """Base class; catch it to catch everything that adaptsplit raises on purpose."""

    exit_code = 1


class ConfigError(AdaptsplitError):
    """A scenario, recipe or option that cannot be used."""

    exit_code = 2


class UnknownNameError(ConfigError):
    """A name that no registry entry answers to."""


class DataError(AdaptsplitError):
    """A file whose content cannot be used."""

    exit_code = 2


class LinkError(DataError):
    """A link trace that cannot be used."""


class ProfileError(DataError):
    """A profile that cannot be used."""


class ModelError(DataError):
    """A model folder that cannot be used."""


class BundleError(DataError):
    """A bundle whose hashes, signature or schema do not hold."""


class CodecError(AdaptsplitError):
    """Bytes that are not one of our containers, or are damaged."""


class MessageError(AdaptsplitError):
    """A message that is not ours, or is damaged."""


class RunError(AdaptsplitError):
    """Something failed while it ran."""


class MissingExtraError(AdaptsplitError):
    """An optional dependency that is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed; cure: pip install 'adaptsplit[{extra}]'")
