"""The package's source as syntax trees, parsed once for every contract test."""

import ast
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "earthshine"


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path
    tree: ast.Module
    text: str

    @property
    def name(self) -> str:
        """Dotted and without the package's own name: "spec.families.deepseek"."""
        return ".".join(self.path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")

    @property
    def room(self) -> str:
        """The package (or top-level module) that the file belongs to."""
        return self.name.split(".")[0]

    def at(self, line: int) -> str:
        """As editors and compilers write a place: "src/earthshine/units.py:12"."""
        return f"{self.path.relative_to(ROOT)}:{line}"

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """Every node of the tree."""
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[int, str]]:
        """Line and name of every module that the file imports anywhere; a relative one begins with a dot."""
        found: list[tuple[int, str]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [(node.lineno, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = "." * node.level + (node.module or "")
                found += [(node.lineno, f"{source}.{alias.name}") for alias in node.names]
        return found

    def calls(self) -> list[tuple[int, str]]:
        """Line and name of every call of a name, dotted where it is of an attribute: "print", "os.getenv"."""
        calls = (node for node in self.nodes if isinstance(node, ast.Call))
        return [(node.lineno, name) for node in calls if (name := _dotted(node.func))]


def _dotted(node: ast.expr) -> str:
    """The name, or "" where it is none."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value)
        return before and f"{before}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@cache
def modules() -> tuple[Module, ...]:
    texts = ((path, path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py")))
    return tuple(Module(path, ast.parse(text), text) for path, text in texts)
