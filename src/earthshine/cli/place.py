"""What `prefill` and `serve --prefill` share: the forecast of a loaded model on this machine."""

from pathlib import Path

from earthshine.cli.this_machine import this_machine
from earthshine.engine import LoadedModel
from earthshine.plan import PlanArgs
from earthshine.plan.explore import Case
from earthshine.plan.sizes import sizes_of
from earthshine.prfaas.forecast import held_profile
from earthshine.prfaas.profile import Profile


def forecast_of(loaded: LoadedModel, folder: Path) -> Profile:
    """How long this machine takes to prefill prompts with the loaded plan, measured or estimated rates taken.

    Raises UsageError for a damaged profile of the machine.
    """
    plan = loaded.plan
    machine, _ = this_machine(folder)
    args = PlanArgs(
        plan.memory.budget_bytes, plan.memory.context_tokens, plan.memory.batch, plan.threads, plan.trunk, plan.dtype
    )
    case = Case(loaded.spec, machine, args, sizes_of(loaded.spec, plan.dtype, plan.trunk), plan)
    return held_profile(case, plan.memory.context_tokens)
