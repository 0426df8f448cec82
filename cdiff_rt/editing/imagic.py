"""Editing as the paper does it: each expert learns the photo (Imagic), and the tuned experts collaborate.

Per modality the embedding of what is wanted is optimised, then the branch is fine-tuned; the dynamic diffusers stay as
they are. The tuned branches become a bundle that every backend runs, and an image lies between the optimised embedding,
alpha 0, and the wanted one, alpha 1. The work folder holds all that, so that an interrupted run goes on where it was.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cdiff_rt.editing.inversion import between
from cdiff_rt.engines.modules import load_part
from cdiff_rt.errors import BadArtefact, BadRequest, OutOfResource, check_range, real, whole
from cdiff_rt.export.refit import refit
from cdiff_rt.inputs import images
from cdiff_rt.inputs.modalities import KINDS, Condition, chosen_of
from cdiff_rt.manifest import Bundle, Modality
from cdiff_rt.nets.autoencoder import AutoencoderKL
from cdiff_rt.nets.collaborative import Expert
from cdiff_rt.nets.imagic import Diffusion, Draw, adam, descend
from cdiff_rt.notes import log
from cdiff_rt.outputs import files
from cdiff_rt.outputs.files import disk_errors
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.sampling import noise
from cdiff_rt.sampling.loop import Callback, Progress
from cdiff_rt.settings import Settings, check_seed

TUNING, BUNDLE = "tuning.json", "bundle"
MOST_ITERATIONS = 100_000
SAVED_EVERY, TOLD_EVERY = 50, 100  # iterations
Alpha = float | Mapping[str, float]  # of all modalities, or by name


@dataclass(frozen=True)
class Tuning:
    """The reference's defaults. Raises BadRequest for others than numbers to count or learn by."""

    embedding_iterations: int = 500
    branch_iterations: int = 1000
    embedding_rate: float = 1e-3
    branch_rate: float = 1e-6
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = whole if isinstance(field.default, int) else real
            object.__setattr__(self, field.name, kind(field.name, getattr(self, field.name)))
        check_seed(self.seed)
        for name in ("embedding_iterations", "branch_iterations"):
            check_range(name, getattr(self, name), 1, MOST_ITERATIONS)
        for name in ("embedding_rate", "branch_rate"):
            check_range(name, getattr(self, name), 0.0, 1.0)

    @property
    def iterations(self) -> int:
        return self.embedding_iterations + self.branch_iterations


@dataclass(frozen=True, eq=False)
class Tuned:
    """The bundle of the tuned experts; per modality the contexts [1, T, K] of the optimised and the wanted embedding."""

    bundle: Bundle
    optimised: dict[str, np.ndarray]
    wanted: dict[str, np.ndarray]


def tune(
    bundle: Bundle,
    photo: np.ndarray,
    conditions: Mapping[str, Condition],
    work: Path,
    settings: Tuning,
    progress: Progress = lambda: None,
) -> Tuned:
    """Teaches a photo [S, S, 3] uint8 to the expert of each condition. Raises BadRequest if `work` holds another's."""
    chosen = chosen_of(bundle.manifest, conditions)
    inputs = {m.name: KINDS[m.kind].read(conditions[m.name], m, bundle) for m in chosen}
    with disk_errors(f"writing {work}"), files.own_folder(work.parent, work.name):
        _claim(work, bundle, photo, inputs, settings)
        z = latent_of(bundle, photo, settings.seed)
        tuned = Tuned(bundle, {}, {})
        weights: dict[str, Tensor] = {}
        for place, modality in enumerate(chosen):
            part = f"experts.{modality.name}"
            expert = cast(Expert, load_part(bundle, part))
            given = torch.from_numpy(inputs[modality.name])
            embedding = teach(expert, given, z, work, modality, place, bundle, settings, progress)
            with torch.no_grad():
                tuned.optimised[modality.name] = expert.pack(embedding).numpy()
                tuned.wanted[modality.name] = expert.condition(given).numpy()
            weights |= {f"{part}.unet.{name}": value for name, value in expert.unet.state_dict().items()}
        return replace(tuned, bundle=refit(bundle, weights, work / BUNDLE, {"imagic": asdict(settings)}))


def latent_of(bundle: Bundle, photo: np.ndarray, seed: int) -> Tensor:
    """A draw of the posterior, as the reference takes it, [1, C, *latent]."""
    vae = cast(AutoencoderKL, load_part(bundle, "vae"))
    with torch.no_grad():
        mean, log_variance = vae.encode(torch.from_numpy(images.from_uint8(photo)))
    drawn = noise.normal(seed, range(1), 0, bundle.manifest.latent_shape, noise.TUNING)
    return bundle.manifest.latent_scale * (mean + (log_variance / 2).exp() * torch.from_numpy(drawn))


