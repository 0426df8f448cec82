"""Plans of engines that were built here, kept between runs.

A plan is code: whoever can write one can run anything as its reader. So a plan is loaded only from a folder that
belongs to this user and that nobody else may write into, and only if it has the hash that the index there names; both
is checked before a byte of it reaches a library. An entry's key is made of what it was built from, never of the plan,
whose bytes differ from build to build.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from cdiff_rt import schema
from cdiff_rt.engines.base import Placement, Precision, precision_of
from cdiff_rt.engines.stacked import made_of
from cdiff_rt.engines.user_files import (
    cache_folder,
    check_folder,
    locked,
    locked_now,
    make_folder,
    read_file,
    scratch,
    write_file,
)
from cdiff_rt.errors import BadArtefact, CdiffError
from cdiff_rt.manifest import DIGEST, Bundle, NetworkSpec, digest
from cdiff_rt.notes import log
from cdiff_rt.version import __version__

INDEX = "engines.json"
LARGEST_INDEX, LARGEST_LEARNED = 16 * 2**20, 256 * 2**20  # bytes
MOST_BYTES = 64 * 2**30  # of all plans


@dataclass(frozen=True)
class Recipe:
    """All that a plan depends on."""

    network: str
    flavour: str
    version: str  # of the library
    capabilities: tuple[str, ...]  # of the devices that it runs on, e.g. "8.6"
    precision: Precision
    sizes: dict[str, int]  # that are fixed, by name
    profile: dict[str, tuple[int, int, int]]  # of those that are not: the smallest, the usual, the largest
    flags: tuple[str, ...]
    graphs: dict[str, str]  # file of the bundle -> sha256
    weights: str  # sha256
    gpu: str = ""  # the name of the one that it was built on and is for; of a portable plan there is none
    ours: str = __version__

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class BuiltEngine:
    recipe: Recipe
    sha256: str  # of the plan
    bytes: int
    spec: NetworkSpec  # with the plan's types and sizes


@dataclass(frozen=True)
class LoadedPlan:
    """A plan that was checked."""

    engine: BuiltEngine
    data: bytes


@dataclass(frozen=True)
class Index:
    engines: dict[str, BuiltEngine] = field(default_factory=dict)  # by the recipe's key
    learned: dict[str, str] = field(default_factory=dict)  # file of what a library learned -> sha256
    uses: dict[str, int] = field(default_factory=dict)  # key -> a number that grows with each use; clocks go wrong

    def used(self, key: str) -> "Index":
        return replace(self, uses=self.uses | {key: max(self.uses.values(), default=0) + 1})


def step_network(modalities: Sequence[str], boosted: bool = False) -> str:
    """The name of the whole step of these experts, beside those of a bundle's networks."""
    return f"step{'-boosted' if boosted else ''}.{'+'.join(modalities)}"


def sources(bundle: Bundle, network: str) -> dict[str, NetworkSpec]:
    """The networks of the bundle that `network` is made of: itself, or the experts of a step or a stack."""
    parts = made_of(network)
    unknown = sorted(set(parts) - set(bundle.manifest.networks))
    if unknown:
        known = ", ".join(bundle.manifest.networks)
        raise BadArtefact(f"bundle {bundle.folder.name}", f"it has no network {unknown[0]}", f"it has {known}")
    return {part: bundle.manifest.networks[part] for part in parts}


def recipe(
    bundle: Bundle,
    network: str,
    placement: Placement,
    *,
    flavour: str,
    version: str,
    capabilities: Sequence[str],
    flags: Sequence[str] = (),
    gpu: str = "",
) -> Recipe:
    """Of the engine that this placement asks for."""
    parts, steps = sources(bundle, network), bundle.manifest.schedule.train_steps
    named = {d for spec in parts.values() for t in (*spec.inputs, *spec.outputs) for d in t.shape if isinstance(d, str)}
    return Recipe(
        network,
        flavour,
        version,
        tuple(sorted(capabilities, key=float)),
        precision_of(network, placement),
        sizes={"batch": placement.batch} if "batch" in named else {},
        profile={"steps": (1, min(50, steps), steps)} if "steps" in named else {},
        flags=tuple(sorted(flags)),
        graphs={spec.file: bundle.manifest.files[spec.file] for spec in parts.values()},
        weights=bundle.manifest.files[bundle.manifest.weights],
        gpu=gpu,
    )


