"""Every error that Earthshine raises on purpose, as one tree.

EarthshineError
├── UsageError          an argument or option is invalid (exit code 2)
├── SpecError           config.json is malformed, incomplete or inconsistent
│   └── Unsupported     config.json is sound, but asks for something that is not implemented
├── CheckpointError     the weight files are damaged, unsafe or do not fit the config
├── TextError           a tokenizer file, chat template, tool declaration or message is malformed
├── KernelError         the native library is missing, too old or was misused
├── BlobError           a sequence's stored state is damaged or belongs to another model
├── BudgetError         the memory that was granted does not suffice, and nothing is left to give back
├── ContextError        a sequence does not fit the model's context or the cache's pages
├── OverloadError       the queue of requests is full; later there is room again
├── UnavailableError    a part that a request needs does not work at the moment (text/sandbox)
├── Refused             a server's answer to a request that it does not take (server/refusals.py)
├── Unauthorized        a request's API key is missing or wrong (net/access.py)
├── WireError           a transfer of a cache or its connection failed (prfaas/wire/fault.py)
├── Unreachable         a server that is to be measured does not answer (loadgen/drive.py)
└── SourceError         a model could not be found or downloaded

A message names what is wrong and what would be right, in one or two plain sentences.
"""

import re


class EarthshineError(Exception):
    """Base of all errors raised on purpose; anything else that escapes is a bug. `param`: the name of the
    invalid parameter, where one is to blame."""

    param: str | None = None

    def message_with(self, name: str) -> str:
        """The message with `name`, which a front end has for the parameter, in place of its name in Python."""
        return re.sub(rf"\b{re.escape(self.param or '')}\b", lambda match: name, str(self), count=1)


class UsageError(EarthshineError):
    """An argument or option is invalid. `param`: its name in Python."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class SpecError(EarthshineError):
    """A config.json is malformed, incomplete or inconsistent."""


class Unsupported(SpecError):
    """A config.json asks for something that is not implemented; the message says what."""


class CheckpointError(EarthshineError):
    """Weight files are damaged, unsafe or do not fit the config."""


class TextError(EarthshineError):
    """A tokenizer file, chat template, tool declaration or message is malformed."""


class KernelError(EarthshineError):
    """The native library is missing, too old or was misused."""


class BlobError(EarthshineError):
    """A sequence's stored state is damaged or belongs to another model, format or version."""


class BudgetError(EarthshineError):
    """The memory that was granted does not suffice, and nothing is left to give back."""


class ContextError(EarthshineError):
    """A sequence does not fit the model's context or the cache's pages. `figures`: what does not fit, for a log."""

    def __init__(self, message: str, figures: str = "") -> None:
        super().__init__(message)
        self.figures = figures


class OverloadError(EarthshineError):
    """The queue of requests is full, or the engine is shutting down. `retry_seconds`: when to ask again."""

    def __init__(self, message: str, retry_seconds: int) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class UnavailableError(EarthshineError):
    """A part of this process that a request needs does not work at the moment. The request may be sent again."""


class SourceError(EarthshineError):
    """A model could not be found or downloaded."""
