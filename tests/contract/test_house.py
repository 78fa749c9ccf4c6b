"""The project's rules: which package may import which, which owns a capability, how large a file may be.

Each test lists every offender by file and line.
"""

import ast
import importlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator

from earthshine import storage

from .source import PACKAGE, ROOT, Module, modules

FLOORS = [
    {"errors", "units", "settings", "untrusted", "files"},
    {"storage"},
    {"kernels", "spec", "machine", "net", "loadgen"},
    {"models", "weights", "kv", "text", "plan"},
    {"engine", "hub"},
    {"prfaas", "generation"},
    {"server", "evals", "llm"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
TORCH_FREE = (
    "errors",
    "units",
    "settings",
    "untrusted",
    "files",
    "storage",
    "spec",
    "machine",
    "plan",
    "text",
    "net",
    "loadgen",
    "prfaas.solve",
    "prfaas.borrow",
    "prfaas.forecast",
    "prfaas.measure",
    "prfaas.router",
    "evals",
    "prfaas.wire",
    "server.route",
    "server.route.app",
    "cli.chat",
    "cli.route",
)
CALL_OWNERS = {
    "printing": ({"print", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"}, ("cli",)),
    "arbitrary code": ({"eval", "exec", "compile", "torch.load", "pickle.loads", "pickle.load", "marshal.loads"}, ()),
}
IMPORT_OWNERS = {
    "sockets": ({"socket", "http", "urllib", "requests", "httpx", "asyncio", "uvicorn", "huggingface_hub"},
                ("hub", "server", "prfaas.wire", "prfaas.vllm.submit", "machine.network", "net", "loadgen")),
    "native code": ({"ctypes", "cffi"}, ("kernels",)),
    "printing": ({"rich", "typer", "prompt_toolkit", "markdown_it"}, ("cli",)),
    "pickle": ({"pickle", "marshal", "shelve", "dill"}, ()),
    "an oracle of the tests": ({"transformers"}, ()),
}  # fmt: skip
STORAGE_USERS = {"kernels", "spec", "machine", "models", "weights", "kv", "plan", "engine", "cli"}
STORAGE_FACTS = {name for name in vars(storage) if name.isupper()}
STORAGE_NUMBERS = {storage.FP8_BLOCK, storage.INT4_GROUP, storage.INT8_GROUP, storage.PAGE_TOKENS, storage.ALIGNMENT}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
MOST_LINES, MOST_FUNCTION_LINES, MOST_LINES_OF_NINE_IN_TEN = 400, 60, 30
MOST_NATIVE_LINES, MOST_NATIVE_COLUMNS = 420, 120


def _owned(name: str, owners: tuple[str, ...]) -> bool:
    return any(name == owner or name.startswith(owner + ".") for owner in owners)


def _listed(offenders: Iterator[str]) -> str:
    """One offender per line, for a message; empty where there are none."""
    return "".join(f"\n{offender}" for offender in offenders)


def test_imports_point_down():
    def offenders() -> Iterator[str]:
        for module in modules():
            for line, target in module.imports:
                parts = target.split(".")
                if target.startswith("."):
                    yield f"{module.at(line)} has a relative import"
                # The package's own __init__ is the way in, which imports lazily from above.
                if parts[0] != "earthshine" or len(parts) < 2 or parts[1] == "__version__" or module.name == "__init__":
                    continue
                if parts[1] not in FLOOR:
                    yield f"{module.at(line)} imports {target}, which stands on no floor"
                # On the ground floor modules are single files; units and settings may use errors.
                elif parts[1] not in (module.room, "errors") and FLOOR[parts[1]] >= FLOOR.get(module.room, 0):
                    yield f"{module.at(line)} imports {target}, beside or above it"
        for path in PACKAGE.iterdir():
            if path.is_dir() and any(path.glob("*.py")) and path.name not in FLOOR:
                yield f"{path.relative_to(ROOT)} stands on no floor"

    assert not (found := _listed(offenders())), found


def test_each_capability_has_one_owner():
    def offenders() -> Iterator[str]:
        for module in modules():
            for what, (names, owners) in CALL_OWNERS.items():
                for line, name in module.calls():
                    if name in names and not _owned(module.name, owners):
                        yield f"{module.at(line)} calls {name}: {what} belongs to {owners or 'nobody'}"
            for what, (names, owners) in IMPORT_OWNERS.items():
                for line, target in module.imports:
                    if target.split(".")[0] in names and not _owned(module.name, owners):
                        yield f"{module.at(line)} imports {target}: {what} belongs to {owners or 'nobody'}"
            for line, text in enumerate(module.text.splitlines(), 1):
                if re.search(r"\b(environb?|getenvb?|putenv)\b", text) and module.name != "settings":
                    yield f"{module.at(line)} names the environment, which belongs to settings"

    assert not (found := _listed(offenders())), found


def _functions(module: Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Each function, and how many lines it has."""
    for node in module.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, node.end_lineno - node.lineno + 1


def test_files_and_functions_are_small():
    def offenders() -> Iterator[str]:
        for module in modules():
            if (lines := len(module.text.splitlines())) > MOST_LINES:
                yield f"{module.at(1)} has {lines} lines; the most is {MOST_LINES}"
            for node, lines in _functions(module):
                if lines > MOST_FUNCTION_LINES:
                    yield f"{module.at(node.lineno)} {node.name} has {lines} lines; the most is {MOST_FUNCTION_LINES}"
        for path in (path for path in sorted((ROOT / "native").rglob("*")) if path.suffix in (".h", ".cc")):
            name, lines = path.relative_to(ROOT), path.read_text(encoding="utf-8").splitlines()
            if len(lines) > MOST_NATIVE_LINES:
                yield f"{name}:1 has {len(lines)} lines; the most is {MOST_NATIVE_LINES}"
            wide = (number for number, line in enumerate(lines, 1) if len(line) > MOST_NATIVE_COLUMNS)
            yield from (f"{name}:{number} has more than {MOST_NATIVE_COLUMNS} columns" for number in wide)

    assert not (found := _listed(offenders())), found
    sizes = [lines for module in modules() for _, lines in _functions(module)]
    assert statistics.quantiles(sizes, n=10)[-1] <= MOST_LINES_OF_NINE_IN_TEN


def test_modules_open_with_their_contract_and_export_what_exists():
    def offenders() -> Iterator[str]:
        for module in modules():
            if not ast.get_docstring(module.tree):
                yield f"{module.at(1)} has no docstring"
            if banned := BANNED_NAMES & set(module.name.split(".")):
                yield f"{module.at(1)} is named {', '.join(banned)}, which may hold anything"
            for node in module.tree.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                    real = importlib.import_module(f"earthshine.{module.name}".removesuffix(".__init__"))
                    for name in ast.literal_eval(node.value):
                        if not hasattr(real, name):
                            yield f"{module.at(node.lineno)} exports {name}, which does not exist"

    assert not (found := _listed(offenders())), found


# Imports each package in turn where torch can't be found, and names the line of ours that looked for it.
WITHOUT_TORCH = """
import importlib, sys, traceback

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            ours = [frame for frame in traceback.extract_stack() if "/earthshine/" in frame.filename]
            print(f"{ours[-1].filename}:{ours[-1].lineno} imports torch, on the way to {package}")
            raise ModuleNotFoundError("torch", name=name)

sys.meta_path.insert(0, Torch())
for package in sys.argv[1:]:
    try:
        importlib.import_module(f"earthshine.{package}")
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "torch":
            raise
"""


def test_packages_without_torch_do_not_load_it():
    packages = [name for name in TORCH_FREE if list(PACKAGE.glob(name.replace(".", "/") + "*"))]
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *packages], capture_output=True, text=True, check=True)
    assert not done.stdout, f"\n{done.stdout}"


def test_facts_of_stored_formats_are_defined_once():
    """Constants of `storage` are imported under their names: not assigned again, and not written as divisors."""

    def offenders() -> Iterator[str]:
        for module in (module for module in modules() if module.room in STORAGE_USERS):
            for node in module.nodes:
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id in STORAGE_FACTS:
                    yield f"{module.at(node.lineno)} defines {node.id}, a fact of storage"
                divides = isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv | ast.Mod)
                if divides and isinstance(node.right, ast.Constant) and node.right.value in STORAGE_NUMBERS:
                    yield f"{module.at(node.lineno)} divides by {node.right.value}; name the fact"

    assert not (found := _listed(offenders())), found
