"""The hooks: which are found, which exclude each other, and what each does to a real training."""

import copy
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.nn import functional as F
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from amr import load
from amr.classifier import FusionClassifier, method_slots
from amr.fusion import Concat, Gated
from amr.regularizers import (
    AMR,
    DGL,
    LFM,
    MIDAS,
    OGM,
    OPM,
    EpochMeans,
    MultiLoss,
    Regularizer,
    Step,
    TCMax,
    UnimodalHeads,
    base,
    recombined,
)
from amr.regularizers.composite import Composite
from amr.report.table import ORDER
from amr.utils.errors import UserError
from tests.conftest import REPOSITORY
from tests.ranks import assert_ranks_equal, fit_on, on_one_and_two_ranks
from tests.regularizers.losses.test_gradient_blending import ResumableToy
from tests.toy import Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|num_workers|logging interval|tensorboardX|exists and is not empty)"
)

# ---------------------------------------------------------------------------------------------------- which are there


def test_the_table_has_every_hook_and_no_other() -> None:
    table = re.findall(r"^\| `(\w+)\(", base.__doc__ or "", re.MULTILINE)
    helpers = {"check", "check_choice", "check_names", "overrides", "needs_decay"}
    public = {key for key, value in vars(Regularizer).items() if callable(value) or isinstance(value, classmethod)}
    assert set(table) == {key for key in public if not key.startswith("_")} - helpers
    assert len(table) == len(set(table))


def test_a_class_without_a_name_or_with_an_unknown_hook_is_refused() -> None:
    with pytest.raises(UserError, match='^Nameless: a method needs a name, such as name = "nameless"$'):
        type("Nameless", (Regularizer,), {})
    with pytest.raises(UserError, match="^Wrong.on_step: no hook has that name; must be one of on_epoch_start, "):
        type("Wrong", (Regularizer,), {"name": "wrong", "on_step": lambda self: None})
    parent: Any = type("Parent", (Regularizer,), {}, abstract=True)
    child: Any = type("Child", (parent,), {"name": "child", "on_fused": lambda self, fused: fused})
    assert child.overrides("on_fused")
    assert not child.overrides("losses")
    renamed: Any = type("Renamed", (OGM,), {})
    assert renamed.name == "ogm"


def test_steps_are_kept_only_for_those_that_use_them() -> None:
    def composite(**hooks: Any) -> Composite:
        return Composite([type("Some", (Regularizer,), {"name": "some", **hooks})()])

    nothing = lambda self, *_: None  # noqa: E731
    assert not composite().needs_steps
    assert not composite(losses=nothing, on_epoch_end=nothing, main_loss=nothing).needs_steps
    for hook in ("on_gradients", "after_step", "objectives"):
        assert composite(**{hook: nothing}).needs_steps


@pytest.mark.parametrize(
    ("hook", "why"), [("main_loss", "replace the main loss"), ("turns", "alternate the optimizer")]
)
def test_two_methods_that_exclude_each_other_are_refused_by_name(hook: str, why: str) -> None:
    first, second = (
        type(name.title(), (Regularizer,), {"name": name, hook: lambda self, *_: None})() for name in ("one", "two")
    )
    with pytest.raises(UserError, match=f"model.two: cannot be combined with 'one', since both {why}"):
        build(extra=[first, second])


def test_the_slots_are_those_of_the_signature_and_have_all_that_a_method_needs() -> None:
    """A file of configuration, a page, and a place in the order of the table."""
    slots = method_slots()
    assert all(name == kind.name for name, kind in slots.items())
    for folder, ending in (("configs/methods", "yaml"), ("docs/methods", "md")):
        names = {file.stem for file in (REPOSITORY / folder).glob(f"*.{ending}")} - {"README", "released-code"}
        assert names == set(slots) - ({"ogm_ge"} if ending == "md" else set())  # one page for OGM and OGM-GE
    assert set(ORDER) == {"naive", *slots} - {"amr"}
    assert [name for name in load.ARCHITECTURE if name in slots] == ["aug", "greedy", "mla", "mmcosine"]


