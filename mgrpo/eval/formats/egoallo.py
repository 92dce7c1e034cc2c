"""Output npz of EgoAllo's inference, which `mgrpo sample` writes too: S samples of one head trajectory."""

from __future__ import annotations

import torch

from .container import Container
from .rotations import RotationMotion
from .tracks import ReadOptions, numbers, stamped_rate, stamped_times, whole_numbers

KEYS = ("Ts_world_root", "body_quats", "betas")
"""Arrays that are needed."""

HANDS = ("left_hand_quats", "right_hand_quats")
OPTIONAL = ("frame_nums", "timestamps_ns", "contacts", "Ts_world_cpf", *HANDS)
"""Arrays that are used where they are there."""


def matches(file: Container) -> bool:
    """Whether the file has EgoAllo's names."""
    return set(KEYS) <= set(file.keys)


def read(file: Container, options: ReadOptions) -> list[RotationMotion]:
    """One entry with S samples. z up, metres; shape per frame, as the published evaluation uses it."""
    arrays = file.arrays(KEYS, OPTIONAL)
    root = numbers(arrays["Ts_world_root"], "Ts_world_root", (None, None, 7))
    samples, frames = root.shape[:2]
    body = numbers(arrays.pop("body_quats"), "body_quats", (samples, frames, 21, 4), short=True)
    betas = numbers(arrays["betas"], "betas", (samples, frames, None))
    frame_nums = times = rate = None
    if "frame_nums" in arrays:
        frame_nums = whole_numbers(arrays["frame_nums"], "frame_nums", frames)
    if "timestamps_ns" in arrays:
        stamps = whole_numbers(arrays["timestamps_ns"], "timestamps_ns", frames)
        times = stamped_times(stamps, options)
        rate = stamped_rate(stamps, frame_nums)
    contacts = T_world_cpf = hands = None
    if "contacts" in arrays:
        contacts = numbers(arrays["contacts"], "contacts", (samples, frames, 21)).numpy()
    if "Ts_world_cpf" in arrays:
        T_world_cpf = numbers(arrays["Ts_world_cpf"], "Ts_world_cpf", (frames, 7)).numpy()
    if set(HANDS) <= set(arrays):
        hands = torch.cat(
            [numbers(arrays.pop(name), name, (samples, frames, 15, 4), short=True) for name in HANDS], dim=-2
        )
    notes: list[str] = []
    return [
        RotationMotion(
            root_quats=root[..., :4],
            positions=root[..., 4:],
            body_quats=body,
            betas=betas,
            options=options,
            fps=options.rate(rate, 30.0, notes),
            positions_are="pelvis",
            format="EgoAllo output",
            frame_nums=frame_nums,
            times=times,
            notes=notes,
            contacts=contacts,
            T_world_cpf=T_world_cpf,
            hand_quats=hands,
        )
    ]
