import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import INDEX, EngineCache, recipe, sources, step_network
from cdiff_rt.engines.user_files import locked
from cdiff_rt.errors import BadArtefact, OutOfResource
from cdiff_rt.manifest import NetworkSpec, TensorSpec, digest

AGAIN = "run `cdiff-rt export --model faces-128 --target tensorrt`"
SPEC = NetworkSpec("expert.mask.onnx", (TensorSpec("x", (1, "steps", 16), "float16"),), ())
PLAN = b"plan" * 1000


@pytest.fixture
def engines(tmp_path):
    return EngineCache(tmp_path / "engines")


USUAL = Placement()


def recipe_for(bundle, network="expert.mask", placement=USUAL, **changes):
    settings = {"flavour": "tensorrt", "version": "11.4.0", "capabilities": ["8.6"]} | changes
    return recipe(bundle, network, placement, **settings)


@pytest.fixture
def wanted(bundle):
    return recipe_for(bundle)


@pytest.fixture
def built(engines, wanted):
    engine, new = engines.built(wanted, lambda folder: (PLAN, SPEC))
    assert new
    return engine


def plan_file(engines):
    (path,) = engines.folder.glob("*.plan")
    return path


def test_what_was_built_is_loaded(engines, wanted, built):
    plan = engines.load(wanted, "8.6", AGAIN)
    assert (plan.data, plan.engine, plan.engine.spec) == (PLAN, built, SPEC)
    assert built.sha256 == hashlib.sha256(PLAN).hexdigest() and built.bytes == len(PLAN)
    assert plan_file(engines).name == f"{wanted.key}.plan"


def test_another_process_loads_it_too(engines, wanted, built):
    other = EngineCache(engines.folder)
    assert other.load(wanted, "8.6", AGAIN).engine == built


def test_it_is_built_once(engines, wanted, built):
    engine, new = engines.built(wanted, lambda folder: pytest.fail("built twice"))
    assert (engine, new) == (built, False)


def test_the_builder_gets_a_folder_that_goes_away(engines, wanted):
    seen = []

    def build(folder):
        (folder / "graph.onnx").touch()
        seen.append(folder)
        return PLAN, SPEC

    killed = engines.folder / f"{wanted.key}.building"
    killed.mkdir(parents=True)
    engines.folder.chmod(0o700)
    (killed / "of a builder that was killed").touch()
    engines.built(wanted, build)
    assert seen == [killed] and not killed.exists()


def test_a_build_that_fails_leaves_nothing_but_the_lock(engines, wanted):
    def build(folder):
        raise BadArtefact("network", "no", "way")

    with pytest.raises(BadArtefact):
        engines.built(wanted, build)
    assert [path.suffix for path in engines.folder.iterdir()] == [".lock"]
    assert engines.built(wanted, lambda folder: (PLAN, SPEC))[1]


def test_files_are_their_users_alone(engines, built):
    assert engines.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in engines.folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    "change",
    [
        {"network": "expert.text"},
        {"placement": Placement(precision="bf16")},
        {"placement": Placement(batch=2)},
        {"flavour": "tensorrt-rtx"},
        {"version": "11.4.1"},
        {"capabilities": ["8.9"]},
        {"capabilities": ["8.6", "8.9"]},
        {"flags": ["REFIT"]},
    ],
    ids=str,
)
def test_the_key_depends_on_everything_asked_for(change, bundle):
    assert recipe_for(bundle).key == recipe_for(bundle).key != recipe_for(bundle, **change).key


@pytest.mark.parametrize("file", ["expert.mask.onnx", "weights.safetensors"])
def test_the_key_depends_on_the_model(file, bundle, wanted):
    files = bundle.manifest.files | {file: "0" * 64}
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
    assert recipe_for(other).key != wanted.key
    assert recipe_for(other, "expert.text").key == recipe_for(bundle, "expert.text").key or file.startswith("weights")


def test_the_key_depends_on_our_own_version(wanted):
    assert dataclasses.replace(wanted, ours="0").key != wanted.key


def test_what_has_no_batch_and_no_precision_is_one_engine_for_all(bundle):
    one, other = (recipe_for(bundle, "time.mask", p) for p in (Placement(), Placement(precision="bf16", batch=4)))
    assert one.key == other.key
    assert (one.precision, one.sizes, one.profile) == ("fp32", {}, {"steps": (1, 50, 1000)})
    assert recipe_for(bundle, "condition.mask", Placement(precision="bf16", batch=4)).sizes == {"batch": 4}


