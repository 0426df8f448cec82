import json
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadRequest, OutOfResource
from cdiff_rt.outputs import generated
from cdiff_rt.outputs.generated import Beside, Generated, output_paths
from cdiff_rt.outputs.influence import InfluenceRecorder
from cdiff_rt.outputs.trajectory import TrajectoryRecorder

PARAMETERS = {
    "solver": "ddim", "steps": 4, "eta": 1.0, "temperature": 1.0, "seed": 7, "first": 1, "prompt": "a man", "model": "m", "model_hash": "0" * 64, "size": 8,
    "version": "1",
}  # fmt: skip
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
LATENTS = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
DRAWING = np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8)
NONE = np.zeros((2, 0, 0, 3), np.uint8)
RESULT = Generated(PIXELS, LATENTS, PARAMETERS, DRAWING)


def test_output_paths_name_seed_and_number_and_make_nothing(tmp_path):
    folder = tmp_path / "a" / "b"
    assert output_paths(folder, 7, range(3)) == [folder / f"seed7-00{i}.png" for i in range(3)]
    assert list(tmp_path.iterdir()) == []


def test_output_paths_take_one_png_file(tmp_path):
    assert output_paths(tmp_path / "one.PNG", 7, range(1)) == [tmp_path / "one.PNG"]
    with pytest.raises(BadRequest, match="one file, one.png, for 2 images"):
        output_paths(tmp_path / "one.png", 7, range(2))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.webp"])
def test_output_paths_refuse_other_formats(name, tmp_path):
    with pytest.raises(BadRequest, match="written as .png"):
        output_paths(tmp_path / name, 7, range(1))


def test_latents_that_are_the_data_go_to_npz_files(tmp_path):
    assert output_paths(tmp_path, 7, range(1), ".npz") == [tmp_path / "seed7-000.npz"]
    with pytest.raises(BadRequest, match="a.png; this model's results are written as .npz"):
        output_paths(tmp_path / "a.png", 7, range(1), ".npz")


@pytest.mark.parametrize("name", ["face.txt", "face.GIF", "a.b/face.json", "face.safetensors", "face.npz", "x.jp2"])
def test_a_file_of_another_kind_is_not_made_a_folder_unless_it_is_one(name, tmp_path):
    with pytest.raises(BadRequest, match=f"^out: {Path(name).name}; .*written as .png"):
        output_paths(tmp_path / name, 7, range(1))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / name).mkdir(parents=True)
    assert output_paths(tmp_path / name, 7, range(1)) == [tmp_path / name / "seed7-000.png"]


@pytest.mark.parametrize("name", ["faces.v2", "run.5", "faces", ".faces", "faces.d", "faces.final"])
def test_a_folder_may_have_a_dot_in_its_name(name, tmp_path):
    assert output_paths(tmp_path / name, 7, range(1)) == [tmp_path / name / "seed7-000.png"]


@pytest.mark.parametrize("name", [".png", ".npz", ".PNG"])
def test_an_ending_is_no_name(name, tmp_path):
    with pytest.raises(BadRequest, match=f"^out: {name} is an ending without a name"):
        output_paths(tmp_path / name, 7, range(1))


def test_a_name_that_leaves_no_room_for_what_lies_beside_it_is_refused(tmp_path):
    path = tmp_path / ("a" * 250 + ".png")
    assert output_paths(path, 7, range(1), beside=Beside(latent=True)) == [path]
    for beside in (Beside(overlay=True), Beside((InfluenceRecorder,))):
        with pytest.raises(BadRequest, match="^out: the name of a.* bytes"):
            output_paths(path, 7, range(1), beside=beside)


@pytest.mark.parametrize(
    ("how", "words"), [({"out": ""}, "out: it is empty"), ({"scale": 0}, "scale: 0"), ({"scale": True}, "scale: True")]
)
def test_a_bad_place_or_size_is_refused_before_anything_is_written(how, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=words):
        RESULT.save(**{"out": tmp_path} | how)
    assert list(tmp_path.iterdir()) == []


