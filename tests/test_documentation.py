"""Everything that the documents name exists: files, folders, links, commands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FILE = re.compile(
    r"(?<![\w/.<-])((?:[\w.-]+/)+(?:[\w.-]+\.\w+)?|[\w-]+\.(?:md|toml|txt|cff))(?![\w/])"
)
CREATED = ("runs/", "htmlcov/", "dist/", "build/")  # by commands that the documents name


@pytest.fixture(params=DOCUMENTS, ids=lambda path: path.name)
def document(request) -> Path:
    return request.param


def test_named_files_exist(document):
    text = re.sub(r"https?://\S+|\]\([^)]*\)", " ", document.read_text())
    blocks = re.findall(r"^```\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    code = " ".join([*re.findall(r"`([^`\n]+)`", text), *blocks])
    for name in FILE.findall(code):
        if not name.startswith(CREATED):
            assert (ROOT / name).exists(), f"{document.name} names {name}"


def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_commands_exist(document):
    text = document.read_text()
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for line in re.findall(r"(?:^|`)make ([a-z0-9 -]+)", text, flags=re.MULTILINE):
        assert set(line.split()) <= set(targets), f"{document.name} runs make {line}"
    for module in re.findall(r"python -m (tests\.[\w.]+)", text):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
