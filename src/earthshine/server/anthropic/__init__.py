"""Anthropic's Messages API as its SDK and Claude Code use it.

Text only. Accepted without effect: cache_control (prefixes are always cached), thinking's budget and display, effort,
metadata, service_tier, context_management and other fields that newer clients send.
"""

from earthshine.server.anthropic.exchange import COUNT_TOKENS, MESSAGES

__all__ = ["COUNT_TOKENS", "MESSAGES"]
