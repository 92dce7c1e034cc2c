"""Guidance above the optimiser: modes and phases, observations in frames of their own, masks, samplers, errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mgrpo import geometry
from mgrpo.body import BodyModel, default_body
from mgrpo.body.placement import place_on_cpf
from mgrpo.cli import main
from mgrpo.diffusion.sampler import NoiseKeys, sample
from mgrpo.diffusion.transition import make_transitions
from mgrpo.errors import InputError
from mgrpo.guidance import (
    GuidanceConfig,
    HamerHands,
    HandObservations,
    SamplingGuidance,
    WristTracks,
    guide,
    optimisation,
)
from mgrpo.kernels import GuidanceWeights
from mgrpo.kernels.guidance.lie import skew
from mgrpo.models.conditioning import make_cond, relative_cpf
from mgrpo.models.denoiser import Denoiser, DenoiserConfig
from mgrpo.models.state import StateLayout, pack_state, unpack_state
from mgrpo.runs.run_dir import RunDir

FRAMES = 12
_FIRST_OF_FINGER = {"thumb": 1, "index": 5, "middle": 9, "ring": 13, "little": 17}
_FINGERS = ("index", "middle", "little", "ring", "thumb")
OPENPOSE = [0, *(_FIRST_OF_FINGER[finger] + bone for finger in _FINGERS for bone in range(3))]
"""Number of the wrist and of each finger joint, in SMPL-H's order, among OpenPose's points (four per finger)."""
WRISTS = [20, 21]
"""In lists with the root first."""


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return default_body()


def wandering(*shape: int, size: float, seed: int) -> Tensor:
    """Smooth numbers over frames: ``(batch, T, ...)``."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(shape[0], 1, *shape[2:], generator=generator)
    steps = torch.randn(*shape, generator=generator)
    return size * (start + 0.15 * steps.cumsum(1))


@dataclasses.dataclass(frozen=True)
class Scene:
    """A motion, what is predicted of it, and what a device sees."""

    rotmats: Tensor
    predicted: Tensor
    betas: Tensor
    contacts: Tensor
    T_world_cpf: Tensor
    observations: HandObservations

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return self.predicted[..., :21, :, :], self.betas, self.contacts, self.T_world_cpf


