import errno
import logging
import os
import tracemalloc

import numpy as np
import pytest
from PIL import Image, features

from cdiff_rt.errors import BadArtefact, BadEnvironment, BadRequest, OutOfResource
from cdiff_rt.outputs import generated
from cdiff_rt.outputs import influence as module
from cdiff_rt.outputs import recorder as recorders
from cdiff_rt.outputs.contact_sheet import LINE, TILE
from cdiff_rt.outputs.files import all_or_nothing
from cdiff_rt.outputs.influence import ANIMATION_STEPS, COLOURS, GAP, InfluenceRecorder, frames, grid, influence_sheet
from cdiff_rt.outputs.recorder import evenly
from cdiff_rt.sampling.conflict import disagreement
from cdiff_rt.sampling.loop import StepState

TEXT = "This man has a long beard."
NAMES = ["mask", "text", "sketch"]
PICTURE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
HALVES = np.kron([[1.0, 0.0]], np.ones((8, 4))).astype(np.float32)  # all on the left, none on the right
FULL = OSError(errno.ENOSPC, "No space left on device")


def some(modalities, batch=1, latent=(4, 4), seed=0):
    """[M, B, 1, *latent], sums to 1 over the modalities."""
    raw = np.random.default_rng(seed).random((modalities, batch, 1, *latent), np.float32)
    return raw / raw.sum(0)


def predictions(influence):
    """[M, B, 3, *latent], of each expert."""
    values = np.random.default_rng(0).normal(0, 1, influence.shape[:2] + (3, *influence.shape[3:]))
    return values.astype(np.float32)


def record(recorder, influences, names=NAMES):
    for step, values in enumerate(influences):
        empty, outs = np.empty(0), predictions(values)
        recorder(StepState(step, 1000 - step, empty, empty, tuple(names[: len(values)]), values, outs))
    return recorder


def full(*args, **kwargs):
    raise FULL


@pytest.fixture
def recorder(tmp_path):
    with InfluenceRecorder(tmp_path) as recorder:
        yield recorder


@pytest.fixture
def saved(pipeline, mask, tmp_path):
    """A run of two images: what another callback saw, and the folders beside the images."""
    seen = []

    def both(state):
        seen.append(state)
        recorder(state)

    with InfluenceRecorder(tmp_path) as recorder:
        result = pipeline.generate(mask=mask, text=TEXT, steps=5, batch=2, first=3, callback_on_step_end=both)
        paths = result.save(tmp_path, recorders=[recorder])
    assert [path.name for path in paths] == ["seed0-003.png", "seed0-004.png"]
    return seen, [recorder.folder_of(path) for path in paths]


def test_the_arrays_are_what_a_callback_saw_and_sum_to_1(saved):
    seen, folders = saved
    for i, folder in enumerate(folders):
        with np.load(folder / "maps.npz") as maps:
            assert sorted(maps) == ["conflict", "mask", "text", "timesteps"]
            assert maps["timesteps"].tolist() == [801, 601, 401, 201, 1]
            for m, name in enumerate(("mask", "text")):
                assert maps[name].dtype == np.float32
                np.testing.assert_array_equal(maps[name], [state.influence[m, i, 0] for state in seen])
            np.testing.assert_allclose(maps["mask"] + maps["text"], 1, atol=1e-6)
            apart = [disagreement(state.predictions, state.influence)[i] for state in seen]
            np.testing.assert_array_equal(maps["conflict"], apart)
    assert not np.array_equal(seen[0].influence[0, 0], seen[0].influence[0, 1])


def test_there_is_a_grey_picture_of_each_step_and_modality_and_nothing_unnamed(saved):
    for folder in saved[1]:
        maps = np.load(folder / "maps.npz")
        files = {"maps.npz", "sheet.jpg", "animation.webp", "mask.png", "text.png", "conflict.png"}
        assert {path.name for path in folder.iterdir()} == files
        for name in ("mask", "text", "conflict"):
            with Image.open(folder / f"{name}.png") as image:
                assert image.mode == "L"
                np.testing.assert_array_equal(np.asarray(image), np.asarray(grid(iter(maps[name]), len(maps[name]))))


def test_the_animation_shows_the_modalities_side_by_side_and_ends_with_the_last_step(saved):
    for folder in saved[1]:
        with Image.open(folder / "animation.webp") as animation:
            assert animation.format == "WEBP" and animation.n_frames == 5
            assert animation.size == (2 * 128, 128 + LINE) and animation.info["loop"] == 0
            means = []
            for number in range(animation.n_frames):
                animation.seek(number)
                means.append(colourfulness(np.asarray(animation.convert("RGB"))[:128, :128]))
        assert means == sorted(means, reverse=True) and means[-1] < 10 and means[0] > 40  # the mask's influence fades


