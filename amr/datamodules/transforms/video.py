"""Transform from a clip's stored frames to a network's input. Randomness is torch's; the caller seeds it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import RandomResizedCrop  # type: ignore[attr-defined]  # untyped
from torchvision.transforms.v2.functional import resize  # type: ignore[attr-defined]

from amr.datamodules.atoms import Atoms, video_atoms
from amr.datamodules.store.raw import is_raw
from amr.datamodules.transforms.allowed import require_option
from amr.datamodules.transforms.frames import cut, frame_size, raw_pixels
from amr.datamodules.transforms.picture import Picture, picture_of


@dataclass(frozen=True)
class View:
    """Part of a clip's frames that the network sees.

    Attributes:
        box: Top, left, height and width in pixels, which may reach over the border; None: all.
        mirror: Left and right exchanged.
        frames: Views of each frame, where they differ; `box` and `mirror` are then without effect.
    """

    box: tuple[int, int, int, int] | None = None
    mirror: bool = False
    frames: "tuple[View, ...]" = ()


class ChosenFrames:
    """Clips' frames on their way to the device that decodes them, with every random choice made.

    Neither a dataclass nor a tuple: Lightning would move what is in it to the device, and nvjpeg reads host memory.

    Attributes:
        data: (bytes,) uint8, the JPEG or PPM files one after the other.
        sizes: Bytes of each frame's file, a list per clip; empty for a clip without video.
        views: Views of each clip.
    """

    def __init__(self, data: Tensor, sizes: list[list[int]], views: list[View]) -> None:
        self.data, self.sizes, self.views = data, sizes, views

    @classmethod
    def none(cls) -> "ChosenFrames":
        """Those of one clip that has no video."""
        return cls(torch.empty(0, dtype=torch.uint8), [[]], [View()])

    def clips(self) -> "list[ChosenFrames]":
        """Each clip's frames; the inverse of `join`."""
        data = torch.split(self.data, [sum(sizes) for sizes in self.sizes])
        return [ChosenFrames(d, [s], [v]) for d, s, v in zip(data, self.sizes, self.views, strict=True)]

    @classmethod
    def join(cls, clips: Sequence["ChosenFrames"]) -> "ChosenFrames":
        """All of the clips' frames."""
        data = torch.cat([clip.data for clip in clips])
        return cls(data, [s for clip in clips for s in clip.sizes], [v for clip in clips for v in clip.views])


