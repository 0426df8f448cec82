import hashlib
import json
import os
import random
import time
from pathlib import Path

import pytest

from cdiff_rt import pipeline, runners
from cdiff_rt.engines import backends
from cdiff_rt.errors import BadArtefact, OutOfResource
from cdiff_rt.manifest import DEFAULT_MODEL, LARGEST_MANIFEST, MODELS, NAME, Bundle, Manifest, digest, sha256

OWN_HASH = hashlib.sha256(b"vocab.txt").hexdigest()


@pytest.fixture
def folder(bundle, tmp_path) -> Path:
    """The embedded model's manifest over small files: opening a bundle reads bytes, whatever they mean."""
    path = tmp_path / "small"
    path.mkdir()
    data = json.loads(bundle.manifest.to_json())
    for name in data["files"]:
        (path / name).write_bytes(name.encode())
        data["files"][name] = sha256(path / name)
    write(path, data)
    return path


def read(folder: Path) -> dict:
    return json.loads((folder / NAME).read_text())


def write(folder: Path, data: dict) -> None:
    (folder / NAME).write_text(json.dumps(data | {"digest": digest(data)}))


def test_an_intact_bundle_opens(folder):
    bundle = Bundle.open(folder)
    assert bundle.content[bundle.manifest.weights] == b"weights.safetensors"
    assert bundle.path(bundle.manifest.weights) == folder / "weights.safetensors"
    assert bundle.manifest_hash == sha256(folder / NAME)


def every_file():
    return sorted(path.name for path in (MODELS / DEFAULT_MODEL).iterdir())


@pytest.mark.parametrize("place", [0.0, 0.37, 0.999])
@pytest.mark.parametrize("name", every_file())
def test_a_flipped_bit_in_any_file_is_found_before_a_network_loads(name, place, bundle_copy, monkeypatch):
    content = bytearray((bundle_copy / name).read_bytes())
    content[int(place * len(content))] ^= 1
    (bundle_copy / name).write_bytes(content)
    monkeypatch.setattr(backends, "load_engine", lambda *args, **kwargs: pytest.fail("a network was loaded"))
    monkeypatch.setattr(runners, "load_engine", backends.load_engine)
    with pytest.raises(BadArtefact):
        pipeline.Pipeline.from_pretrained(bundle_copy).generate(text="a man", steps=1)


def test_any_flipped_bit_of_the_manifest_is_found(bundle):
    text = bundle.manifest.to_json().encode()
    for place in random.Random(0).sample(range(8 * len(text)), 400):
        flipped = bytearray(text)
        flipped[place // 8] ^= 1 << place % 8
        try:
            decoded = flipped.decode()
        except UnicodeDecodeError:
            continue
        with pytest.raises(BadArtefact):
            Manifest.from_json(decoded)


def test_a_manifest_without_a_digest_is_refused(bundle):
    data = json.loads(bundle.manifest.to_json())
    del data["digest"]
    with pytest.raises(BadArtefact, match="missing.*digest"):
        Manifest.from_json(json.dumps(data))


def test_the_manifest_survives_json(bundle):
    assert Manifest.from_json(bundle.manifest.to_json()) == bundle.manifest


def test_the_manifests_shapes_are_tuples(bundle):
    assert bundle.manifest.latent_shape == (16, 16, 16)
    assert bundle.manifest.networks["vae.decode"].inputs[0].shape == ("batch", 16, 16, 16)


def replace_by(make):
    """Of the vocabulary: `make` puts something else there."""

    def tamper(folder: Path) -> None:
        (folder / "vocab.txt").unlink()
        make(folder / "vocab.txt")

    return tamper


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt is missing"),
        (lambda folder: (folder / "vocab.txt").write_bytes(b"vocab.tyt"), "vocab.txt was altered"),
        (lambda folder: (folder / "vocab.txt").write_bytes(b""), "vocab.txt was altered"),
        (replace_by(lambda path: path.symlink_to("nowhere")), "vocab.txt is a link to nothing"),
        (replace_by(lambda path: path.symlink_to("vocab.txt")), "vocab.txt cannot be read"),
        (replace_by(lambda path: path.symlink_to("/dev/zero")), "vocab.txt is not a plain file"),
        (replace_by(lambda path: path.symlink_to("weights.safetensors")), "vocab.txt was altered"),
        (replace_by(Path.mkdir), "vocab.txt cannot be read (Is a directory)"),
        (replace_by(os.mkfifo), "vocab.txt is not a plain file"),
        (replace_by(lambda path: path.open("wb").truncate(2**43)), "there is no memory for vocab.txt"),
        (lambda folder: (folder / NAME).unlink(), "no manifest.json"),
        (lambda folder: (folder / NAME).write_bytes(b"\xff{}"), "not UTF-8"),
        (lambda folder: (folder / NAME).write_bytes(b" " * (LARGEST_MANIFEST + 1)), "4194305 bytes"),
    ],
    ids=[
        *("missing", "altered", "emptied", "link to nothing", "link to itself", "link to a device", "link to another"),
        *("folder", "fifo", "sparse", "no manifest", "bytes", "huge"),
    ],
)
def test_a_bundle_whose_files_differ_from_its_manifest_is_refused(tamper, words, folder):
    tamper(folder)
    with pytest.raises(OutOfResource if "memory" in words else BadArtefact) as raised:
        Bundle.open(folder)
    assert words in str(raised.value)


