"""A bundle's expert as one of a composition: asked in process, its condition read and encoded as in its bundle."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Engine
from cdiff_rt.joined import lending, modality_of
from cdiff_rt.manifest import Bundle
from cdiff_rt.sampling.preconditioning import TIME, Parameterisation

BACKEND = "onnxruntime"


class Bundled:
    """A denoiser (x [B, C, *latent], time [B], context [B, T, K]) of a bundle's networks, which load at first use.

    A step's network gives a prediction and a logit at once: who asks for both of the same x pays for one call.
    """

    def __init__(self, bundle: Bundle, name: str) -> None:
        self.bundle, self.modality = bundle, modality_of(bundle, name)
        schedule = bundle.manifest.schedule
        self.form = Parameterisation(schedule.prediction, schedule=schedule, whole_timesteps=True)
        self._engines = dict[str, Engine]()
        self._last: tuple[int, np.ndarray, np.ndarray, dict[str, np.ndarray]] | None = None

    @property
    def condition_shape(self) -> tuple[int, ...]:
        """Of its context, as its encoder makes it."""
        context = self.bundle.manifest.networks[f"condition.{self.modality.name}"].outputs[0]
        return tuple(size for size in context.shape if isinstance(size, int))

    def __call__(self, x: np.ndarray, time: np.ndarray, context: np.ndarray) -> np.ndarray:
        return self._at(x, float(time[0]), context)["out"]

    def logit(self, x: np.ndarray, alpha_bar: float, context: np.ndarray) -> np.ndarray:
        """The logarithm of its influence, as its dynamic diffuser says."""
        return self._at(x, float(self.form.table(np.array([alpha_bar]))[0, TIME]), context)["logit"]

    def condition(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        return self._engine("condition")(inputs=inputs)

    def _at(self, x: np.ndarray, time: float, context: np.ndarray) -> dict[str, np.ndarray]:
        t, last = int(np.rint(time)), self._last
        if last and last[0] == t and np.array_equal(last[1], x) and np.array_equal(last[2], context):
            return last[3]
        projections = self._engine("time")(t=np.array([t]))["projections"]
        made = self._engine("expert")(x=x, projections=projections, context=context)
        self._last = t, x.copy(), context.copy(), made
        return made

    def _engine(self, part: str) -> Engine:
        if part not in self._engines:
            self._engines[part] = load_engine(BACKEND, self.bundle, f"{part}.{self.modality.name}")
        return self._engines[part]


def lent(bundle: Bundle, denoisers: Mapping[str, Any]) -> Bundle:
    """A composition's bundle, in which conditions of bundles' experts are read as there."""
    for name, of in denoisers.items():
        bundle = lending(bundle, name, of.bundle, of.modality) if isinstance(of, Bundled) else bundle
    return bundle


def encoders_of(denoisers: Mapping[str, Any]) -> dict[str, Any]:
    """The networks that encode these experts' conditions, by their names in a bundle."""
    return {f"condition.{name}": of.condition for name, of in denoisers.items() if isinstance(of, Bundled)}
