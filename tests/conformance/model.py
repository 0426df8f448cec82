"""The runtime on one backend, called as the reference was: with given conditions, noise and timesteps."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from cdiff_rt.engines.backends import load_engine
from cdiff_rt.engines.base import Engine
from cdiff_rt.manifest import Bundle
from cdiff_rt.sampling import fusion
from cdiff_rt.sampling.experts import Experts
from cdiff_rt.sampling.loop import Callback, sample
from cdiff_rt.sampling.solvers import SolverTable
from cdiff_rt.settings import Influence

REFERENCE = Influence()
Conditions = dict[str, np.ndarray]  # modality -> what its encoder takes, [B, ...]


@dataclass
class Model:
    bundle: Bundle
    backend: str
    graphs: Callable[[str], Bundle] | None = None  # network -> the bundle with its graph, if it is not `bundle`
    _engines: dict[str, Engine] = field(default_factory=dict)

    def engine(self, network: str) -> Engine:
        if network not in self._engines:
            bundle = self.graphs(network) if self.graphs else self.bundle
            self._engines[network] = load_engine(self.backend, bundle, network)
        return self._engines[network]

    def experts(self, conditions: Conditions, timesteps: Sequence[int]) -> Experts:
        """Of the conditions given, in the order of the model's modalities."""
        names = tuple(m.name for m in self.bundle.manifest.modalities if m.name in conditions)
        t = np.array(timesteps, np.int64)
        return Experts(
            names,
            [self.engine(f"expert.{name}") for name in names],
            [self.engine(f"condition.{name}")(inputs=conditions[name])["context"] for name in names],
            [self.engine(f"time.{name}")(t=t)["projections"] for name in names],
        )

    def adjustment(self, names: Sequence[str], timesteps: np.ndarray, influence: Influence) -> fusion.Adjustment:
        rows = [m for m in self.bundle.manifest.modalities if m.name in names]
        anchor = next((i for i, m in enumerate(rows) if m.anchor), None)
        gain = fusion.decay(influence.decay, timesteps, self.bundle.manifest.schedule.train_steps)
        decays = [m.decays for m in rows]
        return fusion.adjustment(decays, anchor, gain, influence)

    def fused(self, outs: np.ndarray, logits: np.ndarray, t: int, names: Sequence[str], influence: Influence):
        """The influence functions [M, B, 1, ...] at one timestep and the prediction that they mix."""
        adjust = self.adjustment(names, np.array([t]), influence)
        weights = fusion.influence(logits, fusion.of_step(adjust, 0, outs.ndim - 1))
        return weights, fusion.fuse(outs, weights)

    def run(
        self,
        conditions: Conditions,
        x: np.ndarray,
        noise: Callable[[int], np.ndarray],
        table: SolverTable,
        callback: Callback | None = None,
        influence: Influence = REFERENCE,
    ) -> np.ndarray:
        experts = self.experts(conditions, table.timesteps.tolist())
        adjust = self.adjustment(experts.modalities, table.timesteps, influence)
        return sample(experts, x, noise, table, adjust, callback)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.engine("vae.decode")(z=z / np.float32(self.bundle.manifest.latent_scale))["image"]
