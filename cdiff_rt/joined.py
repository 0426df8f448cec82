"""A bundle with experts of others beside its own: `join(bundle, {"sketch": "faces-sketch/"})`.

The result is a bundle in whose manifest each added modality stands behind the bundle's own. `Bundle.home` says of every
network which bundle it is of, and its name there; engines are loaded of that one. So nothing is copied, and neither the
loop nor a backend knows the difference.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cdiff_rt.engines.base import COMPOSED, is_composed
from cdiff_rt.engines.weights import fp32, places
from cdiff_rt.errors import BadArtefact, BadRequest, check_type, named_as
from cdiff_rt.manifest import MOST_MODALITIES, Bundle, Manifest, Modality, find_model
from cdiff_rt.notes import log
from cdiff_rt.settings import RESERVED

WITH = "with"  # as an option, and in records
PARTS = ("condition", "time", "expert")
Added = Mapping[str, str | Path]  # by the name of its condition here: a bundle's folder, or an embedded model's name
ANOTHER = "take one that was trained in this model's latents, or compose both (docs/own-models.md)"


@dataclass(frozen=True, eq=False)
class Guest:
    """An expert of another bundle."""

    bundle: Bundle
    modality: str  # its name there


@dataclass(frozen=True)
class Where:
    """Where a bundle is found again, with those that were joined to it, and their hashes."""

    folder: Path
    added: Mapping[str, Path]
    hashes: tuple[str, ...]

    @classmethod
    def of(cls, bundle: Bundle) -> "Where":
        guests = {name: guest.bundle for name, guest in guests_of(bundle).items()}
        folders = {name: guest.folder.absolute() for name, guest in guests.items()}
        return cls(bundle.folder.absolute(), folders, tuple(of.manifest_hash for of in (bundle, *guests.values())))

    def open(self) -> Bundle:
        """Raises BadArtefact for what is another by now."""
        bundle = join(Bundle.open(self.folder), self.added)
        opened = bundle, *(guest.bundle for guest in guests_of(bundle).values())
        for each, manifest_hash in zip(opened, self.hashes, strict=True):
            if each.manifest_hash != manifest_hash:
                seen = "it is another than the pipeline was opened with"
                raise BadArtefact(f"bundle {each.folder}", seen, "open it again")
        return bundle


def join(host: Bundle, added: Added | None) -> Bundle:
    """`host` with one modality of each other bundle: the one of that name, or its only one, under the name given.

    Raises BadRequest for a name that cannot be given, BadArtefact for what is no bundle, or one of other latents.
    """
    check_type("with_experts", added, Mapping | None, "give a dict from names to bundles' folders")
    for name, folder in (added or {}).items():
        _check_name(name, host.manifest)
        with named_as(f"{WITH} {name},"):
            host = _beside(host, name, Bundle.open(find_model(folder)))
    return host


def guests_of(bundle: Bundle) -> dict[str, Guest]:
    """Those that were joined to it, by the names of their conditions here."""
    host = next(iter(bundle.homes.values()), (bundle, ""))[0]  # its own networks come first
    homes = {each.name: bundle.home(f"expert.{each.name}") for each in bundle.manifest.modalities}
    return {name: Guest(of, own.partition(".")[2]) for name, (of, own) in homes.items() if of is not host}


def told_of(bundle: Bundle, *more: str) -> dict[str, Any]:
    """Its guests as records have them, if there are any; with "folder", also the names of their folders."""
    told = {}
    for name, guest in guests_of(bundle).items():
        about = {"modality": guest.modality, "model_hash": guest.bundle.manifest_hash}
        about |= {"folder": guest.bundle.folder.name}
        told[name] = {key: about[key] for key in ("modality", "model_hash", *more)}
    return {WITH: told} if told else {}


def space_of(bundle: Bundle) -> str:
    """What tells its latents from those of other autoencoders: sha256 of its own's weights, as fp16 has them; without
    one, what its manifest says. Raises BadArtefact."""
    manifest = bundle.manifest
    if not manifest.image_size:
        return manifest.space
    content, found = bundle.content[manifest.weights], hashlib.sha256()
    try:
        for name, place in sorted(places(content).items()):
            if name.startswith("vae."):
                found.update(f"{name} {list(place.shape)}\n".encode())
                found.update(fp32(content, place).astype("<f2").tobytes())
    except ValueError as error:
        raise BadArtefact(f"bundle {bundle.folder.name}", str(error), "copy it again") from None
    return found.hexdigest()


def _check_name(name: Any, manifest: Manifest) -> None:
    known = [modality.name for modality in manifest.modalities]
    seen = f"{name!r:.80}"
    if not isinstance(name, str) or not name.isidentifier() or name in RESERVED:
        remedy = "take letters, digits and _, and no setting's name"
        raise BadRequest(WITH, f"{seen} cannot be a condition's name", remedy)
    if name in known:
        raise BadRequest(WITH, f"{manifest.name} has a condition {seen} of its own", "give the expert another name")
    if len(known) >= MOST_MODALITIES:
        raise BadRequest(WITH, f"more than {MOST_MODALITIES} experts", "leave some out")


def modality_of(guest: Bundle, name: str) -> Modality:
    """The one of this name, or the only one. Raises BadRequest."""
    known = {modality.name: modality for modality in guest.manifest.modalities}
    if name not in known and len(known) > 1:
        seen = f"bundle {guest.folder.name} has the conditions {', '.join(known)}"
        raise BadRequest("expert", seen, f"say which by its name, e.g. {next(iter(known))}")
    return known.get(name, next(iter(known.values())))


def lending(host: Bundle, name: str, guest: Bundle, modality: Modality) -> Bundle:
    """`host` with what its conditions of this name are read by: another's modality, with its files and description."""
    words = {f"{name}/{file}": guest.content[file] for file in filter(None, [modality.vocabulary])}
    lent = replace(modality, name=name, vocabulary=next(iter(words), ""))
    ours = host.manifest
    modalities = {each.name: each for each in ours.modalities} | {name: lent}
    source = _source(ours, guest.manifest, modality.name, name)
    manifest = replace(ours, modalities=tuple(modalities.values()), source=source)
    return replace(host, manifest=manifest, content={**host.content, **words})


