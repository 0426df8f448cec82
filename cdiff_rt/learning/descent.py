"""The loop of `train`: batches that follow from an iteration's number, gradients of the mix's error, states on disk."""

import math
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cdiff_rt.editing.imagic import restore, save
from cdiff_rt.export.to_onnx import OPSET, quiet_exporter
from cdiff_rt.learning.calibrate import AT_ONCE, FOLDS, IN_TABLE, LEVELS, draw_of, spread_levels
from cdiff_rt.learning.learned import NETWORK, PORTS, Plan, time_of
from cdiff_rt.learning.pairs import Answer, Pairs, ask, contexts_of, levels
from cdiff_rt.nets.dynamic import DynamicDiffuser, config_of, mixing_error
from cdiff_rt.notes import log
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling import noise

ROWS, TIMES = 8, 4  # pairs of an iteration, and timesteps of each
SAVED_EVERY, TOLD_EVERY = 60.0, 10.0  # seconds
SAVED_AFTER, WARM, TIMED = 100, 1, 3  # iterations; the first few are not those that are timed
WARM_UP, STEEPEST = 50, 1.0  # iterations; the largest norm of a gradient
SCALED_BY = 256  # pairs, whose contexts say how large such are
AGREE = 1e-3  # of the error, that stands for the experts' variance where they agree


