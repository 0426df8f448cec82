"""Networks of diffusers, small and random, against its own schedulers, pipelines' loops and decoders."""

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from cdiff_rt import Expert, Parameterisation, Pipeline, compose, export_composition
from cdiff_rt.errors import BadArtefact, BadRequest
from cdiff_rt.foreign.schedulers import schedule_of
from cdiff_rt.sampling import noise
from tests.command_line import check_refused, run

TOKENS, WIDTH, STEPS = 7, 16, 20
LATENT = (4, 16, 16)
FLOW = Parameterisation("flow", "flow", time_scale=1000.0)
SD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}


def blocks(cross=True):
    down, up = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if cross else ("AttnDownBlock2D", "AttnUpBlock2D")
    return {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": (down, "DownBlock2D"),
        "up_block_types": ("UpBlock2D", up),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
    }


def sd(seed=0, **more):
    torch.manual_seed(seed)
    sizes = blocks() | {"sample_size": 16, "in_channels": 4, "out_channels": 4, "cross_attention_dim": WIDTH}
    return diffusers.UNet2DConditionModel(**sizes | more).eval()


def sdxl(seed, time_ids):
    pooled = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    return sd(seed, **pooled, projection_class_embeddings_input_dim=24 + 8 * time_ids)


def saved(folder, net, **scheduler):
    net.save_pretrained(folder / "unet")
    diffusers.DDIMScheduler(**SD | scheduler).save_pretrained(folder / "scheduler")
    return folder