def test_slots_are_options_of_the_classifier_and_are_checked() -> None:
    """In the signature and its hints, which jsonargparse and editors read; in the order of the list, not the call's."""
    slots, options = method_slots(), [*inspect.signature(FusionClassifier).parameters]
    assert options[-len(slots) - 1 :] == [*slots, "extra"]
    hints = get_type_hints(FusionClassifier.__init__)
    assert all(get_args(hints[name]) == (kind, type(None)) for name, kind in slots.items())
    assert [*build(dgl=DGL(), multi_loss=MultiLoss(), ogm=None).regularizers.methods] == ["dgl", "multi_loss"]
    assert [*build(tcmax=TCMax(), multi_loss=MultiLoss()).regularizers.methods] == ["multi_loss", "tcmax"]
    with pytest.raises(TypeError, match="ogmm"):
        build(ogmm=None)
    with pytest.raises(UserError, match="model.ogm: must be of OGM or null"):
        build(ogm=0.5)


def test_titles_of_combinations() -> None:
    class After(Regularizer):
        name = "after"
        title = "After"
        suffix = True
        order = 95

    def title(*methods: Regularizer) -> str:
        return Composite(methods).title

    assert title() == "Naive fusion"
    assert title(AMR()) == "Naive fusion w/ AMR"
    assert title(After(), OGM(), AMR()) == "OGM w/ AMR w/ After"


# ---------------------------------------------------------------------------------------------------------- main_loss


class Focal(Regularizer):
    """Replaces the cross-entropy from epoch 1 on."""

    name = "focal"

    def main_loss(self, step: Step) -> Tensor | None:
        self.before = step.loss
        return (step.cross_entropy(step.logits, "none").square()).mean() if step.epoch else None


class After(Regularizer):
    """Sees the new main loss, and doubles its effect."""

    name = "after"

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.seen: list[float] = []

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.seen.append(step.loss.item())
        return {"again": self.weight * step.loss}


def test_a_main_loss_replaces_the_cross_entropy_and_others_see_it() -> None:
    model, naive = build(extra=[Focal(), After(0.0)]), build()
    trainers = [fit(each, max_epochs=1) for each in (model, naive)]
    assert_equal(weights(model), weights(naive))
    assert "train/loss/focal/main" not in trainers[0].callback_metrics
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model = build(extra=[Focal(), (after := After(1.0))], optimizer=lambda p: SGD(p, lr=0.1))
    model.load_state_dict(state)
    start = copy.deepcopy(model.model)
    data = Toy(batch_size=32)
    trainer = fit(model, data, max_epochs=2)
    once = build(optimizer=lambda p: SGD(p, lr=0.1)).model  # the same two steps by hand
    once.load_state_dict(start.state_dict())
    for epoch in range(2):
        losses = F.cross_entropy(once(data.inputs), data.label, reduction="none")
        loss = losses.square().mean() if epoch else losses.mean()
        assert after.seen[epoch] == pytest.approx(loss.item(), rel=1e-5)
        for parameter, slope in zip(
            once.parameters(), torch.autograd.grad(2 * loss, [*once.parameters()]), strict=True
        ):
            parameter.data -= 0.1 * slope
    assert_equal(weights(model), once.state_dict(), atol=1e-6)
    assert trainer.callback_metrics["train/loss/focal/main"].item() == pytest.approx(after.seen[1])
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(2 * after.seen[1])


# --------------------------------------------------------------------------------------------------------- objectives


class Apart(Regularizer):
    """An objective of encoders, head and own layers; adds factor · its gradient by the encoders."""

    name = "apart"

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def setup(self, model: Any) -> None:
        self.heads = UnimodalHeads(model)

    def term(self, step: Step) -> Tensor:
        own = [step.cross_entropy(logits) for logits in self.heads(step.encodings).values()]
        return torch.stack([step.cross_entropy(step.model.head(step.encodings)), *own]).sum()

    def objectives(self, step: Step) -> dict[str, Tensor]:
        return {"all": self.term(step)}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        for name, flat in steps[-1].apart["apart/all"].items():
            parameters = list(steps[-1].model.encoders[name].parameters())
            for parameter, piece in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
                assert parameter.grad is not None
                parameter.grad += self.factor * piece.view_as(parameter)


class Together(Apart):
    """The same as an ordinary term of the loss."""

    name = "apart"

    def objectives(self, step: Step) -> dict[str, Tensor]:
        return {}

    def losses(self, step: Step) -> dict[str, Tensor]:
        return {"all": self.term(step)}

    def on_gradients(self, steps: Sequence[Step]) -> None:
        assert steps[-1].apart == {}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped": {"gradient_clip_val": 0.1},
    "16-mixed": {},
}


