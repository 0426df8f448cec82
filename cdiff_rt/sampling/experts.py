"""The experts of one run: the engines of the chosen modalities, with all that does not depend on x_t computed once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Network = Callable[..., dict[str, np.ndarray]]  # arrays by name -> arrays by name


@dataclass(frozen=True)
class Experts:
    """Calling it maps x_t at step i to every expert's prediction and influence logit."""

    modalities: tuple[str, ...]
    engines: Sequence[Network]
    contexts: list[np.ndarray]  # per modality [B, T_m, K_m]: cross-attention keys and values
    projections: list[np.ndarray]  # per modality [S, E_m]: time projections
    map: Callable[..., Iterable[dict[str, np.ndarray]]] = map  # an executor's map runs the experts side by side

    def __call__(self, x: np.ndarray, step: int, present: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """x [B, C, *latent] -> outs [M, B, C, *latent], logits [M, B, 1, *latent], of those present [M] in this step.

        The others are not called, and are zeros.
        """
        present = np.ones(len(self.engines)) if present is None else present

        def run(engine: Network, projections: np.ndarray, context: np.ndarray) -> dict[str, np.ndarray]:
            return engine(x=x, projections=projections[step : step + 1], context=context)

        called = np.flatnonzero(present).tolist()
        columns = ([column[m] for m in called] for column in (self.engines, self.projections, self.contexts))
        outs = np.zeros((len(present), *x.shape), np.float32)
        logits = np.zeros_like(outs[:, :, :1])
        for m, result in zip(called, self.map(run, *columns), strict=True):
            outs[m], logits[m] = result["out"], result["logit"]
        return outs, logits