class Descent:
    """Of all experts' dynamic diffusers at once."""

    def __init__(self, pipeline: Pipeline, pairs: Pairs, visible: np.ndarray, plan: Plan, state: Path) -> None:
        self._pipeline, self._pairs, self._plan, self._state = pipeline, pairs, plan, state
        self._rows = np.flatnonzero(np.arange(len(pairs.x0)) % FOLDS < FOLDS - 1)
        axes = pairs.x0.ndim - 2
        self._visible = torch.from_numpy(visible).float().reshape(-1, *(1,) * axes)
        contexts = contexts_of(pipeline, pairs, self._rows[:SCALED_BY])
        self.shapes = [context.shape[1:] for context in contexts]  # [tokens, width] of each condition
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            self._nets = nn.ModuleList([self._fresh(torch.from_numpy(context)) for context in contexts])

    def _fresh(self, known: Tensor) -> DynamicDiffuser:
        """For contexts such as those that are known [N, tokens, width]."""
        deviation = known.std(0, correction=0)
        deviation = torch.where(deviation > 1e-6 * (1 + known.abs().amax(0)), deviation, torch.ones_like(deviation))
        tokens, width = known.shape[1:]
        config = config_of(self._pairs.x0.shape[1:], (tokens, width), self._plan.width)
        return DynamicDiffuser(config, known.mean(0), deviation)

    def run(self, total: int, progress: Callable[[], object] | None) -> None:
        """Goes on from the last state on disk, to the end."""
        parameters = dict(self._nets.named_parameters())
        optimizer = adamw(parameters.values(), self._plan.rate)
        first, losses = restore(self._state, parameters, optimizer), []
        began = told = saved = time.monotonic()
        for i in range(first, total):
            losses.append(self._step(optimizer, i, total))
            if progress:
                progress()
            now, last = time.monotonic(), i + 1 == total
            if now - told > TOLD_EVERY or last:
                left = (now - began) / (i + 1 - first) * (total - i - 1) / 60
                line = "train: iteration %d of %d, relative error %.4f, %.1f minutes left"
                log.info(line, i + 1, total, sum(losses) / len(losses), left)
                losses, told = [], now
            if now - saved > SAVED_EVERY or (i + 1) % SAVED_AFTER == 0 or last:
                save(self._state, i + 1, parameters, optimizer)
                saved = now

    def seconds(self) -> float:
        """Of an iteration, from a few of them; they are not undone."""
        optimizer = adamw(self._nets.parameters(), self._plan.rate)
        for i in range(WARM):
            self._step(optimizer, i, WARM)
        began = time.monotonic()
        for i in range(TIMED):
            self._step(optimizer, i, TIMED)
        return (time.monotonic() - began) / TIMED

    def _step(self, optimizer: torch.optim.Optimizer, i: int, total: int) -> float:
        generator = np.random.Generator(np.random.Philox(key=self._plan.seed, counter=(1, noise.LEARNING, 0, i)))
        rows = generator.choice(self._rows, min(ROWS, len(self._rows)), replace=False)
        train_steps = self._pipeline.manifest.schedule.train_steps
        at = (np.arange(TIMES) + generator.random(TIMES)) / TIMES  # one of each part of the schedule
        timesteps = np.unique((at * train_steps).astype(np.int64))[::-1]
        shape = self._pairs.x0.shape[1:]
        draw = lambda step: noise.normal(self._plan.seed, range(len(rows)), TIMES * i + step + 1, shape, noise.LEARNING)
        answers: list[Answer] = []
        table = levels(self._pipeline, timesteps)
        contexts = contexts_of(self._pipeline, self._pairs, rows)
        ask(self._pipeline, self._pairs, rows, table, draw, answers.append, contexts)
        outs = torch.from_numpy(np.concatenate([answer.outs for answer in answers], axis=1))
        wanted = torch.from_numpy(np.concatenate([answer.wanted for answer in answers]))
        x, bars = np.concatenate([answer.x for answer in answers]), np.repeat(table.alpha_bars, len(rows))
        logits = self._logits(x, bars, [np.tile(context, (len(answers), 1, 1)) for context in contexts])
        loss = mixing_error(logits.softmax(0), outs, wanted, self._visible, AGREE).mean()
        for group in optimizer.param_groups:
            group["lr"] = self._plan.rate * share_of_rate(i, total)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._nets.parameters(), STEEPEST)
        optimizer.step()
        return loss.item()

    def _logits(self, x: np.ndarray, alpha_bars: np.ndarray, contexts: list[np.ndarray]) -> Tensor:
        """x [B, C, *latent], alpha_bars [B], contexts [M][B, tokens, width] -> [M, B, 1, *latent]."""
        time, seen = torch.from_numpy(time_of(alpha_bars)).float(), torch.from_numpy(x)
        told = map(torch.from_numpy, contexts)
        return torch.stack([net(seen, time, context) for net, context in zip(self._nets, told, strict=True)])

    def held_out(self) -> float:
        """The squared error of the mix, on the pairs, at the levels and with the noise of `calibrate`'s table."""
        table = levels(self._pipeline, spread_levels(self._pipeline, LEVELS))
        rows = np.setdiff1d(np.arange(min(IN_TABLE, len(self._pairs.x0))), self._rows)
        errors: list[np.ndarray] = []
        for some in np.split(rows, range(AT_ONCE, len(rows), AT_ONCE)):
            contexts = contexts_of(self._pipeline, self._pairs, some)

            def see(answer: Answer, contexts: list[np.ndarray] = contexts) -> None:
                with torch.no_grad():
                    logits = self._logits(answer.x, np.repeat(table.alpha_bars[answer.step], len(answer.x)), contexts)
                mix = (torch.softmax(logits, 0).numpy() * answer.outs).sum(0)
                errors.extend(self._visible.numpy() * (mix - answer.wanted) ** 2)

            draw = draw_of(self._plan.seed, some, self._pairs.x0.shape[1:])
            ask(self._pipeline, self._pairs, some, table, draw, see, contexts)
        return float(np.mean(errors))

    def export(self, folder: Path) -> None:
        """Writes each network, for any number of images."""
        batch = torch.export.Dim("batch")
        for m, name in enumerate(self._pairs.names):
            x = torch.zeros(2, *self._pairs.x0.shape[1:])
            given = (x, torch.zeros(2), torch.zeros(2, *self.shapes[m]))
            with quiet_exporter(), warnings.catch_warnings(action="ignore", category=UserWarning):
                program = torch.onnx.export(
                    self._nets[m].eval(),
                    given,
                    input_names=[PORTS[role] for role in ("x", "time", "condition")],
                    output_names=[PORTS["out"]],
                    dynamic_shapes=({0: batch},) * len(given),
                    opset_version=OPSET,
                    dynamo=True,
                    optimize=False,
                    verbose=False,
                )
            assert program is not None
            program.save(folder / f"{name}{NETWORK}")


def adamw(parameters: Iterable[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, rate, betas=(0.9, 0.99), weight_decay=0.01)


def share_of_rate(i: int, total: int) -> float:
    """A warm-up, then half a cosine to zero."""
    return min(1.0, (i + 1) / WARM_UP) * (1 + math.cos(math.pi * i / total)) / 2
