"""Groups of parameters by regular expression: what each trains with, what is frozen, refusals, and resuming."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, StepLR

from amr import regularizers
from amr.fusion import Concat, Gated, Shared
from amr.regularizers import AMR, AUG, GGE, MLA, MMCosine, Regularizer
from amr.utils.errors import UserError
from amr.utils.optimizers.schedules import Cosine
from tests.ranks import fit_on, on_one_and_two_ranks
from tests.toy import Linear, Toy
from tests.training import assert_equal, build, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore")


class Normed(Linear):
    """Two layers, each with a batch norm, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(self.first(x))
        return out


def sgd(**settings: Any) -> Callable[[Any], Optimizer]:
    return partial(SGD, **{"lr": 0.1, "momentum": 0.9, **settings})


def test_each_group_has_its_settings_and_the_first_match_wins() -> None:
    groups = {
        r"audio.*bias$": {"weight_decay": 0.5},
        "encoders.audio": {"lr": 0.01},
        "video": {"lr": 0.02, "momentum": 0.0},
    }
    model = build(optimizer=sgd(weight_decay=0.1), param_groups=groups, gge=GGE())
    optimizer = fit(model, max_epochs=1).optimizers[0]
    names = {id(p): name for name, p in model.trained_parameters().items()}
    made = {
        group["name"]: (
            group["lr"],
            group["momentum"],
            group["weight_decay"],
            sorted(names[id(p)] for p in group["params"]),
        )
        for group in optimizer.param_groups
    }
    assert made[r"audio.*bias$"] == (0.1, 0.9, 0.5, ["model.encoders.audio.net.0.bias"])
    assert made["encoders.audio"] == (0.01, 0.9, 0.1, ["model.encoders.audio.net.0.weight"])
    assert made["video"][:3] == (0.02, 0.0, 0.1)
    assert made["video"][3] == ["model.encoders.video.net.0.bias", "model.encoders.video.net.0.weight"]
    assert [*made] == [*groups, "others"]
    others = made["others"][3]
    assert made["others"][:3] == (0.1, 0.9, 0.1)
    assert {name.split(".")[0] for name in others} == {"model", "regularizers"}  # the methods' own get the defaults
    assert not any("encoders" in name and name.startswith("model") for name in others)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


def test_it_equals_sgd_by_hand() -> None:
    """Two rates against two optimizers over the same gradients."""
    model, mirror = build(optimizer=sgd(), param_groups={"^encoders": {"lr": 0.001}}), build(optimizer=sgd())
    fit(model, max_epochs=1, limit_train_batches=1)
    step = {
        name: (a - b).abs().max()
        for (name, a), b in zip(weights(model).items(), weights(build()).values(), strict=True)
    }
    fit(mirror, max_epochs=1, limit_train_batches=1)
    whole = {
        name: (a - b).abs().max()
        for (name, a), b in zip(weights(mirror).items(), weights(build()).values(), strict=True)
    }
    for name, size in step.items():
        assert size == pytest.approx(float(whole[name]) * (0.01 if name.startswith("encoders") else 1.0), rel=1e-3)


FILES = {  # methods that need files of teachers
    "UMT",
    "G2D",
}
METHODS = [
    getattr(regularizers, name)
    for name in regularizers.__all__
    if name not in FILES and isinstance(kind := getattr(regularizers, name), type) and issubclass(kind, Regularizer)
]
OPTIONS: dict[str, dict[str, Any]] = {
    **{"ogm": {"parameters": "all"}, "ogm_ge": {"parameters": "all"}, "pdmp": {"dominant": "audio"}},
    **{"aug": {"every": 1}, "greedy": {"start_epoch": 0}, "reconboost": {"boosting_epochs": 1, "rectifying_epochs": 1}},
}
FROZEN = {"encoders.audio": {"lr": 0}, r"encoders.video.first": {"lr": 0.0}}


@pytest.mark.parametrize("method", [None, *(kind for kind in METHODS if kind is not Regularizer)])
def test_frozen_parts_do_not_move_whatever_the_method(method: Any) -> None:
    """Neither by weight decay nor by momentum; nor do their batch norms' statistics. Their dropout is off."""
    model = build(
        encoder=Normed,
        param_groups=FROZEN,
        optimizer=sgd(weight_decay=0.1),
        fusion=Shared if method in (MLA, AUG) else Concat,
        extra=[method(**OPTIONS.get(method.name, {}))] if method else [],
    )
    before = weights(model)
    trainer = fit(model, max_epochs=2, gradient_clip_val=1.0)
    still = {name for name, value in weights(model).items() if torch.equal(before[name], value)}
    assert {name for name in before if name.startswith(("encoders.audio", "encoders.video.first"))} <= still
    still -= {name for name in still if name.startswith("head.blocks.")}  # AUG's, which have not grown yet
    assert {name for name in still if name.startswith("head")} <= {"head.held"}  # Greedy's note, no parameter
    assert "encoders.video.net.1.running_mean" not in still
    assert "encoders.video.net.0.weight" not in still
    trained = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    for name, parameter in model.model.named_parameters():
        if name.startswith("head.blocks."):
            continue
        assert (id(parameter) in trained) == parameter.requires_grad == (name not in still)
    model.train()
    modes = {name: part.training for name, part in model.model.named_modules()}
    assert not modes["encoders.audio"]
    assert not modes["encoders.audio.first.2"]
    assert not modes["encoders.video.first.1"]
    assert modes["encoders.video"]
    assert modes["encoders.video.net.1"]