def colourfulness(pixels):
    return (pixels.max(-1).astype(int) - pixels.min(-1)).mean()


def test_nothing_lies_beside_the_images_and_their_folders(saved):
    (folder,) = {path.parent for path in saved[1]}
    names = [f"seed0-00{i}.{end}" for i in (3, 4) for end in ("influence", "png")]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_modality_alone_has_all_influence(pipeline, tmp_path):
    with InfluenceRecorder(tmp_path) as recorder:
        result = pipeline.generate(text=TEXT, steps=2, callback_on_step_end=recorder)
        result.save(tmp_path / "a.png", recorders=[recorder])
    folder = tmp_path / "a.influence"
    maps = np.load(folder / "maps.npz")
    assert sorted(maps) == ["text", "timesteps"]
    np.testing.assert_array_equal(maps["text"], np.ones((2, 16, 16)))
    assert np.asarray(Image.open(folder / "text.png")).min() == 255
    assert Image.open(folder / "animation.webp").size == (128, 128 + LINE)


@pytest.mark.parametrize("modalities", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_any_number_of_modalities_and_steps(modalities, steps, recorder, tmp_path):
    record(recorder, [some(modalities, 2, seed=step) for step in range(steps)])
    recorder.write(tmp_path, 1, PICTURE)
    beside = {"conflict"} if modalities > 1 else set()
    assert {path.stem for path in tmp_path.glob("*.png")} == {*NAMES[:modalities], *beside}
    with Image.open(tmp_path / "animation.webp") as animation:
        assert (getattr(animation, "n_frames", 1), animation.width) == (min(steps, ANIMATION_STEPS), modalities * 32)
    for m, name in enumerate(NAMES[:modalities]):
        expected = [some(modalities, 2, seed=step)[m, 1, 0] for step in range(steps)]
        np.testing.assert_array_equal(np.load(tmp_path / "maps.npz")[name], expected)


@pytest.mark.parametrize("latent", [(5,), (2, 3, 4), (2, 2, 2, 2)], ids=str)
def test_latents_that_are_not_flat_have_arrays_only_and_a_note(latent, recorder, tmp_path, caplog):
    influences = [some(2, 3, latent, seed) for seed in range(4)]
    record(recorder, influences)
    with caplog.at_level(logging.INFO, "cdiff_rt"):
        recorder.check(3, 4)
    assert f"rank {len(latent)}, so only maps.npz" in caplog.text
    recorder.write(tmp_path, 2, PICTURE)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.npz"]
    np.testing.assert_array_equal(np.load(tmp_path / "maps.npz")["text"], [values[1, 2, 0] for values in influences])


def peak(folder, steps):
    """Bytes that recording and writing take at most."""
    tracemalloc.start()
    with InfluenceRecorder(folder) as recorder, all_or_nothing(folder / str(steps) / "a.png") as new:
        record(recorder, (some(2, 1, (64, 64), step) for step in range(steps)))
        recorder.write(new, 0, PICTURE)
    highest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return highest


def test_memory_does_not_grow_with_the_steps(tmp_path):
    peak(tmp_path, 5)  # what is imported and cached at first use
    few, many = peak(tmp_path, 30), peak(tmp_path, 1500)
    all_maps = 1500 * 2 * 64 * 64 * 4
    # numpy writes 16 MiB at a time; of a modality's picture Pillow has a copy, a byte for each pixel of its maps.
    assert many - few < 0.7 * all_maps


def test_a_recording_is_no_file_that_could_be_left_behind(recorder, tmp_path):
    record(recorder, [some(2)])
    assert list(tmp_path.iterdir()) == []


def test_a_recording_lies_on_the_disk_of_the_output(tmp_path, monkeypatch):
    real, asked = recorders.tempfile.TemporaryFile, []
    monkeypatch.setattr(recorders.tempfile, "TemporaryFile", lambda dir: asked.append(dir) or real(dir=dir))
    for out in (tmp_path / "a" / "b.png", tmp_path):
        with InfluenceRecorder(out) as recorder:
            record(recorder, [some(2)])
    assert asked == [tmp_path, tmp_path]


def test_the_first_step_of_a_run_begins_a_new_recording(recorder):
    record(recorder, [some(2, seed=seed) for seed in (1, 2, 3)])
    record(recorder, [some(3, 2, seed=4)])
    recorder.check(2, 1)
    np.testing.assert_array_equal(recorder.read(0, NAMES[2], 1), some(3, 2, seed=4)[2, 1, 0])


@pytest.mark.parametrize("run", [(1, 4), (2, 3)], ids=str)
def test_a_recording_of_another_run_is_refused(run, recorder):
    record(recorder, [some(2)] * 3)
    recorder.check(1, 3)
    with pytest.raises(BadRequest, match="did not see this run"):
        recorder.check(*run)


def test_saving_after_the_recorder_was_closed_is_refused_and_writes_nothing(pipeline, tmp_path):
    with InfluenceRecorder(tmp_path) as recorder:
        result = pipeline.generate(text=TEXT, steps=1, callback_on_step_end=recorder)
    with pytest.raises(BadRequest, match="before its with block ends"):
        result.save(tmp_path, recorders=[recorder])
    assert list(tmp_path.iterdir()) == []


def test_a_modality_of_the_name_of_their_conflict_is_refused(recorder):
    with pytest.raises(BadArtefact, match="a modality has the name 'conflict'"):
        record(recorder, [some(2)], ["mask", "conflict"])


def test_a_weight_below_0_is_black_and_one_above_1_is_white():
    assert np.asarray(grid(iter([np.array([[-0.5, 0.0, 1.0, 1.5]])]), 1)).tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "timesteps"])
