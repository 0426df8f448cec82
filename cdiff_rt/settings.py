"""What a run is asked for beside its conditions. Every setting is spelled here and nowhere else.

The options of the command line, the keys of a row of jobs, the JSON inside a picture and the arguments in Python are all
made of these fields: their names, defaults, ranges and help texts. Importing this loads no library.
"""

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import Field, asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from cdiff_rt.controls import AS_TRAINED, PAPER, Found, Regions, Weights, read_regions, read_weights, weights_of
from cdiff_rt.errors import BadRequest, check_choice, check_range, real, whole

if TYPE_CHECKING:
    from cdiff_rt.sampling.tiers import Sampling

LARGEST_SEED, LARGEST_BATCH, LARGEST_FIRST = 2**63 - 1, 256, 2**31
WEIGHTS = (0.0, 1e6)

Decay = Literal["none", "linear", "cosine"]
DECAYS, ROUNDINGS = get_args(Decay), ("truncate", "nearest")


def tier_names() -> Iterable[str]:
    from cdiff_rt.sampling.tiers import TIERS  # where it is needed, for the tables of solvers load numpy

    return TIERS


def solver_names() -> Iterable[str]:
    from cdiff_rt.sampling.solvers import SOLVERS

    return SOLVERS


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRequest(name, f"{value!r:.80}", "give a name in quotes")
    return str.__str__(value)  # of a subclass, an enumeration's member say, the text itself


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(name, f"{value!r:.80}", "give true or false")
    return value


def _order(name: str, value: Any) -> str:
    from cdiff_rt.inputs.label_orders import order_of  # where it is needed, for pictures load numpy

    return order_of(name, value)


def _names(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, Iterable) or isinstance(value, str) or getattr(value, "shape", (1,)) == ():
        raise BadRequest(name, f"{value!r:.80}", "give a list of names")
    names = tuple(value)
    if not all(isinstance(each, str) for each in names):
        raise BadRequest(name, f"{value!r:.80}", "give a list of names")
    return tuple(map(str.__str__, names))


@dataclass(frozen=True)
class About:
    """What is known of a setting: how its value is read, what it does, and what it may be."""

    kind: Callable[[str, Any], Any]
    does: str  # in a sentence, for --help
    bounds: tuple[float, float] | None = None
    choices: Callable[[], Iterable[str]] | None = None

    @property
    def value_type(self) -> type:
        """Of a value, or of each where there are several."""
        kinds: dict[Callable, type] = {whole: int, real: float, _yes_or_no: bool}
        return kinds.get(self.kind, str)

    def read(self, name: str, value: Any) -> Any:
        """A value of the right type, in its range. Raises BadRequest."""
        value = self.kind(name, value)
        if self.bounds:
            check_range(name, value, *self.bounds)
        if self.choices:
            check_choice(name, value, tuple(self.choices()))
        return value


def _read_fields(settings: "Influence | Settings") -> None:
    """Brings every field to its type, and None stays None where that is the default. Raises BadRequest."""
    for each in fields(settings):
        value, about = getattr(settings, each.name), ABOUT[each.name]
        if not (value is None and each.default is None):
            object.__setattr__(settings, each.name, about.read(each.name, value))


ABOUT = {
    "seed": About(whole, "Choose the random noise by a whole number, or random; equal seeds, equal images."),
    "first": About(whole, "Start at image number N of the seed, e.g. 4 to go on after --batch 4.", (0, LARGEST_FIRST)),
    "batch": About(whole, "Make this many images, 1 to 256; for several, --out must be a folder.", (1, LARGEST_BATCH)),
    "tier": About(
        _word,
        "Choose a preset: exact (ddim, 50 steps), fast (dpmpp-2m-sde, 20) or turbo (the same, 10). Default: exact.",
        choices=tier_names,
    ),
    "solver": About(_word, "Set the sampling method yourself, without a tier. Default: ddim.", choices=solver_names),
    "steps": About(whole, "Set the number of steps yourself, e.g. 25 or 100, without a tier. Default: 50."),
    "eta": About(
        real, "Set how random each DDIM step is, 0 (deterministic) to 1, without a tier. Default: 1.", (0.0, 1.0)
    ),
    "temperature": About(
        real, "Scale the random noise that each step adds, 0 to 100, without a tier. Default: 1.", (0.0, 100.0)
    ),
    "influence": About(
        read_weights,
        "Weigh a condition: text=2, mask=1@0-0.6 (start and end), text=0@0,2@1 (keyframes), or a preset: paper, "
        "as-trained, text-first, or a file of calibrate's; may be repeated (docs/controls.md).",
    ),
    "region": About(
        read_regions,
        "Say where a condition has influence: text=area.png:at-least=0.8, or :at-most=, :weight=, :only; may be repeated.",
    ),
    "decay": About(_word, "Choose how the mask's influence fades towards the last step.", choices=lambda: DECAYS),
    "factor": About(real, "Multiply the influence of fading conditions (the mask) by this.", WEIGHTS),
    "sharpness": About(real, "Sharpen the choice between conditions: 0 shares equally, 1 is as trained.", WEIGHTS),
    "boost": About(real, "Apply a second softmax of this factor to the influence; 0 levels it.", WEIGHTS),
    "rounding": About(_word, "Convert pixels to 0-255 by truncating or by rounding.", choices=lambda: ROUNDINGS),
    "labels": About(
        _order, "Read the mask's numbers in this order: celebamask, bisenet, a file, or such as 0=background,255=hair."
    ),
    "snap": About(
        _yes_or_no, "Also read masks with soft edges, JPEG, WebP or BMP files, and white or transparent backgrounds."
    ),
    "without": About(_names, "Ignore this condition although it is given; may be repeated."),
}


