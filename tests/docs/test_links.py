"""What pages link to is there, and every page is in the navigation."""

import re

import pytest
import yaml
from pages import CHANGES, DOCS, PAGES, ROOT, name, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def slug(heading):
    """The anchor of a heading, as code forges and the site make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


@pytest.mark.parametrize("page", [*PAGES, CHANGES], ids=name)
def test_links_and_pictures_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.is_file() and target.is_relative_to(ROOT), f"{name(page)}: {link}"
        assert not anchor or anchor in map(slug, HEADING.findall(prose(target))), f"{name(page)}: {link}"


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose tags of functions are of no interest here."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def in_navigation(entries):
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_navigation(value) if isinstance(value, list) else [value]


def test_the_navigation_has_every_page_once():
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)
    listed = sorted(in_navigation(settings["nav"]))
    assert listed == sorted(str(page.relative_to(DOCS)) for page in PAGES if page.is_relative_to(DOCS))


def test_the_readme_is_a_door():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert all(command in text for command in ("make bench", "make test", "make docs"))
