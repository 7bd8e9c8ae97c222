"""Links between pages lead somewhere: a file that is there, a heading of it."""

import re

import pytest
from blocks import FENCE, ROOT, pages

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def headings(text):
    """As GitHub and MyST name them: lower case, `-` for spaces, letters and digits only."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*pages(), "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links(page):
    text = FENCE.sub("", (ROOT / page).read_text())
    for path, heading in LINK.findall(text):
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not heading or heading in headings(target.read_text()), f"{path}#{heading}"
