"""How much the experts disagree: what each would have drawn, beside what was drawn, by how much it decides.

While there is little but noise to see, experts differ in what they happen to know: one alone is told the colour of the
hair, and all take it over as soon as it shows. What they still differ in later is what they contradict each other in.
"""

from dataclasses import dataclass, field

import numpy as np

from cdiff_rt.controls import FIRST
from cdiff_rt.notes import log
from cdiff_rt.sampling.loop import Callback, StepState

FROM = 0.4  # of the way from noise to image: what counts
PERCENTILE = 99  # of the places: an area of a few is enough to contradict each other in
# By a manifest's hash: what only one in twenty images of conditions that agree comes to (`python -m
# recipes.faces.conflicts level`). Other models' conflicts are counted and not judged.
LEVELS = {"2b80698aa1bb31ff9e7d288abed2ec518c77c80eef1c4218a7a192a5989f4bce": 0.281}  # faces-128


def disagreement(predictions: np.ndarray, influence: np.ndarray) -> np.ndarray:
    """predictions [M, B, C, *latent], influence [M, B, 1, *latent] of a step -> [B, *latent].

    The root mean square, over modalities by their influence and over channels, of the distance from the mix.
    """
    share = np.abs(influence) / np.abs(influence).sum(0)
    apart = predictions - (influence * predictions).sum(0)
    return np.sqrt((share * apart**2).sum(0).mean(1))


@dataclass
class Conflict:
    """A run's disagreement, gathered as its `callback_on_step_end`; a run's first step begins anew."""

    train_steps: int  # of the schedule
    modalities: tuple[str, ...] = ()
    steps: list[np.ndarray] = field(default_factory=list)  # [B, *latent] each

    def __call__(self, state: StepState) -> None:
        if state.step == 0:
            self.modalities, self.steps = state.modalities, []
        if state.timestep <= (1 - FROM) * self.train_steps and len(state.modalities) > 1:
            self.steps.append(disagreement(state.predictions, state.influence))

    @property
    def map(self) -> np.ndarray | None:
        """[B, *latent], the mean over the steps that count; None if none did."""
        return np.mean(self.steps, axis=0) if self.steps else None

    @property
    def of_images(self) -> list[float]:
        """One number for each, of the batch's images; empty if no step counted."""
        if self.map is None:
            return []
        return [float(np.percentile(places, PERCENTILE)) for places in self.map]

    def beside(self, callback: Callback | None, *, always: bool) -> Callback | None:
        """Both; None if there is no callback and this is not to be gathered `always`."""

        def both(state: StepState) -> None:
            self(state)
            if callback:
                callback(state)

        return both if callback or always else None

    def tell(self, manifest_hash: str, *, decided: bool) -> None:
        """A note where it is likely that a condition was not followed, unless it was decided which one leads."""
        level, most = LEVELS.get(manifest_hash), max(self.of_images, default=0.0)
        if level is not None and most > level and not decided:
            names, lead = " and ".join(self.modalities), self.modalities[-1]
            log.info(
                "%s disagree (%.2f): one of them may not be followed; give one the lead, --influence %s%s, or a --region "
                "of its own (docs/controls.md)",
                *(names, most, lead, FIRST),
            )
