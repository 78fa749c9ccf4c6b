"""What goes where and what it costs: from a spec, a machine and a budget to one frozen plan, without torch.

`make_plan` divides the memory and forecasts; `read_plan` and `plan_json` keep plans as files. The engine takes nothing
else by way of configuration.
"""

from earthshine.plan.budget import Division, Wanted, check_division, divide
from earthshine.plan.forecast import Cost, Forecaster, Load
from earthshine.plan.plan import Plan, PlanArgs, check_args, make_plan, model_name
from earthshine.plan.routing import Routing
from earthshine.plan.saved import plan_json, read_plan
from earthshine.plan.sizes import Sizes, sizes_of

__all__ = [
    "Cost",
    "Division",
    "Forecaster",
    "Load",
    "Plan",
    "PlanArgs",
    "Routing",
    "Sizes",
    "Wanted",
    "check_args",
    "check_division",
    "divide",
    "make_plan",
    "model_name",
    "plan_json",
    "read_plan",
    "sizes_of",
]
