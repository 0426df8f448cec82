"""Denoisers of data whose distribution is known, in every form that one is trained in."""

from dataclasses import dataclass

import numpy as np

from cdiff_rt.sampling.preconditioning import Parameterisation


@dataclass(frozen=True)
class Gaussian:
    """Data of N(mean, spread^2), independent at each place."""

    mean: float
    spread: float

    def x0(self, x, alpha, sigma):
        """E[x_0 | alpha x_0 + sigma eps = x]."""
        variance = self.spread**2
        return self.mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * self.mean)

    def log_density(self, x, alpha_bar):
        """log N(x; alpha mean, alpha^2 spread^2 + sigma^2), but for a constant."""
        variance = alpha_bar * self.spread**2 + 1 - alpha_bar
        return -((x - np.sqrt(alpha_bar) * self.mean) ** 2) / (2 * variance) - np.log(variance) / 2

    def predict(self, form: Parameterisation, x, time):
        """What a denoiser of this form answers, asked as such a denoiser is."""
        time = time / form.time_scale
        if form.space == "flow":
            alpha, sigma = 1 - time, time
        elif form.space == "sigma":
            alpha, sigma = 1.0, np.exp(4 * time) if form.predicts == "edm" else time
        else:
            bars = form.schedule.alpha_bars().clip(1e-12)
            level = np.interp(time, np.arange(len(bars)), np.log(bars / (1 - bars)))  # log-SNR, on lines
            alpha, sigma = 1 / np.sqrt(1 + np.exp(-level)), 1 / np.sqrt(1 + np.exp(level))
        if form.predicts == "edm":
            total = sigma**2 + form.sigma_data**2
            x = x * np.sqrt(total)
            kept = form.sigma_data**2 / total * x
            return (self.x0(x, alpha, sigma) - kept) / (sigma * form.sigma_data / np.sqrt(total))
        x0 = self.x0(x, alpha, sigma)
        eps = (x - alpha * x0) / sigma
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[form.predicts]
