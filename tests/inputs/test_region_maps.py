import numpy as np
import pytest
from PIL import Image

from cdiff_rt.errors import BadInput
from cdiff_rt.inputs.region_maps import read_map
from cdiff_rt.notes import collected

SHADES = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
LATENT = (8, 8)


def mean_of(shares):
    return shares.reshape(8, 4, 8, 4).mean((1, 3))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "RGBA", "LA"])
def test_a_picture_counts_for_as_much_as_it_is_white(mode, tmp_path):
    Image.fromarray(SHADES).convert(mode).save(tmp_path / "soft.png")
    found = read_map(tmp_path / "soft.png", "region of text", LATENT)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, mean_of(SHADES / 255), atol=1e-6)
    np.testing.assert_array_equal(read_map((tmp_path / "soft.png").read_bytes(), "region of text", LATENT), found)


@pytest.mark.parametrize("array", [SHADES, SHADES / 255, (SHADES / 255).astype(np.float32)], ids=lambda a: str(a.dtype))
def test_an_array_has_shares_or_bytes(array, tmp_path):
    np.testing.assert_allclose(read_map(array, "region of text", LATENT), mean_of(SHADES / 255), atol=1e-6)
    np.save(tmp_path / "map.npy", array)
    np.testing.assert_allclose(
        read_map(str(tmp_path / "map.npy"), "region of text", LATENT), mean_of(SHADES / 255), atol=1e-6
    )


@pytest.mark.parametrize("latent", [(32, 32), (16,), (4, 4, 4)], ids=str)
def test_an_array_of_the_latents_shape_stays_as_it_is(latent):
    shares = np.random.default_rng(1).random(latent).astype(np.float32)
    np.testing.assert_array_equal(read_map(shares, "region of text", latent), shares)
    np.testing.assert_array_equal(read_map(shares > 0.5, "region of text", latent), shares > 0.5)


def test_of_a_picture_that_is_not_square_the_centre_counts_and_that_is_told():
    wide = np.pad(SHADES, ((0, 0), (8, 8)))
    with collected() as warnings:
        np.testing.assert_allclose(read_map(wide, "region of text", LATENT), mean_of(SHADES / 255), atol=1e-6)
    assert warnings == ["region of text: 48x32 is not square, its centre is used"]


def test_a_region_that_is_nowhere_is_told():
    with collected() as warnings:
        read_map(np.zeros((8, 8)), "region of text", LATENT)
    assert warnings == ["region of text: it is black everywhere, so nothing lies in it"]


def coloured(path):
    Image.fromarray(np.dstack([SHADES, SHADES, SHADES.T])).save(path, "PNG")


def transparent(path):
    Image.fromarray(np.dstack([SHADES, SHADES])).save(path, "PNG")


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (coloured, "region of text a.png: it has colours; paint it in shades of grey"),
        (transparent, "region of text a.png: it is partly transparent; paint it"),
        (lambda path: Image.fromarray(SHADES).save(path, "JPEG"), "region of text a.png: format JPEG, "),
        (
            lambda path: Image.fromarray(SHADES.astype(np.uint16)).save(path, "PNG"),
            "region of text a.png: format PNG, ",
        ),
        (lambda path: None, "region of text .*no such file"),
        (lambda path: path.write_bytes(b""), "0 bytes"),
        (lambda path: path.mkdir(), "not a file, but a folder"),
    ],
    ids=["colours", "transparent", "JPEG", "16 bits", "missing", "empty", "folder"],
)
def test_what_is_no_region_is_refused_in_words(write, words, tmp_path):
    write(tmp_path / "a.png")
    with pytest.raises(BadInput, match=words):
        read_map(tmp_path / "a.png", "region of text", LATENT)


@pytest.mark.parametrize(
    ("array", "latent", "words"),
    [
        (np.full((8, 8), 1.5), LATENT, "float64 of shape .*; give shares of 0 to 1, or uint8 of 0 to 255"),
        (np.full((8, 8), -0.1), LATENT, "give shares of 0 to 1"),
        (np.full((8, 8), 7, np.int64), LATENT, "give shares of 0 to 1"),
        (np.full((8, 8), np.nan), LATENT, "not finite"),
        (np.zeros((0, 8)), LATENT, "give shares of 0 to 1"),
        (np.zeros((8, 8, 3)), LATENT, "its shape is .*; give an array of the latents' shape"),
        (np.zeros((8, 8)), (16,), "its shape is .*; give an array of the latents' shape"),
        (np.array([["a"]]), LATENT, "give shares of 0 to 1"),
    ],
    ids=["above 1", "below 0", "labels", "NaN", "empty", "channels", "of other latents", "texts"],
)
def test_an_array_that_is_no_region_is_refused_in_words(array, latent, words):
    with pytest.raises(BadInput, match=words):
        read_map(array, "region of text", latent)
