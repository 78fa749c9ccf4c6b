"""Anthropic's Messages API as its SDK and Claude Code speak it: requests to Turns, pieces to messages and events.

Text only. Accepted without effect: cache_control (prefixes are found by themselves), thinking's budget and display,
effort, metadata, service_tier, context_management and other fields that newer clients send.
"""

from earthshine.server.anthropic.exchange import COUNT_TOKENS, MESSAGES

__all__ = ["COUNT_TOKENS", "MESSAGES"]
