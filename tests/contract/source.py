"""The package's source as syntax trees, parsed once for every contract test."""

import ast
from dataclasses import dataclass
from functools import cache
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

    def imports(self) -> set[str]:
        """Every module that the file imports anywhere, absolute."""
        found: set[str] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{self.path}: relative import"
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
        return found

    def calls(self) -> set[str]:
        """Names called, dotted where they are attributes: "print", "os.getenv"."""
        return {ast.unparse(node.func) for node in ast.walk(self.tree) if isinstance(node, ast.Call)}


@cache
def modules() -> tuple[Module, ...]:
    texts = ((path, path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py")))
    return tuple(Module(path, ast.parse(text), text) for path, text in texts)
