"""Offline inference: `LLM` loads a model in this process and answers lists of prompts and conversations in batches."""

from earthshine.engine import SamplingParams
from earthshine.llm.llm import LLM
from earthshine.llm.outputs import CompletionOutput, Logprob, RequestOutput, ToolCall

__all__ = ["LLM", "CompletionOutput", "Logprob", "RequestOutput", "SamplingParams", "ToolCall"]
