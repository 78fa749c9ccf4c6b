"""What goes where and what it costs: from a spec, a machine and a budget to one frozen plan, without torch.

`make_plan` divides the memory and forecasts; `read_plan` and `plan_json` keep plans as files. The engine takes nothing
else by way of configuration.
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