def test_capabilities_have_no_order(bundle):
    keys = {recipe_for(bundle, capabilities=c).key for c in (["12.0", "8.6"], ["8.6", "12.0"])}
    assert len(keys) == 1
    assert recipe_for(bundle, capabilities=["12.0", "8.6"]).capabilities == ("8.6", "12.0")


def test_a_step_is_made_of_its_experts(bundle):
    name = step_network(["mask", "text"])
    assert name == "step.mask+text" and step_network(["mask"], boosted=True) == "step-boosted.mask"
    assert list(sources(bundle, name)) == ["expert.mask", "expert.text"]
    made = recipe_for(bundle, name)
    assert set(made.graphs) == {"expert.mask.onnx", "expert.text.onnx"} and made.sizes == {"batch": 1}


@pytest.mark.parametrize("network", ["expert.sound", "step.mask+sound", "vae"])
def test_a_network_that_isnt_there_is_refused(network, bundle):
    with pytest.raises(BadArtefact, match="no network"):
        recipe_for(bundle, network)


# --- what is found, and what is said if not --------------------------------------------------------------------------


def test_nothing_was_built(engines, wanted):
    with pytest.raises(BadArtefact, match=f"engine expert.mask: none was built for tensorrt; {AGAIN}"):
        engines.load(wanted, "8.6", AGAIN)


@pytest.mark.parametrize(
    ("change", "capability", "words"),
    [
        ({}, "9.0", "built for 8.6, here 9.0"),
        ({"version": "11.5.0"}, "8.6", "built for tensorrt 11.4.0, here 11.5.0"),
        ({"placement": Placement(batch=4)}, "8.6", "built for sizes batch 1, here batch 4"),
        ({"placement": Placement(precision="bf16")}, "8.6", "built for fp16, here bf16"),
        ({"flags": ["REFIT"]}, "8.6", "built for flags none, here REFIT"),
        ({"network": "expert.text"}, "8.6", "none was built for tensorrt"),
        ({"flavour": "tensorrt-rtx"}, "8.6", "none was built for tensorrt-rtx"),
    ],
    ids=str,
)
def test_what_was_built_and_what_is_here_are_said(change, capability, words, engines, built, bundle):
    with pytest.raises(BadArtefact) as raised:
        engines.load(recipe_for(bundle, **change), capability, AGAIN)
    assert f"{words}; {AGAIN}" in str(raised.value)


@pytest.mark.parametrize(("file", "words"), [("expert.mask.onnx", "graphs"), ("weights.safetensors", "weights")])
def test_an_engine_of_another_model_is_not_taken(file, words, engines, built, bundle):
    files = bundle.manifest.files | {file: "0" * 64}
    other = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
    with pytest.raises(BadArtefact, match=f"built for {words} .*, here .*0000"):
        engines.load(recipe_for(other), "8.6", AGAIN)


def test_a_portable_engine_serves_every_gpu_that_it_names(engines, bundle):
    several = recipe_for(bundle, capabilities=["8.6", "8.9", "12.0"], flavour="tensorrt-rtx")
    engines.built(several, lambda folder: (PLAN, SPEC))
    asked = recipe_for(bundle, flavour="tensorrt-rtx")
    for capability in ("8.6", "8.9", "12.0"):
        assert engines.load(asked, capability, AGAIN).data == PLAN
    with pytest.raises(BadArtefact, match=re.escape("built for 8.6, 8.9, 12.0, here 7.5")):
        engines.load(asked, "7.5", AGAIN)


# --- what was tampered with ------------------------------------------------------------------------------------------


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def rewrite(engines, change, digest=None):
    """The index with a change, and the digest that it had unless another is given."""
    path = engines.folder / INDEX
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data | ({"digest": digest(data)} if digest else {})))


def another_plan(engines):
    """In the place of what was built, and an index that was edited to say so."""
    plan_file(engines).write_bytes(b"evil" * 1000)
    other = hashlib.sha256(b"evil" * 1000).hexdigest()
    rewrite(engines, lambda data: next(iter(data["engines"].values())).update(sha256=other))


def move(engines, path):
    aside = engines.folder.parent / path.name
    path.rename(aside)
    return aside


