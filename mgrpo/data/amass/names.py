"""Names of AMASS's subsets, of both generations of the release, and EgoAllo's splits of them."""

from __future__ import annotations

from collections.abc import Sequence

from mgrpo.errors import InputError

ALIASES: dict[str, tuple[str, ...]] = {
    "ACCAD": (),
    "BMLhandball": (),
    "BMLmovi": (),
    "BioMotionLab_NTroje": ("BMLrub",),
    "CMU": (),
    "DFaust_67": ("DFaust",),
    "DanceDB": (),
    "EKUT": (),
    "Eyes_Japan_Dataset": ("EyesJapanDataset",),
    "HumanEva": (),
    "KIT": (),
    "MPI_HDM05": ("HDM05",),
    "MPI_Limits": ("PosePrior",),
    "MPI_mosh": ("MoSh",),
    "SFU": (),
    "SSM_synced": ("SSM",),
    "TCD_handMocap": ("TCDHands",),
    "TotalCapture": (),
    "Transitions_mocap": ("Transitions",),
}
"""Folder of each subset in the older release, which EgoAllo uses, and its names in newer ones (facts: section E.1)."""

SPLITS: dict[str, tuple[str, ...]] = {
    "train": (
        "ACCAD", "BMLhandball", "BMLmovi", "BioMotionLab_NTroje", "CMU", "DFaust_67", "DanceDB", "EKUT",
        "Eyes_Japan_Dataset", "KIT", "MPI_Limits", "TCD_handMocap", "TotalCapture",
    ),
    "val": ("HumanEva", "MPI_HDM05", "MPI_mosh", "SFU"),
    "test": ("Transitions_mocap", "SSM_synced"),
    "test_humor": ("Transitions_mocap", "HumanEva"),
}  # fmt: skip
"""EgoAllo's splits, by the names of the older release (facts: section E.1). ``test_humor`` is the test set of HuMoR and
EgoEgo; it shares a subset with ``val``."""


def _folded(name: str) -> str:
    """Spelling without case and separators: ``DFaust_67``, ``DFaust67`` and ``dfaust_67`` are one."""
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")


_CANONICAL = {_folded(name): subset for subset, aliases in ALIASES.items() for name in (subset, *aliases)}


def canonical_subset(folder: str) -> str | None:
    """The subset that a folder's name stands for, in the spelling of the older release; None: not one of AMASS's that
    EgoAllo knows."""
    return _CANONICAL.get(_folded(folder))


def subset_of(name: str) -> str:
    """The subset of a sequence such as ``BMLrub/rub001/walk_poses.npz``: the first of its folders that AMASS knows (in
    the older spelling), otherwise its first folder, or "" for a sequence in no folder."""
    folders = name.split("/")[:-1]
    return next((known for folder in folders if (known := canonical_subset(folder))), folders[0] if folders else "")


def splits_of(subset: str) -> tuple[str, ...]:
    """Names of the splits that a subset is in, none for an unknown subset."""
    known = canonical_subset(subset)
    return tuple(split for split, members in SPLITS.items() if known in members)


def subsets_named(text: str, present: Sequence[str], *, option: str) -> set[str]:
    """Which of the subsets ``present`` a text such as ``train+val`` or ``CMU+BMLrub`` means.

    Args:
        text: splits and folders of subsets (either generation's name) joined by ``+``, or ``all``.
        present: subsets that the motion has, as :func:`subset_of` gives them.
        option: what the text was given for, for messages.
    Raises:
        InputError: a word that is neither a split, nor a subset of AMASS, nor a folder of the motion.
    """
    chosen: set[str] = set()
    by_spelling = {_folded(subset): subset for subset in present}
    for word in (part.strip() for part in text.split("+")):
        subset = canonical_subset(word)
        if word == "all":
            chosen |= set(present)
        elif word in SPLITS:
            chosen |= set(SPLITS[word]) & set(present)
        elif subset is not None:
            chosen |= {subset} & set(present)
        elif word and _folded(word) in by_spelling:
            chosen.add(by_spelling[_folded(word)])
        else:
            raise InputError(
                f"{option}: {word!r} is neither a split ({', '.join(SPLITS)}, all) nor a folder of the motion "
                f"({', '.join(sorted(present)) or 'none'}); join several with +"
            )
    return chosen
