"""Pages of tables, and files that are written completely or not at all."""

import os
import resource

import pytest

from pyro_mixtures.diagnostics.reports.page import Page, write_atomically
from tests.diagnostics.reports.html_reader import Reader


class TestPage:
    def test_tables(self):
        page = Page("T")
        page.table([("a<b", 1, 2.34567)], header=("name", "count", "share"), caption="c & d")
        page.table([("rows", True)])
        reader = Reader(page.render())
        assert {"a<b", "2.346", "c & d", "True"} <= set(reader.text)
        assert "<td class=number>1</td><td class=number>2.346</td>" in page.render()
        assert "<th scope=row>rows</th><td>True</td>" in page.render()


class TestWriting:
    def test_a_full_disk_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "page.html"
        path.write_text("before")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                write_atomically(path, "x" * (1 << 20))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]

    def test_an_interrupt_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "page.html"
        path.write_text("before")

        def interrupted(_):
            assert path.read_text() == "before"
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_atomically(path, "after")
        assert path.read_text() == "before"
        assert list(tmp_path.iterdir()) == [path]

    def test_links_are_kept_and_permissions_are_the_default(self, tmp_path):
        real, link, plain = tmp_path / "real.html", tmp_path / "link.html", tmp_path / "plain"
        real.write_text("before")
        link.symlink_to(real)
        plain.write_text("")
        write_atomically(link, "Grüße")
        assert link.is_symlink()
        assert real.read_text("utf-8") == "Grüße"
        assert real.stat().st_mode == plain.stat().st_mode

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_atomically(tmp_path / "none" / "page.html", "text")
