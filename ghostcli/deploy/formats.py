"""The formats by name, and which file each becomes. No torch.

Invariant: a format's file is known by its ending, and every format names the runtimes that its file is proven in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostcli.errors import UsageError, nearest, printable


@dataclass(frozen=True)
class Format:
    """`runtimes`: the first proves the file; `half`: weights as float16; `int8`: computed in 8-bit integers."""

    name: str
    suffix: str
    runtimes: tuple[str, ...]
    half: bool = False
    int8: bool = False

    @property
    def variant(self) -> str:
        """What its file's name has before the ending, where another format has the same ending."""
        return self.name[self.name.index("-") :] if "-" in self.name else ""


FORMATS = {
    form.name: form
    for form in (
        Format("pt2", ".pt2", ("torch",)),
        Format("safetensors", ".safetensors", ("torch",)),
        Format("safetensors-float16", ".safetensors", ("torch",), half=True),
        Format("onnx", ".onnx", ("onnxruntime", "openvino")),
        Format("onnx-int8", ".onnx", ("onnxruntime", "openvino"), int8=True),
        Format("tflite", ".tflite", ("litert",)),
        Format("tflite-int8", ".tflite", ("litert",), int8=True),
        Format("html", ".html", ("browser",), half=True),
    )
}
ALL = "all"
BATCH = 256  # images that a throughput is measured with
SUFFIXES = tuple(dict.fromkeys(form.suffix for form in FORMATS.values()))


def choose(text: str, int8: bool = False) -> list[Format]:
    """The formats of a list such as `onnx,pt2`, or of `all`; UsageError for a name that is none.

    `int8` adds the int8 form of each that has one.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if words == [ALL]:
        return list(FORMATS.values())
    if not words:
        raise UsageError(f"--format: names no format; type {', '.join(FORMATS)}, or several with commas")
    formats = []
    for word in dict.fromkeys(words):
        if word not in FORMATS:
            raise UsageError(f"--format {printable(word)}: is no format{nearest(word, list(FORMATS))}")
        form = FORMATS[word]
        formats.append(form)
        if int8 and f"{form.name}-int8" in FORMATS:
            formats.append(FORMATS[f"{form.name}-int8"])
    return list(dict.fromkeys(formats))


def destinations(run: str, out: Path, text: str | None, int8: bool = False) -> list[tuple[Format, Path]]:
    """The file of each format: `out` itself for one whose ending it has, otherwise files in the folder `out`.

    The folder need not be there where several formats are asked for, or where its name has no ending: `make_folders`
    makes it. In a folder `int8` adds files; where `out` is a file, that file is int8. UsageError where the ending is
    no format's, or several formats would be one file.
    """
    where, one_file = printable(out), out.suffix in SUFFIXES and not out.is_dir()
    if text is None:
        form = next((form for form in FORMATS.values() if form.suffix == out.suffix), None)
        if form is None:
            raise UsageError(f"--out {where}: its name must end in {', '.join(SUFFIXES)}; or add --format")
        text = form.name
    forms = choose(text, int8)
    if int8:
        whole = [form for form in forms if form.int8]
        if not whole:
            raise UsageError(f"--int8: {forms[0].name} has no int8 form; add --format onnx or tflite")
        forms = whole if one_file else forms
    if one_file:
        if {form.suffix for form in forms} != {out.suffix} or len(forms) > 1:
            named = " and ".join(form.name for form in forms)
            raise UsageError(f"--out {where}: is one file, not of the format {named}; name a folder")
        if not out.parent.is_dir():
            raise UsageError(f"--out {where}: there is no folder {printable(out.parent)}; make it first")
        return [(forms[0], out)]
    if out.suffix and len(forms) == 1 and not out.is_dir():
        raise UsageError(
            f"--out {where}: is no folder, and a file of {forms[0].name} ends in {forms[0].suffix}; name one"
        )
    name = run.replace("/", "-")
    targets = [(form, out / f"{name}{form.variant}{form.suffix}") for form in forms]
    for _, path in targets:
        if path.is_dir():
            raise UsageError(f"--out {printable(path)}: is a folder; name a file, or move it away")
    return targets


def make_folders(files: Sequence[tuple[Format, Path]]) -> None:
    """Make the folders of the files where they are not there. UsageError where one cannot be made."""
    for folder in {path.parent for _, path in files}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"--out {printable(folder)}: no folder can be made there ({error.strerror}); name another"
            ) from error