def rows(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def by_hand(predict, batch=1, **scheduler):
    """diffusers' own loop at eta 0: `predict(x, t)` is what the pipeline hands to its scheduler."""
    loop = diffusers.DDIMScheduler(**SD | scheduler)
    loop.set_timesteps(STEPS)
    x = torch.from_numpy(noise.normal(5, range(batch), 0, LATENT))
    with torch.no_grad():
        for t in loop.timesteps:
            x = loop.step(predict(x, t), t, x, eta=0.0).prev_sample
    return x.numpy()


def equal(pipeline, wanted, folder=None, within=1e-5, **asked):
    """In process on PyTorch; and, given a folder, as a bundle on ONNX Runtime."""
    asked |= {"steps": STEPS, "eta": 0.0, "seed": 5, "batch": len(wanted)}
    made = [pipeline.generate(**asked).latents]
    if folder:
        export_composition(pipeline, folder)
        made.append(Pipeline.from_pretrained(folder).generate(**asked).latents)
    for latents in made:
        assert np.abs(latents - wanted).max() <= within * max(1, np.abs(wanted).max())


def guided(net, tmp_path, bundle):
    cond, empty = rows(1, TOKENS, WIDTH), rows(1, TOKENS, WIDTH, seed=1)
    both = torch.from_numpy(np.concatenate([empty, cond]).repeat(2, 0))

    def predict(x, t):
        without, with_ = net(torch.cat([x, x]), t, encoder_hidden_states=both).sample.chunk(2)
        return without + 7.5 * (with_ - without)

    expert = Expert.from_diffusers(saved(tmp_path, net), tokens=TOKENS)
    uncond = Expert.from_diffusers(expert.denoise.net, form=expert.form, tokens=TOKENS, fixed=empty)
    pipeline = compose({"text": expert, "uncond": uncond})
    influence = {"text": 7.5, "uncond": -6.5}
    equal(pipeline, by_hand(predict, 2), tmp_path / "bundle" if bundle else None, text=cond, influence=influence)


def test_classifier_free_guidance_is_that_of_diffusers(tmp_path):
    guided(sd(), tmp_path, bundle=False)


@pytest.mark.long
def test_and_so_is_that_of_its_bundle(tmp_path):
    guided(sd(), tmp_path, bundle=True)


@pytest.mark.long
def test_base_then_refiner_over_time(tmp_path):
    """SDXL: the base until 80 % of the way, then the refiner, each with pooled embeddings and time ids."""
    base, refiner = sdxl(0, 6), sdxl(1, 5)
    given = {}
    for name, ids in (("base", 6), ("refiner", 5)):
        given[name] = (rows(1, TOKENS, WIDTH), rows(1, 24, seed=ids), rows(1, ids, seed=9) * 100)

    def predict(x, t):
        net, name = (base, "base") if t >= 200 else (refiner, "refiner")
        text, pooled, ids = map(torch.from_numpy, given[name])
        more = {"text_embeds": pooled, "time_ids": ids}
        return net(x, t, encoder_hidden_states=text, added_cond_kwargs=more).sample

    experts = {
        "base": Expert.from_diffusers(saved(tmp_path, base), tokens=TOKENS),
        "refiner": Expert.from_diffusers(refiner, form=FLOW, tokens=TOKENS, time_ids=5),
    }
    form = experts["base"].form
    experts["refiner"] = Expert.from_diffusers(refiner, form=form, tokens=TOKENS, time_ids=5)
    asked = {name: np.concatenate([part.ravel() for part in parts]) for name, parts in given.items()}
    influence = ["base=1@0-0.8", "refiner=1@0.8-1"]
    equal(compose(experts), by_hand(predict), tmp_path / "bundle", influence=influence, **asked)


@pytest.mark.long
def test_two_fine_tunes_averaged(tmp_path):
    one, two = sd(0), sd(1)
    text = rows(1, TOKENS, WIDTH)

    def predict(x, t):
        return sum(net(x, t, encoder_hidden_states=torch.from_numpy(text)).sample for net in (one, two)) / 2

    experts = {"one": Expert.from_diffusers(saved(tmp_path, one), tokens=TOKENS)}
    experts["two"] = Expert.from_diffusers(two, form=experts["one"].form, tokens=TOKENS)
    equal(compose(experts), by_hand(predict), tmp_path / "bundle", one=text, two=text)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero", [False, True], ids=["", "zero-snr"])
def test_every_prediction_type_steps_as_diffusers_does(prediction, zero, tmp_path):
    if prediction == "epsilon" and zero:
        return  # from pure noise, nobody predicts an image by it
    net = diffusers.UNet2DModel(**blocks(cross=False) | {"sample_size": 16, "in_channels": 4, "out_channels": 4}).eval()
    how = {"prediction_type": prediction, "rescale_betas_zero_snr": zero}
    pipeline = compose({"a": Expert.from_diffusers(saved(tmp_path, net, **how))})
    within = 4e-5 if zero else 1e-5  # there, diffusers has the smallest alpha_bars to few digits only
    equal(pipeline, by_hand(lambda x, t: net(x, t).sample, **how), within=within)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid", "num_train_timesteps": 100},
        {"trained_betas": np.linspace(0.001, 0.02, 50).tolist(), "num_train_timesteps": 50},
        {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
    ],
    ids=str,
)
def test_schedules_are_those_of_diffusers(config):
    theirs = diffusers.DDPMScheduler(**config)
    np.testing.assert_allclose(schedule_of(theirs.config).alpha_bars(), theirs.alphas_cumprod.double(), atol=2e-6)


