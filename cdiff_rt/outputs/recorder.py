"""What a run shows at each step, as files: recorded on disk while the loop runs, written beside each image after it."""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, ClassVar, Self

import numpy as np

from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.manifest import is_plain_name
from cdiff_rt.outputs.files import disk_errors
from cdiff_rt.sampling.loop import StepState

TIMESTEPS, FLOAT = "timesteps", "<f4"  # the array beside the recorded ones in the .npz, and the type of those


class Recorder(ABC):
    """Records arrays of every step, as a `callback_on_step_end`; `Generated.save` then calls `write` for each image.

    They lie in a nameless file on the disk of `out`: memory does not grow with the steps, and nothing is left of it
    whatever happens. A run's first step begins a new recording. `decode` makes images [B, H, W, 3] uint8 of latents.
    """

    option: ClassVar[str]  # of `cdiff-rt generate`
    suffix: ClassVar[str]  # of the folder beside each image
    archive: ClassVar[str]  # the file in it that holds all arrays

    def __init__(self, out: str | Path, decode: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
        self._decode = decode
        path = Path(out).absolute()
        self._folder = next(folder for folder in (path, *path.parents) if os.path.isdir(folder))
        self._file: IO[bytes] | None = None
        self.timesteps: list[int] = []
        self.shapes: dict[str, tuple[int, ...]] = {}  # array -> [B, ...] of each step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            with suppress(OSError):  # of what it could not write, and nobody reads any more
                self._file.close()
            self._file = None

    @abstractmethod
    def arrays(self, state: StepState) -> dict[str, np.ndarray]:
        """What is recorded: name -> [B, ...], the same names and shapes at each step of a run."""

    @abstractmethod
    def write(self, folder: Path, image: int, pixels: np.ndarray, scale: int = 1) -> None:
        """Fills `folder` with what was recorded of image number `image` of the batch, [H, W, 3] uint8 or [0, 0, 3].

        Its pictures are enlarged `scale` times.
        """

    def __call__(self, state: StepState) -> None:
        arrays = self.arrays(state)
        with disk_errors(f"recording the {self.suffix.removeprefix('.')}"):
            if state.step == 0 or self._file is None:
                self.__exit__()
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open as long as this object
                self.timesteps, self.shapes = [], {name: array.shape for name, array in arrays.items()}
            for array in arrays.values():
                self._file.write(array.astype(FLOAT).tobytes())
        self.timesteps.append(state.timestep)

    def read(self, step: int, name: str, image: int) -> np.ndarray:
        """What array `name` was at one step for one image."""
        return np.array(self._recorded()[name][step, image])

    def _recorded(self) -> np.ndarray:
        """[S] with a field for each array, as it lies in the file."""
        assert self._file is not None
        step = np.dtype([(name, FLOAT, shape) for name, shape in self.shapes.items()])
        return np.memmap(self._file, step, "r", shape=(len(self.timesteps),))

    def check(self, batch: int, steps: int) -> None:
        """Raises BadRequest unless this holds such a run, BadArtefact if a name cannot be that of a file."""
        seen = {shape[0] for shape in self.shapes.values()}
        if self._file is None or len(self.timesteps) != steps or seen != {batch}:
            remedy = "give it to generate as callback_on_step_end, and save before its with block ends"
            raise BadRequest(self.suffix.removeprefix("."), "the recorder did not see this run", remedy)
        for name in self.shapes:
            if not is_plain_name(name) or name == TIMESTEPS:
                raise BadArtefact("recorder", f"a modality has the name {name!r}", "give it another in the bundle")

    def write_arrays(self, folder: Path, image: int) -> None:
        """All of one image as an .npz, [S, ...] by name, and the timesteps [S]; read and written bit by bit."""
        recorded = self._recorded()
        arrays: dict[str, Any] = {name: recorded[name][:, image] for name in self.shapes}
        np.savez(folder / self.archive, **arrays | {TIMESTEPS: np.array(self.timesteps, "<i8")})

    @classmethod
    def folder_of(cls, image: Path) -> Path:
        """Where `write` puts things: beside the image, man.png -> man.influence."""
        return image.with_suffix(cls.suffix)

    @classmethod
    def check_target(cls, image: Path, *, force: bool) -> None:
        """Raises BadRequest if something is there that may not be replaced: by force only what this class wrote."""
        folder = cls.folder_of(image)
        if not os.path.lexists(folder):
            return
        if folder.is_symlink() or not (folder / cls.archive).is_file():
            raise BadRequest("out", f"{folder} was not written by {cls.option}", "remove it or choose another name")
        if not force:
            raise BadRequest("out", f"{folder} exists", "choose another name or overwrite it with --force")


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0..count-1, evenly spaced, with the first and the last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()