class EngineCache:
    """A folder of plans and of what the libraries learned, and the index that names their hashes."""

    def __init__(self, folder: Path | None = None) -> None:
        """None is the user's own. Raises BadEnvironment if there is no home."""
        self.folder = folder or cache_folder() / "engines"

    def load(self, wanted: Recipe, capability: str, again: str) -> LoadedPlan:
        """The plan of `wanted`, whatever else it was built for, on a device of that capability; `again` builds it.

        Raises BadArtefact if there is none, or if it isn't what was built here.
        """
        if not self.folder.is_dir():
            raise BadArtefact(f"engine {wanted.network}", f"none was built for {wanted.flavour}", again)
        check_folder(self.folder)
        index = self._index(again)
        engine = _choose(list(index.engines.values()), wanted, capability, again)
        plan = LoadedPlan(engine, self._read_plan(engine, again))
        if index.uses.get(key := engine.recipe.key, -1) != max(index.uses.values(), default=0):
            with suppress(CdiffError):  # of a folder that cannot be written: the plan is as good
                self._change(lambda index: index.used(key) if key in index.engines else index)
        return plan

    def built(self, wanted: Recipe, build: Callable[[Path], tuple[bytes, NetworkSpec]]) -> tuple[BuiltEngine, bool]:
        """The engine, and whether it was built now: by one process, while others wait for it.

        `build` gets an empty folder, on this disk, for files that nobody needs afterwards.
        """
        make_folder(self.folder)
        check_folder(self.folder)
        with locked(self._path(wanted, "lock"), f"another process builds {wanted.network}; waiting"):
            engine = self._kept(wanted)
            if engine:
                return engine, False
            with scratch(self._path(wanted, "building")) as folder:
                data, spec = build(folder)
            engine = BuiltEngine(wanted, hashlib.sha256(data).hexdigest(), len(data), spec)
            write_file(self._path(wanted, "plan"), data)
            added = lambda index: replace(index, engines=index.engines | {wanted.key: engine}).used(wanted.key)
            self._change(lambda index: self._make_room(added(index), wanted.key))
            return engine, True

    def _make_room(self, index: Index, newest: str) -> Index:
        """Without the plans that were used longest ago, if all are too large, or that no index names any more.

        Whoever is building one, or about to, has its lock; who is reading one has its file open.
        """
        engines = dict(index.engines)
        forgotten = {path.stem for path in self.folder.glob("*.plan")} - set(engines)
        oldest = sorted(set(engines) - {newest}, key=lambda key: index.uses.get(key, 0))
        for key in (*sorted(forgotten), *oldest):
            if key in engines and sum(engine.bytes for engine in engines.values()) <= MOST_BYTES:
                break
            with locked_now(self.folder / f"{key}.lock") as free:
                if free:
                    for path in (*self.folder.glob(f"{key}*.kernels"), self.folder / f"{key}.plan"):
                        path.unlink(missing_ok=True)
                    engines.pop(key, None)
                    log.info("engine cache: removed %s.plan, which was not used of late", key[:12])
        learned = {name: sha256 for name, sha256 in index.learned.items() if (self.folder / name).exists()}
        uses = {key: n for key, n in index.uses.items() if key in engines}
        return replace(index, engines=engines, uses=uses, learned=learned)

    def learned(self, name: str) -> bytes:
        """What a library left in this file of its own, earlier; nothing if it isn't what was written here."""
        path = self.folder / name
        try:
            check_folder(self.folder)
            data = read_file(path, LARGEST_LEARNED)
        except FileNotFoundError:
            return b""
        if hashlib.sha256(data).hexdigest() != self._usable_index().learned.get(name):
            log.warning(f"{name} is not what was written here; going on without it")
            return b""
        return data

    def keep_learned(self, name: str, data: bytes) -> None:
        with locked(self.folder / f"{name}.lock"):
            write_file(self.folder / name, data)
            sha256 = hashlib.sha256(data).hexdigest()
            self._change(lambda index: replace(index, learned=index.learned | {name: sha256}))

    def _path(self, wanted: Recipe, suffix: str) -> Path:
        return self.folder / f"{wanted.key}.{suffix}"

    def _kept(self, wanted: Recipe) -> BuiltEngine | None:
        """The engine, if its plan is intact."""
        try:
            engine = self._index("building it again").engines.get(wanted.key)
            if engine:
                self._read_plan(engine, "building it again")
            return engine
        except BadArtefact as error:  # which this very build mends
            log.warning(str(error))
            return None

    def _usable_index(self) -> Index:
        """An empty one takes the place of a damaged one."""
        try:
            return self._index("building anew")
        except BadArtefact as error:  # nothing of it was believed, and what is built next replaces it
            log.warning(str(error))
            return Index()

    def _index(self, again: str) -> Index:
        """Raises BadArtefact unless it is as it was written."""
        try:
            data = json.loads(read_file(self.folder / INDEX, LARGEST_INDEX))
            if data.pop(DIGEST) != digest(data):
                raise ValueError(DIGEST)
            return schema.from_json(Index, data, "index")
        except FileNotFoundError:
            return Index()
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            raise BadArtefact(f"engine cache {self.folder}", f"{INDEX} is damaged", again) from None

    def _change(self, change: Callable[[Index], Index]) -> None:
        with locked(self.folder / f"{INDEX}.lock"):
            data = asdict(change(self._usable_index()))
            text = json.dumps(data | {DIGEST: digest(data)}, indent=1, sort_keys=True)
            write_file(self.folder / INDEX, text.encode())

    def _read_plan(self, engine: BuiltEngine, again: str) -> bytes:
        """Raises BadArtefact unless the file is the plan that was built. The bytes returned are those checked."""
        what, path = f"engine {engine.recipe.network}", self._path(engine.recipe, "plan")
        try:
            data = read_file(path, engine.bytes)
        except FileNotFoundError:
            raise BadArtefact(what, f"its plan {path.name} is missing", again) from None
        except BadArtefact as error:
            raise BadArtefact(what, f"{error.what}: {error.seen}", again) from None
        if hashlib.sha256(data).hexdigest() != engine.sha256:
            raise BadArtefact(what, f"its plan {path.name} is not the one that was built here", again)
        return data


