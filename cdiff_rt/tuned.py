"""An edit by Imagic as a whole: the experts learn a photo, and a pipeline of their bundle makes the images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cdiff_rt.engines.eager import use_threads
from cdiff_rt.errors import BadRequest
from cdiff_rt.inputs.images import Picture
from cdiff_rt.inputs.modalities import Condition, asked, chosen_of, inputs_in
from cdiff_rt.inputs.traces import Input, loaded, trace_of
from cdiff_rt.joined import guests_of
from cdiff_rt.outputs.generated import Generated
from cdiff_rt.pipeline import Pipeline
from cdiff_rt.process import usual_threads
from cdiff_rt.run import OnDevice
from cdiff_rt.sampling.loop import Callback, Progress
from cdiff_rt.settings import Settings
from cdiff_rt.told import arrays_of, regions_in, traces_of, with_maps

if TYPE_CHECKING:
    from cdiff_rt.editing.imagic import Tuning


def edit_by_imagic(
    pipeline: Pipeline,
    image: Picture,
    settings: Settings,
    conditions: Mapping[str, Condition | None],
    work: Path,
    tuning: "Tuning",
    *,
    alphas: Sequence[float] = (1.0,),
    threads: int | None = None,
    progress: Progress = lambda: None,
    callback_on_step_end: Callback | None = None,
) -> Generated:
    """An image for each of `alphas`; `work` holds what was learned, so that an interrupted run goes on where it was.

    The weights, and so the images, depend on the number of `threads`. Raises BadRequest or BadInput.
    """
    from cdiff_rt.editing import imagic

    for name, guest in guests_of(pipeline.bundle).items():
        seen = f"imagic, which trains a model's own experts; {name} is of bundle {guest.bundle.folder.name}"
        raise BadRequest("method", seen, "take inversion")
    manifest, threads = pipeline.manifest, threads or usual_threads()
    settings.sampling().table(manifest.schedule)  # before it learns for an hour
    chosen = chosen_of(manifest, conditions, settings.without)
    use_threads(threads)
    wanted = asked(conditions, manifest, labels=settings.labels, snap=settings.snap)
    photo = pipeline.read_photo(image := loaded(image, "photo"))
    tuned = imagic.tune(pipeline.bundle, photo, wanted, work, tuning, progress)
    with Pipeline(tuned.bundle, pipeline.backend, OnDevice(threads=threads)) as its:
        watch = {"callback_on_step_end": callback_on_step_end}
        made = imagic.edit(tuned, its.generate, settings, wanted, alphas=alphas, **watch)
    used = {"image": Input(trace_of(image), photo), **inputs_in(manifest, wanted)}
    used |= regions_in(with_maps(settings), chosen, manifest.latent_shape[1:])
    edit = made.parameters["edit"] | {"tuning": asdict(tuning), "threads": threads, "tuned": tuned.bundle.manifest_hash}
    told = {"command": "edit", "edit": edit, "inputs": traces_of(used), **pipeline.identity()}
    return replace(made, parameters=made.parameters | told, inputs=arrays_of(used))