@pytest.fixture(scope="module")
def scene(body: BodyModel) -> Scene:
    batch = 2
    vectors = wandering(batch, FRAMES, 51, 3, size=0.25, seed=1)
    # A relaxed stand with the arms down, seen by a camera that looks down from the head.
    vectors[:, :, [15, 16], 2] += torch.tensor([-1.1, 1.1])
    vectors[:, :, [17, 18], 1] += torch.tensor([-1.2, 1.2])
    rotmats = geometry.axis_angle_to_rotmat(vectors)
    predicted = geometry.axis_angle_to_rotmat(vectors + wandering(batch, FRAMES, 51, 3, size=0.15, seed=2))
    betas = 0.5 * wandering(batch, 1, 16, size=1.0, seed=3).expand(-1, FRAMES, -1)
    upright = torch.tensor([0.5, 0.5, 0.5, 0.5])
    turns = geometry.axis_angle_to_quat(wandering(batch, FRAMES, 3, size=0.1, seed=4))
    place = wandering(batch, FRAMES, 3, size=0.05, seed=5) + torch.tensor([0.0, 0.0, 1.6])
    T_world_cpf = geometry.se3(geometry.quat_multiply(turns, upright), place)
    placed = place_on_cpf(body, rotmats, betas, T_world_cpf)
    q_wrist = geometry.rotmat_to_quat(placed.R_world_joint[..., WRISTS, :, :])
    tracks = WristTracks(geometry.se3(q_wrist, placed.joints[..., WRISTS, :]), torch.ones(batch, FRAMES, 2))
    # The camera is turned a quarter about the optical axis and looks down by 60 degrees; its z is the CPF's forward.
    tilt = geometry.axis_angle_to_quat(torch.tensor([math.radians(60), 0.0, 0.0]))
    roll = geometry.axis_angle_to_quat(torch.tensor([0.0, 0.0, math.pi / 2]))
    T_cpf_cam = geometry.se3(geometry.quat_multiply(tilt, roll), torch.tensor([0.05, 0.02, 0.01])).expand(batch, 7)
    T_cam_world = geometry.se3_inverse(geometry.se3_multiply(T_world_cpf, T_cpf_cam[:, None]))
    points = torch.zeros(batch, FRAMES, 2, 21, 3)
    R_cam = geometry.quat_to_rotmat(T_cam_world[..., :4])[:, :, None]
    for hand in range(2):
        joints = [20 + hand, *range(22 + 15 * hand, 37 + 15 * hand)]
        in_cam = geometry.se3_apply(T_cam_world[:, :, None], placed.joints[..., joints, :])
        points[:, :, hand, OPENPOSE] = in_cam
    hamer = HamerHands(
        finger_rotmats=rotmats[..., 21:, :, :].unflatten(2, (2, 15)),
        R_cam_wrist=R_cam @ placed.R_world_joint[..., WRISTS, :, :],
        keypoints_cam=points,
        seen=torch.ones(batch, FRAMES, 2, dtype=torch.bool),
        T_cpf_cam=T_cpf_cam,
    )
    assert (points[..., OPENPOSE, 2] > 0.05).all(), "the hands are before the camera"
    contacts = 1.3 * torch.rand(batch, FRAMES, 21, generator=torch.Generator().manual_seed(6)) - 0.15
    return Scene(rotmats, predicted, betas, contacts, T_world_cpf, HandObservations(tracks, hamer))


def wrist_errors(body: BodyModel, scene: Scene, rotmats: Tensor) -> tuple[float, float]:
    """Mean distance in metres and angle in radians of the wrists from the truth."""
    pair = (rotmats[..., :21, :, :], scene.rotmats[..., :21, :, :])
    found, truth = (place_on_cpf(body, R, scene.betas, scene.T_world_cpf) for R in pair)
    away = (found.joints - truth.joints)[..., WRISTS, :].norm(dim=-1).mean()
    angle = geometry.geodesic_angle(
        found.R_world_joint[..., WRISTS, :, :], truth.R_world_joint[..., WRISTS, :, :]
    ).mean()
    return away.item(), angle.item()


def test_feet_stand_and_motion_is_smooth(body: BodyModel, scene: Scene) -> None:
    contacts = torch.zeros_like(scene.contacts)
    contacts[..., [6, 7, 9, 10]] = 1.0
    start, betas, _, T_world_cpf = scene.inputs
    guided = guide(body, start, betas, contacts, T_world_cpf)
    before, after = (place_on_cpf(body, R, betas, T_world_cpf).joints for R in (start, guided.body_rotmats))

    def slide(joints: Tensor) -> float:
        return joints[..., [7, 8, 10, 11], :].diff(dim=1).norm(dim=-1).mean().item()

    assert slide(after) < 0.2 * slide(before)
    assert guided.hand_rotmats is None
    assert (guided.costs[:, 1:] <= guided.costs[:, :-1]).all() and (guided.iterations > 1).all()
    placed = place_on_cpf(body, guided.body_rotmats, betas, T_world_cpf)
    head = placed.joints[..., 15, :]
    torch.testing.assert_close(head, before[..., 15, :], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "fingers"),
    [("aria_wrist_only", False), ("aria_wrist_only", True), ("aria_hamer", True), ("hamer_wrist", True)],
)
def test_hands_are_drawn_to_where_they_were_seen(body: BodyModel, scene: Scene, mode: str, fingers: bool) -> None:
    hands = scene.predicted[..., 21:, :, :] if fingers else None
    config = GuidanceConfig(mode)  # type: ignore[arg-type]
    guided = guide(body, *scene.inputs, hand_rotmats=hands, observations=scene.observations, config=config)
    before = wrist_errors(body, scene, scene.predicted[..., :21, :, :])
    after = wrist_errors(body, scene, guided.body_rotmats)
    assert before[0] > 0.05 and after[0] < 0.01
    assert before[1] > 0.1 and after[1] < 0.05
    if fingers:
        error = geometry.geodesic_angle(guided.hand_rotmats, scene.rotmats[..., 21:, :, :]).mean()
        assert error < 0.01 if mode != "aria_wrist_only" else error > 0.05