KINDS = {
    "UNet1DModel": (
        {"sample_size": 64, "block_out_channels": (16, 32, 32), "extra_in_channels": 32},
        (None, (2, 64)),
    ),
    "UNet2DModel": (blocks(False) | {"sample_size": 16, "num_class_embeds": 9}, ((), (3, 16, 16))),
    "UNet3DConditionModel": (
        blocks()
        | {"cross_attention_dim": WIDTH, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D")}
        | {"up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        ((TOKENS, WIDTH), None),
    ),
    "DiTTransformer2DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8, "num_layers": 1, "sample_size": 8}
        | {"norm_num_groups": 4, "num_embeds_ada_norm": 9},
        ((), (4, 8, 8)),
    ),
    "PixArtTransformer2DModel": (
        {"num_attention_heads": 2, "attention_head_dim": 8, "out_channels": 8, "num_layers": 1, "sample_size": 8}
        | {"cross_attention_dim": 16, "caption_channels": WIDTH},
        ((TOKENS, WIDTH), (4, 8, 8)),
    ),
    "SD3Transformer2DModel": (
        {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1, "attention_head_dim": 8}
        | {"num_attention_heads": 2, "joint_attention_dim": WIDTH, "caption_projection_dim": 16}
        | {"pooled_projection_dim": 24, "pos_embed_max_size": 8},
        ((TOKENS * WIDTH + 24,), (4, 8, 8)),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_says_what_a_network_takes(kind):
    sizes, (condition, latent) = KINDS[kind]
    torch.manual_seed(0)
    expert = Expert.from_diffusers(getattr(diffusers, kind)(**sizes), form=FLOW, tokens=TOKENS)
    assert (expert.condition, expert.latent_shape) == (condition, latent)
    asked = {} if condition is None else {"a": np.ones(condition)}
    made = compose({"a": expert}, latent or (4, 2, 8, 8)).generate(steps=2, **asked)
    assert made.latents.std() > 0.1


@pytest.mark.parametrize("kind", ["AutoencoderKL", "AutoencoderTiny"])
def test_decoders_decode_what_the_loop_has(kind, tmp_path):
    torch.manual_seed(0)
    small = {
        "AutoencoderKL": {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
        | {
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "norm_num_groups": 4,
            "scaling_factor": 0.3,
            "shift_factor": 0.1,
        },
        "AutoencoderTiny": {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
        | {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)},
    }[kind]
    vae = getattr(diffusers, kind)(latent_channels=4, **small).eval()
    vae.save_pretrained(tmp_path / "vae")
    net = diffusers.UNet2DModel(**blocks(False) | {"sample_size": 16, "in_channels": 4, "out_channels": 4})
    pipeline = compose(
        {"a": Expert.from_diffusers(net, form=FLOW)}, decode=tmp_path if kind == "AutoencoderKL" else vae
    )
    made = pipeline.generate(steps=2, eta=0.0)
    with torch.no_grad():
        latents = torch.from_numpy(made.latents) / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0)
        wanted = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert made.images.shape == (1, 32, 32, 3) and np.abs(made.images / 255 - wanted).max() < 1 / 200
    with torch.no_grad():
        encoded = vae.encode(torch.from_numpy(made.images).permute(0, 3, 1, 2) / 127.5 - 1)
        mean = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded.latents
        wanted = (mean - (vae.config.get("shift_factor") or 0)) * vae.config.scaling_factor
    np.testing.assert_allclose(pipeline.encode(made.images[0]), wanted, atol=1e-5)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> Path:
    return saved(tmp_path / "mine", sd())


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("file", "fields", "words"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "score"}, "prediction_type: 'score' of DDIMScheduler"),
        (
            "scheduler/scheduler_config.json",
            {"beta_start": "x"},
            "beta_start: 'x' of DDIMScheduler; it is a number between",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": 2.0}, "beta_end: 2.0 of DDIMScheduler"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "num_train_timesteps: 0 of DDIMScheduler"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, None]}, "trained_betas: None of"),
        ("scheduler/scheduler_config.json", {"trained_betas": []}, "trained_betas: [] of DDIMScheduler"),
        ("unet/config.json", {"sample_size": [16, None], "cross_attention_dim": None}, "diffusers cannot load it ("),
        ("unet/config.json", {"_class_name": "Nobody"}, "has no network 'Nobody'; write a torch.nn.Module"),
        ("unet/config.json", {"_class_name": "DDIMScheduler"}, "has no network 'DDIMScheduler'"),
        ("unet/config.json", {"block_out_channels": [16, 64]}, "diffusers cannot load it ("),
        ("unet/config.json", {"class_embed_type": "identity"}, "its class_embed_type is 'identity'"),
        ("unet/config.json", {"in_channels": 9}, "diffusers cannot load it ("),
    ],
    ids=str,
)
def test_folders_that_say_something_unknown_are_refused_in_one_line(folder, file, fields, words, tmp_path):
    change(folder / file, **fields)
    with pytest.raises((BadRequest, BadArtefact)) as caught:
        Expert.from_diffusers(folder, tokens=TOKENS)
    assert words in str(caught.value)
    made = run("compose", "--expert", f"text={folder}", "--tokens", "text=7", "--out", tmp_path / "out")
    check_refused(made, caught.value.exit_code, words)


@pytest.mark.parametrize("change", ["missing", "other", "cut"])
def test_weights_that_are_not_those_of_the_network_are_refused(change, folder):
    """And not made up, as diffusers does."""
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    if change == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    else:
        kept = weights.pop("conv_in.weight")
        save_file(
            weights | ({"conv_in.weight": kept[:, :3].clone()} if change == "other" else {}), file, {"format": "pt"}
        )
    words = "1 of its weights are missing, e.g. conv_in.weight" if change == "missing" else "diffusers cannot load it"
    with pytest.raises(BadArtefact, match=words):
        Expert.from_diffusers(folder, tokens=TOKENS)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (lambda: sd(in_channels=9), "it takes 9 channels and gives 4"),
        (lambda: diffusers.AutoencoderKL(), "AutoencoderKL: its forward takes sample"),
        (
            lambda: diffusers.ControlNetModel(block_out_channels=(32,), down_block_types=("DownBlock2D",)),
            "controlnet_cond",
        ),
    ],
    ids=["inpainting", "autoencoder", "controlnet"],
)
def test_networks_that_are_no_denoisers_are_refused(net, words):
    with pytest.raises(BadRequest, match=words):
        Expert.from_diffusers(net(), form=FLOW, tokens=TOKENS)