def _beside(host: Bundle, name: str, guest: Bundle) -> Bundle:
    modality = modality_of(guest, name)
    for seen in _differences(host, guest):
        raise BadArtefact(f"bundle {guest.folder.name}", seen, ANOTHER)
    ours, theirs = host.manifest, guest.manifest
    own = {network: host.home(network) for network in ours.networks}
    homes = {f"{part}.{name}": (guest, f"{part}.{modality.name}") for part in PARTS}
    networks = ours.networks | {network: theirs.networks[there] for network, (_, there) in homes.items()}
    joined = lending(host, name, guest, modality)
    return replace(joined, manifest=replace(joined.manifest, networks=networks), homes=own | homes)


def _source(ours: Manifest, theirs: Manifest, there: str, here: str) -> dict[str, Any]:
    """What is said of the networks, with the added expert's."""
    experts = {**_experts(ours), here: _experts(theirs).get(there)}
    return ours.source | {"experts": experts} | ({COMPOSED: theirs.source[COMPOSED]} if is_composed(theirs) else {})


def _experts(manifest: Manifest) -> dict[str, Any]:
    found = manifest.source.get("experts")
    return found if isinstance(found, dict) else {}


def _differences(host: Bundle, guest: Bundle) -> Iterator[str]:
    """In words, why its expert cannot take part in the host's loop."""
    ours, theirs, name = host.manifest, guest.manifest, host.manifest.name
    if theirs.latent_shape != ours.latent_shape:
        yield f"its latents are {list(theirs.latent_shape)}, those of {name} {list(ours.latent_shape)}"
    if theirs.schedule.prediction != ours.schedule.prediction:
        yield f"it predicts {theirs.schedule.prediction}, and {name} {ours.schedule.prediction}"
    if not np.array_equal(theirs.schedule.alpha_bars(), ours.schedule.alpha_bars()):
        yield f"its schedule of noise is another than that of {name} ({theirs.schedule!s:.120})"
    if ours.image_size and theirs.image_size and theirs.latent_scale != ours.latent_scale:
        yield f"its latents have the scale {theirs.latent_scale:g}, those of {name} {ours.latent_scale:g}"
    spaces = space_of(guest), space_of(host)
    if all(spaces) and spaces[0] != spaces[1]:
        yield f"its latents are those of another autoencoder ({spaces[0]:.12}...) than that of {name} ({spaces[1]:.12}...)"
    if spaces[1] and not spaces[0]:
        log.info("%s: nothing says whose latents it knows; they are taken for those of %s", guest.folder.name, name)