def test_hamers_wrists_have_the_costs_of_a_rigid_motion(body: BodyModel, scene: Scene) -> None:
    """The logarithm of T^-1 T_seen, 20 times its translation and 5 times its rotation."""
    off = {field.name: 0.0 for field in dataclasses.fields(GuidanceWeights)}
    config = GuidanceConfig("hamer_wrist", weights=GuidanceWeights(**off))
    hands = scene.predicted[..., 21:, :, :]
    guided = guide(body, *scene.inputs, hand_rotmats=hands, observations=scene.observations, config=config)
    placed = place_on_cpf(body, scene.predicted[..., :21, :, :], scene.betas, scene.T_world_cpf)
    wrists = scene.observations.wrists
    assert wrists is not None
    R, p = placed.R_world_joint[..., WRISTS, :, :].double(), placed.joints[..., WRISTS, :].double()
    seen = wrists.T_world_wrist.double()
    apart = R.mT @ geometry.quat_to_rotmat(seen[..., :4])
    matrix = torch.zeros(*p.shape[:-1], 4, 4, dtype=torch.float64)
    matrix[..., :3, :3], matrix[..., 3, 3] = apart, 1.0
    matrix[..., :3, 3] = (R.mT @ (seen[..., 4:] - p)[..., None])[..., 0]
    # No matrix logarithm in torch: the twist is checked by its exponential.
    vector = geometry.rotmat_to_axis_angle(apart)
    angle = vector.norm(dim=-1)[..., None, None]
    cross = skew(vector)
    inside = (1 - torch.cos(angle)) / angle**2 * cross + (angle - torch.sin(angle)) / angle**3 * (cross @ cross)
    rho = torch.linalg.solve(torch.eye(3, dtype=torch.float64) + inside, matrix[..., :3, 3])
    twist = torch.zeros_like(matrix)
    twist[..., :3, :3], twist[..., :3, 3] = cross, rho
    torch.testing.assert_close(torch.linalg.matrix_exp(twist), matrix, rtol=0, atol=1e-6)
    expected = (400.0 * rho.square() + 25.0 * vector.square()).flatten(1).sum(1)
    torch.testing.assert_close(guided.costs[:, 0].double(), expected, rtol=1e-4, atol=0)


def test_image_points_count_after_sampling_only(body: BodyModel, scene: Scene) -> None:
    """The wrist's own cost is taken away, so that only image points can draw the fingers."""
    weights = GuidanceWeights(hand_rotations=0.0, keypoints=30.0)
    config = GuidanceConfig("hamer_reproj2", weights=weights, hamer_wrist_position=0.0, hamer_wrist_orientation=0.0)
    hands = scene.predicted[..., 21:, :, :]
    options = {"hand_rotmats": hands, "observations": scene.observations, "config": config}

    def errors(rotmats: Tensor) -> float:
        """Mean distance of the image points from those seen."""
        placed = place_on_cpf(body, rotmats, scene.betas, scene.T_world_cpf)
        hamer = scene.observations.hamer
        assert hamer is not None
        T_cam_world = geometry.se3_inverse(hamer.T_world_cam(scene.T_world_cpf))
        joints = [20, *range(22, 37), 21, *range(37, 52)]
        points = geometry.se3_apply(T_cam_world[:, :, None], placed.joints[..., joints, :])
        seen = hamer.keypoints_cam[..., OPENPOSE, :].flatten(2, 3)
        assert torch.equal(hamer.image_points().flatten(2, 3), seen[..., :2] / seen[..., 2:])
        return (points[..., :2] / points[..., 2:] - seen[..., :2] / seen[..., 2:]).norm(dim=-1).mean().item()

    found = {phase: guide(body, *scene.inputs, phase=phase, **options) for phase in ("inner", "post")}  # type: ignore[arg-type]
    after = {phase: errors(torch.cat((x.body_rotmats, x.hand_rotmats), -3)) for phase, x in found.items()}  # type: ignore[arg-type]
    assert after["inner"] > 0.5 * errors(scene.predicted)
    assert after["post"] < 0.15 * errors(scene.predicted)
    assert found["inner"].costs.shape[-1] == 6 and found["post"].costs.shape[-1] == 21


