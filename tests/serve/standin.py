"""A pipeline whose networks are a few lines: what it makes follows from the request, and takes as long as it is told."""

import os
import time

import numpy as np

from cdiff_rt.manifest import DEFAULT_MODEL, MODELS, Bundle
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.sampling.loop import StepState

DEADLY = "This man is poison."  # a sentence that ends the process


class Networks:
    precision, shows_steps = "fp32", False

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # of a step

    def call(self, network, **inputs):
        if network == "vae.decode":
            blocks = np.tanh(inputs["z"][:, :3])
            return {"image": blocks.repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)}
        if network.startswith("condition."):
            return {"context": np.zeros((1, 1, 1), np.float32)}
        return {"mean": np.zeros((1, 16, 16, 16), np.float32)}

    def sample(self, run, callback=None, progress=None):
        x, names = run.start, tuple(modality.name for modality in run.modalities)
        given = sum(float(array.astype(np.float64).sum()) for array in run.inputs) % 7
        for step, timestep in enumerate(run.table.timesteps):
            time.sleep(self.seconds)
            x = np.float32(0.9) * x + np.float32(given / 100)
            if progress:
                progress()
            if callback:
                shares = np.ones((len(names), *x[:, :1].shape), np.float32) / len(names)
                callback(StepState(step, int(timestep), x, x, names, shares, np.stack([x] * len(names))))
        return x

    def close(self):
        pass


class Standin(Pipeline):
    def generate(self, settings=None, **how):
        if how["conditions"].get("text") == DEADLY:
            os._exit(9)
        return super().generate(settings, **how)


def opened(seconds: float = 0.0) -> Pipeline:
    return Standin(Bundle.open(MODELS / DEFAULT_MODEL), runner=Networks(seconds))
