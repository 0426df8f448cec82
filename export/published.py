"""The networks of the released Collaborative Diffusion checkpoints, and what their keys are called here."""

from cdiff_rt.nets.autoencoder import AutoencoderConfig
from cdiff_rt.nets.collaborative import EncoderConfig, ExpertConfig, ModelConfig
from cdiff_rt.nets.mask_encoder import MaskEncoderConfig
from cdiff_rt.nets.text_encoder import TextEncoderConfig
from cdiff_rt.nets.unet import UNetConfig

CONTEXT = 640

# Prefixes of an official "codiff" checkpoint -> ours. What comes behind them is the same.
PREFIXES = {
    "model.seg_mask_unet.diffusion_model.": "experts.mask.unet.",
    "model.seg_mask_confidence_predictor.diffusion_model.": "experts.mask.diffuser.",
    "cond_stage_model.seg_mask_cond_stage_model.": "experts.mask.encoder.",
    "model.text_unet.diffusion_model.": "experts.text.unet.",
    "model.text_confidence_predictor.diffusion_model.": "experts.text.diffuser.",
    "cond_stage_model.text_cond_stage_model.": "experts.text.encoder.",
    "first_stage_model.": "vae.",
}


def our_name(key: str) -> str | None:
    """The state-dict key of an official key; None for what inference never uses."""
    if ".transformer.to_logits." in key:
        return None
    for theirs, ours in PREFIXES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None  # a buffer of the schedule


def _unet(model_channels: int, out_channels: int) -> UNetConfig:
    return UNetConfig(
        in_channels=3,
        out_channels=out_channels,
        model_channels=model_channels,
        channel_mult=(1, 2, 3, 5),
        num_res_blocks=2,
        attention_resolutions=(8, 4, 2),
        num_heads=32,
        context_dim=CONTEXT,
    )


def _expert(encoder: EncoderConfig) -> ExpertConfig:
    return ExpertConfig(encoder, unet=_unet(192, out_channels=3), diffuser=_unet(32, out_channels=1))


def _model(vae_channel_mult: tuple[int, ...]) -> ModelConfig:
    mask = MaskEncoderConfig(pixels=32 * 32, width=CONTEXT)
    text = TextEncoderConfig(vocabulary=30522, tokens=77, width=CONTEXT, layers=32, heads=8, head_width=64)
    vae = AutoencoderConfig(channels=128, channel_mult=vae_channel_mult, num_res_blocks=2, z_channels=3)
    return ModelConfig({"mask": _expert(mask), "text": _expert(text)}, vae)


PUBLISHED: dict[str, ModelConfig] = {"512": _model((1, 2, 4, 4)), "256": _model((1, 2, 4))}