def test_both_encoders_frozen_with_amr_and_shards_of_the_layout() -> None:
    model = build(fusion=Gated, encoder=Normed, param_groups={"^encoders": {"lr": 0}}, amr=AMR(), channels_last=True)
    before = weights(model)
    trainer = fit(model)
    kept, after = ({k: v for k, v in w.items() if k.startswith("encoders")} for w in (before, weights(model)))
    assert_equal(kept, after)
    (group,) = trainer.optimizers[0].param_groups
    assert "name" not in group  # as if there were nothing else


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"encodres": {"lr": 1}},
            "encodres: must match a parameter's name; names begin with encoders.audio, encoders.v",
        ),
        ({"a": {"lr": 1}, "audio": {"lr": 0}}, "audio: must match a parameter that no earlier pattern takes"),
        ({"(": {"lr": 1}}, r"\(: must be a regular expression"),
        ({"head": {}}, "head={}: must be settings of the optimizer"),
        ({"head": {"lr": -1}}, "head.lr=-1: must be a finite number >= 0"),
        ({"head": {"lr": "fast"}}, "head.lr=fast: must be a finite number >= 0"),
        ({"head": {"beta": 1}}, "head.beta=1: must be one of SGD's lr, momentum, dampening, weight_decay, nesterov"),
        ({"head": {"momentum": -1}}, "head: Invalid momentum value: -1"),
        ({"head": {"params": []}}, "head.*params and name are none"),
        ({"": {"lr": 0}}, "must leave something to train"),
    ],
)
def test_mistakes_are_refused_by_name(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^model.param_groups[.:]? ?{message}"):
        fit(build(param_groups=groups, optimizer=sgd()))


def test_a_rate_for_what_is_frozen_already_is_refused() -> None:
    model = build(param_groups={"encoders.audio": {"lr": 0.1}})
    model.model.encoders["audio"].requires_grad_(False)
    with pytest.raises(UserError, match="param_groups.encoders.audio: must match a parameter that is trained"):
        fit(model)


def test_the_wrapped_head_has_its_group() -> None:
    model = build(param_groups={"^head": {"lr": 0.02}}, mmcosine=MMCosine())
    groups = {g["name"]: g["lr"] for g in fit(model, max_epochs=1).optimizers[0].param_groups}
    assert groups == {"^head": 0.02, "others": 0.01}


@pytest.mark.parametrize(
    ("schedule", "interval", "expected"),
    [
        (partial(StepLR, step_size=1, gamma=0.5), "epoch", 0.25),
        (Cosine, "epoch", 0.0),
        (partial(OneCycleLR, max_lr=[0.2, 0.8, 0.4], total_steps=8), "step", None),
        (lambda o: LambdaLR(o, [lambda i: 1.0, lambda i: 1.0, lambda i: 0.5**i]), "epoch", 0.25),  # the head's alone
    ],
)
def test_amr_follows_the_heads_group(schedule: Any, interval: Any, expected: float | None) -> None:
    model = build(
        optimizer=sgd(),
        param_groups={"audio": {"lr": 0.01}, "video": {"lr": 0.001}},
        lr_scheduler=schedule,
        scheduler_interval=interval,
        amr=AMR(),
    )
    optimizer = fit(model).optimizers[0]
    group = optimizer.param_groups[-1]
    assert group["name"] == "others"
    factor = model.main_optimizer.factor(optimizer)
    assert factor == pytest.approx(float(group["lr"]) / 0.4 if expected is None else expected)


def test_the_monitor_names_the_groups(tmp_path: Path) -> None:
    monitor = LearningRateMonitor("epoch")
    model = build(optimizer=sgd(), param_groups={"encoders.video": {"lr": 0.01}}, lr_scheduler=Cosine)
    fit(model, logger=CSVLogger(tmp_path), callbacks=[monitor])
    assert monitor.lrs == {"lr-SGD/encoders.video": [0.01, 0.005], "lr-SGD/others": [0.1, 0.05]}


# ------------------------------------------------------------------------------------------------------- resuming


class SaveAt(Callback):
    """Saves a checkpoint at the end of epoch 1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("optimizer", [sgd(), partial(AdamW, lr=0.01)])
def test_resuming_with_groups_is_bit_for_bit(tmp_path: Path, optimizer: Any) -> None:
    options: dict[str, Any] = {
        "encoder": Normed,
        "optimizer": optimizer,
        "lr_scheduler": partial(StepLR, step_size=1, gamma=0.7),
        "param_groups": {"audio.first": {"lr": 0}, "audio": {"lr": 0.001}},
    }
    whole = build(amr=AMR(), **options)
    fit(whole, max_epochs=4, callbacks=[SaveAt(tmp_path / "half.ckpt")])
    resumed = build(seed=1, amr=AMR(), **options)
    # What is frozen is in the checkpoint, too.
    fit(resumed, max_epochs=4, ckpt=tmp_path / "half.ckpt")
    assert_equal(weights(whole), weights(resumed))


GROUPINGS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "two": {"video": {"lr": 0.01}},
    "three": {"bias$": {"weight_decay": 0.0}, "audio": {"lr": 0.003, "momentum": 0.5}},
    "frozen": {"audio": {"lr": 0}},
}


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize(
    ("before", "after"), [("none", "two"), ("two", "three"), ("three", "none"), ("two", "frozen"), ("frozen", "none")]
)
def test_another_grouping_keeps_each_parameters_state(tmp_path: Path, before: str, after: str, scheduled: bool) -> None:
    """By name: nothing is trained after the resume, so the momentum is the restored one."""
    options: dict[str, Any] = {"optimizer": sgd(), "lr_scheduler": Cosine if scheduled else None}
    first = build(param_groups=GROUPINGS[before], **options)
    trainer = fit(first, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    second = build(param_groups=GROUPINGS[after], **options)
    resumed = fit(second, max_epochs=2, ckpt=tmp_path / "first.ckpt")
    old, new = momenta(first, trainer.optimizers[0]), momenta(second, resumed.optimizers[0])
    assert new.keys() == old.keys() & second.trained_parameters().keys()
    assert all(torch.equal(old[name], new[name]) for name in new)
    fresh = second.main_optimizer.make(second.trained_parameters())[0]
    for kept, asked in zip(resumed.optimizers[0].param_groups, fresh.param_groups, strict=True):
        assert [p.shape for p in kept["params"]] == [p.shape for p in asked["params"]]
        settings = {key: value for key, value in asked.items() if key not in ("params", "lr")}
        assert {key: kept[key] for key in settings} == settings
        assert scheduled or kept["lr"] == asked["lr"]


def test_a_groups_rate_is_the_one_asked_for(tmp_path: Path) -> None:
    fit(build(optimizer=sgd(), param_groups={"audio": {"lr": 0.01}})).save_checkpoint(tmp_path / "first.ckpt")
    model = build(optimizer=sgd(), param_groups={"audio": {"lr": 0.05}})
    groups = fit(model, ckpt=tmp_path / "first.ckpt").optimizers[0].param_groups
    assert [group["lr"] for group in groups] == [0.05, 0.1]


def test_a_checkpoint_that_does_not_name_its_groups(tmp_path: Path) -> None:
    """Of an earlier version: one group, whose parameters are listed."""
    path = tmp_path / "first.ckpt"
    trainer = fit(build(optimizer=sgd()))
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    del content["amr"]["recipe"]["groups"]
    torch.save(content, path)
    model = build(optimizer=sgd(), param_groups=GROUPINGS["two"])
    resumed = fit(model, ckpt=path)
    old = content["optimizer_states"][0]["state"]
    names = content["amr"]["recipe"]["parameters"]
    new = momenta(model, resumed.optimizers[0])
    assert all(torch.equal(new[name], old[i]["momentum_buffer"]) for i, name in enumerate(names))
    del content["amr"]["recipe"]
    torch.save(content, path)
    with pytest.raises(UserError, match="other groups of parameters"):
        fit(build(optimizer=sgd(), param_groups=GROUPINGS["two"]), ckpt=path)


def momenta(model: Any, optimizer: Any) -> dict[str, Tensor]:
    """Momentum of each parameter that has one, by name."""
    kept = optimizer.state
    return {name: kept[p]["momentum_buffer"] for name, p in model.trained_parameters().items() if p in kept}


# --------------------------------------------------------------------------------------------------------- two ranks

CASES = {
    "rates": {"audio": {"lr": 0.01}},
    "frozen": {"audio": {"lr": 0}},
    "head alone": {"^encoders": {"lr": 0}},
}


def trained_on(world: int, case: str) -> dict[str, Tensor]:
    """Weights after two epochs with AMR, and the last rate."""
    model = build(
        param_groups=CASES[case],
        optimizer=sgd(),
        lr_scheduler=partial(Cosine, warmup=0.3, final=0.1),
        scheduler_interval="step",
        amr=AMR(),
    )
    fit_on(world, model, Toy())
    (scheduler,) = model.trainer.lr_scheduler_configs
    return {**weights(model), "rate": torch.tensor(scheduler.scheduler.get_last_lr())}


def test_two_ranks_equal_one() -> None:
    for alone, first, second in on_one_and_two_ranks(trained_on, CASES).values():
        assert_equal(first, second)
        assert_equal(alone, first, atol=1e-6)
