"""What a program's imports do to the garbage collector."""

import gc
import sys
from types import ModuleType

import pytest

from amr.cli.imports import quick_imports


@pytest.mark.parametrize(("before", "within", "frozen"), [(False, True, 1), (False, False, 0), (True, True, 0)])
def test_only_a_process_that_imports_torch_is_frozen(
    monkeypatch: pytest.MonkeyPatch, before: bool, within: bool, frozen: int
) -> None:
    """Objects of a process that has torch may be a user's, who deletes them later."""
    calls = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(gc.isenabled()))
    torch = ModuleType("torch")
    modules = {name: module for name, module in sys.modules.items() if name != "torch"}
    monkeypatch.setattr(sys, "modules", modules | ({"torch": torch} if before else {}))
    with quick_imports():
        assert not gc.isenabled()
        if within:
            sys.modules["torch"] = torch
    assert calls == [False] * frozen
    assert gc.isenabled()


def test_a_failed_import_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), quick_imports():
        raise ImportError
    assert gc.isenabled()
