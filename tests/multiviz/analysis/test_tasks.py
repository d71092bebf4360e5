"""Every task of docs/multiviz/tasks.md runs through the analysis and the site, on models of a step's training."""

from itertools import combinations
from pathlib import Path

import pytest

from amr.multiviz.analysis.whole import analyze
from amr.report.site import write_site
from amr.report.site.source import Source
from amr.utils.readers import read_arrays
from examples.multiviz_tasks import TASKS

STAGES = ["prediction", "errors", "clips"]


@pytest.mark.parametrize("name", TASKS)
def test_a_task_runs_through_the_analysis_and_the_site(name: str, tmp_path: Path) -> None:
    task = TASKS[name]
    model, data = task.build(steps=1), task.data(train=60, test=12)
    out = analyze(model, tmp_path / "out", data=data, clips=2, classes=1, units=1, samples=8, stages=STAGES)
    path = next((out / "clips").iterdir())
    arrays, made = read_arrays(path), task.make(12, 2)
    for modality, evidence in made.evidence.items():  # the analysis' atoms are those that the evidence speaks of
        assert arrays[f"U/{modality}/occlusion"].shape == (1, evidence.shape[1])
    for first, second in combinations(model.modalities, 2):
        assert arrays[f"C/{first}/{second}/ablation"].size > 1
    write_site([out], tmp_path / "site")
    assert (tmp_path / "site/index.html").is_file()
    assert Source(out).clip(path)["modalities"].keys() == {*model.modalities}