def test_where_nothing_was_seen_nothing_is_drawn(body: BodyModel, scene: Scene) -> None:
    wrists, hamer = scene.observations.wrists, scene.observations.hamer
    assert wrists is not None and hamer is not None
    blind = HandObservations(
        WristTracks(torch.full_like(wrists.T_world_wrist, math.nan), torch.ones_like(wrists.confidence)),
        dataclasses.replace(hamer, seen=torch.zeros_like(hamer.seen), keypoints_cam=hamer.keypoints_cam * math.nan),
    )
    plain = guide(body, *scene.inputs)
    for mode in ("aria_wrist_only", "hamer_wrist"):
        guided = guide(body, *scene.inputs, observations=blind, config=GuidanceConfig(mode))  # type: ignore[arg-type]
        torch.testing.assert_close(guided.body_rotmats, plain.body_rotmats, rtol=0, atol=2e-3)
    behind = dataclasses.replace(hamer, keypoints_cam=-hamer.keypoints_cam)
    assert not behind.usable().any() and hamer.usable().all()


def test_palms_as_aria_gives_them(scene: Scene) -> None:
    wrists = scene.observations.wrists
    assert wrists is not None
    R, p = geometry.quat_to_rotmat(wrists.T_world_wrist[..., :4]), wrists.T_world_wrist[..., 4:]
    side = torch.tensor([1.0, -1.0])[:, None]
    palm, normal = p + 0.08 * side * R[..., :, 0], -3.0 * R[..., :, 1]
    found = WristTracks.from_palms(p, palm, normal, wrists.confidence)
    torch.testing.assert_close(geometry.quat_to_rotmat(found.T_world_wrist[..., :4]), R, rtol=0, atol=1e-5)
    # a normal that isn't at a right angle still gives a rotation
    found = WristTracks.from_palms(p, palm + 0.02 * torch.randn(p.shape), normal, wrists.confidence)
    torch.testing.assert_close(found.T_world_wrist[..., :4].norm(dim=-1), torch.ones(p.shape[:-1]))


def test_padding_is_returned_and_has_no_influence(body: BodyModel, scene: Scene) -> None:
    lengths = torch.tensor([FRAMES, 5])
    mask = torch.arange(FRAMES) < lengths[:, None]
    spoilt = [torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x, math.nan) for x in scene.inputs]
    guided = guide(body, *spoilt, mask=mask)
    alone = guide(body, *(x[1:, :5] for x in scene.inputs))
    torch.testing.assert_close(guided.body_rotmats[1:, :5], alone.body_rotmats, rtol=0, atol=1e-5)
    assert torch.isfinite(guided.costs).all()


