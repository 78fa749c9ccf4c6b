"""Requests and sessions over a model: scheduling, one forward step, and sampling. Knows token ids, never text.

`load_model` opens a published checkpoint; a session syncs to a prefix of tokens and generates after it.
"""

from earthshine.engine.engine import Engine, EngineOptions, Ticket
from earthshine.engine.export import PieceSink, PromptPiece
from earthshine.engine.gauges import Gauges
from earthshine.engine.load import LoadedModel, load_model, plan_for, read_trunk, sampling_defaults
from earthshine.engine.request import (
    Admitted,
    Constraint,
    Failed,
    Finished,
    PromptProgress,
    PromptScores,
    ReplyEvent,
    Request,
    Sink,
    TokenEvent,
)
from earthshine.engine.sampling import Sampled, Sampler
from earthshine.engine.sampling_params import SamplingParams
from earthshine.engine.session import Event, Session, Synced
from earthshine.engine.step import Model, PagedStates, StepRow, step

__all__ = [
    "Admitted",
    "Constraint",
    "Engine",
    "EngineOptions",
    "Event",
    "Failed",
    "Finished",
    "Gauges",
    "LoadedModel",
    "Model",
    "PagedStates",
    "PieceSink",
    "PromptPiece",
    "PromptProgress",
    "PromptScores",
    "ReplyEvent",
    "Request",
    "Sampled",
    "Sampler",
    "SamplingParams",
    "Session",
    "Sink",
    "StepRow",
    "Synced",
    "Ticket",
    "TokenEvent",
    "load_model",
    "plan_for",
    "read_trunk",
    "sampling_defaults",
    "step",
]
