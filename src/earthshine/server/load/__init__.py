"""The other end of the wire: requests after a trace, sent to any server that speaks OpenAI's completions, and timed."""
