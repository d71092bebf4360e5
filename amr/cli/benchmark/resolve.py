"""Whole configurations from arguments of `amr fit`, and the stores that they name."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from amr.cli.benchmark.plan import Cell


def resolver() -> Callable[[Sequence[str]], Mapping[str, Any]]:
    """A function from arguments of `amr fit` to the whole configuration; it builds nothing."""
    from amr.cli.fit import AmrCLI

    class ParserOnly(AmrCLI):
        def _set_seed(self) -> None:
            pass

        def instantiate_classes(self) -> None:
            pass

        def _run_subcommand(self, subcommand: str) -> None:
            pass

    cli: list[ParserOnly] = []

    @cache
    def resolve(*arguments: str) -> Mapping[str, Any]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each run will give its own
            if cli:
                cli[0].parse_arguments(cli[0].parser, ["fit", *arguments])
            else:
                cli.append(ParserOnly(["fit", *arguments]))
            text = cli[0]._parser("fit").dump(cli[0].config.fit, skip_unset=False, format="json_compact")
        config: Mapping[str, Any] = json.loads(text)
        return config

    return lambda arguments: resolve(*arguments)


def prepare_stores(cells: Sequence[Cell]) -> None:
    """Decodes what the cells' stores lack, before the cells could all start to.

    Raises:
        UserError: The data module refuses its configuration.
    """
    from pytorch_lightning import LightningDataModule

    from amr.datamodules import ClipDataModule
    from amr.utils.parser import OneLineParser

    parser = OneLineParser()
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    sections = {json.dumps(cell.config["data"], sort_keys=True): cell.config["data"] for cell in cells}
    stores = set()
    for section in sections.values():
        datamodule = parser.instantiate_classes(parser.parse_object({"data": section})).data
        if isinstance(datamodule, ClipDataModule) and datamodule.store not in stores:
            datamodule.prepare()
            stores.add(datamodule.store)