@pytest.mark.parametrize(
    ("latents", "channels", "words"),
    [
        ((4, 16, 8), 4, r"latent_shape: \[4, 16, 8\] for images, which are square"),
        ((4, 16, 16), 8, "decode: its latents have 8 channels, the experts' 4; give the autoencoder that"),
    ],
)
def test_latents_that_the_autoencoder_does_not_have(latents, channels, words):
    vae = diffusers.AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    with pytest.raises(BadRequest, match=words):
        compose({"a": Expert(lambda x, time: x, FLOW)}, latents, decode=vae)


def test_what_nobody_says_must_be_said(folder):
    with pytest.raises(BadRequest, match="tokens: UNet2DConditionModel takes 16 numbers for each token of a condition"):
        Expert.from_diffusers(folder)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    assert Expert.from_diffusers(folder).condition == (77, WIDTH)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(
        BadRequest, match="form: nothing says what it predicts of which noise: no scheduler_config.json"
    ):
        Expert.from_diffusers(folder)
    with pytest.raises(BadArtefact, match="no such folder, and nothing is downloaded; download it, e.g. by `hf"):
        Expert.from_diffusers("stabilityai/sdxl-turbo")


def test_only_folders_and_networks_are_taken(folder):
    for model in (5, None, diffusers.DDIMScheduler()):
        with pytest.raises(BadRequest, match="model: a .*; give a folder, or a pipeline's unet or transformer"):
            Expert.from_diffusers(model)
    with pytest.raises(
        BadRequest, match="form: nothing says what it predicts of which noise: a network without a folder"
    ):
        Expert.from_diffusers(sd())


def test_latents_and_conditions_that_do_not_match(folder):
    expert = Expert.from_diffusers(folder, tokens=TOKENS)
    other = Expert.from_diffusers(diffusers.UNet2DModel(**blocks(False) | {"sample_size": 32}), form=FLOW)
    with pytest.raises(
        BadRequest, match=r"expert other: its latents are \[3, 32, 32\], text \[4, 16, 16\]; compose models"
    ):
        compose({"text": expert, "other": other})
    with pytest.raises(BadRequest, match=r"expert text, fixed: it is of shape \(3,\), its condition of \(7, 16\)"):
        compose({"text": Expert.from_diffusers(folder, tokens=TOKENS, fixed=np.ones(3))})


@pytest.mark.long
def test_one_command_makes_a_bundle_of_a_pipelines_folder(folder, tmp_path):
    out, empty = tmp_path / "bundle", tmp_path / "empty.npy"
    np.save(empty, rows(TOKENS, WIDTH))
    more = ["--expert", f"none={folder}", "--tokens", "none=7", "--fixed", f"none={empty}"]
    made = run("compose", "--expert", f"text={folder}", "--tokens", "text=7", *more, "--out", out)
    assert made.exit_code == 0, made.stderr
    weighed = ["--influence", "text=3", "--influence", "none=-2", "--steps", "4"]
    image = run("generate", "--model", out, "--condition", f"text={empty}", *weighed, "--out", tmp_path / "a.npz")
    assert image.exit_code == 0, image.stderr