def test_a_modalitys_name_never_leads_out_of_the_folder(name, recorder):
    record(recorder, [some(1)], [name])
    with pytest.raises(BadArtefact, match="a modality has the name"):
        recorder.check(1, 1)


def test_a_pillow_without_webp_is_said_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(BadEnvironment, match="no webp"):
        InfluenceRecorder(tmp_path)


def test_a_full_disk_while_recording_is_out_of_resource(recorder, monkeypatch):
    monkeypatch.setattr(recorders.tempfile, "TemporaryFile", full)
    with pytest.raises(OutOfResource, match="recording the influence: No space left"):
        record(recorder, [some(2)])


@pytest.mark.parametrize("broken", ["grid", "contact_sheet", "write_animation", "parameters_text"])
@pytest.mark.parametrize("error", [FULL, KeyboardInterrupt(), ValueError("x")], ids=repr)
def test_a_failure_leaves_neither_image_nor_folder(broken, error, pipeline, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(generated if broken == "parameters_text" else module, broken, fail)
    with InfluenceRecorder(tmp_path) as recorder:
        result = pipeline.generate(text=TEXT, steps=2, callback_on_step_end=recorder)
        with pytest.raises(OutOfResource if error is FULL else type(error)):
            result.save(tmp_path, recorders=[recorder])
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_what_was_there(tmp_path):
    old = tmp_path / "a.influence"
    old.mkdir()
    (old / "maps.npz").write_text("old")
    with pytest.raises(OutOfResource, match="a.png: No space left"), all_or_nothing(tmp_path / "a.png") as new:
        (new / "a.influence").mkdir()
        (new / "a.influence" / "maps.npz").write_text("new")
        raise FULL
    assert [path.name for path in tmp_path.iterdir()] == ["a.influence"]
    assert (old / "maps.npz").read_text() == "old"


def test_what_is_whole_takes_the_place_of_the_old(tmp_path):
    folder = tmp_path / "b"
    old = folder / "a.influence"
    old.mkdir(parents=True)
    (old / "more.png").touch()
    (folder / "a.png").write_text("old")
    with all_or_nothing(folder / "a.png") as new:
        (new / "a.influence").mkdir()
        (new / "a.influence" / "maps.npz").write_text("new")
        (new / "a.png").write_text("new")
        assert (old / "more.png").exists()
    assert [path.name for path in old.iterdir()] == ["maps.npz"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.influence", "a.png"]
    assert (folder / "a.png").read_text() == "new"
    plain = tmp_path / "plain"
    plain.mkdir()
    assert old.stat().st_mode == plain.stat().st_mode


def test_a_folder_that_exists_is_replaced_by_force_only(tmp_path):
    folder = tmp_path / "a.influence"
    image = tmp_path / "a.png"
    InfluenceRecorder.check_target(image, force=False)
    folder.mkdir()
    (folder / "maps.npz").touch()
    with pytest.raises(BadRequest, match="a.influence exists.*--force"):
        InfluenceRecorder.check_target(image, force=False)
    InfluenceRecorder.check_target(image, force=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.touch(),
        lambda path: (path.mkdir(), (path / "thesis.txt").touch()),
        lambda path: path.symlink_to("/nonexistent"),
        lambda path: (path.with_name("x").mkdir(), (path.parent / "x/maps.npz").touch(), path.symlink_to("x")),
    ],
    ids=["file", "folder of others", "dead link", "link"],
)
def test_what_another_hand_made_is_not_replaced_even_by_force(make, tmp_path):
    make(tmp_path / "a.influence")
    with pytest.raises(BadRequest, match="not written by --save-influence"):
        InfluenceRecorder.check_target(tmp_path / "a.png", force=True)


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1, 8, [0]), (3, 8, [0, 1, 2]), (8, 8, list(range(8))), (50, 3, [0, 24, 49]), (1000, 2, [0, 999])],
)
def test_steps_are_chosen_evenly_with_the_first_and_the_last(count, most, expected):
    assert evenly(count, most) == expected


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 16, 16), (50, 5, 9)])
@pytest.mark.parametrize("scale", [1, 3])
def test_a_grid_holds_every_map_in_its_order(shape, scale):
    values = np.random.default_rng(0).random(shape, np.float32)
    values.flat[0], values.flat[-1] = -1e-6, 1 + 1e-6  # as sums of floats may be
    sheet = np.asarray(grid(iter(values), len(values), scale))
    height, width = (scale * side for side in shape[1:])
    assert sheet.shape[1] == min(10, len(values)) * (width + GAP) - GAP
    for step, expected in enumerate(np.rint(values.clip(0, 1) * 255)):
        top, left = step // 10 * (height + GAP), step % 10 * (width + GAP)
        np.testing.assert_array_equal(sheet[top : top + height : scale, left : left + width : scale], expected)


