"""From text to text: prompts become token ids, the engine's tokens become text, calls and log-probabilities.

What the HTTP server and `LLM` share. Knows no API and no network.
"""
