"""From text to text: prompts become token ids; the engine's tokens become text, calls and log-probabilities.

The HTTP server and `LLM` share this package. It has no API and no network.
"""
