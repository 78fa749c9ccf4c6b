"""The HTTP server: OpenAI's and Anthropic's APIs.

Requests are untrusted: limited before they are parsed and checked before they are used. Their texts are logged only
with --log-text, and no address in them is ever contacted.
"""
