"""The reference is complete, what it is made of is documented, and the built site stands alone.

What is asked of the built site runs where ``TRACETORCH_SITE`` names its folder: ``nox -s site``.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import sys
import textwrap
import zlib
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import tracetorch as tt
from tracetorch import rnn, snn
from tracetorch.snn import nir

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

from pages import (  # noqa: E402
    diagrams,
    docstrings,
    equations,
    figures,
    introduction,
    outside,
    public,
    stubs,
)

SITE = Path(os.environ.get("TRACETORCH_SITE", ROOT / "none"))
built = pytest.mark.skipif(not SITE.is_dir(), reason="TRACETORCH_SITE names no built site")

NAMES = [name for name in public.names() if name.kind != "alias"]
CLASSES = [name for name in NAMES if name.kind in ("class", "exception")]
# an exception is shown where it is raised
CALLED = [name for name in NAMES if name.kind in ("class", "function")]


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
    assert {"how-to/*", "examples/*"} <= entries
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= entries


def test_every_example_has_its_page() -> None:
    found = {source for source, page in outside.pages(DOCS).items() if "examples/" in page}
    assert found == set((ROOT / "examples").glob("*/README.md"))


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
    example = "[a](tones.py), [b](../../docs/own-layer.md), ![c](figures/tones.png)"
    assert outside.rewritten(example, "examples/own_layer", DOCS) == (
        "[a](../../examples/own_layer/tones.py), [b](/own-layer.md), ![c](figures/tones.png)"
    )
    found = outside.rewritten("[a](../examples/own_layer/README.md)", "own-layer", DOCS)
    assert found == "[a](/examples/own_layer.md)"


def test_figures_show_what_their_caption_says() -> None:
    assert figures.made(snn.DRLIB) == (
        "snn.DRLIB(1, neg_beta=0.7, pos_rec_weight=0.5, neg_rec_weight=0.5)"
    )
    assert figures.made(rnn.GRU) == "rnn.GRU(1, 1)"
    assert [float(each.abs().max()) for each in figures.inputs().values()] == pytest.approx(
        [1.5, 0.25, 0.4], rel=1e-2
    )


def test_the_introduction_shows_every_figure_that_is_drawn_for_it(tmp_path: Path) -> None:
    introduction.draw(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    text = (DOCS / "introduction.md").read_text("utf-8")
    assert set(re.findall(r"reference/generated/figures/(\S+)", text)) == drawn
    spikes = snn.LIB(1, beta=0.9, threshold=1.0).unroll(introduction.pulses()[:, None])
    fired = spikes.flatten().nonzero().flatten()
    assert len(fired) > 0
    assert 30 <= fired.min() <= fired.max() < 46  # in the burst, as the caption says


def test_a_folded_sequence_is_as_many_timesteps_as_the_loop() -> None:
    found = diagrams.folded()
    assert found.count(">Linear<") == found.count(">LIB<") == 4
    assert found.count("Linear, once") == found.count("LIB, one kernel") == 1
    assert all(found.count(f">{way}[{t}]<") == 2 for way in "xy" for t in range(4))


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


# names whose docstring cites nothing, by the reason; every other one says its source
UNSOURCED = {
    "keeps, hands on or counts what others compute: this library's own bookkeeping": {
        "tracetorch": "Constraint Functional IncompatibleStates Layer Model ParameterCount"
        " Recording Row Summary check_unroll checkpoint_values load_checkpoint named_layers record"
        " save_checkpoint",
        "tracetorch.backends": "READY chosen empty_cache select status use",
        "tracetorch.engine": "Recurrence Scan transformed",
        "tracetorch.measures": "Count EnergyConstants Intervals Operations",
        "tracetorch.rnn": "LAYERS",
        "tracetorch.snn": "Fired Firing LAYERS",
        "tracetorch.snn.init": "Calibrated Calibration",
        "tracetorch.snn.nir": "GraphModel",
    },
    "a check of the contract, or a layer to try it on": {
        "tracetorch.testing": "PROPERTIES StateSpace Trace check_layer compiling_is_exact"
        " copies_keep_states detaching_cuts_the_graph dim_is_a_layout gradients_match_differences"
        " masks_restart_samples misfits_are_refused precision_is_kept recording_is_of_the_steps"
        " resets_are_masks samples_are_independent states_follow_the_module states_round_trip"
        " step_equals_unroll zeroing_restarts",
    },
    "shows values as they are": {
        "tracetorch.plot": "activity animate distributions feature_maps heatmap network rates"
        " traces training",
    },
    "its first sentence is its whole definition": {
        "tracetorch.constraints": "identity",
        "tracetorch.measures": "dead saturated",
        "tracetorch.snn.decoders": "last_membrane",
        "tracetorch.snn.quantizers": "Probabilistic nothing probabilistic",
    },
}
CITES_NOTHING = {
    f"{module}.{name}"
    for modules in UNSOURCED.values()
    for module, names in modules.items()
    for name in names.split()
}

CONSTRUCTORS = ("__new__", "__init__", "__post_init__")
# made by the library, never by hand
MADE = {tt.Recording, nir.GraphModel}


def bodies(value: Any) -> list[ast.AST]:
    """The source of a function, or of what makes an object of a class."""
    (found,) = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body
    if not isinstance(found, ast.ClassDef):
        return [found]
    return [part for part in found.body if getattr(part, "name", None) in CONSTRUCTORS]


def refuses(value: Any) -> bool:
    """Whether it raises, or calls one of our checks of arguments."""
    nodes = [node for body in bodies(value) for node in ast.walk(body)]
    raised = [node.exc for node in nodes if isinstance(node, ast.Raise) and node.exc is not None]
    calls = [node.func for node in nodes if isinstance(node, ast.Call)]
    return any("NotImplementedError" not in ast.unparse(error) for error in raised) or any(
        re.match(r"_?check(ed)?(_|$)", call.id) for call in calls if isinstance(call, ast.Name)
    )


def unnamed(function: Any, doc: str) -> list[str]:
    """Arguments that a docstring does not name."""
    names = [
        n for n in inspect.signature(function).parameters if n not in ("self", "args", "kwargs")
    ]
    return [name for name in names if not re.search(rf"^    (``)?{name}\b|``{name}``", doc, re.M)]


def shapeless(function: Any, doc: str) -> list[str]:
    """Tensors among the arguments whose shape is not said where they are described."""
    found = []
    for name, argument in inspect.signature(function).parameters.items():
        entry = re.search(rf"^    {name}: (.*(?:\n {{5,}}.*)*)", doc, re.M)
        kinds = set(re.sub(r"torch\.", "", str(argument.annotation)).split(" | "))
        is_tensor = {"Tensor"} <= kinds <= {"Tensor", "float", "None"}
        if is_tensor and not re.search(r"\[|shape", entry[1] if entry else doc):
            found.append(name)
    return found


def methods(name: public.Name) -> list[tuple[str, Any, str]]:
    """Those of a class: what each is called, itself, and what is said of it here and above."""
    found = []
    for key, value in public.members(name):
        if not isinstance(value, property):
            lines = [vars(base).get(key) for base in name.value.__mro__]
            said = "\n".join(inspect.getdoc(each) or "" for each in lines if each is not None)
            found.append((key, value, said))
    return found


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.full)
def test_every_public_name_has_a_docstring(name: public.Name) -> None:
    assert re.match(r"[\w\d`*:(-]", public.described(name)), f"{name.full} has no docstring"


@pytest.mark.parametrize("name", CLASSES, ids=lambda name: name.full)
def test_every_public_member_has_a_docstring(name: public.Name) -> None:
    members = public.members(name)
    assert [key for key, value in members if not inspect.getdoc(value)] == []


@pytest.mark.parametrize("name", CALLED, ids=lambda name: name.full)
def test_every_function_and_class_names_its_arguments_and_shows_an_example(
    name: public.Name,
) -> None:
    doc = public.described(name)
    assert name.value in MADE or unnamed(name.value, doc) == []
    assert shapeless(name.value, doc) == []
    assert re.search(r"^Example:\n(.*\n)*? +>>> ", doc, re.M)


@pytest.mark.parametrize("name", CALLED, ids=lambda name: name.full)
def test_what_refuses_arguments_says_so(name: public.Name) -> None:
    assert not refuses(name.value) or re.search(r"^Raises:\n", public.described(name), re.M)


@pytest.mark.parametrize("name", CLASSES, ids=lambda name: name.full)
def test_methods_name_their_arguments_and_errors(name: public.Name) -> None:
    found = methods(name)
    assert {key: lost for key, value, said in found if (lost := unnamed(value, said))} == {}
    assert {key: lost for key, value, said in found if (lost := shapeless(value, said))} == {}
    silent = [key for key, value, said in found if refuses(value) and "Raises:\n" not in said]
    assert silent == []


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.full)
def test_what_computes_says_its_source(name: public.Name) -> None:
    cites = re.search(r"^Source: \S", public.described(name), re.M) is not None
    assert cites is (name.full not in CITES_NOTHING and name.kind != "exception")


def test_only_public_names_are_excused_from_a_source() -> None:
    assert {name.full for name in NAMES} >= CITES_NOTHING


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