def in_a_hub(folder: Path) -> Path:
    """As model hubs keep a snapshot: every file is a link to a blob that has its hash for a name."""
    blobs, snapshot = folder.parent / "blobs", folder.parent / "snapshots/1f"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        blob = path.rename(blobs / sha256(path))
        (snapshot / path.name).symlink_to(Path("../../blobs", blob.name))
    return snapshot


def in_a_volume(folder: Path) -> Path:
    """As Kubernetes mounts a ConfigMap: links to a link to the folder of today."""
    (folder / "..2026_11_30").mkdir()
    (folder / "..data").symlink_to("..2026_11_30")
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "..2026_11_30" / path.name)
        path.symlink_to(Path("..data", path.name))
    return folder


def behind_a_link(folder: Path) -> Path:
    (folder.parent / "link").symlink_to(folder)
    return folder.parent / "link"


def as_hard_links(folder: Path) -> Path:
    (folder.parent / "copy").mkdir()
    for path in folder.iterdir():
        (folder.parent / "copy" / path.name).hardlink_to(path)
    return folder.parent / "copy"


@pytest.mark.parametrize("laid_out", [in_a_hub, in_a_volume, behind_a_link, as_hard_links])
def test_links_to_the_right_files_are_followed(laid_out, folder):
    content = Bundle.open(folder).content
    assert Bundle.open(laid_out(folder)).content == content


SURPLUS = [
    ".DS_Store", ".gitattributes", ".gitignore", ".nfs0001", "._vocab.txt", "README.md", "Thumbs.db", "desktop.ini",
    "extra.onnx", "manifest.json.orig", "vocab.txt~", "a\nb",
]  # fmt: skip


def test_what_no_graph_names_is_left_alone(folder):
    for name in SURPLUS:
        (folder / name).write_bytes(b"whatever")
    (folder / ".cache/huggingface").mkdir(parents=True)
    (folder / ".git").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    assert not set(Bundle.open(folder).content) & {*SURPLUS, ".cache", ".git", "pipe"}


@pytest.mark.parametrize("name", [*(MODELS / DEFAULT_MODEL).iterdir()], ids=lambda path: path.name)
def test_an_unreadable_file_is_named(name, folder, monkeypatch):
    def refusing(path, *args, real=os.open):
        if Path(path).name == name.name:
            raise PermissionError(13, "Permission denied")
        return real(path, *args)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(BadArtefact, match=f"{name.name} cannot be read .Permission denied."):
        Bundle.open(folder)