def _choose(built: Sequence[BuiltEngine], wanted: Recipe, capability: str, again: str) -> BuiltEngine:
    """The engine that differs from `wanted` in nothing but the devices, and runs on this one. Raises BadArtefact."""
    similar = [e for e in built if (e.recipe.network, e.recipe.flavour) == (wanted.network, wanted.flavour)]
    if not similar:
        raise BadArtefact(f"engine {wanted.network}", f"none was built for {wanted.flavour}", again)
    differences, best = min(
        ((_differences(engine.recipe, wanted, capability), engine) for engine in similar), key=lambda pair: len(pair[0])
    )
    if differences:
        raise BadArtefact(f"engine {wanted.network}", differences[0], again)
    return best


def _differences(built: Recipe, wanted: Recipe, capability: str) -> list[str]:
    """In words, what keeps an engine from being the one that is wanted."""
    pairs = {
        f"{wanted.flavour} ": (built.version, wanted.version),
        "cdiff-rt ": (built.ours, wanted.ours),
        "": (built.precision, wanted.precision),
        "the GPU ": (built.gpu, wanted.gpu),
        "sizes ": (_said(built.sizes), _said(wanted.sizes)),
        "steps ": (_said(built.profile), _said(wanted.profile)),
        "flags ": (", ".join(built.flags) or "none", ", ".join(wanted.flags) or "none"),
        "graphs ": (_said(built.graphs), _said(wanted.graphs)),
        "weights ": (built.weights[:12], wanted.weights[:12]),
    }
    found = [f"built for {name}{ours}, here {theirs}" for name, (ours, theirs) in pairs.items() if ours != theirs]
    if capability not in built.capabilities:
        found.append(f"built for {', '.join(built.capabilities)}, here {capability}")
    return found


def _said(numbers: dict) -> str:
    return ", ".join(f"{name} {value if isinstance(value, int) else value[:12]}" for name, value in numbers.items())
