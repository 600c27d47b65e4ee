"""Pages of the site that lie outside docs/: CONTRIBUTING.md, and the notebooks with their committed outputs.

Links to them are written as they lie in the repository, and led to the site's pages here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ELSEWHERE = re.compile(r"\]\(\.\./((?:\.\./)*)(CONTRIBUTING|notebooks/[\w-]+)\.(?:md|ipynb)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    return ELSEWHERE.sub(lambda link: f"]({link[1]}{link[2].lower()}.md", markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "contributing.md", content=contributing.replace("](docs/", "](")))
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        page = "\n\n".join(part for cell in notebook["cells"] for part in parts(cell))
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
    return files


def parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield f"```python\n{source}\n```"
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            yield f'<img alt="figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
        elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
            yield f"````text\n{text}\n````"
