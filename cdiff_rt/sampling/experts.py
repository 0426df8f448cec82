"""The experts of one run: the engines of the chosen modalities, with all that does not depend on x_t computed once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from cdiff_rt.sampling.fusion import ABSENT, softmax

Network = Callable[..., dict[str, np.ndarray]]  # arrays by name -> arrays by name


@dataclass(frozen=True)
class Experts:
    """Calling it maps x_t at step i to every expert's prediction and influence logit.

    With `routers`, which tell the logits beforehand, an image calls the `top_k` experts of most influence only.
    """

    modalities: tuple[str, ...]
    engines: Sequence[Network]
    contexts: list[np.ndarray]  # per modality [B, T_m, K_m]: cross-attention keys and values
    projections: list[np.ndarray]  # per modality [S, E_m]: time projections
    map: Callable[..., Iterable[dict[str, np.ndarray]]] = map  # an executor's map runs the experts side by side
    routers: Sequence[Network] = ()
    top_k: int | None = None

    def __call__(self, x: np.ndarray, step: int, present: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """x [B, C, *latent] -> outs [M, B, C, *latent], logits [M, B, 1, *latent], of those present [M] in this step.

        The others are not called, and are zeros; of an image that leaves an expert out, its logit is `ABSENT`.
        """
        present = np.ones(len(self.engines)) if present is None else present
        outs = np.zeros((len(present), *x.shape), np.float32)
        logits = np.zeros_like(outs[:, :, :1])
        asked = np.repeat(present[:, None] > 0, len(x), axis=1)  # [M, B]
        if self.routers:
            for m, result in self._ask(self.routers, x, step, asked):
                logits[m] = result["logit"]
            asked = self._most(logits, asked)
            logits[~asked & (present[:, None] > 0)] = ABSENT
        for m, result in self._ask(self.engines, x, step, asked):
            outs[m, asked[m]] = result["out"]
            if not self.routers:
                logits[m] = result["logit"]
        return outs, logits

    def _ask(
        self, networks: Sequence[Network], x: np.ndarray, step: int, asked: np.ndarray
    ) -> Iterable[tuple[int, dict[str, np.ndarray]]]:
        """What each network answers of the images that ask it, [M, B]; who is asked by none is not called."""

        def run(m: int) -> dict[str, np.ndarray]:
            images = slice(None) if asked[m].all() else asked[m]
            row = self.projections[m][step : step + 1]
            return networks[m](x=x[images], projections=row, context=self.contexts[m][images])

        called = np.flatnonzero(asked.any(1)).tolist()
        return zip(called, self.map(run, called), strict=True)

    def _most(self, logits: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """[M, B]: of those asked, the `top_k` of most influence in each image."""
        if self.top_k is None or self.top_k >= len(asked):
            return asked
        shares = softmax(logits, asked.reshape(*asked.shape, *(1,) * (logits.ndim - 2)))
        of_images = shares.reshape(*asked.shape, -1).mean(2)
        order = np.argsort(-of_images, axis=0, kind="stable")  # equal ones in the model's order
        return asked & (np.argsort(order, axis=0) < self.top_k)
