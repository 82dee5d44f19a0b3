"""The pages: what they link to is there, tables of measured figures are those of the results files, and each CPU
algorithm has a page with a figure of its tiling."""

import re
import runpy
from pathlib import Path

import pytest

from fastconv import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]*)(?:#[^)]*)?\)", text):
        assert not target or (page.parent / target).exists(), target
    for anchor in re.findall(r"\]\(#([^)]*)\)", text):
        headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        assert anchor in {heading.lower().replace(" ", "-").replace("`", "") for heading in headings}


@pytest.mark.parametrize("page", TABLES["PAGES"], ids=lambda page: page.name)
def test_tables_are_those_of_the_results_files(page):
    """If not: ``python docs/tables.py``."""
    text = page.read_text()
    assert TABLES["filled"](text) == text


@pytest.mark.parametrize("algorithm", [algorithm.name for algorithm in registry.algorithms("cpu")])
def test_each_cpu_algorithm_has_a_page_with_a_figure(algorithm):
    readme = (ROOT / "README.md").read_text()
    linked = re.search(rf"(?:\[|and )`{algorithm}`[^\]]*\]\((docs/\w+\.md)\)", readme)
    assert linked, f"README.md links no page of {algorithm}"
    assert "-tiling.png" in (ROOT / linked[1]).read_text()
