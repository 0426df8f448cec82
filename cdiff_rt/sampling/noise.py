"""Noise that depends on the seed, the image's number and the draw's number, and on nothing else.

What the steps of a run add is one path of Brownian motion, cut into steps: so a seed's picture is nearly the same in 10 or
20 steps as in 50.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TypeVar

import numpy as np

from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import C_NOISE, SolverTable

SAMPLING, INPAINTING, EDITING, TUNING, CALIBRATING, LEARNING = range(6)  # streams: none moves another

Drawn = TypeVar("Drawn")


def normal(seed: int, images: range, draw: int, shape: tuple[int, ...], stream: int = SAMPLING) -> np.ndarray:
    """[len(images), *shape] float32 standard normal; draw 0 is x_T, the others are those of `path`.

    Counter-based (Philox, Salmon et al. 2011): image i's noise is the same in any batch, on any backend.
    """
    return np.stack([_one(seed, (0, stream, image, draw), shape) for image in images])


def _one(seed: int, counter: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=seed, counter=counter))
    return generator.standard_normal(shape, dtype=np.float32)


def of_steps(
    schedule: Schedule, table: SolverTable, seed: int, images: range, shape: tuple[int, ...]
) -> Callable[[int], np.ndarray]:
    """What each step of a run adds: its number -> [len(images), *shape] float32, standard normal; 0 if it adds nothing."""
    mixtures = path(schedule.snr(table.timesteps), schedule.snr(schedule.usual()[::-1]))

    def of_step(step: int) -> np.ndarray:
        added = np.zeros((len(images), *shape), np.float32)
        for i in np.flatnonzero(mixtures[step]) if table.coefficients[step, C_NOISE] else ():
            added += np.float32(mixtures[step, i]) * normal(seed, images, int(i) + 1, shape)
        return added

    return of_step


@contextmanager
def ahead(draw: Callable[[int], Drawn], steps: int, helpers: int) -> Iterator[Callable[[int], Drawn]]:
    """What `draw` gives for the steps 0, 1, ..., drawn by so many threads while the caller, who asks in turn, does else.

    Numpy's generators let other threads run. While what is asked for is not there, the caller draws too, so all is well
    where no thread can be started.
    """
    drawn, left = [Future[Drawn]() for _ in range(steps)], deque(range(steps))

    def draw_one() -> bool:
        """Whether there was one left."""
        try:
            step = left.popleft()
        except IndexError:
            return False
        try:
            drawn[step].set_result(draw(step))
        except BaseException as error:  # noqa: BLE001 - which whoever asks raises
            drawn[step].set_exception(error)
        return True

    def help_along() -> None:
        while draw_one():
            pass

    def of_step(step: int) -> Drawn:
        while not drawn[step].done() and draw_one():
            pass
        return drawn[step].result()

    threads = [Thread(target=help_along, daemon=True) for _ in range(min(helpers, steps))]
    try:
        with suppress(RuntimeError):  # no more threads can be started
            for thread in threads:
                thread.start()
        yield of_step
    finally:
        left.clear()
        for thread in threads:
            if thread.ident is not None:
                thread.join()


def path(snr: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """[S, D]: the noise of each step as a mixture of the draws 1 ... D. Rows are orthonormal.

    snr [S + 1], knots [K + 1]: `Schedule.snr`, where steps begin and the last one ends.

    A step of the diffusion SDE from a to a' adds (1 - a') / sqrt(a') (W(snr') - W(snr)), where W is a Brownian motion:
    its increments are independent, with the variance snr' - snr. The draws 1 ... K are the increments between knots;
    steps that go from knot to knot take them as they are, longer ones a sum. What divides the way D between two knots
    into pieces d_p has draws z_p of its own, and so has what lies outside of all:

    dW_p = d_p / D dW + sqrt(d_p) z_p - d_p / D sum_q sqrt(d_q) z_q
    """
    at = np.union1d(snr, knots)
    pieces = np.diff(at)  # [P] d_p
    of_steps, of_knots = _within(at, snr), _within(at, knots)  # [S, P], [K, P]
    ways = of_knots @ pieces  # [K] D
    shares = (of_knots * pieces / ways[:, None]).T  # [P, K] d_p / D
    drawn = shares * np.sqrt(ways)
    bridge = np.diag(np.sqrt(pieces)) - shares @ (of_knots * np.sqrt(pieces))
    return of_steps @ np.hstack([drawn, bridge]) / np.sqrt(of_steps @ pieces)[:, None]


def _within(at: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """[len(bounds) - 1, P]: 1 where a piece, between two of `at`, lies between two of `bounds`; else 0."""
    return ((bounds[:-1, None] <= at[:-1]) & (at[1:] <= bounds[1:, None])).astype(np.float64)
