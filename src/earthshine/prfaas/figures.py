"""The forms in which workers and their receivers report: figures for `/metrics`, and events for the log."""

from collections.abc import Callable, Mapping
from typing import Any

Figure = tuple[str, str, str, Mapping[str, float]]  # name, meaning, "gauge" or "counter", values by label or one by ""
LogEvent = Callable[[str, list[str], Mapping[str, Any]], None]  # name, columns for people, fields for programs
