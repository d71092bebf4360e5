"""Every analysis of a checkpoint, on chosen clips of a split, to a folder; resumes where it stopped.

docs/multiviz/files.md says what the folder holds. A file is whole or not there, and is the unit of work: a stage's
table, or, where a stage goes clip by clip, the clip's archive.
"""

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from pathlib import Path

from amr.attribution import evaluating
from amr.load import data_section
from amr.model import HasModel, bare_model
from amr.model.encoded import Split
from amr.model.loaders import Data
from amr.model.protocol import Explained
from amr.multiviz.analysis import cost, summary, thumbs
from amr.multiviz.analysis import stages as work
from amr.multiviz.analysis.analysis import Analysis, datamodule
from amr.multiviz.analysis.plan import STAGES, Plan
from amr.utils.errors import UserError
from amr.utils.files import locked, sweep
from amr.utils.names.modules import imported, is_module
from amr.utils.names.places import checkpoint_of
from amr.utils.streams import status
from amr.utils.trust import only_trusted, trusting


def analyze(
    checkpoint: str | Path | Explained | HasModel,
    out: str | Path,
    *,
    data: str | Path | Data | None = None,
    split: Split = "test",
    clips: int = 50,
    classes: int = 3,
    units: int = 8,
    stages: Collection[str] = tuple(STAGES),
    seed: int = 0,
    samples: int = 160,
    trust: Sequence[str] = (),
) -> Path:
    """Analyses a checkpoint: predictions, representations, errors, maps of clips, trust, a simulated user, selection.

    Args:
        checkpoint: A run's folder, or a checkpoint of it; or a model, which is analysed where it is, in eval mode; or
            the name of one in a module of your own, `my_module:make`, or of a function that makes it.
        out: Folder for the results. One that holds a part of the same analysis is completed.
        data: A configuration with a `data` section, by its file or name, or a class; None for the run's own data. Or a
            data module; the loaders of `split` and of train by name, with `labels` and `kinds` of the data or without;
            batches of `split` alone; or the name of one of these, `my_module:data`, or of a function that makes it.
        split: Split whose clips are used, such as `test`.
        clips: Clips that are explained, at least 2.
        classes: Classes that each clip is explained for, at least 1.
        units: Penultimate units that each clip is explained for, 0 or more.
        stages: Stages to run; those that they need are run, too.
        seed: Seed of the choice of clips and of sampled methods.
        samples: Masks a repeat of LIME, SHAP and DIME, at least 1.
        trust: Import paths of packages or classes, besides those of amr and its kin, that the run's files may name.

    Returns:
        The folder, with `summary.json`, from which `amr.report.site.write_site` makes a site.

    Raises:
        UserError: An option has a value that is not allowed, the checkpoint or its data cannot be read, or the folder
            holds another analysis, or another process works in it.
    """
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise UserError(f"stages={unknown[0]!r}: must be one of {', '.join(STAGES)}")
    title = None
    if is_module(checkpoint):
        title, checkpoint = Path(str(checkpoint)), imported(str(checkpoint), "--model")
    if is_module(data):
        data = imported(str(data), "--data")
    named = data if isinstance(data, str | Path) else None
    model = None if isinstance(checkpoint, str | Path) else bare_model(checkpoint, "--model" if title else "model")
    if model is not None and data is None:
        raise UserError("--data: must be given, such as my_module:data, with a model that no run's folder tells of")
    if model is not None and named is not None:
        data = datamodule(data_section(Path(), named))
    where = checkpoint_of(checkpoint) if isinstance(checkpoint, str | Path) else Path(type(checkpoint).__name__)
    where = title or where
    plan = Plan(where, Path(out), named, split, clips, classes, units, seed, samples)
    with locked(plan.out, "choose another --out"), nullcontext() if model is None else evaluating(model):
        sweep(plan.out)
        # A configuration that the user names is as if typed; the run's own may be a stranger's.
        with trusting(trust), only_trusted() if data is None else nullcontext():
            analysis = Analysis.open(plan, model, None if isinstance(data, str | Path) else data)
        head, seconds = cost.estimate(analysis, stages)
        if seconds:
            rows = f"{head:,} rows of the head" if head else "no row of the head"
            status(f"analyze: about {cost.in_words(seconds)}: {len(analysis.chosen)} clips, some {rows}")
        for stage in STAGES:
            if any(stage == wanted or stage in STAGES[wanted] for wanted in stages):
                getattr(work, stage)(analysis)
        analysis.thumbnails.write(
            analysis.out / thumbs.FILE, analysis.clips.ids, analysis.data.clips_of(analysis.split)
        )
        summary.write(analysis)
    return plan.out
