"""The site's view of files outside `docs/`: pages link to them as on a code forge (`../../benchmarks/results/x.png`),
and the site gets copies below `repository/`.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
_COPIES = "repository"


def on_files(files: Files, config: Any) -> Files:
    """Adds what pages link to outside `docs/`, and what these link to in turn where they are pages themselves."""
    waiting = [(f"docs/{page.src_uri}", page.content_string) for page in files.documentation_pages()]
    while waiting:
        page, text = waiting.pop()
        for target in _outside(page, text):
            place = f"{_COPIES}/{target}"
            if files.get_file_from_path(place) is None:
                files.append(File.generated(config, place, abs_src_path=str(ROOT / target)))
                if target.endswith(".md"):
                    waiting.append((target, (ROOT / target).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links out of `docs/` into links to the copies, and links of copied pages into ones within the site."""
    source = page.file.src_uri
    own = source.removeprefix(f"{_COPIES}/") if source.startswith(f"{_COPIES}/") else f"docs/{source}"
    folder = posixpath.dirname(source)

    def link(found: re.Match[str]) -> str:
        target = _target(own, found[2])
        if not (ROOT / target).is_file():
            return found[0]
        place = target.removeprefix("docs/") if target.startswith("docs/") else f"{_COPIES}/{target}"
        return f"{found[1]}{posixpath.relpath(place, folder or '.')}{found[3] or ''}{found[4]}"

    return _LINK.sub(link, markdown)


def _target(page: str, link: str) -> str:
    """What a relative link of a page leads to; both paths are relative to the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _outside(page: str, text: str) -> Iterator[str]:
    targets = (_target(page, found[2]) for found in _LINK.finditer(text))
    return (each for each in targets if not each.startswith(("docs/", "../")) and (ROOT / each).is_file())
