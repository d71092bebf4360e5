"""UMT: what is distilled, that teachers never move, and which checkpoints may teach."""

import copy
import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.optim import SGD

from amr.classifier import FusionClassifier
from amr.cli import main
from amr.encoders import SmallCNN
from amr.fusion import Concat, Gated
from amr.model import FusionModel
from amr.regularizers import AMR, Dropout, ModalityDropout, Regularizer, Step
from amr.regularizers.losses.umt import UMT, distillation_loss, prediction_loss
from amr.report import read_run
from amr.utils.errors import UserError
from amr.utils.trust import trusting
from tests import training
from tests.conftest import REPOSITORY
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.toy import Linear, Tokens, Toy
from tests.training import assert_equal, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)
MODALITIES = ("audio", "video", "touch")
build: Any = partial(training.build, fusion=Gated)


@pytest.fixture(autouse=True, scope="module")
def trusted() -> Iterator[None]:
    """The teachers' encoders are the tests' own."""
    with trusting(["tests"]):
        yield


def save_teacher(
    path: Path, modality: str, encoder: dict[str, Any], net: Any, data: Toy, seed: int, classes: int = 3
) -> str:
    """A checkpoint as the command line writes one, without its imports and data."""
    pl.seed_everything(seed)
    model = FusionClassifier({modality: net}, Concat, num_classes=classes)
    model.config = {"encoders": {modality: encoder}, "fusion": {"class_path": "amr.fusion.Concat"}}
    fit(model, data, max_epochs=1).save_checkpoint(path)
    return str(path)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder, data = tmp_path_factory.mktemp("teachers"), Toy(modalities=MODALITIES)
    linear = {"class_path": "tests.toy.Linear"}
    return {
        name: save_teacher(folder / f"{name}.ckpt", name, linear, Linear(), data, seed)
        for seed, name in enumerate(MODALITIES, 10)
    }


def pair(teachers: dict[str, str]) -> dict[str, str]:
    return {name: teachers[name] for name in ("audio", "video")}


# ----------------------------------------------------------------------------------------------- the pure functions


def test_distillation_loss_is_the_sum_of_mean_squares() -> None:
    """Σ_m (‖e‖² − 2 e·t + ‖t‖²) / n_m, in NumPy's double precision."""
    torch.manual_seed(0)
    own = {"a": torch.randn(5, 4, requires_grad=True), "b": torch.randn(5, 3, 2, requires_grad=True)}
    target = {"b": torch.randn(5, 3, 2, requires_grad=True), "a": torch.randn(5, 4)}
    value = distillation_loss(own, target)
    expected = 0.0
    for name, e in own.items():
        x, t = e.detach().double().numpy().ravel(), target[name].detach().double().numpy().ravel()
        expected += (x @ x - 2 * x @ t + t @ t) / len(x)
    assert value.item() == pytest.approx(expected, rel=1e-6)
    value.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(own["a"].grad, 2 * (own["a"] - target["a"]).detach() / 20)
    assert target["b"].grad is None  # a teacher is never taught
    assert distillation_loss(own, own).item() == 0
    assert distillation_loss({"a": own["a"].bfloat16()}, {"a": target["a"]}).dtype == torch.float32
    assert distillation_loss({"a": own["a"].double()}, {"a": target["a"]}).dtype == torch.float64


def test_distillation_loss_names_what_differs() -> None:
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="encodings of 'a', but teachers' of 'a', 'b'"):
        distillation_loss({"a": x}, {"a": x, "b": x})
    with pytest.raises(ValueError, match=r"encoding of 'b' has shape \(2, 3\), its teacher's \(2, 4\)"):
        distillation_loss({"a": x, "b": x}, {"a": x, "b": torch.zeros(2, 4)})


