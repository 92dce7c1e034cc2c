"""`mgrpo data gender-conversion`: shape numbers from one SMPL-H body to another, fitted from the user's own models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mgrpo.data.amass.gender import GENDERS, conversion_file, fit_conversions
from mgrpo.npz import write_npz
from mgrpo.storage import make_folder


@dataclass(frozen=True)
class GenderConversionConfig:
    """Fit the conversion of shape numbers between the female, male and neutral SMPL-H bodies by least squares over
    their vertices.

    Writes six npz files, `female_to_neutral.npz` and so on, each with A (16, 16) and b (16,) in float64, so that
    betas_neutral = A betas_female + b. They are derived from licensed models: keep them to yourself.
    """

    female: tyro.conf.Positional[Path]
    """Extended SMPL+H model of the female body (model.npz)."""
    male: tyro.conf.Positional[Path]
    """That of the male body."""
    neutral: tyro.conf.Positional[Path]
    """That of the neutral body."""
    out: tyro.conf.Positional[Path]
    """Folder to write to; files of the same names are replaced."""


def run_gender_conversion(config: GenderConversionConfig) -> int:
    """Fit and write. Returns the exit code 0. Raises InputError for models that can't be used, StorageError for the
    disk."""
    conversions = fit_conversions({gender: getattr(config, gender) for gender in GENDERS})
    make_folder(config.out)
    for (source, target), conversion in conversions.items():
        path = config.out / conversion_file(source, target)
        write_npz(path, {"A": conversion.A, "b": conversion.b})
        print(path)
    return 0
