"""Train both branches, each with its own condition only, then the dynamic diffusers, and export all as one bundle.

python -m examples.motion.train --out motion
"""

import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdiff_rt.export.bundle import export_checkpoint
from cdiff_rt.export.checkpoint import in_memory, write_checkpoint
from cdiff_rt.nets.collaborative import CollaborativeModel, Expert, ModelConfig
from examples.motion.models import SCHEDULE, describe, encoder_inputs, model_config
from examples.motion.paths import Requests, as_latents, draw_paths, draw_requests, draw_wanderings

SEED = 10  # and the two after it, for the stages' paths; the judge's is another
PATHS, BATCH, RATE, AVERAGE = 50_000, 64, 2e-3, 0.998
STEPS = {"endpoints": 1500, "style": 1500, "diffusers": 600}
ALPHA_BARS = torch.from_numpy(SCHEDULE.alpha_bars())

Batch = tuple[Tensor, dict[str, Tensor]]  # latents, and what the encoder of each modality takes
Draw = Callable[[Requests, np.random.Generator], np.ndarray]
Loss = Callable[[Batch, torch.Generator], Tensor]


def examples(draw: Draw, count: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    requests = draw_requests(count, rng)
    latents = torch.from_numpy(as_latents(draw(requests, rng)))
    return latents, {name: torch.from_numpy(inputs) for name, inputs in encoder_inputs(requests).items()}


def diffuse(x_0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """[B, 2, POINTS] -> x_t at random timesteps, t [B], and v = sqrt(a) eps - sqrt(1 - a) x_0."""
    t = torch.randint(SCHEDULE.train_steps, (len(x_0),), generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    signal = ALPHA_BARS[t].sqrt().float()[:, None, None]
    spread = (1 - ALPHA_BARS[t]).sqrt().float()[:, None, None]
    return signal * x_0 + spread * eps, t, signal * eps - spread * x_0


def branch_loss(expert: Expert, modality: str) -> Loss:
    """An ordinary diffusion model's. It knows nothing of the other condition."""

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        x_0, inputs = batch
        x_t, t, v = diffuse(x_0, generator)
        return F.mse_loss(expert.unet(x_t, t, expert.encoder(inputs[modality])), v)

    return loss


def diffusers_loss(experts: dict[str, Expert]) -> Loss:
    """Of the branches' sum under the softmax of the dynamic diffusers (Collaborative Diffusion, eq. 5-7)."""

    def loss(batch: Batch, generator: torch.Generator) -> Tensor:
        x_0, inputs = batch
        x_t, t, v = diffuse(x_0, generator)
        outs, logits = [], []
        for modality, expert in experts.items():
            with torch.no_grad():
                tokens = expert.encoder(inputs[modality])
                outs.append(expert.unet(x_t, t, tokens))
            logits.append(expert.diffuser(x_t, t, tokens))
        influence = torch.softmax(torch.stack(logits), dim=0)  # [M, B, 1, POINTS]
        return F.mse_loss((influence * torch.stack(outs)).sum(0), v)

    return loss


def fit(name: str, trained: list[nn.Module], loss: Loss, data: Batch, steps: int) -> None:
    """Trains the modules and leaves their averaged weights in them."""
    parameters = [p for module in trained for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, betas=(0.9, 0.99), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps, pct_start=min(0.5, 100 / steps))
    average = [p.detach().clone() for p in parameters]
    generator = torch.Generator().manual_seed(SEED)
    begun, recent = time.monotonic(), []
    latents, inputs = data
    for step in range(1, steps + 1):
        places = torch.randint(len(latents), (BATCH,), generator=generator)
        value = loss((latents[places], {name: values[places] for name, values in inputs.items()}), generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rate.step()
        decay = min(AVERAGE, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        recent.append(value.item())
        if step % 100 == 0 or step == steps:
            minutes = (time.monotonic() - begun) / 60
            print(f"{name}: step {step}, loss {np.mean(recent):.4f}, {minutes:.2f} minutes", flush=True)
            recent = []
    for parameter, mean in zip(parameters, average, strict=True):
        parameter.data.copy_(mean)


def train(model: CollaborativeModel, data: dict[str, Batch], steps: dict[str, int]) -> None:
    """The branches one after another, then, with both frozen, their dynamic diffusers together."""
    experts = {name: model.expert(name) for name in model.experts}
    for name, expert in experts.items():
        fit(name, [expert.encoder, expert.unet], branch_loss(expert, name), data[name], steps[name])
    for expert in experts.values():
        for parameter in expert.diffuser.out[2].parameters():
            nn.init.zeros_(parameter)  # the plain mean to begin with
    diffusers: list[nn.Module] = [expert.diffuser for expert in experts.values()]
    fit("diffusers", diffusers, diffusers_loss(experts), data["diffusers"], steps["diffusers"])


def all_examples(count: int) -> dict[str, Batch]:
    """What each stage reads. Only the last one's paths have endpoints and a style that somebody asked for."""
    draws: dict[str, Draw] = {"endpoints": draw_wanderings, "style": draw_paths, "diffusers": draw_paths}
    return {name: examples(draw, count, SEED + place) for place, (name, draw) in enumerate(draws.items())}


def export(model: CollaborativeModel, config: ModelConfig, folder: Path) -> dict[str, float]:
    """folder/motion.safetensors, and folder/bundle of it; the error of each network, ONNX Runtime against PyTorch."""
    folder.mkdir(parents=True)
    checkpoint = folder / "motion.safetensors"
    write_checkpoint(checkpoint, in_memory(describe(config), model.state_dict()))
    return export_checkpoint([checkpoint], folder / "bundle")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A new folder.")
def main(out: Path) -> None:
    """Train for some minutes and leave a checkpoint and its bundle in OUT."""
    if out.exists():
        raise click.UsageError(f"{out} exists; choose another name or remove it")
    torch.set_num_threads(1)  # the same sums in the same order wherever it runs; these networks gain little by more
    torch.manual_seed(SEED)
    config = model_config()
    model = CollaborativeModel(config)
    train(model, all_examples(PATHS), STEPS)
    errors = export(model, config, out)
    print(f"{out / 'bundle'}: ONNX Runtime and PyTorch differ by {max(errors.values()):.1e} or less")


if __name__ == "__main__":
    main()
