"""HTTP: OpenAI's and Anthropic's requests in, events out.

Everything that arrives is untrusted: bounded before it is parsed, checked before it is believed, never logged unless
asked for, and no address in it is ever contacted.
"""
