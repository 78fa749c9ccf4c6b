"""The house rules: who may import whom, who owns which capability, and how large a room may grow."""

import ast
import importlib
import statistics
import subprocess
import sys

import pytest

from earthshine.kernels import reference
from earthshine.spec import model

from .source import PACKAGE, ROOT, modules

FLOORS = [
    {"errors", "units", "settings", "untrusted"},
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
    "spec",
    "machine",
    "plan",
    "text",
    "net",
    "loadgen",
    "prfaas.router",
)
EXISTING_TORCH_FREE = [name for name in TORCH_FREE if list(PACKAGE.glob(name.replace(".", "/") + "*"))]
OWNERS = {
    "printing": ({"print", "typer.echo", "click.echo", "sys.stdout.write", "sys.stderr.write"}, ("cli",)),
    "the environment": ({"os.getenv", "os.environ.get", "os.putenv"}, ("settings",)),
    "arbitrary code": ({"eval", "exec", "compile", "torch.load", "pickle.loads", "pickle.load", "marshal.loads"}, ()),
}
IMPORT_OWNERS = {
    "sockets": ({"socket", "http", "urllib", "requests", "httpx", "asyncio", "uvicorn", "huggingface_hub"},
                ("hub", "server", "prfaas.transport", "machine.network", "net", "loadgen")),
    "native code": ({"ctypes", "cffi"}, ("kernels",)),
    "printing": ({"rich", "typer"}, ("cli",)),
    "pickle": ({"pickle", "marshal", "shelve", "dill"}, ()),
}  # fmt: skip
BANNED_NAMES = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}


def _owned(name: str, owners: tuple[str, ...]) -> bool:
    return any(name == owner or name.startswith(owner + ".") for owner in owners)


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.name or "earthshine")
class TestEveryModule:
    def test_imports_point_down(self, module):
        if module.name == "__init__":  # the way in, which imports lazily from above
            return
        for target in module.imports():
            parts = target.split(".")
            if parts[0] != "earthshine" or len(parts) < 2 or parts[1] == "__version__":
                continue
            assert parts[1] in FLOOR, f"{module.name} imports {target}, which stands on no floor"
            allowed = parts[1] == module.room or FLOOR[parts[1]] < FLOOR[module.room]
            # On the ground floor modules are single files; units and settings may use errors.
            assert allowed or parts[1] == "errors", f"{module.name} imports {target} beside or above it"

    def test_capabilities_have_one_owner(self, module):
        for what, (calls, owners) in OWNERS.items():
            used = module.calls() & calls
            assert not used or _owned(module.name, owners), f"{module.name} does {what}: {used}"
        for what, (names, owners) in IMPORT_OWNERS.items():
            used = {target for target in module.imports() if target.split(".")[0] in names}
            assert not used or _owned(module.name, owners), f"{module.name} uses {what}: {used}"
        environment = "os.environ" in module.text or module.imports() & {"os.environ", "os.getenv"}
        assert not environment or module.name == "settings"

    def test_size(self, module):
        assert len(module.text.splitlines()) <= 400, f"{module.name} holds two ideas"
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= 60, f"{module.name}.{node.name} has {lines} lines"

    def test_header_states_the_contract(self, module):
        assert ast.get_docstring(module.tree), f"{module.name} has no docstring"

    def test_no_catch_all_name(self, module):
        assert not BANNED_NAMES & set(module.name.split("."))

    def test_public_names_exist(self, module):
        for node in module.tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                real = importlib.import_module(f"earthshine.{module.name}".removesuffix(".__init__"))
                assert all(hasattr(real, name) for name in ast.literal_eval(node.value))


def test_every_folder_stands_on_a_floor():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms <= set(FLOOR), rooms - set(FLOOR)


def test_functions_are_short():
    sizes = [
        node.end_lineno - node.lineno + 1
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert statistics.quantiles(sizes, n=10)[-1] <= 30


def test_native_files_are_small():
    for path in (ROOT / "native").rglob("*"):
        if path.suffix in (".h", ".cc"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) <= 420, path
            assert max(map(len, lines)) <= 120, path


@pytest.mark.parametrize("name", EXISTING_TORCH_FREE)
def test_torch_free_packages_do_not_load_torch(name):
    code = f"import sys, earthshine.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0, f"{name} imports torch"


def test_block_sizes_agree():
    """`kernels` and `spec` stand on one floor, so each states them; they must state the same."""
    assert (reference.FP8_BLOCK, reference.INT4_GROUP) == (model.FP8_BLOCK, model.INT4_GROUP)


def test_transformers_is_an_oracle_only():
    assert not [module.name for module in modules() if any(t.startswith("transformers") for t in module.imports())]
