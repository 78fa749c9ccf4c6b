"""Names that other programs give to commands: what to do here instead."""

from typing import Any

from typer.core import TyperGroup

from earthshine.errors import UsageError

# By ollama, docker, vLLM, pip and Hugging Face's tool. `run` is a name of chat.
_INSTEAD = {
    "show": "earthshine inspect MODEL shows a model",
    "info": "earthshine inspect MODEL shows a model, earthshine doctor this machine",
    "ps": "earthshine serve shows what it computes on its page and at /metrics",
    "stop": "Ctrl-C ends chat and serve",
    "ls": "earthshine list lists the downloaded models",
    "download": "earthshine pull MODEL downloads a model",
    "remove": "earthshine rm MODEL removes a downloaded model",
    "delete": "earthshine rm MODEL removes a downloaded model",
    "start": "earthshine serve MODEL starts a server",
    "complete": "earthshine chat MODEL -p TEXT answers once",
    "generate": "earthshine chat MODEL -p TEXT answers once",
    "create": "models are used as they were published, without conversion",
    "convert": "models are used as they were published, without conversion",
    "quantize": "models are used as they were published; --trunk int8 takes less memory",
}


class Commands(TyperGroup):
    """The commands. Raises UsageError, with what to do instead, for another program's name of one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] in _INSTEAD and self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            raise UsageError(f"There is no command {args[0]}: {_INSTEAD[args[0]]}.")
        return super().resolve_command(ctx, args)
