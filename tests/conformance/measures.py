"""How far we are from the reference, and how far we may be. Every comparison is kept for the table."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """None asks nothing. `spread` is std(d) / std(reference), `relative` max |d| / std(reference)."""

    absolute: float | None = None
    spread: float | None = None
    relative: float | None = None
    proportion: float | None = None  # max |d / reference|
    levels: float | None = None  # share of uint8 values that may be off by one; none may be by more


TOLERANCES = {
    "exact": Tolerance(absolute=0),
    "coefficient": Tolerance(proportion=1e-6),
    "embedding": Tolerance(absolute=2e-5),
    "prediction": Tolerance(absolute=2e-4, spread=5e-5),
    "influence": Tolerance(absolute=5e-5),
    "sum of influence": Tolerance(absolute=1e-6),
    "trajectory": Tolerance(relative=1e-4),
    "autoencoder": Tolerance(absolute=2e-4),
    "uint8": Tolerance(levels=0.002),
    "loss": Tolerance(proportion=1e-4),
    "gradient norm": Tolerance(proportion=1e-3),
    "gradient": Tolerance(relative=1e-3),
    "after training": Tolerance(absolute=2e-3),
}


@dataclass
class Worst:
    count: int = 0
    errors: dict[str, float] = field(default_factory=dict)


@dataclass
class Measures:
    """(file, quantity, backend) -> the worst errors seen, in the tolerance's own measures."""

    rows: dict[tuple[str, str, str], Worst] = field(default_factory=dict)

    def check(self, file: str, quantity: str, backend: str, ours: np.ndarray, reference: np.ndarray) -> None:
        """Fails unless `ours` is within the quantity's tolerance of the reference."""
        assert ours.shape == reference.shape, f"{file} {quantity}: {ours.shape}, expected {reference.shape}"
        assert np.isfinite(ours).all(), f"{file} {quantity}: not finite"
        tolerance, worst = TOLERANCES[quantity], self.rows.setdefault((file, quantity, backend), Worst())
        worst.count += 1
        for name, error in errors(ours, reference).items():
            allowed = getattr(tolerance, name)
            if allowed is not None:
                worst.errors[name] = max(error, worst.errors.get(name, 0.0))
                assert error <= allowed, f"{file}, {quantity}, {backend}: {name} error {error:.2e}, allowed {allowed}"

    def table(self) -> list[str]:
        """Markdown."""
        lines = ["| file | quantity | backend | comparisons | worst error | allowed |", "|---|---|---|---|---|---|"]
        for (file, quantity, backend), worst in sorted(self.rows.items()):
            allowed = [f"{name} {getattr(TOLERANCES[quantity], name):g}" for name in worst.errors]
            seen = [f"{name} {error:.1e}" for name, error in worst.errors.items()]
            lines.append(
                f"| {file} | {quantity} | {backend} | {worst.count} | {', '.join(seen)} | {', '.join(allowed)} |"
            )
        return lines


def errors(ours: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    d = np.abs(ours.astype(np.float64) - reference)
    spread = max(float(reference.astype(np.float64).std()), 1e-12)
    size = np.maximum(np.abs(reference.astype(np.float64)), 1e-12)
    return {
        "absolute": float(d.max()),
        "spread": float(d.std()) / spread,
        "relative": float(d.max()) / spread,
        "proportion": float((d / size).max()),
        "levels": float((d > 0).mean()) if d.max() <= 1 else float("inf"),
    }
