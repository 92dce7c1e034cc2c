"""The command line: light start, help for every option, one clear message and the right exit code for every mistake."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest

from mgrpo import __version__, cli
from mgrpo.cli import main
from mgrpo.command_list import COMMANDS, Command
from mgrpo.errors import InputError, MgrpoError
from mgrpo.terminal.interrupt import TrainingInterrupted

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str, **options: object) -> subprocess.Popen[str]:
    """`mgrpo` as a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MGRPO_PROGRESS": "plain"}
    return subprocess.Popen(
        [sys.executable, "-m", "mgrpo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **options,  # type: ignore[call-overload]
    )


# --- without any heavy import


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from mgrpo.cli import main; codes = [main(['--help']), main(['--version']), main(['trian'])]; "
        "heavy = {'torch', 'numpy', 'tyro', 'rich', 'matplotlib'} & set(sys.modules); print(codes, heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "[0, 0, 2] set()", done.stderr


def test_posing_motion_loads_no_symbolic_shapes(tmp_path: Path) -> None:
    """torch.broadcast_shapes() imports them and sympy, which takes longer than the rest of a short command."""
    code = (
        "import sys; from mgrpo.cli import main; "
        f"code = main(['export', 'demo', '--clip', 'walk', '--to', 'csv', '-o', {str(tmp_path / 'walk.csv')!r}]); "
        "print(code, 'torch' in sys.modules, 'sympy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[-1] == "0 True False", done.stderr


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"mgrpo {__version__}\n"
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {' '.join(command.words)} " in shown and command.summary in shown for command in COMMANDS)
    assert main([]) == 2 and "usage: mgrpo" in capsys.readouterr().err
    assert main(["train"]) == 2 and "train grpo" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "train prior" in shown and "doctor" not in shown


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["evalute"], "evaluate"),
        (["grpo"], "train grpo"),
        (["train", "priro"], "train prior"),
        (["docter", "--json"], "doctor"),
    ],
)
def test_a_misspelt_command_gets_a_suggestion(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert f"Perhaps you meant: {meant}" in capsys.readouterr().err


# --- every command


def configuration_classes(config_class: type) -> Iterator[type]:
    """A dataclass and all that its fields lead to."""
    yield config_class
    for hint in typing.get_type_hints(config_class).values():
        if dataclasses.is_dataclass(hint):
            yield from configuration_classes(typing.cast(type, hint))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_every_option_has_a_help_line(command: Command) -> None:
    module = importlib.import_module(command.module)
    assert callable(getattr(module, command.function))
    for config_class in configuration_classes(getattr(module, command.config)):
        assert config_class.__doc__ and not config_class.__doc__.startswith(f"{config_class.__name__}("), config_class
        body = typing.cast(
            ast.ClassDef, ast.parse(inspect.cleandoc("\n" + inspect.getsource(config_class))).body[0]
        ).body
        hints = typing.get_type_hints(config_class)
        for line, following in zip(body, [*body[1:], None]):
            if isinstance(line, ast.AnnAssign) and not dataclasses.is_dataclass(
                hints[typing.cast(ast.Name, line.target).id]
            ):
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                assert documented, f"{config_class.__name__}.{ast.unparse(line.target)} has no help line"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_help_of_every_command(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.words, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: mgrpo {' '.join(command.words)} [-h]") and "{fixed}" not in shown


def test_help_is_wrapped_by_the_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not where a docstring's lines end, too."""
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["evaluate", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "It also keeps what is finished: the same command goes on there, another evaluation is refused." in shown
    assert "`paper` (MotionGRPO's Table 1) or `mgrpo`" in shown  # the second line begins with no letter


def test_presets_come_after_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = next(command for command in COMMANDS if command.presets)
    presets = getattr(importlib.import_module(command.module), typing.cast(str, command.presets))
    name = next(iter(presets))
    assert main([*command.words, name, "--help"]) == 0
    assert f"A preset may follow the command: {', '.join(presets)}" in " ".join(capsys.readouterr().out.split())
    assert main([*command.words, name[:-1] + "x"]) == 2
    assert f"Perhaps you meant {name}." in capsys.readouterr().err


def test_options_reach_the_function_with_the_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = install(monkeypatch, lambda config: Path("runs/x/checkpoints/step_1"))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mgrpo"])
    assert main(["fake", "--number", "4"]) == 0
    assert calls == [(FakeConfig(4), ["/usr/bin/mgrpo", "fake", "--number", "4"])]
    assert capsys.readouterr().out == "last checkpoint: runs/x/checkpoints/step_1\n"


def test_bad_options_end_with_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls = install(monkeypatch, lambda config: 0)
    for words, text in (
        (["--nmber", "4"], "Perhaps you meant"),
        (["--number", "four"], "--number"),
        (["--number", "-1"], "number must not be negative, got -1"),
        (["extra"], "Unrecognized options: extra"),
    ):
        assert main(["fake", *words]) == 2
        assert text in capsys.readouterr().err
    assert not calls


@dataclasses.dataclass(frozen=True)
class FakeConfig:
    """Options of a command that exists in these tests only."""

    number: int = 3
    """A number."""

    def __post_init__(self) -> None:
        if self.number < 0:
            raise InputError(f"number must not be negative, got {self.number}")


def install(
    monkeypatch: pytest.MonkeyPatch, function: Callable[[FakeConfig], object]
) -> list[tuple[FakeConfig, list[str]]]:
    """Add a command `fake` that records its calls and then does `function`."""
    calls: list[tuple[FakeConfig, list[str]]] = []

    def run(config: FakeConfig, *, command: list[str]) -> object:
        calls.append((config, command))
        return function(config)

    module = ModuleType("mgrpo_fake_command")
    module.FakeConfig, module.run = FakeConfig, run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mgrpo_fake_command", module)
    fake = Command(("fake",), "a fake", "mgrpo_fake_command", "FakeConfig", "run", result="last checkpoint")
    monkeypatch.setattr(cli, "COMMANDS", (*COMMANDS, fake))
    return calls


def raising(error: BaseException) -> Callable[[FakeConfig], object]:
    def function(config: FakeConfig) -> object:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (InputError("clip 'x' is broken; mend it"), 2, "error: clip 'x' is broken; mend it\n"),
        (MgrpoError("the disk is full"), 2, "error: the disk is full\n"),
        (OSError(28, "No space left on device"), 2, "error: could not use the disk: No space left on device"),
        (PermissionError(13, "Permission denied", "/closed/x"), 2, "error: could not use /closed/x: Permission denied"),
        (MemoryError("too much"), 2, "error: out of memory: too much. Use fewer windows"),
        (ModuleNotFoundError("No module named 'h5py'", name="h5py"), 2, "error: the package 'h5py' is not installed"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (
            TrainingInterrupted("stopped by SIGTERM; continue with: x --resume", 15),
            143,
            "stopped by SIGTERM; continue with: x --resume\n",
        ),
    ],
)
def test_errors_become_messages_and_codes(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MGRPO_DEBUG", raising=False)
    install(monkeypatch, raising(error))
    assert main(["fake"]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(text) and "Traceback" not in shown


def test_backend_errors_are_explained(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from mgrpo.kernels import BackendError

    install(monkeypatch, raising(BackendError("project_so3(): MGRPO_BACKEND cannot serve this call")))
    assert main(["fake"]) == 2 and "error: project_so3()" in capsys.readouterr().err
    monkeypatch.setenv("MGRPO_BACKEND", "fast")
    assert main(["fake"]) == 2 and "MGRPO_BACKEND must be one of reference" in capsys.readouterr().err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MGRPO_DEBUG", "1")
    install(monkeypatch, raising(InputError("broken")))
    assert main(["fake"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("error: broken\n")


def test_defects_of_ours_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (
        ValueError("x"),
        FileNotFoundError(2, "gone", "y"),
        ModuleNotFoundError("No module", name="mgrpo.gone"),
    ):
        install(monkeypatch, raising(error))
        with pytest.raises(type(error)):
            main(["fake"])


def test_a_reader_that_went_away_is_no_error() -> None:
    process = start("--help")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) in (0, 141)


# --- the real thing, small


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of a prior after three steps."""
    folder = tmp_path_factory.mktemp("runs") / "prior"
    assert (
        main(["train", "prior", "--output", str(folder), *SMALL, "--iterations", "3", "--checkpoint-every", "2"]) == 0
    )
    return folder


SMALL = ("--batch-size", "4", "--validate-every", "0")


def test_training_refuses_and_resumes(prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = ["train", "prior", "--output", str(prior), *SMALL, "--iterations", "3", "--checkpoint-every", "2"]
    assert main(again) == 2
    assert "checkpoint at step 3. Add --resume" in capsys.readouterr().err
    assert main([*again, "--learning-rate", "0.5", "--resume"]) == 2
    assert "learning_rate: 0.0001 in the folder, 0.5 now" in capsys.readouterr().err
    assert main([*again, "--resume"]) == 0
    assert capsys.readouterr().out == f"last checkpoint: {prior}/checkpoints/step_00000003\n"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["train", "prior", "--preset", "huge"], "huge"),
        (["train", "prior", "--data.motion", "nowhere"], "nowhere: no such file or folder"),
        (["train", "prior", "--data.motion", "EMPTY"], "the folder has no motion files"),
        (["train", "prior", "--data.motion", "PICKLE"], "not an npz file"),
        (["train", "prior", "--data.motion", "WRONG"], "WRONG"),
        (["train", "prior", "--data.length", "4000"], "frames"),
        (["train", "prior", "--data.body", "nobody.npz"], "nobody.npz"),
        (["train", "prior", "--device", "tpu9"], "--device must be"),
        (["train", "prior", "--output", "/proc/mgrpo/x"], "could not create the folder /proc/mgrpo/x"),
        (["train", "prior", "--output", "FILE/x"], "a part of that path is a file"),
        (["evaluate", "--checkpoint", "nowhere"], "checkpoint not found: nowhere does not exist"),
        (
            ["evaluate", "--checkpoint", "PRIOR", "--perceptual", "PRIOR"],
            "holds a Denoiser, but a PerceptualModel is needed",
        ),
        (["evaluate", "--checkpoint", "PRIOR", "--steps", "2"], "eta"),
        (["evaluate", "--checkpoint", "PRIOR", "--name", "a", "b"], "--name must name every model"),
        (["evaluate", "--checkpoint", "PRIOR", "--seeds", "1", "1"], "--seeds must be different"),
        (["evaluate", "--checkpoint", "PRIOR", "--out", "FILE/x"], "could not create the folder"),
        (["sample", "--checkpoint", "PRIOR", "--clip", "moonwalk"], "no clip is called 'moonwalk'. Clips: "),
        (["sample", "--checkpoint", "PRIOR", "--start", "0"], "--start must be at least 1"),
        (["sample", "--checkpoint", "PRIOR", "--clip", "kick", "--length", "900"], "clip 'kick' has frames 0 to"),
        (["sample", "--checkpoint", "CUT"], "not a whole safetensors file"),
    ],
)
def test_bad_input_is_explained(
    words: list[str],
    text: str,
    prior: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "FILE").write_text("")
    (tmp_path / "PICKLE").write_text("not arrays")
    np.savez(tmp_path / "WRONG", a=np.zeros(3))
    (tmp_path / "WRONG.npz").rename(tmp_path / "WRONG")
    broken = tmp_path / "CUT" / "checkpoints" / "step_00000003"
    broken.mkdir(parents=True)
    for file in (prior / "checkpoints" / "step_00000003").iterdir():
        data = file.read_bytes()
        (broken / file.name).write_bytes(data[:-100] if file.name == "model.safetensors" else data)
    assert main([str(prior) if word == "PRIOR" else word for word in words]) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert text in shown and "Traceback" not in shown
    assert not list(tmp_path.glob("runs/*/checkpoints/step_*")) and not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("infer X --model X -o X --samples 0", "error: --samples must be at least 1, got 0\n"),
        (
            "infer X --model X -o X --guidance.post-iterations 0",
            "error: --guidance.post-iterations must be at least 1, got 0\n",
        ),
        ("infer X --model X -o X --eye-height 9", "error: --eye-height must be at most 2.5 metres, got 9.0\n"),
        ("view", "error: mgrpo view: give a file to show, or `demo`\n"),
    ],
)
def test_values_are_refused_in_one_form(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever an option is declared: in one line, without the frame of what can't be parsed at all."""
    assert main(words.split()) == 2
    assert capsys.readouterr().err == said


def test_words_that_cannot_be_parsed_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "X", "--model", "X", "-o", "X", "--samples", "two"]) == 2
    shown = capsys.readouterr().err
    assert "--samples" in shown and "'two'" in shown and "mgrpo infer --help" in shown


def test_evaluate_prints_and_writes(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        "--checkpoint",
        str(prior),
        f"{prior}/last",
        "--name",
        "a",
        "b",
        "--kernel",
        "ode",
        "--steps",
        "3",
    ]
    assert main([*words, "--format", "json", "--out", str(tmp_path / "e")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in printed["models"]] == ["a", "b"] and printed["settings"]["kernel"] == "ode"
    assert printed["differences"][0]["statistics"]["mpjpe_mm"]["mean"] == 0.0
    assert printed == json.loads((tmp_path / "e" / "evaluation.json").read_text())
    assert {p.name for p in (tmp_path / "e").iterdir()} >= {
        "evaluation.md",
        "evaluation.tex",
        "evaluation.csv",
        "evaluation_windows.csv",
    }
    assert main([*words, "--part", "validation"]) == 0
    assert "MPJPE" in capsys.readouterr().out


def test_windows_of_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from mgrpo.commands.evaluate import EvaluateConfig, Part, evaluation_windows

    def clips(**options: object) -> list[str]:
        return list(evaluation_windows(EvaluateConfig((Path("x"),), **options)).names)  # type: ignore[arg-type]

    parts = {part: set(clips(part=part)) for part in get_args(Part)}
    assert parts["all"] == set().union(*(names for part, names in parts.items() if part != "all"))
    assert not parts["held_out"] & parts["train"] and not parts["validation"] & parts["train"]
    assert set(clips(validation=("walk",), held_out=("dance_*",))) == {"dance_a", "dance_b"}
    assert len(clips(mirrored=True)) == 2 * len(clips())
    assert set(clips(part="all", length=60, short_clips="drop")) < parts["all"]
    assert set(clips(part="all", length=4000, short_clips="drop")) < parts["all"]  # loops are repeated to any length
    with pytest.raises(InputError, match="--part all takes every clip"):
        clips(part="all", held_out=("walk",))


def test_names_of_models_are_all_different(tmp_path: Path) -> None:
    from mgrpo.commands.evaluate import model_names

    paths = [
        tmp_path / run / "checkpoints" / step
        for run, step in (("p", "step_1"), ("g", "step_1"), ("g", "step_2"), ("g", "step_2"))
    ]
    assert model_names(paths) == ["p", "g step_1", "g step_2 (3)", "g step_2 (4)"]


def test_sample_writes_what_egoallo_reads(prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--checkpoint", str(prior), "--clip", "walk", "--start", "2", "--length", "40", "--samples", "2"]
    words += ["--kernel", "ode", "--steps", "3", "--out"]
    assert main([*words, str(tmp_path / "one")]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in written] == [
        "walk_2-41_seed0.npz",
        "walk_2-41_seed0_args.yaml",
        "walk_2-41_seed0.png",
    ]
    assert written[2].read_bytes().startswith(b"\x89PNG")
    with np.load(written[0], allow_pickle=False) as arrays:
        shapes = {name: arrays[name].shape for name in arrays.files}
        assert shapes == {
            "Ts_world_cpf": (40, 7),
            "Ts_world_root": (2, 40, 7),
            "body_quats": (2, 40, 21, 4),
            "left_hand_quats": (2, 40, 15, 4),
            "right_hand_quats": (2, 40, 15, 4),
            "contacts": (2, 40, 21),
            "betas": (2, 40, 16),
            "frame_nums": (40,),
            "timestamps_ns": (40,),
        }
        assert arrays["frame_nums"][0] == 2 and arrays["timestamps_ns"][-1] == round(41 / 30 * 1e9)
        np.testing.assert_allclose(np.linalg.norm(arrays["body_quats"], axis=-1), 1, atol=1e-5)
        first = {name: arrays[name] for name in arrays.files}
    assert main([*words, str(tmp_path / "two"), "--no-picture"]) == 0
    assert [path.name for path in (tmp_path / "two").glob("*.png")] == []
    with np.load(tmp_path / "two" / written[0].name) as arrays:
        assert all(np.array_equal(arrays[name], first[name]) for name in first)
    assert main([*words, str(tmp_path / "two"), "--seed", "5", "--no-picture"]) == 0
    with np.load(tmp_path / "two" / "walk_2-41_seed5.npz") as arrays:
        assert not np.array_equal(arrays["body_quats"], first["body_quats"])


def test_the_recovered_body_has_the_given_head(prior: Path, tmp_path: Path) -> None:
    """The root written to the npz puts the body's eyes exactly where the head trajectory has them."""
    import torch

    from mgrpo.body import cpf_of, default_body, place_on_root
    from mgrpo.geometry import quat_to_rotmat

    words = [
        "sample",
        "--checkpoint",
        str(prior),
        "--length",
        "8",
        "--samples",
        "2",
        "--kernel",
        "ode",
        "--steps",
        "2",
        "--no-picture",
    ]
    assert main([*words, "--out", str(tmp_path)]) == 0
    with np.load(next(tmp_path.glob("*.npz"))) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    body = default_body().body_only()
    placed = place_on_root(body, quat_to_rotmat(arrays["body_quats"]), arrays["betas"], arrays["Ts_world_root"])
    eyes = cpf_of(body, placed, arrays["betas"])
    torch.testing.assert_close(eyes[..., 4:], arrays["Ts_world_cpf"][..., 4:].expand(2, -1, -1), atol=1e-3, rtol=0)


def test_ctrl_c_saves_and_tells_how_to_go_on(tmp_path: Path) -> None:
    words = [
        "train",
        "prior",
        "--output",
        str(tmp_path / "run"),
        *SMALL,
        "--iterations",
        "1000000",
        "--checkpoint-every",
        "1000000",
    ]
    process = start(*words)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("prior  ") and not line.startswith("prior  0/"):
                break
        process.send_signal(signal.SIGINT)
        shown = process.stderr.read()
        assert process.wait(timeout=60) == 130, shown
    finally:
        process.kill()
    assert "SIGINT: stopping after this iteration and saving" in shown and "Traceback" not in shown
    assert f"continue with: python -m mgrpo train prior --output {tmp_path}/run" in shown.splitlines()[-1]
    assert shown.splitlines()[-1].endswith("--resume")
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))


@pytest.mark.parametrize(
    "words", [["--motion", "nowhere.npz"], ["--motion=nowhere.npz"], ["--data.motion", "nowhere.npz"]]
)
def test_motion_has_a_short_spelling(words, tmp_path, capsys):
    assert main(["train", "prior", *words, "--output", str(tmp_path / "run")]) == 2
    assert "nowhere.npz: no such file or folder" in capsys.readouterr().err
