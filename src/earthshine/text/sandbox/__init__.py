"""Chat templates are untrusted code and run in a child process: `worker`, started and asked by `process`."""

from earthshine.text.sandbox.process import TEMPLATE_PROCESS

__all__ = ["TEMPLATE_PROCESS"]
