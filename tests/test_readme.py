"""The README's promises that can be checked without running anything: links, targets, file ids."""

import re
from pathlib import Path

import pytest

from tools.fetch_published import PUBLISHED, url

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "img/README.md",
        "starter_kit/CARD.md",
        "docs/benchmark.md",
        "docs/performance.md",
        "docs/training.md",
        "docs/synergy_ablation.md",
    ],
)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets
    assert {"demo", "test", "build", "lint", "venv", "published", "clean", "help"} <= targets


def test_every_published_download_is_linked():
    linked = set(re.findall(r"https://drive\.google\.com/file/d/[\w-]+", README))
    assert linked == {url(file_id) for item in PUBLISHED.values() for file_id in item.ids}
    assert all(f"| `{name}` |" in README for name in PUBLISHED)
