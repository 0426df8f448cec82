"""A tier is a named set of settings of the sampler: how exact, how fast. What a run isn't told, it takes from there."""

from dataclasses import dataclass

from cdiff_rt.errors import BadRequest, check_choice, check_range
from cdiff_rt.sampling.schedule import Schedule
from cdiff_rt.sampling.solvers import SOLVERS, SolverTable


@dataclass(frozen=True)
class Sampling:
    """How x_T becomes x_0. A call of every expert per step, so `steps` is what it costs. Raises BadRequest."""

    solver: str = "ddim"
    steps: int = 50
    eta: float = 1.0
    temperature: float = 1.0  # of the noise that steps add

    def __post_init__(self) -> None:
        check_choice("solver", self.solver, tuple(SOLVERS))
        check_range("eta", self.eta, 0.0, 1.0)
        check_range("temperature", self.temperature, 0.0, 100.0)
        if self.temperature != 1 and not self.eta:
            raise BadRequest("temperature", f"{self.temperature:g}, but no step adds noise at eta 0", "leave it out")
        only = SOLVERS[self.solver].only_eta
        if only is not None and self.eta != only:
            able = ", ".join(name for name, solver in SOLVERS.items() if solver.only_eta is None)
            remedy = f"leave eta out, or take {able}, which has any"
            raise BadRequest("eta", f"{self.eta:g} with {self.solver}, which is for {only:g}", remedy)

    def table(self, schedule: Schedule) -> SolverTable:
        """Raises BadRequest for a number of steps that the schedule doesn't allow."""
        solver = SOLVERS[self.solver]
        given = {} if solver.only_eta is not None else {"eta": self.eta}
        return solver.table(schedule, self.steps, temperature=self.temperature, **given)

    def __str__(self) -> str:
        named = f"{self.tier}: " if self.tier else ""
        warmth = "" if self.temperature == 1 else f", temperature {self.temperature:g}"
        return f"{named}{self.solver}, {self.steps} steps, eta {self.eta:g}{warmth}"

    @property
    def tier(self) -> str | None:
        """The name of the tier that has these settings."""
        return next((name for name, tier in TIERS.items() if tier == self), None)


# They visit some of the same 50 timesteps and share the path of noise (noise.py), so a seed is nearly the same picture.
TIERS = {
    "exact": Sampling(),
    "fast": Sampling("dpmpp-2m-sde", 20),
    "turbo": Sampling("dpmpp-2m-sde", 10),
}


def sampling(
    tier: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    eta: float | None = None,
    temperature: float | None = None,
) -> Sampling:
    """A tier's settings, or one's own; what is left out of these is as in `exact`, and eta as the solver has it.

    Raises BadRequest for both at a time: a tier whose settings are changed is that tier no more.
    """
    wished = {"solver": solver, "steps": steps, "eta": eta, "temperature": temperature}
    own = {name: value for name, value in wished.items() if value is not None}
    if tier is None:
        only = SOLVERS[solver].only_eta if solver in SOLVERS else None
        return Sampling(**({} if only is None else {"eta": only}) | own)  # type: ignore[arg-type]
    check_choice("tier", tier, tuple(TIERS))
    if own:
        remedy = f"leave either out; the tier is {TIERS[tier]}"
        raise BadRequest("tier", f"{tier} and {', '.join(own)} of your own", remedy)
    return TIERS[tier]
