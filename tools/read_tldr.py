"""The tldr pages as training data: one JSON object per page, with its platform, its name and its text.

    python tools/read_tldr.py path/to/tldr > pages.jsonl

`path/to/tldr` is a clone of https://github.com/tldr-pages/tldr (CC-BY-4.0); gleam was trained on commit 08e345f426.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    pages = Path(sys.argv[1] if len(sys.argv) == 2 else "") / "pages"
    if not pages.is_dir():
        sys.exit("Name the folder of a clone of the tldr pages; it holds a folder called pages.")
    for path in sorted(pages.glob("*/*.md")):
        page = {"platform": path.parent.name, "name": path.stem, "page": path.read_text(encoding="utf-8")}
        print(json.dumps(page, ensure_ascii=False))


if __name__ == "__main__":
    main()