@pytest.mark.parametrize(
    "name",
    ["../vocab.txt", "/etc/hostname", "sub/vocab.txt", "./vocab.txt", "..", ".", "", "vo\0cab.txt", "..\\x", "\ud800"],
    ids=ascii,
)
def test_names_that_are_no_plain_file_of_the_folder_are_refused(name, folder):
    (folder.parent / "vocab.txt").write_bytes(b"vocab.txt")
    data = read(folder)
    data["files"][name] = OWN_HASH
    write(folder, data)
    with pytest.raises(BadArtefact):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"format": 1, "format": 1}', "'format' stands twice"),
        ('{"a": {"b": 1, "b": 2}}', "'b' stands twice"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a":' * 100_000, "not valid JSON"),
        ("1" * 5000, "11111111111111111111 is no number that can be used"),
        ('{"a": -1%s}' % ("0" * 30), "is no number"),
        ('{"a": 1e400}', "1e400 is no number"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": [-Infinity]}', "-Infinity is no number"),
        ('{"a":' * 51 + "1" + "}" * 51, "nested more than 50 deep"),
        ("[" * 900 + "1" + "]" * 900, "nested more than 50 deep"),
        ("[]", "format None"),
        ("null", "format None"),
        ("{}", "format None"),
        ('{"format": 1}', "format 1"),
        ('{"format": "1"}', "format '1'"),
        ('{"format": true}', "format True"),
        ('{"format": 2}', "missing, surplus"),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_no_manifest_is_refused(text, words):
    with pytest.raises(BadArtefact) as raised:
        Manifest.from_json(text)
    assert words in str(raised.value)


def test_a_manifest_of_very_many_names_is_refused_quickly():
    text = "{" + ",".join(f'"{i}": 0' for i in range(20_000)) + "}"
    begin = time.perf_counter()
    with pytest.raises(BadArtefact):
        Manifest.from_json(text)
    assert time.perf_counter() - begin < 1


FIELDS = [
    "name", "image_size", "latent_shape", "latent_scale", "schedule", "influence", "modalities", "networks", "weights",
    "source", "provenance", "licence", "files", "format",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_manifest_without_a_field_is_refused(field, folder):
    data = read(folder)
    del data[field]
    write(folder, data)
    with pytest.raises(BadArtefact):
        Bundle.open(folder)


@pytest.mark.parametrize("place", [(), ("schedule",), ("influence",), ("modalities", 0)], ids=str)
def test_a_manifest_with_a_surplus_field_is_refused(place, folder):
    data = part = read(folder)
    for key in place:
        part = part[key]
    part["surplus"] = 1
    write(folder, data)
    with pytest.raises(BadArtefact, match="surplus"):
        Bundle.open(folder)


WRONG = [
    (field, value)
    for field in ("latent_shape", "schedule", "influence", "modalities", "networks", "files")
    for value in (None, 5, "x", [], ["x"], [[]], {}, {"x": 5}, {"x": None})
    if (field, value) not in (("schedule", {}), ("influence", {}))  # all of their fields have defaults
]


@pytest.mark.parametrize(("field", "value"), WRONG, ids=str)
def test_a_field_of_the_wrong_type_is_refused(field, value, folder):
    data = read(folder)
    data[field] = value
    write(folder, data)
    with pytest.raises(BadArtefact):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("weights",), []),
        (("weights",), None),
        (("weights",), "nowhere.safetensors"),
        (("image_size",), "large"),
        (("latent_scale",), None),
        (("schedule", "train_steps"), "many"),
        (("schedule", "prediction"), "score"),
        (("influence", "decay"), "sudden"),
        (("influence", "factor"), "two"),
        (("modalities", 0, "kind"), "smells"),
        (("modalities", 0, "classes"), "all"),
        (("modalities", 1, "vocabulary"), "nowhere.txt"),
        (("modalities", 1, "vocabulary"), "../vocab.txt"),
        (("networks", "vae.decode", "file"), []),
        (("networks", "vae.decode", "file"), "nowhere.onnx"),
        (("networks", "vae.decode", "cpu_file"), "nowhere.onnx"),
        (("networks", "vae.decode", "cpu_file"), None),
        (("networks", "vae.decode", "inputs"), None),
        (("networks", "vae.decode", "inputs", 0, "shape"), 5),
        (("networks", "vae.decode"), None),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_refused(place, value, folder):
    data = part = read(folder)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    write(folder, data)
    with pytest.raises(BadArtefact):
        Bundle.open(folder)


BOMBS = [
    (("schedule", "train_steps"), 10**9, "timesteps"),
    (("schedule", "train_steps"), 1, "timesteps"),
    (("schedule", "beta_start"), 0, "beta 0"),
    (("schedule", "beta_end"), 2.0, "to 2.0"),
    (("schedule", "beta_end"), 0.99, "to 0.99"),
    (("latent_shape",), [16, 10**9, 10**9], "'latent_shape' has the shape"),
    (("latent_shape",), [8, 16, 16], "does not take z"),
    (("latent_shape",), [16, 0, 16], "'latent_shape' has the shape"),
    (("latent_shape",), [1] * 300_000, "'latent_shape' has the shape"),
    (("latent_scale",), 0, "latent_scale 0"),
    (("latent_scale",), 1e300, "latent_scale 1e"),
    (("image_size",), 10**9, "does not give image"),
    (("image_size",), -1, "image_size -1"),
    (("modalities", 0, "classes"), 10**9, "the shape [1000000000, 1024]"),
    (("modalities", 0, "classes"), 0, "the shape [0, 1024]"),
    (("modalities", 0, "size"), 10**9, "modality mask"),
    (("modalities", 1, "tokens"), 10**9, "modality text"),
    (("modalities", 1, "tokens"), 1, "1 word pieces"),
    (("modalities", 1, "tokens"), 31, "condition.text does not take inputs int64 ['batch', 31]"),
    (("modalities", 0, "name"), "seed", "that of a setting"),
    (("modalities", 0, "name"), "text", "two modalities have the name 'text'"),
    (("modalities", 0, "name"), "\x1b[31m", "cannot be a name"),
    (("name",), "a\nb", "cannot be a name"),
    (("networks", "expert.mask", "inputs"), [], "expert.mask does not take"),
    (("networks", "condition.mask", "outputs"), [], "condition.mask does not give"),
    (("networks", "time.mask", "outputs", 0, "shape"), [], "time.mask does not give"),
    (("networks", "time.mask", "outputs", 0, "shape"), ["steps", 7], "expert.mask does not take"),
    (("networks", "expert.mask", "outputs", 0, "shape"), ["batch", 16, 256], "expert.mask does not give"),
    (("networks", "expert.mask", "outputs", 1, "dtype"), "float64", "expert.mask does not give"),
    (("networks", "expert.mask", "inputs", 0, "shape"), ["batch", -16, 16, 16], "the shape ['batch', -16"),
    (("networks", "vae.encode", "outputs", 0, "name"), "other", "vae.encode does not give mean"),
]


@pytest.mark.parametrize(("place", "value", "words"), BOMBS, ids=lambda value: repr(value)[:40])
def test_what_no_run_could_use_or_end_is_refused_before_any_work(place, value, words, folder):
    data = part = read(folder)
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    write(folder, data)
    begun = time.process_time()
    with pytest.raises(BadArtefact) as raised:
        Bundle.open(folder)
    assert words in str(raised.value) and str(raised.value).isprintable() and len(str(raised.value)) < 500
    assert time.process_time() - begun < 1


@pytest.mark.parametrize(("field", "most"), [("modalities", 64), ("files", 1000)])
def test_very_many_parts_are_refused(field, most, folder):
    data = read(folder)
    names = [f"part{i}" for i in range(most + 1)]
    surplus = [data["modalities"][0] | {"name": name} for name in names], dict.fromkeys(names, OWN_HASH)
    data[field] = surplus[field == "files"]
    write(folder, data)
    with pytest.raises(BadArtefact, match=f"names {most + 1} {field}, more than {most}"):
        Bundle.open(folder)


@pytest.mark.parametrize("network", ["vae.decode", "condition.mask", "time.text", "expert.text"])
def test_a_bundle_that_lacks_a_network_of_its_modalities_is_refused(network, folder):
    data = read(folder)
    del data["networks"][network]
    write(folder, data)
    with pytest.raises(BadArtefact, match=network):
        Bundle.open(folder)


def test_the_list_of_all_files_is_no_table_of_hashes(folder):
    data = read(folder)
    data["files"] = list(data["files"])
    write(folder, data)
    with pytest.raises(BadArtefact):
        Bundle.open(folder)
