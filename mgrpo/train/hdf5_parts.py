"""Which sequences of HDF5 files are trained on, and which measured: by AMASS's subsets, by names, or by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mgrpo.data.amass.names import splits_of, subsets_named
from mgrpo.data.hdf5.dataset import Hdf5Motion, hdf5_files, open_hdf5
from mgrpo.data.hdf5.file import Hdf5File, read_file_list
from mgrpo.data.split import NameSplit, split_names, split_names_by_fraction
from mgrpo.errors import InputError
from mgrpo.terminal.progress import Progress


class Hdf5Parts(NamedTuple):
    """Sequences of each part by name. Training and validation may overlap where that was asked for; training and
    held-out never do."""

    names: Mapping[str, frozenset[str]]
    """``train``, ``post_training``, ``validation``, ``held_out``."""

    def motion(self, motion: Hdf5Motion, *parts: str) -> Hdf5Motion:
        """The sequences of one or more parts."""
        wanted = frozenset().union(*(self.names[part] for part in parts))
        return motion.part(lambda entry: entry.name in wanted)

    def used(self, motion: Hdf5Motion) -> Hdf5Motion:
        """The sequences of all parts."""
        return self.motion(motion, *self.names)


def open_with_progress(path: str, file_list: str, cache_mb: float) -> Hdf5Motion:
    """Open HDF5 files as :func:`mgrpo.data.open_hdf5`, showing how far that is, and check all datasets' structure."""
    files = hdf5_files(path)
    for file in files:
        Hdf5File(file).close()  # what is missing is said before anything is shown
    if file_list not in ("", "none"):
        read_file_list(file_list)
    with Progress("sequences", unit="sequence") as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update()

        motion = open_hdf5(files, file_list=file_list or None, cache_mb=cache_mb, progress=show)
    with Progress("structure", len(motion), "sequence") as progress:
        motion.check(lambda done, total: progress.update())
    return motion


def split_hdf5(
    motion: Hdf5Motion,
    *,
    split: str = "",
    validation_split: str = "",
    held_out_split: str = "",
    validation: Sequence[str] = (),
    held_out: Sequence[str] = (),
    post_training: Sequence[str] = (),
) -> Hdf5Parts:
    """Parts of the sequences.

    With ``validation``, ``held_out`` or ``post_training`` (names or patterns): these, and the rest of ``split`` (all
    where it is empty) is trained on. Otherwise by subset, as the options of the same name say. Motion without any of
    AMASS's subsets is split by a hash of its names, a tenth for validation and a tenth held out; mirrored copies stay
    with their original.

    Raises:
        InputError: a name or subset that isn't there, a part that would be empty, training on held-out motion.
    """
    subsets = {entry.name: entry.subset for entry in motion.sequences}
    present = sorted(set(subsets.values()))

    def named(text: str, option: str) -> frozenset[str]:
        chosen = subsets_named(text, present, option=option)
        return frozenset(name for name, subset in subsets.items() if subset in chosen)

    def required(text: str, option: str) -> frozenset[str]:
        found = named(text, option)
        if not found:
            raise InputError(f"{option} {text}: the motion has nothing of it; it has {_listed(present)}")
        return found

    if validation or held_out or post_training:
        for option, text in (("validation", validation_split), ("held-out", held_out_split)):
            if text:
                raise InputError(
                    f"--data.{option}-split can't be used together with names of clips (--data.validation, "
                    "--data.held-out, --data.post-training); choose one way"
                )
        pool = required(split or "all", "--data.split")
        parts = split_names(
            [name for name in motion.names if name in pool],
            validation=validation,
            held_out=held_out,
            post_training=post_training,
        )
        for part in ("validation", "held_out"):
            if not getattr(parts, part):
                raise InputError(
                    f"--data.{part.replace('_', '-')} is empty while another part is named: name clips for validation "
                    "and held-out"
                )
        return _frozen(parts)
    known = any(splits_of(subset) for subset in present)
    if not known and not (split or validation_split or held_out_split):
        return _frozen(split_names_by_fraction(motion.names))
    train = required(split or ("train" if known else "all"), "--data.split")
    chosen = {
        "validation": required(validation_split, "--data.validation-split")
        if validation_split
        else named("val", "--data.validation-split"),
        "held_out": required(held_out_split, "--data.held-out-split")
        if held_out_split
        else named("test", "--data.held-out-split"),
    }
    if not validation_split:
        chosen["validation"] -= chosen["held_out"]  # test_humor shares a subset with val
    if missing := [part for part, names in chosen.items() if not names]:
        # Trained on a single subset, say: what has no motion of its own gets some that training then goes without.
        shares = {part: 0.1 if part in missing else 0.0 for part in chosen}
        drawn = split_names_by_fraction(sorted(train), validation=shares["validation"], held_out=shares["held_out"])
        train = frozenset(drawn.train)
        for part in missing:
            chosen[part] = frozenset(getattr(drawn, part))
    for other, used in (("train", train), ("validation", chosen["validation"])):
        if both := sorted(used & chosen["held_out"]):
            raise InputError(
                f"--data.held-out-split {held_out_split or 'test'}: {len(both)} of its sequences are in the {other} "
                f"part too, such as {both[0]}; what is reported must not be used before. Name other subsets"
            )
    return Hdf5Parts({"train": train, "post_training": frozenset(), **chosen})


def _frozen(parts: NameSplit) -> Hdf5Parts:
    return Hdf5Parts({part: frozenset(getattr(parts, part)) for part in parts._fields})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name or "(no folder)" for name in names[:20]) + (", ..." if len(names) > 20 else "")
