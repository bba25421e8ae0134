"""The reference is complete, what it is made of is documented, and the built site stands alone.

What is asked of the built site runs where ``TRACETORCH_SITE`` names its folder: ``nox -s site``.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import tracetorch as tt
from tracetorch import rnn, snn, testing

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

from pages import diagrams, docstrings, equations, figures, outside, public, stubs  # noqa: E402

SITE = Path(os.environ.get("TRACETORCH_SITE", ROOT / "none"))
built = pytest.mark.skipif(not SITE.is_dir(), reason="TRACETORCH_SITE names no built site")

NAMES = [name for name in public.names() if name.kind != "alias"]
CLASSES = [name for name in NAMES if name.kind in ("class", "exception")]
# a property of the contract is given what check_layer is given, and says what it demands
ONE_LINERS = {*testing.PROPERTIES, testing.gradients_match_differences}


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return stubs.pages(DOCS / "reference" / "templates")


# ------------------------------------------------------------------ the sources


def test_every_public_name_is_in_the_reference_once(sources: dict[str, str]) -> None:
    found: Counter[str] = Counter()
    for page, text in sources.items():
        found.update(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.M))
        by_hand = re.findall(r"^\.\. py:\w+:: (\S+)$", text, re.M)
        found.update(f"{page.removesuffix('.rst')}.{name}" for name in by_hand)
    modules = set(public.modules())
    assert all(found[module] == 1 for module in modules)
    names = {name: count for name, count in found.items() if name not in modules}
    assert names == dict.fromkeys((name.full for name in public.names()), 1)


def test_what_is_public_is_what_the_packages_list() -> None:
    listed = {name.full for name in public.names()}
    for module in ("", ".backends", ".engine", ".measures", ".testing", ".plot", ".rnn", ".snn"):
        package = sys.modules.get(f"tracetorch{module}")
        package = package or __import__(f"tracetorch{module}", fromlist=["*"])
        for name in package.__all__:
            assert f"tracetorch{module}.{name}" in listed | set(public.modules())
    assert "tracetorch.snn.losses.tet" in listed  # a module without __all__
    assert "tracetorch.snn.losses.math" not in listed
    aliases = {name.full: name.target for name in public.names() if name.kind == "alias"}
    assert aliases["tracetorch.snn.Layer"] == "tracetorch.snn.LeakyIntegrator"
    assert aliases["tracetorch.backends.BackendError"] == "tracetorch.BackendError"


@pytest.mark.parametrize("family", ["snn", "rnn"])
def test_every_layer_has_its_page_in_the_tree(family: str, sources: dict[str, str]) -> None:
    kinds = {"snn": snn.LAYERS, "rnn": rnn.LAYERS}[family]
    pages = [f"{family}.{kind.__name__}" for kind in kinds]
    tree = sources[f"{family}-layers.rst"].partition(".. toctree::")[2].split()
    assert [entry for entry in tree if entry != ":hidden:"] == pages
    assert f"generated/{family}-layers" in (DOCS / "reference" / "index.md").read_text("utf-8")
    for kind, page in zip(kinds, pages, strict=True):
        text = sources[f"{page}.rst"]
        assert ".. math::" in text
        assert f"figures/{kind.__name__}.svg" in text
        assert f".. autoclass:: tracetorch.{family}.{kind.__name__}" in text


def test_every_page_is_in_a_tree() -> None:
    index = (DOCS / "index.md").read_text("utf-8")
    trees = "\n".join(re.findall(r"```\{toctree\}(.*?)```", index, re.S))
    entries = {line.rpartition("<")[2].rstrip(">") for line in trees.split("\n")}
    assert "how-to/*" in entries
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= entries


# ------------------------------------------------------------------ equations and docstrings


def test_equations_of_the_spiking_layers_in_latex() -> None:
    assert equations.latex(["mem± ← β±·mem± + (1 − β±)·i", "s⁻ = q(f(−mem − θ⁻))"]) == (
        r"\text{mem}^{\pm} &\leftarrow \beta^{\pm} \cdot \text{mem}^{\pm}+(1-\beta^{\pm}) \cdot i"
        " \\\\\n"
        r"s^{-} &= q(f(-\text{mem}-\theta^{-}))"
    )
    with pytest.raises(ValueError, match=r"no LaTeX for '÷' in the equation 'a ÷ b'"):
        equations.latex(["a ÷ b"])


@pytest.mark.parametrize("kind", snn.LAYERS, ids=lambda kind: kind.__name__)
def test_each_equation_of_a_layer_is_typeset(kind: type[snn.Layer]) -> None:
    found = equations.block(inspect.getdoc(kind) or "")
    assert len(found) == docstrings.head(inspect.getdoc(kind) or "").count("&")
    assert found[-1].startswith(("out", "prev_output"))


def test_arguments_described_together_stand_under_one_name() -> None:
    lines = ["Args:", "    a: one.", "    ``a_rank`` ``b_rank``", "        ``c_rank``: 0 or 1."]
    assert docstrings.prepared(lines)[2:] == [
        "    …_rank: ``a_rank``, ``b_rank``, ``c_rank``: 0 or 1."
    ]


def test_bars_and_sections_of_prose_survive() -> None:
    lines = ["k|u| and |λ| ≤ 1, `|a|`", "", "Parameters:", "    ``w``: a weight."]
    assert docstrings.prepared(lines) == [
        r"k\|u| and \|λ| ≤ 1, `|a|`",
        "",
        "**Parameters**",
        "    ``w``: a weight.",
    ]


def test_links_to_files_of_the_repository_lead_to_their_pages() -> None:
    text = "[a](../benchmarks/results/benchmarks.md#machine) [b](states.md) [c](https://d.e/f.md)"
    found = outside.rewritten(text, "recording", DOCS)
    assert found == "[a](/benchmarks.md#machine) [b](states.md) [c](https://d.e/f.md)"
    assert outside.rewritten("[a](docs/design.md)", "contributing", DOCS) == "[a](/design.md)"


def test_figures_show_what_their_caption_says() -> None:
    assert figures.made(snn.DRLIB) == (
        "snn.DRLIB(1, neg_beta=0.7, pos_rec_weight=0.5, neg_rec_weight=0.5)"
    )
    assert figures.made(rnn.GRU) == "rnn.GRU(1, 1)"
    assert [float(each.abs().max()) for each in figures.inputs().values()] == pytest.approx(
        [1.5, 0.25, 0.4], rel=1e-2
    )


@pytest.mark.parametrize("kind", [*snn.LAYERS, *rnn.LAYERS], ids=lambda kind: kind.__name__)
def test_a_diagram_shows_every_state_and_decay(kind: type[tt.Layer]) -> None:
    shown = " ".join(re.findall(r">([^<>]+)</text>", diagrams.diagram(kind)))
    layer = figures.layer(kind)
    signs = {"pos_": "⁺", "neg_": "⁻"}
    for name in layer.tt.states:
        sign = signs.get(name[:4], "")
        assert re.search(rf"(^|[ ,]){name[4:] if sign else name}{sign}([ ,]|$)", shown)
    decays = {"alpha": "α", "beta": "β", "gamma": "γ"} if kind in snn.LAYERS else {}
    for name, symbol in decays.items():
        has = any(p.endswith(name) for p in kind.parameter_names())  # type: ignore[attr-defined]
        assert (symbol in shown) is has


# ------------------------------------------------------------------ docstrings


def arguments(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def unnamed(function: Any, doc: str) -> list[str]:
    """Arguments that a docstring does not name."""
    names = (name for name in arguments(function) if name not in ("args", "kwargs"))
    return [name for name in names if not re.search(rf"^    (``)?{name}\b|``{name}``", doc, re.M)]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.full)
def test_every_public_name_has_a_docstring(name: public.Name) -> None:
    assert re.match(r"[\w\d`*:(-]", public.described(name)), f"{name.full} has no docstring"


@pytest.mark.parametrize("name", CLASSES, ids=lambda name: name.full)
def test_every_public_member_has_a_docstring(name: public.Name) -> None:
    members = public.members(name)
    assert [key for key, value in members if not inspect.getdoc(value)] == []


FUNCTIONS = [name for name in NAMES if name.kind == "function" and name.value not in ONE_LINERS]


@pytest.mark.parametrize("name", FUNCTIONS, ids=lambda name: name.full)
def test_every_function_names_its_arguments_and_shows_an_example(name: public.Name) -> None:
    doc = public.described(name)
    assert unnamed(name.value, doc) == []
    assert re.search(r"^Example:\n", doc, re.M)
    assert ">>> " in doc


# ------------------------------------------------------------------ the built site


class Page(HTMLParser):
    """The links, loaded files and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        self.anchors.update(given[key] for key in ("id", "name") if key in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and "href" in given:
            self.loads.append(given["href"])
        if "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def pages() -> dict[Path, Page]:
    return {path.resolve(): Page(path) for path in SITE.rglob("*.html")}


def internal(path: Path, links: list[str]) -> Iterator[tuple[str, Path, str]]:
    for link in links:
        parts = urlsplit(link)
        if not parts.scheme and not parts.netloc:
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            yield (
                link,
                target / "index.html" if target.is_dir() else target,
                unquote(parts.fragment),
            )


@built
def test_links_within_the_site_lead_somewhere(pages: dict[Path, Page]) -> None:
    lost = [
        (path.name, link)
        for path, page in pages.items()
        for link, target, anchor in internal(path, page.links)
        if not target.exists() or (target in pages and anchor not in pages[target].anchors)
    ]
    assert lost == []


@built
def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    loads = [(path, load) for path, page in pages.items() for load in page.loads]
    assert [load for _, load in loads if urlsplit(load).netloc] == []
    styles = [path.read_text(encoding="utf-8") for path in SITE.rglob("*.css")]
    outer = re.compile(r"url\(\s*['\"]?(?:https?:)?//|@import\s+['\"](?:https?:)?//")
    assert [style[:80] for style in styles if outer.search(style)] == []


@built
def test_every_page_can_be_reached_from_the_first(pages: dict[Path, Page]) -> None:
    start = (SITE / "index.html").resolve()
    reached, new = {start}, [start]
    while new:
        path = new.pop()
        targets = {target for _, target, _ in internal(path, pages[path].links)}
        new += [target for target in targets & pages.keys() if target not in reached]
        reached |= targets & pages.keys()
    aside = {"404.html", "search.html", "genindex.html", "py-modindex.html"}
    assert {path.name for path in pages.keys() - reached} <= aside


@built
def test_the_inventory_has_every_public_name() -> None:
    head, _, packed = (SITE / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory version 2")
    entries = [line.split() for line in zlib.decompress(packed).decode("utf-8").splitlines()]
    objects = Counter(entry[0] for entry in entries if entry[1].startswith("py:"))
    assert {name.full: objects[name.full] for name in public.names()} == dict.fromkeys(
        (name.full for name in public.names()), 1
    )