def test_what_a_number_came_as_does_not_keep_an_image_from_being_saved(tmp_path):
    odd = PARAMETERS | {"seed": np.int64(7), "alphas": np.float32([0.5]), "photo": tmp_path}
    (path, _) = Generated(PIXELS, LATENTS, odd).save(tmp_path, latent=True, scale=np.int8(2))
    with Image.open(path) as image:
        assert json.loads(image.text["cdiff_rt"]) == PARAMETERS | {"alphas": [0.5], "photo": str(tmp_path), "image": 1}
    assert Generated(PIXELS, LATENTS, odd).png_bytes(np.int64(0)) == path.read_bytes()


@pytest.mark.parametrize("there", ["seed7-001.png", "seed7-001.npz", "seed7-001.overlay.png"])
def test_what_exists_is_overwritten_only_by_force(there, tmp_path):
    (tmp_path / there).touch()
    beside, path = Beside(latent=True, overlay=True), tmp_path / "seed7-001.png"
    with pytest.raises(BadRequest, match=f"{there} exists.*--force"):
        output_paths(path, 7, range(1), beside=beside)
    assert output_paths(path, 7, range(1), beside=beside, force=True) == [path]


@pytest.mark.parametrize("there", ["seed7-001.png", "seed7-001.npz", "seed7-001.influence"])
def test_in_a_folder_the_next_free_name_is_taken(there, tmp_path):
    (tmp_path / there).touch()
    beside = Beside((InfluenceRecorder,))
    first, second = output_paths(tmp_path, 7, range(2), beside=beside)
    assert (first.name, second.name) == ("seed7-000.png", "seed7-001-2.png")
    second.touch()
    assert output_paths(tmp_path, 7, range(2), beside=beside)[1].name == "seed7-001-3.png"
    if there.endswith(".png"):
        assert output_paths(tmp_path, 7, range(2), force=True)[1].name == "seed7-001.png"


def test_of_two_that_save_in_one_folder_at_once_each_has_names_of_its_own(tmp_path, monkeypatch):
    """The second begins when the first has its names, and nothing is there yet."""
    real, saved, threads = Generated._save, {}, []

    def save(name):
        saved[name] = RESULT.save(tmp_path, latent=True)

    def slow(self, path, *more):
        if not threads:
            threads.append(threading.Thread(target=save, args=["second"]))
            threads[0].start()
            time.sleep(0.3)
        real(self, path, *more)

    monkeypatch.setattr(Generated, "_save", slow)
    save("first")
    threads[0].join()
    assert [path.name for path in saved["first"]] == ["seed7-001.png", "seed7-002.png"]
    assert [path.name for path in saved["second"]] == ["seed7-001-2.png", "seed7-002-2.png"]
    assert len(list(tmp_path.iterdir())) == 8


def test_what_is_not_asked_for_may_exist(tmp_path):
    (tmp_path / "a.npz").touch()
    output_paths(tmp_path / "a.png", 7, range(1), beside=Beside(overlay=True))


@pytest.mark.parametrize("there", ["seed7-001.influence", "seed7-001.trajectory"])
def test_a_folder_that_exists_is_found_too(there, tmp_path):
    (tmp_path / there).mkdir()
    with pytest.raises(BadRequest, match="was not written by --save"):
        output_paths(tmp_path, 7, range(2), beside=Beside((InfluenceRecorder, TrajectoryRecorder)), force=True)


def test_a_folder_is_never_overwritten(tmp_path):
    (tmp_path / "seed7-000.png").mkdir()
    with pytest.raises(BadRequest, match="is a folder"):
        output_paths(tmp_path, 7, range(1), force=True)


def test_beside_an_image_lie_its_latent_and_the_mask_over_it(tmp_path):
    paths = RESULT.save(tmp_path, latent=True, overlay=True)
    assert [path.name for path in paths] == ["seed7-001.png", "seed7-002.png"]
    assert len(list(tmp_path.iterdir())) == 6
    for i, path in enumerate(paths):
        with np.load(path.with_suffix(".npz")) as arrays:
            np.testing.assert_array_equal(arrays["latent"], LATENTS[i])
            assert json.loads(str(arrays["parameters"])) == PARAMETERS | {"image": i + 1}
        with Image.open(path) as image, Image.open(path.with_suffix(".overlay.png")) as over:
            assert json.loads(image.text["cdiff_rt"]) == PARAMETERS | {"image": i + 1}
            assert json.loads(over.text["cdiff_rt"]) == PARAMETERS | {"image": i + 1, "overlay": 1}
            expected = 0.7 * PIXELS[i] + 0.3 * DRAWING[1::2, 1::2]
            np.testing.assert_allclose(np.asarray(over), expected, atol=1)


