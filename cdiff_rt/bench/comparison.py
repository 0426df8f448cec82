"""What was found when cases were timed against one another."""

from dataclasses import dataclass, field

import numpy as np

from cdiff_rt.bench.cases import BASELINES, TUNED
from cdiff_rt.bench.roofline import Roofline

AT_A_TIME = "at a time"  # the setting that tells how many cases were held together, where it was not all of them


@dataclass(frozen=True)
class Timing:
    case: str
    load_s: float  # from the start of its process to its first result
    memory_mib: float | None  # peak resident
    ms: list[float]  # counted runs, in order
    beside: list[float] = field(default_factory=list)  # the baseline's in the same rounds
    launches: int | None = None  # of kernels and graphs by the host, in a run; on a GPU
    db: float | None = None  # signal to error of the latents, against the first case of its sampling; infinite if equal
    db_after: float | None = None  # the same after a run of some steps, where that was asked for
    roofline: float | None = None  # the share of what this machine can do at best

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.ms, q))

    @property
    def spread(self) -> float:
        """Half of the runs lie within so much of the median, relative to it."""
        return (self.percentile(75) - self.percentile(25)) / self.percentile(50)


@dataclass(frozen=True)
class Comparison:
    machine: dict[str, str]
    settings: dict[str, int | str]
    timings: list[Timing]
    roofline: Roofline | None = None
    left_out: dict[str, str] = field(default_factory=dict)  # case -> why it was not timed
    wrong: tuple[str, ...] = ()  # those among them that do other work than the first of their sampling

    def ratio(self, timing: Timing) -> float | None:
        """How many times faster than the baseline: the median of the ratios run by run; of cases that ran one after the
        other, the ratio of the medians."""
        if timing.beside:
            return float(np.median(np.array(timing.beside) / np.array(timing.ms)))
        base = next((other for name in BASELINES for other in self.timings if other.case == name), None)
        return base.percentile(50) / timing.percentile(50) if base and self.settings.get(AT_A_TIME) == 1 else None

    def to_tuned(self, timing: Timing) -> float | None:
        """How many times faster than the baseline with a tuned allocator: the ratio of the medians.

        With `pairwise` they ran in different rounds; but its runs are alike, where those of the baseline are not.
        """
        tuned = next((other for other in self.timings if other.case in TUNED), None)
        return tuned.percentile(50) / timing.percentile(50) if tuned else None

    def per_second(self, timing: Timing) -> float:
        return int(self.settings["batch"]) * 1000 / timing.percentile(50)
