"""What the loop does at each step, as files: x_t, the image predicted from it, and what each branch predicted alone."""

from pathlib import Path

import numpy as np
from PIL import Image

from cdiff_rt.outputs.contact_sheet import contact_sheet
from cdiff_rt.outputs.recorder import Recorder, evenly
from cdiff_rt.sampling.loop import StepState

SHEET, SHEET_STEPS = "sheet.jpg", 10  # at most; each costs two decodings


class TrajectoryRecorder(Recorder):
    """x_t after each step, the predicted image and the branches' predictions; of the first two, a decoded sheet."""

    option, suffix, archive = "--save-trajectory", ".trajectory", "trajectory.npz"

    def arrays(self, state: StepState) -> dict[str, np.ndarray]:
        branches = zip(state.modalities, state.predictions, strict=True)
        return {"x": state.x, "x0": state.x0} | {f"prediction.{name}": values for name, values in branches}

    def write(self, folder: Path, image: int, pixels: np.ndarray, scale: int = 1) -> None:
        self.write_arrays(folder, image)
        if not pixels.size or self._decode is None:
            return
        shown = evenly(len(self.timesteps), SHEET_STEPS)
        titles = [f"t = {self.timesteps[step]}" for step in shown]
        latents = {name: [self.read(step, name, image) for step in shown] for name in ("x", "x0")}
        rows = {name: [Image.fromarray(self._decode(z[None])[0]) for z in of] for name, of in latents.items()}
        contact_sheet(titles, rows, {}, scale).save(folder / SHEET, quality=90, subsampling=0)