def test_prediction_loss_is_the_divergence_from_each_teacher() -> None:
    """Σ_c p (log p − log q), clip by clip, over the teachers that the clip has."""
    torch.manual_seed(0)
    logits, teacher = torch.randn(4, 3, requires_grad=True), {n: torch.randn(4, 3, requires_grad=True) for n in "ab"}
    present = {"b": torch.tensor([True, False, True, True]), "a": torch.tensor([True, True, False, True])}
    q, expected = logits.softmax(1).tolist(), 0.0
    for i in range(4):
        each = []
        for name in "ab":
            if present[name][i]:
                p = teacher[name].softmax(1)[i].tolist()
                each.append(sum(p[c] * (math.log(p[c]) - math.log(q[i][c])) for c in range(3)))
        expected += sum(each) / len(each) / 4
    value = prediction_loss(logits, teacher, present)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert teacher["a"].grad is None
    assert prediction_loss(logits, {"a": logits}).item() == pytest.approx(0, abs=1e-7)
    none = {name: torch.zeros(4, dtype=torch.bool) for name in "ab"}
    assert prediction_loss(logits, teacher, none).item() == 0


def test_prediction_loss_is_least_at_the_teachers_mean() -> None:
    torch.manual_seed(0)
    teacher = {name: torch.randn(6, 4) for name in "abc"}
    best = torch.stack([t.softmax(1) for t in teacher.values()]).mean(0).log().requires_grad_()
    (slope,) = torch.autograd.grad(prediction_loss(best, teacher), best)
    torch.testing.assert_close(slope, torch.zeros(6, 4), rtol=0, atol=1e-7)
    large = {name: 1e4 * t for name, t in teacher.items()}
    assert torch.isfinite(prediction_loss(1e4 * torch.randn(6, 4), large))


# ------------------------------------------------------------------------------------------------------ in training


class Probe(Regularizer):
    """Keeps each step, and the model as it was."""

    name = "probe"
    order = 99

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.models: list[FusionModel] = []

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.steps.append(step)
        self.models.append(copy.deepcopy(step.model))
        return {}