TAMPERED = {
    "flipped plan": (lambda e: flip(plan_file(e), 2000), "not the one that was built here"),
    "cut plan": (lambda e: plan_file(e).write_bytes(PLAN[:-1]), "not the one that was built here"),
    "longer plan": (lambda e: plan_file(e).write_bytes(PLAN + b"x"), "no plain file of at most"),
    "empty plan": (lambda e: plan_file(e).write_bytes(b""), "not the one that was built here"),
    "missing plan": (lambda e: plan_file(e).unlink(), "is missing"),
    "replaced plan": (another_plan, "damaged"),
    "linked plan": (lambda e: (path := plan_file(e)).symlink_to(move(e, path)), "no plain file"),
    "flipped index": (lambda e: flip(e.folder / INDEX, 300), "engines.json is"),
    "empty index": (lambda e: (e.folder / INDEX).write_bytes(b""), "damaged"),
    "index without digest": (lambda e: rewrite(e, lambda data: data.pop("digest")), "damaged"),
    "odd digest": (lambda e: rewrite(e, lambda data: data.update(digest=7)), "damaged"),
    "other digest": (lambda e: rewrite(e, lambda data: data.update(digest="0" * 64)), "damaged"),
    "surplus field": (lambda e: rewrite(e, lambda data: data.update(more=1), digest), "damaged"),
    "field of another type": (lambda e: rewrite(e, lambda data: data.update(engines=[]), digest), "damaged"),
    "index is a list": (lambda e: (e.folder / INDEX).write_text("[]"), "damaged"),
    "deep index": (lambda e: (e.folder / INDEX).write_text("[" * 100_000), "damaged"),
    "linked index": (lambda e: (e.folder / INDEX).symlink_to(move(e, e.folder / INDEX)), "no plain file"),
    "folder of all": (lambda e: e.folder.chmod(0o777), "others may write"),
    "folder of a group": (lambda e: e.folder.chmod(0o770), "others may write"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_refused(case, engines, wanted, built):
    tamper, words = TAMPERED[case]
    tamper(engines)
    with pytest.raises(BadArtefact, match=words) as raised:
        engines.load(wanted, "8.6", AGAIN)
    assert "\n" not in str(raised.value)
    assert AGAIN in str(raised.value) or "chmod" in str(raised.value) or "remove" in str(raised.value)


def test_a_folder_of_another_user_is_refused(engines, wanted, built, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for act in (
        lambda: engines.load(wanted, "8.6", AGAIN),
        lambda: engines.built(wanted, lambda folder: pytest.fail("built there")),
    ):
        with pytest.raises(BadArtefact, match="belongs to user"):
            act()


MENDED = [case for case in TAMPERED if not case.startswith("folder of")]


@pytest.mark.parametrize("case", MENDED)
def test_the_remedy_mends_it(case, engines, wanted, built):
    TAMPERED[case][0](engines)
    engine, new = engines.built(wanted, lambda folder: (PLAN + b"!", SPEC))
    assert new and engines.load(wanted, "8.6", AGAIN).data == PLAN + b"!"
    assert engines.load(wanted, "8.6", AGAIN).engine == engine


def test_an_entry_is_not_taken_for_another(engines, bundle, wanted, built):
    """Both plans were built here, but one lies in the other's place."""
    other = recipe_for(bundle, "expert.text")
    engines.built(other, lambda folder: (b"text" * 1000, SPEC))
    shutil.copyfile(engines.folder / f"{other.key}.plan", engines.folder / f"{wanted.key}.plan")
    with pytest.raises(BadArtefact, match="not the one that was built here"):
        engines.load(wanted, "8.6", AGAIN)


# --- timing caches ---------------------------------------------------------------------------------------------------


@pytest.fixture
def timed(engines, built):
    engines.keep_learned("tensorrt-11.4.0.timing", b"learned")
    return engines.folder / "tensorrt-11.4.0.timing"


def test_what_was_learned_is_kept_by_flavour_and_version(engines, timed):
    assert engines.learned("tensorrt-11.4.0.timing") == b"learned"
    assert engines.learned("tensorrt-11.4.1.timing") == engines.learned("tensorrt-rtx-11.4.0.timing") == b""
    engines.keep_learned("tensorrt-11.4.0.timing", b"learned more")
    assert engines.learned("tensorrt-11.4.0.timing") == b"learned more"


def test_there_is_none_before_the_first_build(engines):
    assert engines.learned("tensorrt-11.4.0.timing") == b""


@pytest.mark.parametrize(
    "tamper",
    [
        lambda e, path: flip(path, 3),
        lambda e, path: path.write_bytes(b""),
        lambda e, path: rewrite(e, lambda data: data["learned"].clear(), digest),
    ],
    ids=["flipped", "empty", "not in the index"],
)
def test_a_corrupt_one_is_dropped_with_a_word(tamper, engines, timed, caplog):
    tamper(engines, timed)
    assert engines.learned("tensorrt-11.4.0.timing") == b""
    assert "is not what was written here; going on without it" in caplog.text


def test_a_build_goes_on_without(engines, timed, bundle):
    flip(timed, 3)
    asked = recipe_for(bundle, "expert.text")

    def build(folder):
        assert engines.learned("tensorrt-11.4.0.timing") == b""
        engines.keep_learned("tensorrt-11.4.0.timing", b"new")
        return PLAN, SPEC

    assert engines.built(asked, build)[1] and engines.learned("tensorrt-11.4.0.timing") == b"new"


# --- several processes -----------------------------------------------------------------------------------------------

BUILDER = """
import os, sys, time
from pathlib import Path
from cdiff_rt.engines.base import Placement
from cdiff_rt.engines.cache import EngineCache, recipe
from cdiff_rt.manifest import Bundle, NetworkSpec
from cdiff_rt.manifest import MODELS

folder, how = Path(sys.argv[1]), sys.argv[2]
bundle = Bundle.open(MODELS / "faces-128")
wanted = recipe(bundle, "expert.mask", Placement(), flavour="tensorrt", version="11.4.0", capabilities=["8.6"])

def build(scratch):
    with open(folder / "builds", "a") as file:
        file.write("x")
    print("building", flush=True)
    time.sleep(0.5)
    return b"plan" * 1000, NetworkSpec("expert.mask.onnx", (), ())

def die(descriptor):
    print("dying", flush=True)
    os.kill(os.getpid(), 9)

if how == "dies while it builds":
    time.sleep = die
if how.startswith("dies at "):
    owner, name = {"fsync": (os, "fsync"), "replace": (Path, "replace")}[how.split()[2]]
    left, call = int(how.split()[-1]), getattr(owner, name)
    def count(*given):
        global left
        left -= 1
        die(given) if left < 0 else call(*given)
    setattr(owner, name, count)
engines = EngineCache(folder / "engines")
print(engines.built(wanted, build)[1], engines.load(wanted, "8.6", "again").engine.sha256, flush=True)
"""


def start(folder, how=""):
    return subprocess.Popen([sys.executable, "-c", BUILDER, folder, how], stdout=subprocess.PIPE, text=True)


def test_two_processes_build_once(tmp_path):
    children = [start(tmp_path) for _ in range(3)]
    said = sorted(child.communicate(timeout=60)[0].split()[-2:] for child in children)
    assert (tmp_path / "builds").read_text() == "x"
    assert [new for new, _ in said] == ["False", "False", "True"]
    assert {digest for _, digest in said} == {hashlib.sha256(PLAN).hexdigest()}


# A file is synced, then it replaces the old one: first the plan's, then the index's.
DEATHS = ["dies while it builds"] + [f"dies at {call} {n}" for call in ("fsync", "replace") for n in (0, 1)]


@pytest.mark.parametrize("how", DEATHS)
def test_a_builder_that_is_killed_leaves_nothing_torn(how, tmp_path, bundle):
    child = start(tmp_path, how)
    assert "dying" in child.communicate(timeout=60)[0] and child.returncode == -9
    engines = EngineCache(tmp_path / "engines")
    asked = recipe_for(bundle)
    try:
        assert engines.load(asked, "8.6", AGAIN).data == PLAN
    except BadArtefact as error:
        assert "none was built" in str(error)
    engines.built(asked, lambda folder: (PLAN, SPEC))
    assert engines.load(asked, "8.6", AGAIN).data == PLAN
    kinds = {path.suffix for path in engines.folder.iterdir()}
    assert kinds == {".plan", ".json", ".lock"}


def test_another_waits_and_takes_over_from_one_that_is_killed(tmp_path):
    first = start(tmp_path)
    assert first.stdout.readline() == "building\n"
    second = start(tmp_path)
    first.kill()
    assert second.communicate(timeout=60)[0].split()[:2] == ["building", "True"]
    assert (tmp_path / "builds").read_text() == "xx"


@pytest.mark.parametrize("of_the_user", [True, False], ids=["XDG_CACHE_HOME", "HOME"])
def test_the_default_lies_in_the_users_home(of_the_user, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if of_the_user:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    home = tmp_path / ("elsewhere" if of_the_user else ".cache")
    assert EngineCache().folder == home / "cdiff-rt/engines"


# --- what is too much ------------------------------------------------------------------------------------------------


def fill(engines, bundle, batches):
    """An engine of 1,000 bytes for each size of batch."""
    recipes = {batch: recipe_for(bundle, placement=Placement(batch=batch)) for batch in batches}
    for made in recipes.values():
        engines.built(made, lambda folder: (bytes(1000), SPEC))
    return recipes


def left(engines, recipes):
    plans = {path.stem for path in engines.folder.glob("*.plan")}
    assert plans == set(json.loads((engines.folder / INDEX).read_text())["engines"])
    return [batch for batch, made in recipes.items() if made.key in plans]


def test_what_was_used_longest_ago_makes_room(engines, bundle, monkeypatch, caplog):
    monkeypatch.setattr("cdiff_rt.engines.cache.MOST_BYTES", 3500)
    recipes = fill(engines, bundle, [1, 2, 3])
    engines.load(recipes[1], "8.6", AGAIN)
    for path in engines.folder.iterdir():  # a clock that was wrong changes nothing
        os.utime(path, (0, 0) if path.stem == recipes[1].key else (2**33, 2**33))
    with caplog.at_level("INFO", "cdiff_rt"):
        recipes |= fill(engines, bundle, [4])
    assert left(engines, recipes) == [1, 3, 4] and f"removed {recipes[2].key[:12]}.plan" in caplog.text
    with pytest.raises(BadArtefact, match="built for sizes batch"):
        engines.load(recipes[2], "8.6", AGAIN)


def test_with_a_plan_goes_what_was_compiled_for_it(engines, bundle, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.cache.MOST_BYTES", 1500)
    old = fill(engines, bundle, [1])[1]
    for name in (f"{old.key}-0123.kernels", "tensorrt-11.4.0.timing"):
        engines.keep_learned(name, b"learned")
    fill(engines, bundle, [2])
    index = json.loads((engines.folder / INDEX).read_text())
    assert list(index["learned"]) == ["tensorrt-11.4.0.timing"] and not list(engines.folder.glob("*.kernels"))


def test_the_newest_stays_however_large(engines, bundle, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.cache.MOST_BYTES", 500)
    assert left(engines, recipes := fill(engines, bundle, [1, 2])) == [2]
    assert engines.load(recipes[2], "8.6", AGAIN).data == bytes(1000)


def test_what_somebody_builds_or_waits_for_is_left(engines, bundle, monkeypatch):
    monkeypatch.setattr("cdiff_rt.engines.cache.MOST_BYTES", 2500)
    recipes = fill(engines, bundle, [1, 2])
    with locked(engines.folder / f"{recipes[1].key}.lock"):
        recipes |= fill(engines, bundle, [3])
    assert left(engines, recipes) == [1, 3]


def test_plans_that_a_damaged_index_forgot_go_with_the_next_build(engines, bundle):
    recipes = fill(engines, bundle, [1, 2])
    (engines.folder / INDEX).write_text("{}")
    recipes |= fill(engines, bundle, [3])
    assert left(engines, recipes) == [3]


def test_an_index_without_uses_is_read(engines, wanted, built):
    data = json.loads((engines.folder / INDEX).read_text())
    del data["uses"], data["digest"]
    (engines.folder / INDEX).write_text(json.dumps(data | {"digest": digest(data)}))
    assert engines.load(wanted, "8.6", AGAIN).engine == built


def test_a_cache_that_cannot_be_written_is_read(engines, bundle, monkeypatch):
    recipes = fill(engines, bundle, [1, 2])

    def refuse(path, data):
        raise OutOfResource(f"writing {path}", "Read-only file system", "free some space")

    monkeypatch.setattr("cdiff_rt.engines.cache.write_file", refuse)
    assert engines.load(recipes[1], "8.6", AGAIN).data == bytes(1000)