@dataclass(frozen=True)
class Influence:
    """What inference does to the influence functions; the reference's are "cosine" and 2. Raises BadRequest."""

    decay: Decay = "cosine"
    factor: float = 2.0
    sharpness: float = 1.0
    boost: float | None = None

    def __post_init__(self) -> None:
        _read_fields(self)


@dataclass(frozen=True)
class Settings:
    """A request, complete but for its conditions. Takes numpy's numbers; raises BadRequest for what is none.

    The images are numbers `first` to `first + batch - 1` of the seed: image i is the same in any batch. `tier` names a
    set of `solver`, `steps`, `eta` and `temperature`, and is given instead of them. `influence` and `region` say how much
    each condition weighs, and where (controls.py); of `decay` to `boost`, None is the model's own.
    """

    seed: int = 0
    first: int = 0
    batch: int = 1
    tier: str | None = None
    solver: str | None = None
    steps: int | None = None
    eta: float | None = None
    temperature: float | None = None
    influence: Weights = ()
    region: Regions = ()
    decay: Decay | None = None
    factor: float | None = None
    sharpness: float | None = None
    boost: float | None = None
    rounding: str = "truncate"
    labels: str = "celebamask"
    snap: bool = False
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _read_fields(self)
        check_seed(self.seed)
        self.sampling()

    def sampling(self) -> "Sampling":
        """Solver, steps, eta and temperature, as the tier has them or as they are given."""
        from cdiff_rt.sampling.tiers import sampling

        return sampling(self.tier, self.solver, self.steps, self.eta, self.temperature)

    def over(self, usual: Influence) -> Influence:
        """What holds where the model's own is `usual`: a preset in its place, and what was given in place of both."""
        base = next((NAMED[each] for each in self.influence if isinstance(each, str) and each in NAMED), usual)
        base = base if self.found is None else Influence("none", 1.0, sharpness=0.0)
        return replace(base, **{name: value for name in INFLUENCES if (value := getattr(self, name)) is not None})

    @property
    def found(self) -> Found | None:
        """What is to decide in place of the experts."""
        return next((each for each in self.influence if isinstance(each, Found)), None)

    @property
    def as_usual(self) -> bool:
        """Whether the model's own influence stands, with weights beside it perhaps; a preset takes its place."""
        return self.found is None and not any(isinstance(each, str) and each in NAMED for each in self.influence)

    @property
    def weighed(self) -> set[str]:
        """The conditions that `influence` or `region` names."""
        weights = {each.condition for each in weights_of(self.influence)}
        return weights | {each.condition for each in self.region}

    @property
    def numbers(self) -> range:
        """Those of the images."""
        return range(self.first, self.first + self.batch)

    def told(self) -> dict[str, Any]:
        """As pictures carry them: each as it was resolved, so that another default later changes nothing."""
        how = self.sampling()
        unusual = {
            "tier": how.tier,
            "influence": [str(each) for each in self.influence] or None,
            "region": [str(each) for each in self.region] or None,
            "without": list(self.without) or None,
            **{name: getattr(self, name) for name in INFLUENCES},
        }
        given = ("seed", "first", "batch", "rounding", "labels", "snap")
        numbers = {name: getattr(self, name) for name in given}
        return asdict(how) | numbers | {name: value for name, value in unusual.items() if value is not None}


INFLUENCES: dict[str, Field] = {each.name: each for each in fields(Influence)}
SETTINGS: dict[str, Field] = {each.name: each for each in fields(Settings)}  # as they are given one by one
NAMED = {PAPER: Influence("cosine", 2.0), AS_TRAINED: Influence("none", 1.0)}  # presets
# Every argument of `Pipeline.generate` and `edit`, and every key of a row of jobs: no modality may have such a name.
RESERVED = {
    *SETTINGS,
    "settings",
    "conditions",
    "x_T",
    "contexts",
    "inpaint",
    "callback_on_step_end",
    "id",
}
RESERVED |= {"self", "image", "source", "read", "strength", "alphas", "keep", "method", "progress"}

# What other programs call these.
SYNONYMS = {"num_inference_steps": "steps", "num_steps": "steps", "ddim_steps": "steps", "ddim_eta": "eta"}
SYNONYMS |= {"generator": "seed", "batch_size": "batch", "n_samples": "batch", "num_images_per_prompt": "batch"}
SYNONYMS |= {
    "scheduler": "solver",
    "sampler": "solver",
    "prompt": "text",
    "segmentation": "mask",
    "init_image": "image",
}
SYNONYMS |= {"callback": "callback_on_step_end", "latents": "x_T", "output_type": "rounding"}


def check_seed(seed: int) -> int:
    if not 0 <= seed <= LARGEST_SEED:
        raise BadRequest("seed", f"{seed} is outside 0-2^63-1", "choose a number in that range")
    return seed


def unknown_argument(name: str, known: Collection[str]) -> BadRequest:
    """The error that names the word which was probably meant, or else all there are."""
    words = {word: word for word in known} | {word: ours for word, ours in SYNONYMS.items() if ours in known}
    meant = words.get(next(iter(difflib.get_close_matches(name, words, n=1)), ""))
    remedy = f"it is called {meant} here" if meant else f"choose one of {', '.join(known)}"
    return BadRequest("argument", f"{name!r:.80}", remedy)