def test_a_motion_with_nan_comes_back_and_touches_no_other(body: BodyModel, scene: Scene) -> None:
    start, *rest = scene.inputs
    spoilt = start.clone()
    spoilt[1, 3, 4, 0, 0] = math.nan
    guided, clean = guide(body, spoilt, *rest), guide(body, start, *rest)
    assert torch.equal(guided.body_rotmats[0], clean.body_rotmats[0])
    assert torch.equal(guided.body_rotmats[1, 0], clean.body_rotmats[1, 0]) is False
    torch.testing.assert_close(guided.body_rotmats[1, :3], start[1, :3], rtol=0, atol=1e-5)


def test_off_projects_and_does_nothing_else(body: BodyModel, scene: Scene) -> None:
    start, *rest = scene.inputs
    guided = guide(body, 1.1 * start, *rest, config=GuidanceConfig("off"))
    torch.testing.assert_close(guided.body_rotmats, start, rtol=0, atol=1e-5)
    assert not guided.iterations.any()


def sampled(layout: StateLayout, scene: Scene) -> Tensor:
    """States ``(B, 1, T, D)``."""
    hands = scene.predicted[..., 21:, :, :] if layout.include_hands else None
    return pack_state(layout, scene.betas, scene.predicted[..., :21, :, :], scene.contacts, hands).unsqueeze(1)


@pytest.mark.parametrize("include_hands", [False, True])
def test_states_keep_all_but_their_rotations(body: BodyModel, scene: Scene, include_hands: bool) -> None:
    layout = StateLayout(include_hands)
    states = sampled(layout, scene)
    for config in (GuidanceConfig(), GuidanceConfig("aria_hamer")) if include_hands else (GuidanceConfig(),):
        guidance = SamplingGuidance(config, layout, body, scene.T_world_cpf, observations=scene.observations)
        before, after = unpack_state(layout, states), unpack_state(layout, guidance.finish(states))
        assert torch.equal(before.betas, after.betas) and torch.equal(before.contacts, after.contacts)
        assert not torch.equal(before.body_rotmats, after.body_rotmats)
        if include_hands:
            same = torch.equal(before.hand_rotmats, after.hand_rotmats)  # type: ignore[arg-type]
            assert same == (config.mode == "no_hands")