def teach(
    expert: Expert,
    inputs: Tensor,
    z: Tensor,
    work: Path,
    modality: Modality,
    place: int,
    bundle: Bundle,
    settings: Tuning,
    progress: Progress,
) -> Tensor:
    """Both stages, from where the last run was -> the optimised embedding. The expert's branch is another then."""
    schedule = bundle.manifest.schedule
    diffusion = Diffusion(torch.from_numpy(schedule.alpha_bars()).float(), schedule.prediction)
    with torch.no_grad():
        embedding = nn.Parameter(expert.encoder(inputs).clone())
    stages = [
        ({"embedding": embedding}, settings.embedding_rate, settings.embedding_iterations),
        (dict(expert.unet.named_parameters()), settings.branch_rate, settings.branch_iterations),
    ]
    for stage, (parameters, rate, count) in enumerate(stages):
        expert.requires_grad_(False)
        embedding.requires_grad_(False)
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        optimizer = adam(parameters.values(), rate)
        path = work / f"{modality.name}.{stage}.safetensors"
        done = restore(path, parameters, optimizer)
        draws = draws_of(settings.seed, 2 * place + stage, range(done, count), schedule.train_steps, tuple(z.shape[1:]))
        before = sum(of[2] for of in stages[:stage])
        for i, loss in enumerate(descend(expert.unet, embedding, optimizer, z, draws, diffusion), done + 1):
            progress()
            if i % TOLD_EVERY == 0 or i == count:
                log.info("%s: iteration %d of %d, loss %.4f", modality.name, before + i, settings.iterations, loss)
            if i % SAVED_EVERY == 0 or i == count:
                save(path, i, parameters, optimizer)
    expert.requires_grad_(False)
    return embedding.detach()


def draws_of(seed: int, stream: int, steps: range, train_steps: int, shape: tuple[int, ...]) -> Iterator[Draw]:
    """Timestep and noise of each iteration, by its number alone: going on is the same as going through."""
    for step in steps:
        drawn = noise.normal(seed, range(stream + 1, stream + 2), step, shape, noise.TUNING)
        t = np.random.Generator(np.random.Philox(key=seed, counter=(1, noise.TUNING, stream + 1, step)))
        yield int(t.integers(train_steps)), torch.from_numpy(drawn)


def save(path: Path, done: int, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    tensors = {"done": torch.tensor([done])}
    for name, parameter in parameters.items():
        tensors[f"value.{name}"] = parameter.detach()
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    with files.all_or_nothing(path) as new:
        try:
            save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, new / path.name)
        except SafetensorError as error:  # as it tells what the disk refuses
            raise OutOfResource(f"writing {path}", str(error), "free some space or choose another folder") from None


def restore(path: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """How many iterations are done, with parameters and optimizer as they were then."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            for name, parameter in parameters.items():
                parameter.data.copy_(file.get_tensor(f"value.{name}"))
                state = {key: file.get_tensor(f"{key}.{name}") for key in ("step", "exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = state
            return int(file.get_tensor("done").item())
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BadArtefact(f"work {path.name}", f"it cannot be read ({reason})", "remove the work folder") from None


def _claim(work: Path, bundle: Bundle, photo: np.ndarray, inputs: Mapping[str, np.ndarray], settings: Tuning) -> None:
    """Says in `work` what is tuned there, or sees that it is this."""
    conditions = {name: hashlib.sha256(value.tobytes()).hexdigest() for name, value in inputs.items()}
    shown = {"model": bundle.manifest_hash, "photo": hashlib.sha256(photo.tobytes()).hexdigest()}
    text = json.dumps(shown | {"conditions": conditions, "settings": asdict(settings)}, indent=1) + "\n"
    path = work / TUNING
    files.sweep(work)
    if not path.exists() and work.exists() and any(work.iterdir()):
        raise BadRequest("work", f"{work} is a folder of something else", "choose another")
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise BadRequest("work", f"{work} holds another photo, other conditions or settings", "choose another folder")
    with files.all_or_nothing(path) as new:
        (new / TUNING).write_text(text, encoding="utf-8")


def edit(
    tuned: Tuned,
    generate: Callable[..., Generated],
    settings: Settings,
    conditions: Mapping[str, Condition],
    *,
    alphas: Sequence[Alpha] = (1.0,),
    callback_on_step_end: Callback | None = None,
) -> Generated:
    """An image for each of `alphas`, all from the noise of image 0 of the seed.

    `generate` is that of a pipeline on the tuned bundle.
    """
    made = []
    for alpha in alphas:
        by_name = {name: alpha[name] if isinstance(alpha, Mapping) else alpha for name in tuned.wanted}
        contexts = {
            name: between(tuned.optimised[name], tuned.wanted[name], [share]) for name, share in by_name.items()
        }
        watch = {"callback_on_step_end": callback_on_step_end}
        made.append(generate(settings, conditions=conditions, contexts=contexts, **watch))
    told = made[0].parameters | {"batch": len(made), "edit": {"method": "imagic", "alphas": list(alphas)}}
    pixels, latents = (np.concatenate([getattr(of, name) for of in made]) for name in ("images", "latents"))
    return replace(made[0], images=pixels, latents=latents, parameters=told)
