"""Links and anchors of Markdown pages, for scripts/check-links and scripts/book-outside."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r"\{\{#include\s+([^}\s:]+\.md)\s*\}\}")
# [text](target), also over a line's end; the text may hold brackets once.
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^ *(```+|~~~+)")


def parts(text):
    """(is prose, text) of a page, cut at fenced code."""
    found, lines, fence = [], [], None
    for line in text.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and (fence is None or mark[1].startswith(fence)):
            if fence is None:
                found.append((True, "".join(lines)))
                fence, lines = mark[1], [line]
            else:
                found.append((False, "".join(lines) + line))
                fence, lines = None, []
        else:
            lines.append(line)
    found.append((fence is None, "".join(lines)))
    return found


def anchors(text):
    """The anchors of a page's headings, as forges and mdBook make them, and those that HTML in it sets."""
    found = set(re.findall(r'<[^>]+\b(?:id|name)="([^"]+)"', text))
    count = {}
    for prose, part in parts(text):
        for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", part if prose else "", re.M):
            heading = LINK.sub(lambda link: link[2], heading)
            kept = "".join(c for c in heading.lower() if c.isalnum() or c in " -_").strip()
            name = kept.replace(" ", "-")
            count[name] = count.get(name, -1) + 1
            found.add(f"{name}-{count[name]}" if count[name] else name)
    return found
