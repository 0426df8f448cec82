"""Bundles of one modality, made of the embedded model's files: what they are when they are joined again is known."""

import dataclasses
from pathlib import Path
from typing import Any

from cdiff_rt.joined import space_of
from cdiff_rt.manifest import NAME, Bundle


@dataclasses.dataclass(frozen=True)
class Parts:
    """Folders of bundles, by their modality."""

    hosts: dict[str, Path]  # with the decoder
    guests: dict[str, Path]  # without

    @classmethod
    def of(cls, bundle: Bundle, folder: Path) -> "Parts":
        names = [modality.name for modality in bundle.manifest.modalities]
        hosts = {name: part_of(bundle, name, folder / f"{name}-host", decoder=True) for name in names}
        return cls(hosts, {name: part_of(bundle, name, folder / f"{name}-guest") for name in names})


def part_of(bundle: Bundle, modality: str, folder: Path, *, decoder: bool = False, **changes: Any) -> Path:
    """A bundle of that modality alone, whose manifest has these changes; without the `decoder` it says whose its latents are."""
    m = bundle.manifest
    modalities = tuple(each for each in m.modalities if each.name == modality)
    shared = [name for name in m.networks if name.startswith("vae.")] if decoder else []
    names = [*(f"{part}.{modality}" for part in ("condition", "time", "expert")), *shared]
    networks = {name: m.networks[name] for name in names}
    needed = [file for network in networks.values() for file in network.files]
    needed += [m.weights, *(each.vocabulary for each in modalities if each.vocabulary)]
    folder.mkdir()
    for file in needed:
        (folder / file).symlink_to(bundle.folder / file)
    own: dict[str, Any] = {"name": folder.name, "modalities": modalities, "networks": networks}
    own |= {"source": {**m.source, "experts": {modality: m.source["experts"][modality]}}}
    own |= {"files": {file: m.files[file] for file in needed}}
    own |= {} if decoder else {"image_size": 0, "space": space_of(bundle)}
    (folder / NAME).write_text(dataclasses.replace(m, **own | changes).to_json())
    return folder
