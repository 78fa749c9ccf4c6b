"""Divides a memory budget among the parts of a model and forecasts the speed: one frozen plan, without torch.

`make_plan` makes a plan; `read_plan` and `plan_json` read and write it. A plan is the engine's only configuration.
"""

from earthshine.plan.args import PlanArgs, check_args
from earthshine.plan.budget import MemoryPlan, check_memory, plan_memory
from earthshine.plan.forecast import Cost, Forecaster, Load
from earthshine.plan.plan import Plan, make_plan, model_name
from earthshine.plan.routing import Routing
from earthshine.plan.saved import plan_json, read_plan
from earthshine.plan.sizes import Sizes, sizes_of

__all__ = [
    "Cost",
    "Forecaster",
    "Load",
    "MemoryPlan",
    "Plan",
    "PlanArgs",
    "Routing",
    "Sizes",
    "check_args",
    "check_memory",
    "make_plan",
    "model_name",
    "plan_json",
    "plan_memory",
    "read_plan",
    "sizes_of",
]