def check_halves(panel, modality):
    """Tinted in the modality's colour where HALVES is 1, grey where it is 0; away from the border, which is smooth."""
    width = panel.shape[1]
    left, right = panel[:, : width // 4].astype(int), panel[:, -width // 4 :].astype(int)
    assert np.ptp(right, axis=-1).max() == 0
    assert np.ptp(left, axis=-1).min() > 60
    assert left.mean((0, 1)).argmax() == np.argmax(COLOURS[modality])


MAPS = {"mask": {0: HALVES, 7: 1 - HALVES}, "text": {0: 1 - HALVES, 7: HALVES}}


def test_a_frame_tints_each_panel_by_its_own_modality():
    for step, frame in zip((0, 7), frames(Image.fromarray(PICTURE), MAPS, [0, 7]), strict=True):
        panels = np.asarray(frame)[:32].reshape(32, 2, 32, 3)
        check_halves(panels[:, 0, :: 1 if step == 0 else -1], 0)
        check_halves(panels[:, 1, :: -1 if step == 0 else 1], 1)


def test_a_bar_is_as_long_as_the_mean_influence():
    maps = {"mask": {0: HALVES / 2}, "text": {0: 1 - HALVES / 2}, "sketch": {0: np.zeros((4, 4))}}
    (frame,) = frames(Image.fromarray(PICTURE), maps, [0])
    bar = np.asarray(frame)[32].reshape(3, 32, 3)
    assert [(bar[m] == COLOURS[m]).all(-1).sum() for m in range(3)] == [8, 24, 0]


def test_the_sheet_has_a_row_for_each_modality_and_a_column_for_each_step():
    sheet = np.asarray(influence_sheet(Image.fromarray(PICTURE), MAPS, [0, 7]))
    pitch = TILE + 2
    assert sheet.shape[0] == LINE + 2 * pitch
    left = sheet.shape[1] - 3 * pitch
    tiles = [
        [sheet[top : top + TILE, left + column * pitch :][:, :TILE] for column in range(3)]
        for top in (LINE, LINE + pitch)
    ]
    for row in range(2):
        check_halves(tiles[row][row], row)
        check_halves(tiles[row][1 - row][:, ::-1], row)
        np.testing.assert_array_equal(tiles[row][2], np.asarray(Image.fromarray(PICTURE).resize((TILE, TILE))))


def test_a_large_image_gives_a_small_animation(recorder, tmp_path):
    record(recorder, [some(2)] * 2)
    recorder.write(tmp_path, 0, np.zeros((1024, 512, 3), np.uint8))
    assert Image.open(tmp_path / "animation.webp").size == (2 * 128, 256 + LINE)


def test_the_folder_is_named_after_the_image(tmp_path):
    assert InfluenceRecorder.folder_of(tmp_path / "man.v2.PNG") == tmp_path / "man.v2.influence"
    assert not os.path.lexists(tmp_path / "man.v2.influence")
