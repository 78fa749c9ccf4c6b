"""Chat templates come from strangers. This runs them so that they can compute a text and nothing else.

How: Jinja's immutable sandbox, with everything denied that is not listed (node kinds, attributes, filters, tests,
methods, callables), and a rewritten syntax tree in which every loop turn, comparison, slice, concatenation and literal
passes through the rendering's `Meter`. One environment serves one rendering, so there is no shared state.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from types import BuiltinMethodType, CodeType, FunctionType, MethodType
from typing import Any

from jinja2 import Template, nodes
from jinja2 import tests as jinja_tests
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

from earthshine.text.sandbox.meter import MAX_INT_BITS, MAX_ITEMS, MAX_TEXT, Meter, Overspent
from earthshine.text.sandbox.operations import FILTERS, METHODS, as_text, percent

_NODES = frozenset(
    (
        *("Template", "Output", "TemplateData", "If", "For", "Break", "Continue", "Macro", "CallBlock", "FilterBlock"),
        *("With", "Scope", "Assign", "AssignBlock", "ExprStmt", "Name", "NSRef", "Const", "Tuple", "List", "Dict"),
        *("Pair", "Keyword", "CondExpr", "Filter", "Test", "Call", "Getitem", "Getattr", "Slice", "Concat", "Compare"),
        *("Operand", "Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow", "And", "Or", "Not", "Neg", "Pos"),
    )
)
_LOOP = frozenset(
    (
        *("index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem"),
        *("depth", "depth0", "cycle"),
    )
)
_SHALLOW = (
    *("boolean", "callable", "defined", "divisibleby", "even", "false", "float", "integer", "iterable", "lower"),
    *("mapping", "none", "number", "odd", "sameas", "sequence", "string", "true", "undefined", "upper"),
)
_DEEP = (
    *("in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan"),
    *("<=", "le"),
)
_SCOPES = (nodes.For, nodes.Macro, nodes.CallBlock, nodes.FilterBlock, nodes.AssignBlock, nodes.With, nodes.Scope)
_MAX_SCOPES = 20  # Jinja walks a scope's whole body for each scope around it, and Python allows 20 nested loops
_TIME_FORMAT = re.compile(r"(?:[^%]|%-?[A-Za-z%]){0,100}", re.DOTALL)


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; here its body is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Metering(NodeTransformer):
    """Routes what Jinja would compile to bare Python operators and loops through the environment."""

    _depth = 0

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if type(node).__name__ not in _NODES:
            raise SecurityError(f"a chat template may not use {type(node).__name__.lower()}")
        scope = isinstance(node, _SCOPES)
        self._depth += scope
        if self._depth > _MAX_SCOPES:
            raise SecurityError(f"a chat template may not nest more than {_MAX_SCOPES} loops, macros and blocks")
        visited = super().visit(node, *args, **kwargs)
        self._depth -= scope
        return visited

    @staticmethod
    def _call(name: str, node: nodes.Node, args: list[nodes.Expr]) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), args, [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("turn", node, []), lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(self._call("turn", node, []), node.test, lineno=node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._call("measured", node, [node.expr])
        for operand in node.ops:
            operand.expr = self._call("measured", node, [operand.expr])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("concatenated", node, node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if not isinstance(node.arg, nodes.Slice):
            return self.generic_visit(node)
        ends = [node.arg.start, node.arg.stop, node.arg.step]
        args = [node.node, *(nodes.Const(None) if end is None else end for end in ends)]
        return self._call("sliced", node, [self.visit(arg) for arg in args])

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = self._call("measured", node, [pair.key])
        return self._call("counted", node, [node])

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return self._call("counted", node, [node])

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return self._call("counted", node, [node]) if node.ctx == "load" else node


def _metered_filter(operation: Callable[..., Any]) -> Callable[..., Any]:
    @pass_context  # also keeps Jinja from running the filter while compiling
    def run(context: Any, *args: Any, **kwargs: Any) -> Any:
        meter = context.environment.meter
        meter.charge(0)
        return operation(context, meter, *args, **kwargs)

    return run


def _metered_test(test: Any, deep: bool) -> Callable[..., Any]:
    @pass_context
    def run(context: Any, *args: Any) -> Any:
        context.environment.meter.charge(0)
        if deep:
            args = tuple(context.environment.measured(arg) for arg in args)
        return test(*args)

    return run


_RUN_FILTERS = {name: _metered_filter(operation) for name, operation in FILTERS.items()}
_RUN_TESTS = {name: _metered_test(jinja_tests.TESTS[name], name in _DEEP) for name in _SHALLOW + _DEEP}


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one rendering (or of one compilation)."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, meter: Meter, clock: Callable[[], datetime]) -> None:
        extensions: list[type[Extension]] = [LoopControlExtension, _Generation]
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=extensions, optimized=False, cache_size=0)
        self.meter = meter
        self._clock = clock
        self.filters = dict(_RUN_FILTERS)
        self.tests = dict(_RUN_TESTS)
        self.finalize = lambda value: as_text(meter, value)
        self.concat = self.joined  # type: ignore[method-assign]
        own = {"raise_exception": self._raise, "strftime_now": self._now, "range": self._range, "dict": self._dict}
        self.globals = {**own, "namespace": Namespace}
        self._callables: set[Any] = {
            self.turn, self.measured, self.concatenated, self.sliced, self.counted, *own.values()
        }  # fmt: skip

    # Operations that compiled templates reach through `_Metering`.

    def turn(self) -> bool:
        """One turn of a loop."""
        self.meter.charge(0)
        return True

    def measured(self, value: Any) -> Any:
        """A value about to be compared or hashed, whose size bounds the work."""
        if isinstance(value, (str, list, tuple, dict)):
            self.meter.size(value)
        return value

    def concatenated(self, *values: Any) -> str:
        """`a ~ b`."""
        return self.joined([as_text(self.meter, value) for value in values])

    def joined(self, pieces: Iterable[str]) -> str:
        """What a macro or a captured block printed."""
        pieces = list(pieces)
        self.meter.text(sum(map(len, pieces)))
        return "".join(pieces)

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        """`value[start:stop:step]` of a text or list."""
        if isinstance(value, Undefined):
            return value[start:stop:step]
        if not isinstance(value, (str, list, tuple)):
            raise TypeError(f"a {type(value).__name__} has no slices")
        self.meter.charge(len(range(*slice(start, stop, step).indices(len(value)))))
        return value[start:stop:step]

    def counted(self, value: Any) -> Any:
        """A list or mapping that the template wrote out."""
        self.meter.items(len(value))
        return value

    # Jinja's own hooks, denied by default.

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        return attr in (_LOOP if isinstance(obj, LoopContext) else METHODS.get(type(obj), ()))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        if attribute.startswith("_"):
            raise SecurityError(f"it reaches for the private attribute {attribute[:80]!r}")
        return super().unsafe_undefined(obj, attribute)

    def wrap_str_format(self, value: Any) -> None:
        return None  # `format` is among METHODS, with rules of its own

    def getitem(self, obj: Any, argument: Any) -> Any:
        self.meter.charge(0)
        return super().getitem(obj, self.measured(argument))

    def getattr(self, obj: Any, attribute: str) -> Any:
        self.meter.charge(0)
        return super().getattr(obj, attribute)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self, obj = __self, __obj
        self.meter.charge(0)
        if isinstance(obj, BuiltinMethodType):
            method = METHODS.get(type(obj.__self__), {}).get(obj.__name__)
            if method is not None:
                kwargs.pop("_loop_vars", None)  # Jinja passes it to every call within a loop, and takes it out again
                return method(self.meter, obj.__self__, *args, **kwargs)
        if isinstance(obj, Undefined):
            return obj(*args, **kwargs)  # raises, and says what is undefined
        known = isinstance(obj, (Macro, LoopContext)) or obj is Namespace
        if isinstance(obj, (FunctionType, MethodType)):
            known = obj in self._callables or getattr(obj, "__func__", None) is LoopContext.cycle
        if not known:
            raise SecurityError(f"a {type(obj).__name__} can not be called")
        return __context.call(obj, *args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = self.meter
        meter.charge(0)
        if operator == "%" and isinstance(left, str):
            return percent(meter, left, right)
        if isinstance(left, Undefined) or isinstance(right, Undefined):
            return self.binop_table[operator](left, right)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            if operator == "**" and isinstance(left, int) and left.bit_length() * abs(right) > MAX_INT_BITS:
                raise Overspent(f"it makes an integer of more than {MAX_INT_BITS} bits")
            return meter.number(self.binop_table[operator](left, right))
        if operator == "*" and isinstance(left, int):
            left, right = right, left
        if operator == "*" and isinstance(left, (str, list, tuple)) and isinstance(right, int):
            self._afford(left, len(left) * max(0, right))
            return left * right
        if operator == "+" and isinstance(left, (str, list, tuple)) and type(left) is type(right):
            self._afford(left, len(left) + len(right))
            return self.binop_table["+"](left, right)
        raise TypeError(f"{type(left).__name__} {operator} {type(right).__name__} has no meaning")

    def _afford(self, value: Any, size: int) -> None:
        (self.meter.text if isinstance(value, str) else self.meter.items)(size)

    # Functions that a template may call by name.

    @staticmethod
    def _raise(message: Any = "") -> None:
        raise Refused(str(message)[:500] if isinstance(message, str) else "no reason given")

    def _now(self, form: str) -> str:
        if not isinstance(form, str) or not _TIME_FORMAT.fullmatch(form):
            raise ValueError("strftime_now takes a short format of plain % codes")
        return self._clock().strftime(form)

    def _range(self, *args: int) -> range:
        numbers = range(*args)
        if len(numbers) > MAX_ITEMS:  # OverflowError beyond 2**63
            raise Overspent(f"it counts over more than {MAX_ITEMS} numbers")
        return numbers

    def _dict(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        for arg in args:
            self.meter.size(arg)
        return dict(*args, **kwargs)


class Refused(Exception):
    """The template called raise_exception."""


def compile_template(source: str, rewrite: Callable[[nodes.Template], None], clock: Callable[[], datetime]) -> CodeType:
    """The template's code, metered; `rewrite` may change the tree before that. Raises what Jinja raises."""
    sandbox = Sandbox(Meter(), clock)
    tree = sandbox.parse(source)
    tree = _Metering().visit(tree)
    rewrite(tree)
    tree.set_environment(sandbox)
    return sandbox.compile(tree)


def run_template(code: CodeType, variables: Mapping[str, Any], clock: Callable[[], datetime]) -> str:
    """Renders compiled code. Raises Overspent, Refused, or what the template's own mistakes raise."""
    sandbox = Sandbox(Meter(len(variables.get("messages", ()))), clock)
    template = Template.from_code(sandbox, code, sandbox.globals)
    pieces, total = [], 0
    for piece in template.root_render_func(template.new_context(dict(variables))):
        total += len(piece)
        if total > MAX_TEXT:
            raise Overspent(f"it prints more than {MAX_TEXT} characters")
        pieces.append(piece)
    return "".join(pieces)