@dataclass(frozen=True)
class VideoTransform:
    """Stored frames to a fixed number of them: (frames, 3, height, width) float32, 1 channel if `grayscale`.

    Args:
        frames: Number taken. Frames repeat in a clip that has fewer.
        pick: segments: the clip is cut into as many equal segments and gives one frame of each: a random one in
            training, the middle one otherwise. first: the first ones that are stored, always.
        size: Height and width in pixels; one number: a square.
        augment: In training. shift: move by up to `shift` pixels, the border repeated. resized_crop: a random part
            of 8 to 100 % of the area at a random aspect ratio, as is usual for ImageNet.
        shift: Pixels, for augment=shift.
        flip: In training, mirror every second clip (every second frame, with `per_frame`).
        per_frame: Draw `augment` and `flip` for each frame; otherwise all frames of a clip are augmented alike.
        grayscale: Keep the luminance only.
        mean: Subtracted from values in 0..1: a channel each, or one number for all.
        std: Divides what is left.
    """

    frames: int = 3
    size: int | tuple[int, int] = 224
    augment: Literal["none", "shift", "resized_crop"] = "none"
    shift: int = 4
    flip: bool = False
    grayscale: bool = False
    mean: float | tuple[float, float, float] = 0.5
    std: float | tuple[float, float, float] = 0.5
    pick: Literal["segments", "first"] = "segments"
    per_frame: bool = False

    def __post_init__(self) -> None:
        require_option(self.frames >= 1, "video.frames", self.frames, "at least 1")
        require_option(min(self._size) >= 1, "video.size", self.size, "at least 1 pixel")
        require_option(self.shift >= 0, "video.shift", self.shift, "at least 0 pixels")
        require_option(min(_channels(self.std)) > 0, "video.std", self.std, "positive")
        for key in ("mean", "std"):
            value = getattr(self, key)
            require_option(
                len(_channels(value)) == 1 or not self.grayscale, f"video.{key}", value, "one number if grayscale"
            )

    def __call__(self, stored: Sequence[Any], *, train: bool) -> Tensor:
        """Transform the clip's frames, each a buffer with a JPEG file, or with a PPM file if they are raw.

        Raises:
            ValueError: A frame cannot be decoded.
        """
        return self.normalised(self._shown(stored, train))

    def pixels(self, stored: Sequence[Any], *, train: bool) -> Tensor:
        """What a call normalises: (frames, channels, height, width) uint8. Arguments and errors are those of a call."""
        return self._shown(stored, train).to(torch.uint8)

    def _shown(self, stored: Sequence[Any], train: bool) -> Tensor:
        """Pixels that are seen of a clip, as uint8, or as floats where a shift needed them."""
        chosen = self.choose(stored, train=train)
        return self._look(self._decode(chosen, torch.device("cpu"))[0], chosen.views[0])

    def normalised(self, pixels: Tensor) -> Tensor:
        """(x / 255 - mean) / std of pixels x (..., channels, height, width) in 0..255, float32 on their device."""
        return self._normalise(torch.empty(pixels.shape, device=pixels.device).copy_(pixels))

    def _normalise(self, x: Tensor) -> Tensor:
        """Normalises pixels as floats (..., channels, height, width), in place: one multiply-add."""
        factor, offset = _affine(_channels(self.mean), _channels(self.std), str(x.device))
        return x.mul_(factor).add_(offset)

    def choose(self, stored: Sequence[Any], *, train: bool, whole: bool = False) -> ChosenFrames:
        """Draw all that is random: which frames, and what is seen of them. `finish` does the rest, now or later.

        Args:
            stored: The clip's frames, as a call has them.
            train: Whether to augment.
            whole: Keep raw frames as they are, and not only the part of them that is seen.

        Raises:
            ValueError: A frame is damaged.
        """
        files = [stored[i] for i in self._sample(len(stored), train)]
        view = self._views(lambda: frame_size(files[0]), train)
        if not whole and self.augment == "resized_crop" and is_raw(files[0]):
            files, view = _seen(files, view)
        # One buffer, for what travels from process to process is a file descriptor a tensor; a copy, for torch warns
        # of memory that it may not write to.
        buffer = bytearray().join(files)
        data = torch.frombuffer(buffer, dtype=torch.uint8)
        return ChosenFrames(data, [[len(file) for file in files]], [view])

    def _views(self, size: Callable[[], tuple[int, int]], train: bool) -> View:
        """Draws what is seen of a clip's frames, whose height and width `size` tells."""
        if not self.per_frame:
            return self._view(size, train)
        return View(frames=tuple(self._view(size, train) for _ in range(self.frames)))

    def _view(self, size: Callable[[], tuple[int, int]], train: bool) -> View:
        box = None
        if train and self.augment == "resized_crop":
            params = _resized_crop(self._size).make_params([torch.empty(()).expand(size())])
            box = (params["top"], params["left"], params["height"], params["width"])
        elif train and self.augment == "shift" and self.shift:
            top, left = (int(torch.randint(2 * self.shift + 1, ())) - self.shift for _ in range(2))
            box = (top, left, *self._size)
        return View(box, train and self.flip and bool(torch.rand(()) < 0.5))

    def decode(self, stored: Sequence[Any]) -> Tensor:
        """All of a clip's frames, (frames, channels, h, w) uint8.

        Raises:
            ValueError: A frame cannot be decoded, or their sizes differ.
        """
        data = torch.frombuffer(bytearray().join(stored), dtype=torch.uint8)
        chosen = ChosenFrames(data, [[len(file) for file in stored]], [View()])
        frames = [frame for clip in self._decode(chosen, torch.device("cpu")) for frame in clip]
        if any(frame.shape != frames[0].shape for frame in frames):
            raise ValueError("its frames differ in size")
        return _stacked(frames)

    def batch(self, clips: Sequence[Tensor], draws: Sequence[AbstractContextManager[None]], *, train: bool) -> Tensor:
        """Same as a call per clip, from frames that are already decoded.

        Args:
            clips: Each clip's frames, as `decode` gives them.
            draws: Contexts in which a clip's random choices are made.
            train: Whether to augment.

        Returns:
            (clips, frames, channels, height, width) float32.
        """
        x = torch.empty((len(clips), *self.shape()))
        for i, (frames, draw) in enumerate(zip(clips, draws, strict=True)):
            with draw:
                places = self._sample(len(frames), train)
                view = self._views(lambda frames=frames: tuple(frames.shape[-2:]), train)  # type: ignore[misc]
            x[i] = self._look([frames[place] for place in places], view)
        return self._normalise(x)

    def finish(
        self,
        chosen: ChosenFrames,
        device: torch.device | str,
        corrupt: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Decode and transform the clips' chosen frames on a device.

        Args:
            chosen: The frames.
            device: Where.
            corrupt: Corruption of a clip's decoded frames, (frames, channels, h, w) uint8, first.

        Returns:
            (clips, frames, channels, height, width) float32; zeros for a clip without frames.

        Raises:
            ValueError: A frame cannot be decoded.
        """
        x = torch.empty((len(chosen.views), *self.shape()), device=device)
        there = [i for i, sizes in enumerate(chosen.sizes) if sizes]
        for i, frames in zip(there, self._decode(chosen, torch.device(device)), strict=True):
            x[i] = self._look([*corrupt(torch.stack(frames))] if corrupt else frames, chosen.views[i])
        self._normalise(x)
        if len(there) < len(x):
            x[[i for i, sizes in enumerate(chosen.sizes) if not sizes]] = 0
        return x

    def _decode(self, chosen: ChosenFrames, device: torch.device) -> list[list[Tensor]]:
        """Each clip's frames, (channels, h, w) uint8; clips without any are left out."""
        mode = ImageReadMode.GRAY if self.grayscale else ImageReadMode.RGB
        files = torch.split(chosen.data, [size for sizes in chosen.sizes for size in sizes])
        if files and is_raw(files[0].numpy()):
            raw = [raw_pixels(file, grayscale=self.grayscale).to(device) for file in files]
            return self._clips(raw)  # whose sizes differ where they were cut
        try:
            images: Any = decode_jpeg(list(files), mode, device) if files else []
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(str(error).splitlines()[0]) from error
        clips = self._clips(images)
        if any(image.shape != clip[0].shape for clip in clips for image in clip):
            raise ValueError("its frames differ in size")
        return clips

    def _clips(self, images: list[Tensor]) -> list[list[Tensor]]:
        return [images[i : i + self.frames] for i in range(0, len(images), self.frames)]

    def _look(self, frames: list[Tensor], view: View) -> Tensor:
        """View of frames (channels, h, w), as (frames, channels, height, width)."""
        if view.frames:
            looks = [self._look([frame], own) for frame, own in zip(frames, view.frames, strict=True)]
            return looks[0] if len(looks) == 1 else torch.cat(looks)  # which would copy it
        if self.augment == "resized_crop" and view.box:
            top, left, height, width = view.box
            frames = [frame[:, top : top + height, left : left + width] for frame in frames]  # before they are copied
        x = resize(_stacked(frames), [*self._size], antialias=True)
        if self.augment == "shift" and view.box:
            top, left, _, _ = view.box
            x = pad(x.float(), (-left, left, -top, top), mode="replicate")  # on a GPU, floats only
        return x.flip(-1) if view.mirror else x

    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.frames, 1 if self.grayscale else 3, *self._size)

    def atoms(self, blocks: Sequence[int] = (4, 4, 4)) -> Atoms:
        """The input in pieces that are explained together: frames × patches.

        Args:
            blocks: In time, height and width; fewer where there are fewer frames or pixels.
        """
        shape = self.shape()
        times, rows, columns = (min(b, n) for b, n in zip(blocks, (shape[0], *shape[2:]), strict=True))
        return video_atoms(shape, (rows, columns), times)

    def picture(self, x: Tensor, atoms: Atoms) -> Picture:
        """An input (frames, channels, height, width) to look at: each block's middle frame, side by side."""
        mean, std = (torch.tensor(_channels(v)).view(-1, 1, 1) for v in (self.mean, self.std))
        blocks = atoms.grid[0]
        shown = [(2 * b + 1) * len(x) // (2 * blocks) for b in range(blocks)]
        pixels = torch.cat([(x[i].float().cpu() * std + mean).clamp(0, 1) for i in shown], dim=2)  # (C, H, blocks W)
        index = torch.arange(x.numel()).reshape(x.shape)
        element = torch.cat([index[i, 0] for i in shown], dim=1)
        image = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        return picture_of(image, element, atoms, f"frames {', '.join(str(i) for i in shown)} of {len(x)}")

    @property
    def _size(self) -> tuple[int, int]:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def _sample(self, available: int, train: bool) -> list[int]:
        if self.pick == "first":
            return [min(i, available - 1) for i in range(self.frames)]
        within = torch.rand(self.frames) if train else torch.full((self.frames,), 0.5)
        places = (torch.arange(self.frames) + within) * (available / self.frames)
        return [min(int(place), available - 1) for place in places.tolist()]


def _channels(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


@lru_cache
def _affine(mean: tuple[float, ...], std: tuple[float, ...], device: str) -> tuple[Tensor, Tensor]:
    """Factor and offset of pixels that normalise them, (channels or 1, 1, 1) each, rounded once from float64."""
    middle, width = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    return (1 / (255 * width)).float().to(device), (-middle / width).float().to(device)


def _stacked(frames: list[Tensor]) -> Tensor:
    """Frames (channels, h, w) as (frames, channels, h, w), in the layout that they have.

    The CPU's decoder gives channels last, and `torch.stack` would copy them to planes, which are resized at half the
    speed.
    """
    if any(frame.stride(0) != 1 for frame in frames):
        return torch.stack(frames)
    return torch.stack([frame.permute(1, 2, 0) for frame in frames]).permute(0, 3, 1, 2)


def _seen(files: Sequence[Any], view: View) -> tuple[list[bytes], View]:
    """The parts of raw frames that a view shows, and what is left of it: which are mirrored."""
    views = view.frames or (view,) * len(files)
    parts = [cut(file, own.box) if own.box else bytes(file) for file, own in zip(files, views, strict=True)]
    left = tuple(View(mirror=own.mirror) for own in views)
    return parts, View(frames=left) if view.frames else left[0]


@lru_cache
def _resized_crop(size: tuple[int, int]) -> Any:
    return RandomResizedCrop(size)
