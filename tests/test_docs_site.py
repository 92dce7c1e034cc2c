"""The documentation site: built strictly and without network, whole in its links, and nothing in it is fetched."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest

from mgrpo import cli, export, kernels

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow

NEEDED = ("mkdocs", "material", "mkdocstrings", "griffe")

NO_NETWORK = """
import socket, sys
def refuse(*arguments, **options):
    raise OSError("the documentation is built without network")
socket.socket.connect = socket.socket.connect_ex = socket.create_connection = socket.getaddrinfo = refuse
sys.argv[0] = "mkdocs"
from mkdocs.__main__ import cli
cli()
"""


class Page(HTMLParser):
    """What a page refers to, and what can be referred to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.ids: set[str] = set()
        self.links: list[str] = []
        """Targets of links that a reader follows."""
        self.loaded: list[str] = []
        """Scripts, styles, fonts, pictures and frames that a browser loads by itself."""
        self.classes: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.classes |= set(values.get("class", "").split())
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.loaded.append(values["href"])
        for name in ("src", "poster", "data"):
            if tag in ("script", "img", "iframe", "video", "audio", "source", "object", "embed") and name in values:
                self.loaded.append(values[name])
        self.loaded += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.loaded += re.findall(r"url\(['\"]?([^'\")]+)", values.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra docs is not installed: {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-c", NO_NETWORK, "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 40
    return found


def outside(target: str) -> bool:
    parts = urlsplit(target)
    return bool(parts.netloc) or parts.scheme not in ("", "data")


def problems(pages: dict[Path, Page], site: Path) -> Iterator[str]:
    for page in pages.values():
        if page.path.name == "404.html":  # made for the root of a server
            continue
        for target in page.links + page.loaded:
            if outside(target) or target.startswith("data:"):
                continue
            name, _, anchor = target.partition("#")
            file = (page.path.parent / unquote(name)).resolve() if name else page.path
            where = f"{page.path.relative_to(site)}: {target}"
            if not file.is_file():
                yield where
            elif anchor and file in pages and unquote(anchor) not in pages[file].ids:
                yield f"{where} (no such anchor)"


def test_links_lead_somewhere(pages: dict[Path, Page], site: Path) -> None:
    assert sum(len(page.links) for page in pages.values()) > 1000
    found = list(problems(pages, site))
    assert not found, "\n".join(found[:20])


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there">x</a><a href="b.html#gone">y</a><img src="no.png">')
    (tmp_path / "b.html").write_text('<h2 id="there">z</h2>')
    found = list(problems({path: Page(path) for path in tmp_path.glob("*.html")}, tmp_path))
    assert found == ["a.html: b.html#gone (no such anchor)", "a.html: no.png"]


def test_nothing_is_fetched(pages: dict[Path, Page], site: Path) -> None:
    """No script, style, font or picture from elsewhere; nor what makes the theme load one by itself."""
    fetched = [f"{page.path.name}: {one}" for page in pages.values() for one in page.loaded if outside(one)]
    assert not fetched, fetched[:10]
    for path in site.rglob("*.css"):
        text = path.read_text("utf-8")
        assert not re.findall(r"@import", text), path
        assert not [one for one in re.findall(r"url\(['\"]?([^'\")]+)", text) if outside(one)], path
    # the theme's script takes a drawing library from a server where a page has such a drawing, and the number of stars
    # of a repository where one is named
    assert not any({"mermaid", "md-source"} & page.classes for page in pages.values())


def test_every_page_of_the_folder_is_in_the_navigation(pages: dict[Path, Page], site: Path) -> None:
    home = pages[site / "index.html"]
    linked = {unquote(target.partition("#")[0]) for target in home.links}
    wanted = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in ROOT.glob("docs/**/*.md")}
    wanted |= {"contributing.html", "benchmarks.html", "commands.html", "api/index.html"}
    assert wanted <= linked, wanted - linked


def test_the_reference_has_every_public_name(pages: dict[Path, Page], site: Path) -> None:
    for module, names in (("kernels", kernels.__all__), ("export", export.__all__)):
        ends = {one.rpartition(".")[2] for one in pages[site / "api" / f"{module}.html"].ids}
        assert set(names) <= ends, f"{module}: {set(names) - ends}"
    parts = {path.stem for path in (ROOT / "mgrpo").iterdir() if not path.name.startswith("_")} - {"assets", "py"}
    listed = {path.stem for path in (site / "api").glob("*.html")} - {"index"}
    assert listed == parts
    text = (site / "api" / "export.html").read_text("utf-8")
    assert ":meth:" not in text and "PosedMotion.with_one_shape" in text


def test_every_command_is_shown(pages: dict[Path, Page], site: Path) -> None:
    ids = pages[site / "commands.html"].ids
    for command in cli.COMMANDS:
        assert f"mgrpo-{'-'.join(command.words)}" in ids


def test_the_picture_of_all_frames_is_drawn_from_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import draw_frames as drawing  # tools/draw_frames.py; it chooses how matplotlib draws

    # in a file with y up, its z is our -y and its y is our z
    assert np.allclose(drawing.axes_of(export.FileFrame("y", "cm")), [[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    assert np.allclose(drawing.axes_of(export.FileFrame("z", "m")), np.eye(3))
    vertices, _, joints, cpf = drawing.person()
    assert abs(vertices[:, 2].min()) < 0.05 and 1.2 < cpf[2, 3] < 1.8
    assert cpf[0, 2] > 0.8 and joints[1, 1] > joints[2, 1]  # looks along +x, its left is +y
    monkeypatch.setattr(sys, "argv", ["draw_frames.py", str(tmp_path / "frames.png")])
    drawing.main()
    assert (tmp_path / "frames.png").read_bytes().startswith(b"\x89PNG")


def test_docs_and_test_extras_agree() -> None:
    """The gate installs what the tests need, and builds the site with it."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    docs, test = (
        set(re.findall(r'"([^"]+)"', line)) for line in re.findall(r"^(?:docs|test) = (.*)$", text, re.MULTILINE)
    )
    assert docs and docs <= test
