"""A file of weights as Collaborative Diffusion's own code names them, and as they are named here."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from cdiff_rt.errors import BadArtefact
from cdiff_rt.export.tensors import Tensors, open_tensors
from cdiff_rt.notes import log
from cdiff_rt.sampling.schedule import Schedule

SIGNS = {"cond_stage_model.transformer.": "text", "cond_stage_model.linear.": "mask", "decoder.": "vae"}
OFFICIAL = {"mask": "seg_mask", "text": "text", "sketch": "sketch"}  # modality -> in the names of weights
SCHEDULE_BUFFERS = frozenset(
    [
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    ]
)
# Of other training code, beside the weights: copies of them (EMA), samplers' tables, losses.
UNUSED = ("model_ema.", "ddim_", "first_stage_model.loss.", "scale_factor", "lvlb_weights", "logvar")
# What DistributedDataParallel, torch.compile and others put into names, anywhere.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Source:
    """A file of weights, by our names."""

    path: Path
    kind: str  # "codiff", "vae" or the modality of a branch
    tensors: Tensors
    official: dict[str, str]  # official name -> key in the file

    @cached_property
    def keys(self) -> dict[str, str]:
        """Our name -> key in the file, of what inference uses."""
        return {ours: key for name, key in self.official.items() if (ours := our_name(name, self.kind))}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {ours: self.tensors.shapes[key] for ours, key in self.keys.items()}


def open_source(path: Path, sha256: str = "") -> Source:
    tensors = open_tensors(path, sha256)
    official = {unwrapped(key): key for key in tensors}
    if len(official) < len(tensors):
        both = next(key for key in tensors if official[unwrapped(key)] != key)
        seen = f"{both} and {official[unwrapped(both)]} are the same weight"
        raise BadArtefact(f"checkpoint {path.name}", seen, "leave out one of the two models")
    kind = kind_of(official)
    if kind is None:
        starts = Counter(".".join(key.split(".")[:2]) for key in official)
        seen = (
            f"none of its {len(official)} keys is of Collaborative Diffusion, e.g. {next(iter(official))};"
            f" most begin with {', '.join(start for start, _ in starts.most_common(3))}"
        )
        raise BadArtefact(f"checkpoint {path.name}", seen, "give a codiff, mask, text or vae checkpoint")
    copies = sum(key.startswith("model_ema.") for key in official)
    if copies:
        log.info("%s: %d averaged copies (model_ema) are left out, the weights beside them are read", path.name, copies)
    return Source(path, kind, tensors, official)


def unwrapped(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in WRAPPERS)


def kind_of(keys: Mapping[str, object]) -> str | None:
    if any(key.startswith("model.") and "_unet.diffusion_model." in key for key in keys):
        return "codiff"
    return next((kind for start, kind in SIGNS.items() if any(key.startswith(start) for key in keys)), None)


def our_name(key: str, kind: str = "codiff") -> str | None:
    """The name here of an official key; None for what inference never uses; the key itself if it is unknown."""
    if (
        key in SCHEDULE_BUFFERS
        or key.startswith(UNUSED)
        or ".transformer.to_logits." in key
        or (kind == "vae" and key.startswith("loss."))
    ):
        return None
    for theirs, ours in prefixes(kind):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def prefixes(kind: str) -> Iterator[tuple[str, str]]:
    """Official prefixes and ours, in a file of this kind. What comes behind them is the same."""
    if kind == "vae":
        yield "", "vae."
        return
    yield "first_stage_model.", "vae."
    if kind != "codiff":
        yield "model.diffusion_model.", f"experts.{kind}.unet."
        yield "cond_stage_model.", f"experts.{kind}.encoder."
        return
    for modality, official in OFFICIAL.items():
        yield f"model.{official}_unet.diffusion_model.", f"experts.{modality}.unet."
        yield f"model.{official}_confidence_predictor.diffusion_model.", f"experts.{modality}.diffuser."
        yield f"cond_stage_model.{official}_cond_stage_model.", f"experts.{modality}.encoder."


def check_schedule(source: Source) -> None:
    """Raises BadArtefact if the file was trained with another noise schedule than the published one."""
    if "alphas_cumprod" not in source.official:
        return
    kept = source.tensors[source.official["alphas_cumprod"]]
    found, expected = kept.double().numpy(), Schedule().alpha_bars()
    rounding = torch.finfo(kept.dtype).eps if kept.dtype.is_floating_point else 0.0
    if found.shape != expected.shape or not (np.abs(found - expected) <= 1e-6 + rounding * expected).all():
        seen = "it was trained with another noise schedule"
        raise BadArtefact(f"checkpoint {source.path.name}", seen, "only the published schedule is known here")
