"""What a page of the docs defines can be pickled, as what a user's own module defines."""

from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture(autouse=True)
def _importable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    names = request.node.dtest.globs

    def defined(name: str) -> object:
        if name in names:
            return names[name]
        raise AttributeError(name)

    page = types.ModuleType("page")
    vars(page)["__getattr__"] = defined
    monkeypatch.setitem(sys.modules, page.__name__, page)
    names["__name__"] = page.__name__
