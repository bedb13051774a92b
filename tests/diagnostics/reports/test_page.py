"""Pages of tables, and files that are written completely or not at all."""

import os
import resource
import socket
import stat
from pathlib import Path

import pytest

from pyro_mixtures.diagnostics.reports.page import Page, write_atomically
from pyro_mixtures.errors import OptionError
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

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
    @pytest.mark.parametrize("through_link", [False, True])
    def test_existing_files_keep_their_permissions(self, tmp_path, monkeypatch, mode, through_link):
        path, link = tmp_path / "page.html", tmp_path / "link.html"
        path.write_text("before")
        path.chmod(mode)
        link.symlink_to(path)
        modes_while_writing = []
        fsync = os.fsync

        def record_modes(descriptor):
            modes_while_writing.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", record_modes)
        write_atomically(link if through_link else path, "after")
        assert path.read_text() == "after"
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert modes_while_writing == [mode]

    def test_a_link_to_a_new_file_creates_it(self, tmp_path):
        link = tmp_path / "link.html"
        link.symlink_to(tmp_path / "new.html")
        write_atomically(link, "text")
        assert link.is_symlink()
        assert (tmp_path / "new.html").read_text() == "text"

    @pytest.mark.parametrize("through_link", [False, True])
    @pytest.mark.parametrize("kind", ["directory", "named pipe", "device", "socket"])
    def test_only_regular_files_are_replaced(self, tmp_path, monkeypatch, kind, through_link):
        monkeypatch.chdir(tmp_path)  # names of sockets must be short
        path = Path("special")
        if kind == "directory":
            path.mkdir()
        elif kind == "named pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.write_text("")  # never a real device, which a failing test would replace
            monkeypatch.setattr(stat, "S_ISREG", lambda mode: False)
            monkeypatch.setattr(stat, "S_IFMT", lambda mode: stat.S_IFCHR)
        else:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        if through_link:
            Path("link").symlink_to(path)
            path = Path("link")
        mode, names = path.stat().st_mode, sorted(os.listdir())
        with pytest.raises(OptionError, match=rf"{path.name}.* is a {kind}: pass"):
            write_atomically(path, "text")
        assert path.stat().st_mode == mode
        assert sorted(os.listdir()) == names

    @pytest.mark.parametrize("path", [None, 3.0, b"page.html", "page\0.html", ["page.html"]])
    def test_values_that_are_no_path(self, path):
        with pytest.raises(OptionError, match="is no path: pass"):
            write_atomically(path, "text")

    def test_a_loop_of_links(self, tmp_path):
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        with pytest.raises(OptionError, match="loop of links"):
            write_atomically(loop, "text")

    def test_missing_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            write_atomically(tmp_path / "none" / "page.html", "text")