def flags_of(case: str) -> dict[str, Any]:
    if case != "16-mixed":
        return OBJECTIVES[case]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
    return {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_an_objective_whose_gradient_is_put_back_is_a_term_of_the_loss(case: str) -> None:
    apart, together = (build(fusion=Gated, extra=[kind()]) for kind in (Apart, Together))
    for model in (apart, together):
        trainer = fit(model, Toy(lacking=True), **flags_of(case))
        assert "train/loss/apart/all" in trainer.callback_metrics
    atol = 2e-3 if case == "16-mixed" else 1e-6
    assert_equal(
        {**weights(apart), **apart.regularizers.state_dict()},
        {**weights(together), **together.regularizers.state_dict()},
        atol=atol,
    )


def test_an_objective_alone_does_not_reach_the_encoders() -> None:
    data = Toy(batch_size=32)
    apart, naive = build(extra=[Apart(0.0)]), build()
    for model in (apart, naive):
        fit(model, data, max_epochs=1)
    ours, theirs = weights(apart), weights(naive)
    encoders = {key for key in ours if key.startswith("encoders.")}
    assert all(torch.equal(ours[key], theirs[key]) for key in encoders)
    assert all(not torch.equal(ours[key], theirs[key]) for key in ours.keys() - encoders)


# -------------------------------------------------------------------------------------------------------------- turns


class Alternate(Regularizer):
    """One step per modality, each down that modality's own loss by the head with the other encodings zeroed."""

    name = "alternate"

    def __init__(self) -> None:
        super().__init__()
        self.moved: list[tuple[Any, ...]] = []

    def turns(self, epoch: int) -> list[list[str]]:
        return [["audio"], ["video"]] if epoch else []

    def main_loss(self, step: Step) -> Tensor | None:
        if step.turn is None:
            return None
        others = dict.fromkeys(name for name in step.encodings if name not in step.turn)
        return step.cross_entropy(recombined(step.model, step.encodings, others))

    def on_gradients(self, steps: Sequence[Step]) -> None:
        encoders = steps[0].model.encoders.items()
        with_gradient = [name for name, e in encoders if any(p.grad is not None for p in e.parameters())]
        self.moved.append((len(steps), steps[0].turn, with_gradient))


def by_hand(model: FusionClassifier, data: Toy, options: dict[str, Any]) -> dict[str, Tensor]:
    """Alternating steps by torch alone, an optimizer per modality's part and one for the head."""
    net, clip = copy.deepcopy(model.model), options.get("gradient_clip_val")
    parts = {name: [*net.encoders[name].parameters(), *net.head.parameters()] for name in net.modalities}
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    schedule = StepLR(optimizer, 1, gamma=0.5)
    data.setup("fit")
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for batch in loader:
            for turn in net.modalities if epoch else (None,):
                optimizer.zero_grad()
                encodings = net.encode(batch["inputs"])
                zeroed = {n: e if turn in (None, n) else torch.zeros_like(e) for n, e in encodings.items()}
                loss = F.cross_entropy(net.head(zeroed), batch["label"])
                trained = [*net.parameters()] if turn is None else parts[turn]
                for parameter, slope in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                    parameter.grad = slope
                if clip:
                    torch.nn.utils.clip_grad_norm_(trained, clip)
                optimizer.step()
        schedule.step()
    return net.state_dict()


@pytest.mark.parametrize("flags", [{}, {"gradient_clip_val": 0.05}], ids=str)
def test_turns_are_steps_of_the_main_optimizer(flags: dict[str, Any]) -> None:
    """With momentum and weight decay, which must not move the encoder whose turn it is not."""
    method = Alternate()
    model = build(
        fusion=Gated,
        extra=[method],
        optimizer=lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        lr_scheduler=lambda optimizer: StepLR(optimizer, 1, gamma=0.5),
    )
    expected = by_hand(model, Toy(batch_size=16), flags)
    trainer = fit(model, Toy(batch_size=16), max_epochs=3, **flags)
    assert_equal(weights(model), expected, atol=1e-6)
    assert trainer.global_step == 3 * 2
    turns = [(1, ("audio",), ["audio"]), (1, ("video",), ["video"])]
    assert method.moved == [(1, None, ["audio", "video"])] * 2 + turns * 4
    assert trainer.callback_metrics["train/loss/alternate/main"].isfinite()


def test_amr_acts_once_after_the_last_turn() -> None:
    calls: list[tuple[int, Any]] = []

    class Last(Regularizer):
        name = "last"
        order = 99

        def after_step(self, steps: Sequence[Step]) -> None:
            calls.append((len(steps), steps[0].turn))

    amr, plain = build(extra=[Alternate(), Last()], amr=AMR()), build(extra=[Alternate()])
    for model in (amr, plain):
        fit(model, Toy(batch_size=16), max_epochs=2)
    assert calls == [(1, None)] * 2 + [(1, ("video",))] * 2
    assert any(not torch.equal(a, b) for a, b in zip(weights(amr).values(), weights(plain).values(), strict=True))


def test_accumulation_is_refused_with_turns() -> None:
    with pytest.raises(UserError, match="trainer.accumulate_grad_batches=2: must be 1 with alternate"):
        fit(build(extra=[Alternate()]), accumulate_grad_batches=2)


# ------------------------------------------------------------------------------------------------------------- epochs


class Anchor(Regularizer):
    """Pulls the weights to those of the epoch's start, and counts its hooks."""

    name = "anchor"

    def setup(self, model: Any) -> None:
        self.means = EpochMeans(["steps"])
        self.register_buffer("start", torch.zeros(sum(p.numel() for p in model.head.parameters())))
        self.log: list[Any] = []

    def on_epoch_start(self, state: Any) -> None:
        assert not self.means.named()  # reset before
        self.log.append(("start", state.epoch, "val/acc" in state))
        self.get_buffer("start").copy_(torch.nn.utils.parameters_to_vector(state.model.head.parameters()))

    def losses(self, step: Step) -> dict[str, Tensor]:
        self.means.update(torch.tensor([float(step.epoch)]))
        now = torch.nn.utils.parameters_to_vector(step.model.head.parameters())
        return {"distance": (now - self.get_buffer("start")).square().sum()}

    def on_epoch_end(self, state: Any) -> None:
        self.log.append(("end", state.epoch, "val/acc" in state))


def test_hooks_of_an_epoch() -> None:
    anchor = Anchor()
    trainer = fit(build(extra=[anchor]), max_epochs=2)
    assert anchor.log == [("start", 0, False), ("end", 0, True), ("start", 1, True), ("end", 1, True)]
    assert trainer.callback_metrics["train/anchor/steps"] == 1
    assert anchor.report() == {"steps": 1.0}


@pytest.mark.parametrize("name", ["step=2", "step=4", "step=6"])  # within an epoch, and at the end of its last batch
def test_an_epoch_that_is_resumed_within_does_not_start_again(name: str, tmp_path: Path) -> None:
    def run(ckpt: Path | None = None) -> dict[str, Tensor]:
        model = build(seed=1 if ckpt else 0, extra=[Anchor()])
        saves = [ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=2)]
        fit(model, ResumableToy(), max_epochs=3, ckpt=ckpt, enable_checkpointing=True, callbacks=saves)
        return {**weights(model), **model.regularizers.state_dict()}

    whole = run()
    assert_equal(whole, run(tmp_path / f"{name}.ckpt"))


