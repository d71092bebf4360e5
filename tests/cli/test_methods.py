"""The table of all methods is that of the code, and holds the lists of the field's toolkits."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import amr
from amr.cli import main
from amr.cli.keys import catalogue, costs
from amr.regularizers.slots import method_slots
from tests.conftest import REPOSITORY
from tests.regularizers.probes import build
from tests.training import fit

BALANCE_BENCHMARK = {  # GeWu-Lab/BalanceBenchmark 02cae3a, README, "Algorithms currently supported", and our name
    "Modality-valuation": "smv",
    "MLA": "mla",
    "OPM": "opm",
    "Greedy": "greedy",
    "AMCo": "amco",
    "MMCosine": "mmcosine",
    "UMT": "umt",
    "MBSD": "mbsd",
    "CML": "cml",
    "MMPareto": "mmpareto",
    "GBlending": "gradient_blending",
    "LFM": "lfm",
    "OGM": "ogm",
    "AGM": "agm",
    "PMR": "pmr",
    "Relearning": "relearning",
    "ReconBoost": "reconboost",
}
READ = catalogue.read()
pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own


@pytest.fixture(scope="module")
def made() -> dict[str, catalogue.Method]:
    """Of the code as it is, counted in the first case alone."""
    return catalogue.build(catalogue.CASES[:1])


@pytest.mark.parametrize("key", catalogue.Method.__annotations__)
def test_the_table_is_that_of_the_code(made: dict[str, catalogue.Method], key: str) -> None:
    facts: dict[str, Any] = {name: method[key] for name, method in READ.items()}  # type: ignore[literal-required]
    if key == "rows":
        facts = {name: {place: counts[:1] for place, counts in rows.items()} for name, rows in facts.items()}
    found = {name: method[key] for name, method in made.items()}  # type: ignore[literal-required]
    assert facts == found, "run python -m amr.cli.keys.catalogue"


def test_the_page_has_the_table() -> None:
    page = (REPOSITORY / "docs/methods/README.md").read_text(encoding="utf-8")
    assert catalogue.with_table(page, catalogue.markdown(READ)) == page, "run python -m amr.cli.keys.catalogue"
    links = re.findall(r"^\| \[(\w+)\]\((\w+\.md)\)", page, re.MULTILINE)
    assert [name for name, _ in links] == [*method_slots()]
    assert all((REPOSITORY / "docs/methods" / file).is_file() for _, file in links)


def test_rows_by_hand() -> None:
    """M = 2 with 4 and 8 clips, M = 3 with 4; a head that is not linear, so unimodal logits cost M rows."""
    by_hand = {
        "multi_loss": [1, 1, 1],
        "ogm": [3, 3, 4],  # and its own logits of each modality
        "agm": [4, 4, 8],  # and 2^M - 1 sets
        "tcmax": [5, 9, 17],  # and all pairs: B per clip; all triples: B^2
        "mcr": [130, 130, 290],  # and the reference, and 32 permutations of each of M modalities, once for each encoder
        "mla": [2, 2, 3],
    }
    assert {name: READ[name]["rows"]["head"] for name in by_hand} == by_hand
    assert READ["mla"]["rows"]["encoders"] == [2, 2, 3]
    assert READ["umt"]["rows"]["teachers"] == READ["g2d"]["rows"]["teachers"] == [1, 1, 1]
    assert READ["smv"]["rows"]["heads"] == [4, 4, 8]  # every set of modalities
    assert READ["relearning"]["rows"]["train"] == READ["relearning"]["rows"]["val"] == [1, 1, 1]
    free = {name for name, method in READ.items() if sum(method["rows"]["head"] + method["rows"]["encoders"]) == 6}
    assert free > {"dropout", "modality_dropout", "multi_loss", "pdmp", "mmpareto"}


@pytest.mark.parametrize("name", [n for n, kind in method_slots().items() if "on_gradients" in kind.reads])
def test_what_is_said_to_take_note_alone_leaves_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = method_slots()[name]
    compared: list[bool] = []
    real = kind.on_gradients

    def watched(self: Any, steps: Any) -> None:
        parameters = [*steps[0].model.parameters()]
        before = [None if p.grad is None else p.grad.clone() for p in parameters]
        real(self, steps)
        after = [p.grad for p in parameters]
        compared.append(
            all(
                a is b or (a is not None and b is not None and torch.equal(a, b))
                for a, b in zip(before, after, strict=True)
            )
        )

    monkeypatch.setattr(kind, "on_gradients", watched)
    fit(build(costs.made(kind, ["audio", "video"])), max_epochs=2, limit_train_batches=2, limit_val_batches=1)
    assert compared == [True] * 4


def test_every_method_of_balance_benchmark_is_here() -> None:
    assert len(BALANCE_BENCHMARK) == 17
    page = (REPOSITORY / "docs/methods/released-code.md").read_text(encoding="utf-8")
    listed = page.partition("## What other toolkits have")[2]
    assert set(BALANCE_BENCHMARK.values()) <= set(method_slots())
    for theirs, ours in BALANCE_BENCHMARK.items():
        assert f"| {theirs} | [{ours}]({READ[ours]['page']}) |" in listed


def test_methods_prints_without_torch() -> None:
    code = "import sys; from amr.cli import main; print(main(['methods', 'umt']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *_, last = done.stdout.splitlines()
    assert last == "0 False"
    for part in ("features_weight = 1.0", "0.1 to 10, log scale", "teachers (required)", "Du, Teng", "umt.yaml"):
        assert part in done.stdout


def test_the_command_and_the_function_have_every_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{amr.methods()}\n"
    assert max(map(len, printed.splitlines())) <= 100
    assert re.findall(r"^(\w+): ", printed, re.MULTILINE) == [*method_slots()] == [*amr.methods()]
    for name in method_slots():
        assert main(["methods", name]) == 0
    capsys.readouterr()
    assert main(["methods", "umd"]) == 2
    assert capsys.readouterr().err.startswith("amr: umd: no such method; did you mean umt?")
