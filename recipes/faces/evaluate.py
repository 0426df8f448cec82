"""How well did training go? Held-out portraits: what the autoencoder keeps, and what each expert and their mix predict.

python -m recipes.faces.evaluate --data data --work trained
"""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from cdiff_rt.nets.collaborative import CollaborativeModel
from recipes.faces.data import HELD_OUT, Portraits
from recipes.faces.examples import Examples, conditions_of, images_of
from recipes.faces.train import at_timestep, peak_signal_to_noise, visibility
from recipes.faces.weights import load_model

TIMESTEPS = (981, 781, 581, 381, 181, 21)
SEED = 1


def predictions(model: CollaborativeModel, examples: Examples, t: int) -> dict[str, Tensor]:
    """row name -> squared error, as it shows, of the predicted v of every held-out latent [N] at timestep t."""
    generator, visible = torch.Generator().manual_seed(SEED), visibility(model.vae)
    count = len(examples.latents)
    x, times, v = at_timestep(examples.latents, torch.full((count,), t), generator)
    errors: dict[str, list[Tensor]] = {}
    for part in torch.arange(count).split(64):
        outs, logits = {}, []
        for modality in model.experts:
            expert = model.expert(modality)
            own = expert.encoder(examples.condition(modality, part, generator, rough=False))
            other = expert.encoder(examples.condition(modality, (part + 1) % count, generator, rough=False))
            outs[f"{modality}"] = expert.unet(x[part], times[part], own)
            outs[f"{modality}, another's"] = expert.unet(x[part], times[part], other)
            logits.append(expert.diffuser(x[part], times[part], own))
        own_outs = torch.stack([outs[modality] for modality in model.experts])
        outs["plain mean"] = own_outs.mean(0)
        outs["collaborative"] = (torch.softmax(torch.stack(logits), dim=0) * own_outs).sum(0)
        for name, out in outs.items():
            errors.setdefault(name, []).append((visible * (out - v[part]) ** 2).mean((1, 2, 3)))
    return {name: torch.cat(rows) for name, rows in errors.items()}


def held_out(model: CollaborativeModel, portraits: Portraits, scale: float) -> tuple[Examples, float]:
    """The held-out portraits as examples, and the PSNR in dB of what the autoencoder makes of them."""
    indices = torch.arange(portraits.train_count, portraits.train_count + HELD_OUT)
    latents, signal = [], []
    for part in indices.split(64):
        image = images_of(portraits, part)
        z = model.vae.encode(image)[0]
        latents.append(z * scale)
        signal.append(F.mse_loss(model.vae.decode(z).clamp(-1, 1), image))
    psnr = peak_signal_to_noise(torch.stack(signal).mean())
    return Examples(torch.cat(latents), conditions_of(portraits, slice(portraits.train_count, None))), psnr


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--work", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
def main(data: Path, work: Path) -> None:
    """Print the autoencoder's PSNR and the error of v by timestep, mean over held-out portraits."""
    from safetensors.torch import load_file

    model = load_model(work)
    with torch.inference_mode():
        examples, psnr = held_out(model, Portraits.load(data), load_file(work / "latents.safetensors")["scale"].item())
        columns = {t: predictions(model, examples, t) for t in TIMESTEPS}
    print(f"autoencoder: {psnr:.2f} dB on {HELD_OUT} held-out portraits\n")
    print("| error of v at t = | " + " | ".join(map(str, TIMESTEPS)) + " |")
    print("|---" * (len(TIMESTEPS) + 1) + "|")
    for name in columns[TIMESTEPS[0]]:
        print(f"| {name} | " + " | ".join(f"{columns[t][name].mean():.4f}" for t in TIMESTEPS) + " |")


if __name__ == "__main__":
    main()
