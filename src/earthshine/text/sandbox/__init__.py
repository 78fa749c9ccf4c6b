"""Chat templates run under bounds: `environment` says what a template may do, `operations` how, `meter` how much."""

from earthshine.text.sandbox.environment import Refused, compile_template, run_template

__all__ = ["Refused", "compile_template", "run_template"]
