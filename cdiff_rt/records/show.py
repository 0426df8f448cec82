"""A record in words: what was asked for, of what, by what; and the command that makes the picture again."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from cdiff_rt.joined import WITH
from cdiff_rt.manifest import DEFAULT_MODEL
from cdiff_rt.outputs.formats import GALLERY, INPUTS
from cdiff_rt.records.read import READ, Record
from cdiff_rt.settings import SETTINGS

WIDTH = 14
USUAL = {"model": DEFAULT_MODEL, "backend": "onnxruntime", "threads": None}
USUAL_TOO = {"precision": "fp32", "experts": "separate"}  # of generate; an edit has no options for them
SOURCE = "source."  # so begins the role of what a photo is said to show
OPTIONS = {"mask": "--mask", "text": "--text", "source.mask": "--source-mask", "source.text": "--source-text"}
OPTIONS |= {"image": "--image", "inpaint.photo": "--inpaint", "inpaint.keep": "--keep"}
ONLY_PYTHON = ("x_T", "contexts.")
OLD = "hashes of its inputs: the record is of an older format, which tells files by their names alone"
WITHOUT_EDIT = "the photo, and the strength: the record is of an older format, which names neither"
WITHOUT_RECORD = "a record of cdiff-rt's own: there is only the line that galleries read, which does not tell enough"


def lines(record: Record) -> Iterator[str]:
    """What is known of a file, a line for each part."""
    yield record.name
    for label, text in _parts(record):
        yield f"  {label:<{WIDTH}}{text}"


def _parts(record: Record) -> Iterator[tuple[str, str]]:
    if not record.parameters:
        yield from (("says", line) for line in record.texts[GALLERY].splitlines())
        yield "lacks", WITHOUT_RECORD
        return
    yield "command", command_line(record)
    yield from _inputs(record)
    yield "settings", _listed({name: value for name, value in record.parameters.items() if name in SETTINGS})
    if adjustment := record.told("adjustment", dict, {}):
        yield "influence", f"as it was resolved: {_listed(adjustment)}"
    if edit := {name: value for name, value in record.edit.items() if name not in ("source", "read")}:
        yield "edit", _listed(edit)
    yield "image", f"number {record.parameters.get('image')} of seed {record.parameters.get('seed')}"
    model, hashed = (record.parameters.get(name) for name in ("model", "model_hash"))
    yield "model", f"{model}, manifest sha256 {hashed}"
    for name, guest in record.guests.items():
        yield f"{WITH} {name}", f"{guest.get('modality')} of {guest['folder']}, manifest sha256 {guest['model_hash']}"
    yield "made by", _maker(record)
    yield from (("lacks", lack) for lack in lacks(record))


def _inputs(record: Record) -> Iterator[tuple[str, str]]:
    embedded, read_as = record.embedded(), record.told("read_as", dict, {})
    for role, trace in record.inputs.items():
        form = ", ".join(f"{value} bytes" if name == "bytes" else f"{name} {value}" for name, value in trace.items())
        more = [str(read_as[role])] if role in read_as else []
        more += ["inside this file"] if role in embedded else []
        yield role, str(trace["text"]) if "text" in trace else "; ".join((form, *more))
    if not record.inputs:
        yield from ((name, str(value)) for name, value in record.told("conditions", dict, {}).items())


def _maker(record: Record) -> str:
    told = record.parameters
    libraries = [f"{name} {version}" for name, version in record.told("libraries", dict, {}).items()]
    where = [f"on {told['machine']}"] if "machine" in told else []
    threads = [f"{told['threads']} threads"] if "threads" in told else []
    maker = f"cdiff-rt {told.get('version')}, backend {told.get('backend')} in {told.get('precision')}"
    return ", ".join((maker, *threads, *libraries, *where))


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def lacks(record: Record) -> Iterator[str]:
    """What keeps a picture from being made again, or makes it doubtful."""
    if record.format == 1:
        yield WITHOUT_EDIT if record.edit else OLD
    for role in record.inputs:
        if role.startswith(ONLY_PYTHON):
            yield f"{role}, which was given as an array: only its hash is kept"


def command_line(record: Record) -> str:
    """The command that makes the picture again, from the folder in which its files lie."""
    edit, file = record.edit, f"again{'.png' if record.is_picture else '.npz'}"
    if _by_python_alone(record):
        return shlex.join(["cdiff-rt", "reproduce", record.name, "--out", file])
    told = {"threads": edit.get("threads")} | record.parameters
    words = [*_given(record), *_edited(edit), *_set(record)]
    words += [
        (f"--{name}", told[name]) for name, usual in (USUAL | USUAL_TOO).items() if told.get(name, usual) != usual
    ]
    words += [(f"--{WITH}", f"{name}={guest['folder']}") for name, guest in record.guests.items()]
    words += [("--embed-inputs",)] if INPUTS in record.texts else []
    many = record.told("batch", int, 1) > 1 and not edit.get("strip")
    words.append(("--out", "again" if many else file))
    return shlex.join(["cdiff-rt", record.command, *(str(word) for option in words for word in option)])


def _by_python_alone(record: Record) -> bool:
    """Whether it was asked for what no option of a command says."""
    files = [trace for role, trace in record.inputs.items() if "text" not in trace and not role.startswith(READ)]
    of_edit = any(record.parameters.get(name, usual) != usual for name, usual in USUAL_TOO.items())
    return (
        not all("file" in trace for trace in files)
        or record.edit.get("method") == "sdedit"
        or (record.command == "edit" and of_edit)
    )


def _given(record: Record) -> Iterator[tuple[Any, ...]]:
    """Conditions, photo and what else was given, by their options."""
    told = {role: trace.get("text", trace.get("file")) for role, trace in record.inputs.items()}
    for role, value in (told or record.told("conditions", dict, {})).items():
        _, _, name = role.rpartition(".")
        if role in OPTIONS:
            yield OPTIONS[role], value
        elif role.startswith(SOURCE):
            yield "--source", f"{name}={value}"
        elif name == role:
            yield "--condition", f"{name}={value}"


def _edited(edit: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, usual in {"method": "inversion", "strength": 1.0, "keep": [], "alphas": [1.0]}.items():
        value = edit.get(name, usual)
        if value != usual:
            yield f"--{name}", ",".join(map(str, value)) if isinstance(value, list) else value
    if isinstance(tuning := edit.get("tuning"), dict):
        yield "--iterations", tuning.get("embedding_iterations"), tuning.get("branch_iterations")


def _set(record: Record) -> Iterator[tuple[Any, ...]]:
    """Settings that are not as usual; of a sampler that is a tier's, the tier."""
    how = record.settings().sampling()
    if how.tier != "exact":
        own = [(f"--{name}", value) for name, value in asdict(how).items()]
        yield from [("--tier", how.tier)] if how.tier else own
    for name, value in record.request().items():
        if name not in asdict(how) and value != SETTINGS[name].default:
            for each in value if isinstance(value, list) else [value]:
                yield (f"--{name}",) if each is True else (f"--{name}", each)
