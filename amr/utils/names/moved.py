"""Names of version 0.1 that have moved: they still import, so that its configurations, checkpoints and scripts work."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "amr.analyze": "amr.multiviz.analysis",
    "amr.arguments": "amr.cli.arguments",
    "amr.benchmark": "amr.cli.benchmark.command",
    "amr.card": "amr.report.card",
    "amr.checkpoints": "amr.utils.checkpoints",
    "amr.compare": "amr.report",
    "amr.compare.runs": "amr.evaluation.runs",
    "amr.dashboard": "amr.report.dashboard",
    "amr.datamodules.cut": "amr.datamodules.store.cut",
    "amr.datamodules.decoding": "amr.datamodules.store.decoding",
    "amr.datamodules.media": "amr.datamodules.store.media",
    "amr.datamodules.plan": "amr.datamodules.store.plan",
    "amr.datamodules.planted": "amr.datamodules.synthetic.planted",
    "amr.datamodules.prepare": "amr.datamodules.store.prepare",
    "amr.datamodules.report": "amr.datamodules.store.report",
    "amr.datamodules.summary": "amr.datamodules.store.summary",
    "amr.datamodules.synthesis": "amr.datamodules.synthetic.synthesis",
    "amr.datamodules.work": "amr.utils.work",
    "amr.demo": "amr.cli.demo",
    "amr.distributed": "amr.utils.distributed",
    "amr.errors": "amr.utils.errors",
    "amr.evaluation.encoded": "amr.model.encoded",
    "amr.export": "amr.exporting",
    "amr.files": "amr.utils.files",
    "amr.metrics": "amr.utils.metrics",
    "amr.metrics.bootstrap": "amr.evaluation.bootstrap",
    "amr.metrics.modalities": "amr.evaluation.use",
    "amr.metrics.split": "amr.utils.metrics",
    "amr.multiviz.atoms": "amr.datamodules.atoms",
    "amr.multiviz.faithfulness": "amr.multiviz.trust",
    "amr.multiviz.site": "amr.report.site",
    "amr.parser": "amr.utils.parser",
    "amr.readers": "amr.utils.readers",
    "amr.regularizers.agm": "amr.regularizers.gradients.agm",
    "amr.regularizers.dropout": "amr.regularizers.features.dropout",
    "amr.regularizers.gge": "amr.regularizers.losses.gge",
    "amr.regularizers.gradient_blending": "amr.regularizers.losses.gradient_blending",
    "amr.regularizers.mmcosine": "amr.regularizers.features.mmcosine",
    "amr.regularizers.mmpareto": "amr.regularizers.gradients.mmpareto",
    "amr.regularizers.modality_dropout": "amr.regularizers.features.modality_dropout",
    "amr.regularizers.ogm": "amr.regularizers.gradients.ogm",
    "amr.regularizers.pmr": "amr.regularizers.losses.pmr",
    "amr.regularizers.umt": "amr.regularizers.losses.umt",
    "amr.resume": "amr.utils.resume",
    "amr.robustness": "amr.evaluation.robustness",
    "amr.runs": "amr.cli.fit",
    "amr.site": "amr.report.site.agreement",
    "amr.speed": "amr.encoders.speed",
    "amr.trust": "amr.utils.trust",
}
"""Today's module of each old one; a module within a package that moved, moved with it."""

FUNCTIONS = {
    "amr.analyze": "amr.multiviz.analysis.whole.analyze",
    "amr.benchmark": "amr.cli.benchmark.command.benchmark",
    "amr.dashboard": "amr.report.dashboard.dashboard",
    "amr.demo": "amr.cli.demo.demo",
    "amr.compare": "amr.report.compare",
    "amr.export": "amr.exporting.export",
}
"""Old modules whose names are functions of `amr` today: the old module can be called, and is that function."""


def current(name: str) -> str | None:
    """Today's name of a module of version 0.1; None if it has not moved."""
    parent, rest = name, ""
    while parent not in MOVED:
        parent, dot, last = parent.rpartition(".")
        if not dot:
            return None
        rest = f".{last}{rest}"
    return MOVED[parent] + rest


class _Function(ModuleType):
    """An old module that is a function of `amr` today."""

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # its modules are found by the same table
            return []
        return getattr(import_module(MOVED[self.__name__]), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, function_name = FUNCTIONS[self.__name__].rpartition(".")
        function: Callable[..., Any] = getattr(import_module(module), function_name)
        return function(*args, **kwargs)


class _Finder(MetaPathFinder, Loader):
    """Gives an old name today's module itself, so that each class exists once."""

    def __init__(self) -> None:
        self._specs: dict[str, Any] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec for an old name, None for any other."""
        if not fullname.startswith("amr.") or current(fullname) is None:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Today's module, or a stand-in where the name is a function of `amr`."""
        if spec.name in FUNCTIONS:
            return _Function(spec.name)
        new = current(spec.name)
        assert new is not None
        module = import_module(new)
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Undoes what the import system wrote on a module that is loaded already."""
        spec = module.__spec__
        if spec is not None and spec.name in self._specs:
            module.__spec__ = self._specs.pop(spec.name)


def install() -> None:
    """Makes old names importable; called once, by `amr`."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())  # first: a package that moved still has a __path__ under its old name