def test_without_images_the_latent_is_what_is_saved(tmp_path):
    (path,) = Generated(NONE[:1], LATENTS[:1], PARAMETERS).save(tmp_path / "a.npz")
    assert [path] == list(tmp_path.iterdir())
    np.testing.assert_array_equal(np.load(path)["latent"], LATENTS[0])


@pytest.mark.parametrize(
    "result", [Generated(PIXELS, LATENTS, PARAMETERS), Generated(NONE, LATENTS, PARAMETERS, DRAWING)]
)
def test_an_overlay_without_a_mask_or_an_image_is_refused_and_writes_nothing(result, tmp_path):
    with pytest.raises(BadRequest, match="no condition of this run can be drawn"):
        result.save(tmp_path, overlay=True)
    assert list(tmp_path.iterdir()) == []


def save_beyond_the_file_size_limit(out, **options):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    large = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    try:
        Generated(large, LATENTS[:1], PARAMETERS).save(out, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_old_files_and_nothing_else(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(OutOfResource, match=r"^writing .*a\.png: "):
        save_beyond_the_file_size_limit(path, force=True, latent=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError, ValueError])
def test_an_interrupted_write_leaves_nothing(failure, tmp_path, monkeypatch):
    def fail(*paths, **named):
        raise failure

    monkeypatch.setattr(generated, "npz_bytes", fail)  # after the image was written
    with pytest.raises(failure):
        RESULT.save(tmp_path, latent=True)
    assert list(tmp_path.iterdir()) == []


def test_saving_makes_the_folder_and_files_that_all_can_read(tmp_path):
    for path in RESULT.save(tmp_path / "a" / "b"):
        assert path.stat().st_mode & 0o777 == 0o644


def test_steps_are_recorded_as_a_callback_saw_them(pipeline, mask, tmp_path):
    seen = []
    with TrajectoryRecorder(tmp_path, pipeline.decode) as recorder:
        arguments = {"mask": mask, "text": "a man", "steps": 4, "batch": 2}
        result = pipeline.generate(**arguments, callback_on_step_end=lambda s: [seen.append(s), recorder(s)])
        paths = result.save(tmp_path, recorders=[recorder])
    for i, path in enumerate(paths):
        folder = path.with_suffix(".trajectory")
        assert sorted(file.name for file in folder.iterdir()) == ["sheet.jpg", "trajectory.npz"]
        with np.load(folder / "trajectory.npz") as arrays:
            assert sorted(arrays) == ["prediction.mask", "prediction.text", "timesteps", "x", "x0"]
            np.testing.assert_array_equal(arrays["x"], [state.x[i] for state in seen])
            np.testing.assert_array_equal(arrays["x0"], [state.x0[i] for state in seen])
            np.testing.assert_array_equal(arrays["prediction.text"], [state.predictions[1, i] for state in seen])
            np.testing.assert_array_equal(arrays["x"][-1], result.latents[i])


def test_the_sheet_of_steps_ends_with_the_image(pipeline, tmp_path):
    with TrajectoryRecorder(tmp_path, pipeline.decode) as recorder:
        result = pipeline.generate(text="a man", steps=2, callback_on_step_end=recorder)
        (path,) = result.save(tmp_path, recorders=[recorder])
    with Image.open(path.with_suffix(".trajectory") / "sheet.jpg") as sheet:
        pixels = np.asarray(sheet).astype(int)
    last = pixels[20:116, -98:-2]  # the upper row is x, its last column the last step
    expected = np.asarray(Image.fromarray(result.images[0]).resize((96, 96)))
    assert np.abs(last - expected).mean() < 4


def test_png_bytes_are_the_file_that_save_writes(tmp_path):
    for i, path in enumerate(RESULT.save(tmp_path)):
        assert RESULT.png_bytes(i) == path.read_bytes()
    with pytest.raises(BadRequest, match="latents are the data"):
        Generated(NONE, LATENTS, PARAMETERS).png_bytes(0)


def test_by_products_are_enlarged_and_the_image_is_not(tmp_path):
    (path, _) = RESULT.save(tmp_path, overlay=True, scale=4)
    with Image.open(path) as image, Image.open(path.with_suffix(".overlay.png")) as over:
        assert (image.size, over.size) == ((8, 8), (32, 32))