@pytest.mark.parametrize(
    ("fusion", "modalities", "lacking"),
    [(Gated, MODALITIES[:2], False), (partial(Concat, hidden=7), MODALITIES, True)],
    ids=["gated", "three modalities, some lacking"],
)
def test_the_step_is_down_the_whole_loss(
    fusion: Any, modalities: tuple[str, ...], lacking: bool, teachers: dict[str, str]
) -> None:
    """The first SGD step against autograd on the equation, with the teachers' weights read from the files."""
    given = {name: teachers[name] for name in modalities}
    probe = Probe()
    umt = UMT(given, features_weight=0.6, predictions_weight=0.4)
    model = build(fusion=fusion, modalities=modalities, extra=[umt, probe], optimizer=one)
    data = Toy(modalities=modalities, lacking=lacking)
    logged = fit(model, data, max_epochs=1, limit_train_batches=1).callback_metrics
    step, before = probe.steps[0], probe.models[0]
    batch = len(step.label)
    encodings = before.encode(step.inputs, step.present)
    logits = before.head(encodings)
    loss = nn.functional.cross_entropy(logits, step.label)
    features, divergence, seen = torch.tensor(0.0), torch.zeros(batch), torch.zeros(batch)
    for name, path in given.items():
        state = torch.load(path, weights_only=True)["state_dict"]
        has = (step.present or {}).get(name, torch.ones(batch, dtype=torch.bool)).float().unsqueeze(1)
        net = [state[f"model.encoders.{name}.net.0.{part}"] for part in ("weight", "bias")]
        target = has * torch.tanh(step.inputs[name] @ net[0].T + net[1])
        features = features + 0.6 * ((encodings[name] - target) ** 2).sum() / target.numel()
        taught = target @ state["model.head.classifier.weight"].T + state["model.head.classifier.bias"]
        p, q = taught.softmax(1), logits.softmax(1)
        divergence, seen = divergence + has[:, 0] * (p * (p / q).log()).sum(1), seen + has[:, 0]
    predictions = 0.4 * (divergence / seen).mean()
    assert logged["train/loss/umt/features"].item() == pytest.approx(features.item(), rel=1e-5)
    assert logged["train/loss/umt/predictions"].item() == pytest.approx(predictions.item(), rel=1e-5)
    if lacking:
        assert step.present is not None
        assert 0 < step.present["video"].sum() < batch
    gradients = torch.autograd.grad(loss + features + predictions, list(before.parameters()))
    after = weights(model)
    for (key, parameter), gradient in zip(before.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(after[key], parameter.detach() - gradient, rtol=0, atol=2e-6, msg=key)


def one(parameters: Any) -> SGD:
    return SGD(parameters, lr=1.0)


@pytest.mark.parametrize("given", ["features_weight", "predictions_weight"])
def test_the_student_comes_closer_to_its_teachers(given: str, teachers: dict[str, str]) -> None:
    def distance(**options: float) -> float:
        umt = UMT(pair(teachers), **options)
        model = build(extra=[umt])
        fit(model, max_epochs=8)
        inputs = Toy().inputs
        with torch.no_grad():
            taught = {name: teacher.encode(inputs) for name, teacher in umt._models.items()}
            if given == "features_weight":
                encodings = {name: encoding[name] for name, encoding in taught.items()}
                return distillation_loss(model.model.encode(inputs), encodings).item()
            logits = {name: teacher.head(taught[name]) for name, teacher in umt._models.items()}
            return prediction_loss(model(inputs), logits).item()

    off = {"features_weight": 0.0, "predictions_weight": 0.0}
    assert distance(**{**off, given: 10.0}) < 0.7 * distance(**off)


@pytest.mark.parametrize("flags", [{}, {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}])
def test_weight_zero_equals_naive_bit_for_bit(flags: dict[str, Any], teachers: dict[str, str]) -> None:
    naive = build(dropout=Dropout(0.5))
    zero = build(dropout=Dropout(0.5), extra=[UMT(pair(teachers), features_weight=0.0)])
    acting = build(dropout=Dropout(0.5), extra=[UMT(pair(teachers))])
    for model in (naive, zero, acting):
        fit(model, **flags)
    assert_equal(weights(naive), weights(zero))
    assert any(not torch.equal(a, b) for a, b in zip(weights(naive).values(), weights(acting).values(), strict=True))


def test_a_modality_without_teacher_is_left_alone(teachers: dict[str, str]) -> None:
    """Late fusion of frozen heads: nothing but its teacher can then tell the encoders apart."""
    naive, taught = (build(fusion=Concat, extra=extra) for extra in ([], [UMT({"video": teachers["video"]})]))
    for model in (naive, taught):
        for parameter in model.model.head.parameters():
            nn.init.zeros_(parameter).requires_grad_(False)
        fit(model, max_epochs=1)
    changed = {key for key, value in weights(naive).items() if not torch.equal(value, weights(taught)[key])}
    assert changed
    assert all(key.startswith("encoders.video.") for key in changed)


class Pictures(Toy):
    """The same vectors as 8 x 8 pictures."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.inputs = {
            name: (x @ torch.randn(6, 64, generator=generator)).view(-1, 1, 8, 8) for name, x in self.inputs.items()
        }


def test_teachers_with_batch_norm_never_change(tmp_path: Path) -> None:
    """In training their statistics would drift, which is what public code lets them do."""
    options = {"in_channels": 1, "width": 2, "out_dim": 8}
    section = {"class_path": "amr.encoders.SmallCNN", "init_args": options}
    data = Pictures()
    given = {
        name: save_teacher(tmp_path / f"{name}.ckpt", name, section, SmallCNN(**options), data, seed)
        for seed, name in enumerate(("audio", "video"), 20)
    }
    umt = UMT(given, features_weight=1.0, predictions_weight=1.0)
    model = build(encoder=lambda: SmallCNN(**options), extra=[umt])
    own = {key for key in model.state_dict() if key.startswith("regularizers.")}
    assert own == set()  # nothing of theirs in the checkpoint, the optimizer or DDP
    start = {name: copy.deepcopy(teacher.state_dict()) for name, teacher in umt._models.items()}
    trainer = fit(model, data)
    model.train()
    for name, teacher in umt._models.items():
        assert any("running_mean" in key for key in start[name])
        assert_equal(dict(start[name]), dict(teacher.state_dict()))
        saved = torch.load(given[name], weights_only=True)["state_dict"]
        assert_equal(dict(start[name]), {k[6:]: v for k, v in saved.items() if k.startswith("model.")})
        assert not any(module.training for module in teacher.modules())
        assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
    group = trainer.optimizers[0].param_groups[0]["params"]
    assert {id(p) for p in group} == {id(p) for p in model.model.parameters()}
    running = model.model.encoders["audio"].state_dict()
    assert any(not torch.equal(value, start["audio"][f"encoders.audio.{key}"]) for key, value in running.items())


def test_accumulated_micro_batches_equal_one_batch(teachers: dict[str, str]) -> None:
    big, small = (build(extra=[UMT(pair(teachers), 0.5, 0.5)]) for _ in range(2))
    fit(big, Toy(batch_size=16, lacking=True))
    fit(small, Toy(batch_size=8, lacking=True), accumulate_grad_batches=2)
    assert_equal(weights(big), weights(small), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precisions(precision: Any, teachers: dict[str, str]) -> None:
    reference, other = (build(extra=[UMT(pair(teachers), 1.0, 1.0)]) for _ in range(2))
    data = Toy()
    if precision == "64-true":
        data.inputs = {name: x.double() for name, x in data.inputs.items()}
    fit(reference)
    trainer = fit(other, data, precision=precision)
    expected = {key: value.double() for key, value in weights(reference).items()}
    atol = 1e-6 if precision == "64-true" else 0.05
    assert_equal(expected, {key: value.double() for key, value in weights(other).items()}, atol=atol)
    for term in ("features", "predictions"):
        assert torch.isfinite(trainer.callback_metrics[f"train/loss/umt/{term}"])


def test_tokens_dead_encoders_and_absent_modalities_stay_finite(tmp_path: Path, teachers: dict[str, str]) -> None:
    tokens = save_teacher(tmp_path / "t.ckpt", "audio", {"class_path": "tests.toy.Tokens"}, Tokens(), Toy(), 3)
    model = build(encoder=Tokens, extra=[UMT({"audio": tokens}, 1.0, 1.0)], modality_dropout=ModalityDropout(0.3))
    for parameter in model.model.encoders["video"].parameters():
        nn.init.zeros_(parameter)
    fit(model, Toy(lacking=True, batch_size=1, clips=8))  # whole batches lack video
    assert all(torch.isfinite(value).all() for value in weights(model).values())
    mixed = build(encoder=Tokens, extra=[UMT(pair(teachers))])
    with pytest.raises(UserError, match=r"encoding of 'audio' has shape \(8, 3, 8\), its teacher's \(8, 8\)"):
        fit(mixed)


def test_resuming_reloads_the_teachers_and_equals_going_on(tmp_path: Path, teachers: dict[str, str]) -> None:
    def run(seed: int, ckpt: Path | None = None) -> dict[str, Tensor]:
        model = build(seed=seed, extra=[UMT(pair(teachers), 0.5, 0.5)], dropout=Dropout(0.5))
        checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(model, max_epochs=3, ckpt=ckpt, enable_checkpointing=True, callbacks=[checkpoint])
        return weights(model)

    assert_equal(run(seed=0), run(seed=1, ckpt=tmp_path / "epoch=0.ckpt"))


def test_names(teachers: dict[str, str]) -> None:
    model = build(extra=[UMT(pair(teachers))], amr=AMR())
    assert (model.method, model.title) == ("umt+amr", "UMT w/ AMR")


# ---------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teachers": {}}, "model.umt.teachers={}: must have the path"),
        ({"teachers": {"audio": "a"}, "features_weight": -1.0}, "model.umt.features_weight=-1.0: must be"),
        ({"teachers": {"audio": "a"}, "predictions_weight": math.inf}, "model.umt.predictions_weight=inf: must be"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        UMT(**options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def refuses(given: dict[str, str], *messages: str, **options: Any) -> None:
    with pytest.raises(UserError) as caught:
        build(extra=[UMT(given, **options)])
    assert "\n" not in str(caught.value)
    assert all(message in str(caught.value) for message in messages), str(caught.value)


def test_unfit_teachers_are_refused_when_the_run_is_built(
    tmp_path: Path, teachers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    audio, path = "model.umt.teachers.audio=", tmp_path / "a.ckpt"
    refuses({"smell": teachers["audio"]}, "model.umt.teachers.smell: no such modality; must be one of 'audio', 'video'")
    refuses({"audio": str(path)}, f"{audio}{path} does not exist; must be a checkpoint")
    refuses({"audio": str(tmp_path)}, f"{audio}{tmp_path}: no checkpoint in this folder")
    path.write_bytes(b"PK")
    refuses({"audio": str(path)}, f"{audio}{path}: is not a checkpoint")
    refuses({"audio": teachers["video"]}, audio, "video.ckpt is a model of 'video'; must be one of 'audio' alone")
    both = build(fusion=Concat)
    both.config = {"encoders": {name: {"class_path": "tests.toy.Linear"} for name in ("audio", "video")}}
    fit(both, max_epochs=1).save_checkpoint(path)
    refuses({"audio": str(path)}, f"{audio}{path} is a model of 'audio', 'video'; must be one of 'audio' alone")
    section = {"class_path": "tests.toy.Linear", "init_args": {"out_dim": 5}}
    save_teacher(path, "audio", section, Linear(out_dim=5), Toy(), 0)
    refuses({"audio": str(path)}, f"{audio}{path} has encodings of size 5; must be the model's 8")
    build(extra=[UMT({"audio": str(path)}, features_weight=0.0, predictions_weight=1.0)])  # predictions need no size
    save_teacher(path, "audio", {"class_path": "tests.toy.Linear"}, Linear(), Toy(num_classes=4), 0, classes=4)
    refuses({"audio": str(path)}, f"{audio}{path} has 4 classes; must have the data's 3")
    with pytest.raises(UserError, match="model.umt: needs at least 2 modalities"):
        build(modalities=["audio"], extra=[UMT({"audio": teachers["audio"]})])
    monkeypatch.setenv("HOME", str(Path(teachers["audio"]).parent))
    build(extra=[UMT({"audio": "~/audio.ckpt"})])
    monkeypatch.chdir(Path(teachers["audio"]).parent)
    build(extra=[UMT({"audio": "audio.ckpt"})])


# ------------------------------------------------------------------------------------------ through the command line


@pytest.mark.filterwarnings("ignore")
def test_teachers_of_the_command_line(tiny: list[str], tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """A unimodal run, and a student of it by a relative path, which is tested, and refused without its teacher."""
    monkeypatch.chdir(tmp_path)
    common = ["--wandb", "disabled", "--trainer.max_epochs", "1"]
    encoders = yaml.safe_load((REPOSITORY / "tests/conf/tiny.yaml").read_text())["model"]["encoders"]
    single = ["--model.encoders", json.dumps({"audio": encoders["audio"]}), "--data.init_args.modalities", "[audio]"]
    assert main(["fit", *tiny, *common, *single, "--name", "audio"]) == 0
    method = {"class_path": "amr.regularizers.losses.umt.UMT"}
    method["init_args"] = {"teachers": {"audio": "runs/audio/checkpoints/best.ckpt"}}  # type: ignore[assignment]
    student = ["fit", *tiny, *common, "--model.extra", json.dumps([method])]
    assert main([*student, "--name", "umt"]) == 0
    run = read_run(tmp_path / "runs/umt")
    assert (run.method, run.title) == ("umt", "UMT")
    assert run.epochs[0]["train/loss/umt/features"] > 0
    assert main(["test", "--ckpt_path", "runs/umt/checkpoints/best.ckpt"]) == 0
    (tmp_path / "runs/audio/checkpoints/best.ckpt").unlink()
    capsys.readouterr()
    assert main([*student, "--name", "again"]) == 2
    message = capsys.readouterr().err
    assert "model.umt.teachers.audio=runs/audio/checkpoints/best.ckpt does not exist" in message
    assert "Traceback" not in message
    assert not (tmp_path / "runs/again").exists()


# --------------------------------------------------------------------------------------------------------------- DDP

CASES = {"all": False, "lack": True}


def train(world: int, case: str, teachers: dict[str, str]) -> dict[str, Tensor]:
    with trusting(["tests"]):  # a rank is a process of its own
        model = build(extra=[UMT(teachers, 0.5, 0.5)])
    fit_on(world, model, Toy(batch_size=16, lacking=CASES[case]))
    return weights(model)


def test_two_ranks_equal_one_process_on_the_joined_batch(teachers: dict[str, str]) -> None:
    for results in on_one_and_two_ranks(partial(train, teachers=pair(teachers)), CASES).values():
        assert_ranks_equal(results, atol=1e-6)