@pytest.mark.parametrize(("wanted", "inner", "post"), [("off", 0, 0), ("post", 0, 1), ("inner", 3, 1)])
def test_phases_of_sampling(
    body: BodyModel, scene: Scene, wanted: str, inner: int, post: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DenoiserConfig(
        d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1,
        include_hands=False,
    )  # fmt: skip
    model = Denoiser(config, seed=1).eval()
    T_world_cpf = scene.T_world_cpf[:, 1:]
    guidance = SamplingGuidance(optimisation(wanted), model.layout, body, T_world_cpf)  # type: ignore[arg-type]
    calls: list[str] = []
    inside = guidance.guided
    monkeypatch.setattr(guidance, "guided", lambda states, phase, held: calls.append(phase) or inside(states, phase))
    cond = make_cond(config, T_world_cpf, relative_cpf(scene.T_world_cpf))
    keys = NoiseKeys(1, 0, torch.arange(2), 3)
    result = sample(model, cond, make_transitions("ddim", steps=3), keys, guidance=guidance.hook(3))
    x0 = guidance.finish(result.x0)
    assert calls == ["inner"] * inner + ["post"] * post
    assert x0.shape == (2, 3, FRAMES - 1, 226) and torch.isfinite(x0).all()


def test_errors(body: BodyModel, scene: Scene) -> None:
    start, betas, contacts, T_world_cpf = scene.inputs
    wrists, hamer = scene.observations.wrists, scene.observations.hamer
    assert wrists is not None and hamer is not None
    short = HandObservations(wrists, hamer).select(slice(0, 5))

    def call(**options: object) -> None:
        arguments = {"body_rotmats": start, "betas": betas, "contacts": contacts, "T_world_cpf": T_world_cpf}
        guide(options.pop("body", body), **(arguments | options))  # type: ignore[arg-type]

    for options, text in (
        ({"body_rotmats": start[..., :20, :, :]}, r"body_rotmats must have shape \(\*b, T, 21, 3, 3\)"),
        ({"betas": betas[:, :3]}, r"betas must have shape"),
        ({"contacts": contacts[..., :4]}, r"contacts must have shape \(\*b, 12, 21\), got \(2, 12, 4\)"),
        ({"T_world_cpf": T_world_cpf[:, 1:]}, r"T_world_cpf must have shape"),
        ({"contacts": contacts.new_zeros(3, FRAMES, 21)}, r"broadcast"),
        ({"hand_rotmats": start}, r"hand_rotmats must have shape"),
        ({"hand_rotmats": scene.predicted[..., 21:, :, :], "body": body.body_only()}, r"has 21 joints and no fingers"),
        ({"mask": torch.ones(2, FRAMES)}, r"mask must be boolean"),
        ({"mask": torch.arange(FRAMES).expand(2, -1) % 2 == 0}, r"mask has gaps"),
        ({"config": GuidanceConfig("aria_hamer")}, r"aria_hamer needs tracked wrists"),
        ({"config": GuidanceConfig("hamer_wrist"), "observations": HandObservations(wrists)},
         r"take no_hands or aria_wrist_only"),
        ({"config": GuidanceConfig("aria_wrist_only"), "observations": short}, r"wrists must have 12 frames .* got 5"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=text):
            call(**options)
    with pytest.raises(InputError, match="mode must be one of off, no_hands"):
        GuidanceConfig("hands")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="iterations must be at least 1"):
        GuidanceConfig(post_iterations=0)
    with pytest.raises(InputError, match=r"WristTracks: confidence must have shape \(\*b, T, 2\) with T = 12"):
        WristTracks(wrists.T_world_wrist, wrists.confidence[:, :5])
    with pytest.raises(InputError, match="HamerHands: seen must have shape"):
        dataclasses.replace(hamer, seen=hamer.seen[..., 0])


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of an untrained prior."""
    folder = tmp_path_factory.mktemp("guidance") / "prior"
    config = DenoiserConfig(
        d_latent=16, d_feedforward=32, d_noise_emb=8, num_heads=2, encoder_layers=1, decoder_layers=1,
        include_hands=False,
    )  # fmt: skip
    with RunDir.create(folder, config) as run:
        run.save(1, model=Denoiser(config, seed=1), model_config=config)
    return folder


def test_the_sample_command(prior: Path, tmp_path: Path) -> None:
    found = {}
    for wanted in ("off", "post"):
        out = tmp_path / wanted
        words = ["sample", "--checkpoint", str(prior), "--out", str(out), "--guidance", wanted]
        words += ["--steps", "2", "--kernel", "ddim", "--no-picture", "--length", "8", "--samples", "2"]
        assert main(words) == 0
        (path,) = out.glob("*.npz")
        with np.load(path) as arrays:
            found[wanted] = {name: torch.from_numpy(arrays[name]) for name in ("body_quats", "betas", "Ts_world_cpf")}
    assert torch.equal(found["off"]["betas"], found["post"]["betas"])
    quats = [found[wanted]["body_quats"] for wanted in ("off", "post")]
    rough = [F.normalize(q, dim=-1).diff(n=2, dim=1).norm(dim=-1).mean() for q in quats]
    assert rough[1] < 0.7 * rough[0]


def test_the_evaluate_command_marks_its_rows(prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--checkpoint", str(prior), "--motion", "demo", "--length", "8", "--steps", "2"]
    words += ["--kernel", "ddim", "--short-clips", "drop", "--format", "markdown", "--stride", "64"]
    printed = {}
    for wanted in ("off", "post"):
        assert main([*words, "--guidance", wanted]) == 0
        printed[wanted] = capsys.readouterr().out
    assert "prior ℵ" in printed["post"] and "ℵ: optimised (post sampling)" in printed["post"]
    assert "ℵ" not in printed["off"]
