import pytest
import torch

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.source import check_schedule, open_source, unwrapped
from cdiff_rt.sampling.schedule import Schedule
from tests.published_keys import KEYS

KEY = "model.text_unet.diffusion_model.out.2.bias"
OURS = "experts.text.unet.out.2.bias"
BARS = torch.from_numpy(Schedule().alpha_bars())


def saved(path, **more):
    torch.save({KEY: torch.tensor([1.0, 2, 3]), **more}, path)
    return path


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module."),
        *("module.module.", "model._orig_mod.", "model.text_unet._orig_mod.module."),
    ],
)
def test_what_wrappers_of_modules_put_into_names_is_left_out(tmp_path, prefix):
    inside = prefix.replace("_orig_mod.", "").replace("module.", "")
    key = prefix + KEY.removeprefix(inside)
    torch.save({key: torch.tensor([1.0, 2, 3]), "module.alphas_cumprod": BARS}, tmp_path / "a.ckpt")
    source = open_source(tmp_path / "a.ckpt")
    assert source.keys == {OURS: key}
    assert source.tensors[source.keys[OURS]].tolist() == [1, 2, 3]
    check_schedule(source)


def test_one_weight_by_two_names_is_refused(tmp_path):
    saved(tmp_path / "a.ckpt", **{f"module.{KEY}": torch.zeros(3)})
    with pytest.raises(BadArtefact, match=f"{KEY} and module.{KEY} are the same weight; leave out one"):
        open_source(tmp_path / "a.ckpt")


def test_copies_and_tables_beside_the_weights_are_left_out_and_copies_told(tmp_path, caplog):
    others = ("model_ema.decay", "model_ema.diffusion_modelout2bias", "ddim_sigmas", "ddim_alphas_prev", "lvlb_weights")
    others += ("logvar", "scale_factor", "first_stage_model.loss.logvar")
    saved(tmp_path / "a.ckpt", **dict.fromkeys(others, torch.zeros(1)))
    with caplog.at_level("INFO", logger="cdiff_rt"):
        assert open_source(tmp_path / "a.ckpt").keys == {OURS: KEY}
    assert caplog.messages == [
        "a.ckpt: 2 averaged copies (model_ema) are left out, the weights beside them are read",
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_a_schedule_is_recognised_in_every_precision(tmp_path, dtype):
    check_schedule(open_source(saved(tmp_path / "a.ckpt", alphas_cumprod=BARS.to(dtype))))


@pytest.mark.parametrize(
    "bars",
    [
        torch.from_numpy(Schedule(beta_end=0.0205).alpha_bars()).half(),
        torch.from_numpy(Schedule(beta_start=0.00085, beta_end=0.012).alpha_bars()).bfloat16(),
        BARS[:500],
        torch.full((1000,), torch.nan),
        torch.zeros(1000, dtype=torch.int64),
    ],
    ids=["end", "stable diffusion", "short", "nan", "integers"],
)
def test_another_schedule_is_refused_in_every_precision(tmp_path, bars):
    with pytest.raises(BadArtefact, match="another noise schedule"):
        check_schedule(open_source(saved(tmp_path / "a.ckpt", alphas_cumprod=bars)))


def test_what_a_strange_file_holds_is_named(tmp_path):
    torch.save({f"encoder.layers.{i}.weight": torch.zeros(1) for i in range(3)}, tmp_path / "a.ckpt")
    with pytest.raises(
        BadArtefact, match=r"none of its 3 keys .*e\.g\. encoder.layers.0.weight; most .* encoder.layers;"
    ):
        open_source(tmp_path / "a.ckpt")


@pytest.mark.parametrize("size", KEYS)
def test_no_official_name_is_taken_for_a_wrapper_s(size):
    assert all(unwrapped(key) == key for key in KEYS[size])