@pytest.mark.parametrize(
    "method",
    [OPM(start_epoch=1), DGL(start_epoch=1), LFM(integration="learned"), MIDAS(start_epoch=0)],
    ids=lambda method: method.name,
)
def test_methods_go_on_within_an_epoch_with_the_same_bits(method: Regularizer, tmp_path: Path) -> None:
    """In the middle of the second epoch, where a method that notes the epoch is not told of it again."""

    def run(ckpt: Path | None = None) -> dict[str, Tensor]:
        model = build(seed=1 if ckpt else 0, extra=[copy.deepcopy(method)])
        saves = [ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=6)]
        fit(model, ResumableToy(), max_epochs=2, ckpt=ckpt, enable_checkpointing=True, callbacks=saves)
        return {**weights(model), **model.regularizers.state_dict()}

    whole = run()
    assert_equal(whole, run(tmp_path / "step=6.ckpt"))


# ---------------------------------------------------------------------------------------------------------------- DDP


def train(world: int, case: str) -> dict[str, Tensor]:
    method = Alternate() if case == "turns" else Apart()
    model = build(fusion=Gated if case == "apart" else Concat, extra=[method])
    fit_on(world, model, Toy(batch_size=16, lacking=case == "apart"))
    return {**weights(model), **method.state_dict()}


@pytest.fixture(scope="module")
def ddp() -> dict[str, Any]:
    """Final weights of each case, by one process and by each of two gloo ranks."""
    return on_one_and_two_ranks(train, ["turns", "apart"])


@pytest.mark.parametrize("case", ["turns", "apart"])
def test_two_ranks_equal_one_process_on_the_joined_batch(ddp: dict[str, Any], case: str) -> None:
    assert_ranks_equal(ddp[case], atol=1e-6)
