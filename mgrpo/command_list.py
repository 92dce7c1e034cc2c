"""The commands of `mgrpo` and the environment variables that it reads: names and summaries, importing nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """One command: where its options and its function are, without importing them."""

    words: tuple[str, ...]
    """Words that name it."""
    summary: str
    """What it does, for the overview."""
    module: str
    """Module that holds the next three."""
    config: str
    """Name of the dataclass of its options."""
    function: str
    """Name of the function that takes that dataclass; one with a keyword `command` also gets the words of the command
    line."""
    presets: str | None = None
    """Name of a dictionary of configurations; one may be named directly after the command, options then change it."""
    preset_option: str = ""
    """Option that names one of these too, such as --preset, and sets all options as it says."""
    result: str | None = None
    """Text before the path that the function returns; None when the function tells its result itself."""


COMMANDS = (
    Command(
        ("demo",),
        "the whole pipeline, small: train, post-train, evaluate, write a report",
        "mgrpo.demo",
        "DemoConfig",
        "run_demo",
    ),
    Command(
        ("train", "prior"),
        "train the diffusion prior on motion",
        "mgrpo.train.prior",
        "PriorConfig",
        "train_prior",
        presets="PRIOR_PRESETS",
        preset_option="--preset",
        result="last checkpoint",
    ),
    Command(
        ("train", "perceptual"),
        "train the perceptual model that tells recorded from generated motion",
        "mgrpo.train.perceptual",
        "PerceptualTrainingConfig",
        "train_perceptual",
        presets="PERCEPTUAL_TRAINING_PRESETS",
        result="last checkpoint",
    ),
    Command(
        ("train", "grpo"),
        "post-train the prior with GRPO",
        "mgrpo.train.grpo",
        "GrpoConfig",
        "train_grpo",
        presets="GRPO_PRESETS",
        result="last checkpoint",
    ),
    Command(
        ("train", "finetune"),
        "baseline: train the prior on, on recordings or on the best of its own samples",
        "mgrpo.train.finetune",
        "FinetuneConfig",
        "train_finetune",
        result="last checkpoint",
    ),
    Command(
        ("train", "dpo"),
        "baseline: post-train the prior with Diffusion-DPO, offline or online",
        "mgrpo.train.dpo",
        "DpoConfig",
        "train_dpo",
        result="last checkpoint",
    ),
    Command(
        ("train", "reft"),
        "baseline: post-train the prior by back-propagated rewards (ReFL, DRaFT-K)",
        "mgrpo.train.reft",
        "ReftConfig",
        "train_reft",
        result="last checkpoint",
    ),
    Command(
        ("report",),
        "what post-trainings did, finished or going on: curves, health, time, alarms",
        "mgrpo.commands.report",
        "ReportConfig",
        "run_report",
    ),
    Command(
        ("ablate", "table2"),
        "parts of the method, row by row (the paper's Table 2)",
        "mgrpo.ablations.run",
        "Table2Config",
        "ablate_table2",
        presets="TABLE2_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "table3"),
        "diversity under Perlin noise, and what GRPO makes of it (Table 3)",
        "mgrpo.ablations.run",
        "Table3Config",
        "ablate_table3",
        presets="TABLE3_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "table4"),
        "the perceptual model's negatives (Table 4)",
        "mgrpo.ablations.run",
        "Table4Config",
        "ablate_table4",
        presets="TABLE4_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "table5"),
        "GRPO against fine-tuning, DPO and back-propagated rewards (Table 5)",
        "mgrpo.ablations.run",
        "Table5Config",
        "ablate_table5",
        presets="TABLE5_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "sampler"),
        "transition kernels and their noise",
        "mgrpo.ablations.run",
        "SamplerAblationConfig",
        "ablate_sampler",
        presets="SAMPLER_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "presets"),
        "the presets of `train grpo` at equal optimiser steps and equal network calls",
        "mgrpo.ablations.run",
        "PresetsConfig",
        "ablate_presets",
        presets="PRESETS_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("ablate", "stepweights"),
        "weights and number of the trained steps",
        "mgrpo.ablations.run",
        "StepWeightsConfig",
        "ablate_stepweights",
        presets="STEPWEIGHTS_SCALES",
        preset_option="--scale",
    ),
    Command(
        ("evaluate",),
        "measure one or more models on held-out motion",
        "mgrpo.commands.evaluate",
        "EvaluateConfig",
        "run_evaluate",
    ),
    Command(
        ("metrics",),
        "measure anybody's motion files against their truth",
        "mgrpo.commands.metrics",
        "MetricsConfig",
        "run_metrics",
    ),
    Command(
        ("sample",),
        "recover a body from a head trajectory; npz and picture",
        "mgrpo.commands.sample",
        "SampleConfig",
        "run_sample",
    ),
    Command(
        ("infer",),
        "full-body motion from what a headset recorded: Aria, VR, AR, or plain head poses",
        "mgrpo.commands.infer",
        "InferConfig",
        "run_infer",
    ),
    Command(
        ("live",),
        "the same while the head moves: poses in line by line, bodies out, with a stated delay",
        "mgrpo.commands.live",
        "LiveConfig",
        "run_live",
    ),
    Command(
        ("view",),
        "look at motion files: in the browser, as an offline page, a film or pictures",
        "mgrpo.commands.view",
        "ViewConfig",
        "run_view",
    ),
    Command(
        ("convert",),
        "store a model in another layout: EgoAllo's, a run's, or that of the Hugging Face Hub",
        "mgrpo.commands.convert",
        "ConvertConfig",
        "run_convert",
    ),
    Command(
        ("export",),
        "write motion as AMASS, .smpl, BVH, GLB, EgoAllo's npz or CSV",
        "mgrpo.commands.export",
        "ExportConfig",
        "run_export",
    ),
    Command(
        ("data", "mocap"),
        "convert BVH or ASF/AMC motion capture to a motion pack",
        "mgrpo.commands.data_mocap",
        "MocapConfig",
        "run_data_mocap",
    ),
    Command(
        ("data", "adt"),
        "convert an Aria Digital Twin sequence to motion",
        "mgrpo.commands.data_adt",
        "AdtConfig",
        "run_data_adt",
    ),
    Command(
        ("data", "hamer"),
        "convert the pickle of HaMeR's hands that EgoAllo saves, without running it",
        "mgrpo.commands.data_hamer",
        "HamerConfig",
        "run_data_hamer",
    ),
    Command(
        ("data", "rich"),
        "convert RICH's fitted bodies to clips",
        "mgrpo.commands.data_rich",
        "RichConfig",
        "run_data_rich",
    ),
    Command(
        ("data", "info"),
        "what HDF5 files of motion hold: subsets, sequences, minutes; optionally check every value",
        "mgrpo.commands.data_info",
        "DataInfoConfig",
        "run_data_info",
    ),
    Command(
        ("data", "amass"),
        "prepare AMASS for training: EgoAllo's HDF5 file from your own download",
        "mgrpo.commands.data_amass",
        "AmassConfig",
        "run_amass",
    ),
    Command(
        ("data", "gender-conversion"),
        "fit the shape numbers of one SMPL-H gender to another, for data amass",
        "mgrpo.commands.gender_conversion",
        "GenderConversionConfig",
        "run_gender_conversion",
    ),
    Command(
        ("bench", "inference"),
        "seconds and memory of a sampled sequence here, against a plain loop",
        "mgrpo.commands.bench_inference",
        "BenchInferenceConfig",
        "run_bench_inference",
    ),
    Command(
        ("doctor",),
        "what this machine has, which backend serves each op and why",
        "mgrpo.doctor",
        "DoctorConfig",
        "run_doctor",
    ),
)

ENVIRONMENT = (
    (
        "MGRPO_BACKEND",
        "backend of all kernels: reference, cpp, triton, cuda (default: the fastest that can serve the call)",
    ),
    ("MGRPO_PROGRESS", "rich, plain, plain:SECONDS or off (default: a bar on a terminal, lines elsewhere)"),
    ("MGRPO_SMPLH", "path of the SMPL-H model, or of a folder that holds it"),
    ("MGRPO_DEBUG", "1 shows tracebacks of errors that are yours to mend"),
)
