"""A stage in the browser through viser: the server holds the motions, the browser skins and draws the frame shown."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import socket
import threading
import time
from html import escape
from typing import Any

import numpy as np

from mgrpo.errors import InputError
from mgrpo.viz.film import Look
from mgrpo.viz.live_chart import Chart
from mgrpo.viz.live_scene import SHADES, LiveBody, LiveHead
from mgrpo.viz.palette import mix, rgb
from mgrpo.viz.stage import Stage, palette_of

SPEEDS = {"0.1×": 0.1, "0.25×": 0.25, "0.5×": 0.5, "1×": 1.0, "2×": 2.0, "4×": 4.0}
"""Speeds of playing, by what the menu calls them."""

FIELD_OF_VIEW = math.radians(32)
"""Vertical, so that limbs near the camera don't swell."""

_SHOWS = {"Surface": "mesh", "Skeleton": "skeleton", "Both": "both"}
_LAYOUTS = {"Side by side": "side", "Overlay": "overlay"}
_RATE = 60.0


def have_viser() -> bool:
    """Whether the viser package is installed."""
    return importlib.util.find_spec("viser") is not None


def require_viser() -> None:
    """Raise InputError, which says what to install and what works without, where viser is missing."""
    if not have_viser():
        raise InputError(
            "showing motion in the browser needs the package viser: pip install 'mgrpo[viewer]'. Without it, --html "
            "writes a page that plays by itself, --video a film, --png a picture"
        )


def require_port(host: str, port: int) -> None:
    """Raise InputError where nobody can listen on ``port`` of ``host``; it names a free one. viser itself would take
    another port without a word."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return
        except socket.gaierror as error:
            raise InputError(f"--host {host}: no such address ({error.strerror})") from error
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise InputError(f"--host {host}: can't be listened on ({error.strerror})") from error
        free = probe.getsockname()[1]
    raise InputError(f"--port {port} can't be used ({reason}); --port {free} is free")


def offsets(stage: Stage, layout: str) -> np.ndarray:
    """Where each actor stands besides the others (N, 3) metres: in one row across the default view, or in one place."""
    count = len(stage.actors)
    spacing = min(max(1.3, 1.7 * stage.framing.reach_across), 3.0) if layout == "side" else 0.0
    right = np.array((-math.sin(stage.framing.azimuth), math.cos(stage.framing.azimuth), 0.0))
    return (np.arange(count) - (count - 1) / 2)[:, None] * spacing * right


def first_view(stage: Stage, layout: str, aspect: float = 1.08) -> tuple[np.ndarray, np.ndarray]:
    """Position of the camera and the point it looks at, (3,) metres each, in which all actors are seen when the
    camera follows (the pelvis of the first one is near x = y = 0)."""
    framing, places = stage.framing, offsets(stage, layout)
    across = float(np.linalg.norm(places[-1])) + framing.reach_across
    half = math.tan(FIELD_OF_VIEW / 2)
    distance = max(across / (half * aspect), framing.reach_up / half) * 1.12 + 0.4 * framing.reach_across
    back = np.array(
        (math.cos(0.24) * math.cos(framing.azimuth), math.cos(0.24) * math.sin(framing.azimuth), math.sin(0.24))
    )
    target = np.array((0.0, 0.0, framing.height))
    return target + distance * back, target


class LiveViewer:
    """A server that shows a stage to every browser that opens its address.

    One thread moves everything (:meth:`run`, or :meth:`step` where the caller has its own loop); the panel's callbacks
    only note what was asked for.
    """

    def __init__(self, stage: Stage, look: Look, *, host: str = "127.0.0.1", port: int = 8080) -> None:
        """Start the server and build the scene. Raises InputError without viser, and for a port in use."""
        require_viser()
        require_port(host, port)
        import viser

        self.stage = stage
        self.chart = Chart(stage)
        with contextlib.redirect_stdout(io.StringIO()):  # its own announcement
            self.server = viser.ViserServer(host=host, port=port, label=f"mgrpo · {stage.title}", verbose=False)
        self.url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::') else host}:{self.server.get_port()}"
        self.frame = -1
        self.time = 0.0
        self.playing = False
        self._stale = threading.Event()
        self._layout, self._dark = look.layout, look.dark
        self.solid = [0] * len(stage.actors)  # which of its samples, for each actor
        self._scene()
        self._panel(look)
        self._paint()
        self._view()
        self.show(0)

    # What is in the scene.

    def _scene(self) -> None:
        scene = self.server.scene
        scene.set_up_direction("+z")
        self.world = scene.add_frame("/world", show_axes=False)
        self.grid = scene.add_grid(
            "/world/floor", 60, 60, cell_size=0.5, section_size=2.0, cell_thickness=0.8, section_thickness=1.0,
            fade_distance=22.0, fade_strength=1.4,
        )  # fmt: skip
        self.bodies: list[LiveBody] = []
        self.places = []
        for index, actor in enumerate(self.stage.actors):
            self.places.append(scene.add_frame(f"/world/{index}", show_axes=False))
            self.bodies += [
                LiveBody(self.server, f"/world/{index}/{sample}", actor, sample) for sample in range(actor.samples)
            ]
        self.heads = [
            LiveHead(self.server, f"/world/{index}/head", actor)
            for index, actor in enumerate(self.stage.actors)
            if actor.T_world_cpf is not None
        ]

    def _panel(self, look: Look) -> None:
        gui, stage = self.server.gui, self.stage
        gui.main_panel.dock_right()  # beside the scene, not over it
        self.readout = gui.add_html(self.chart.html(0, self._dark))
        self.slider = gui.add_slider("Frame", 0, max(stage.frames - 1, 1), 1, 0, disabled=stage.frames < 2)
        self.clock = gui.add_text("Time", "", disabled=True)
        self.play_button = gui.add_button("Play", icon="player-play")
        steps = gui.add_button_group("Step", ("−10", "−1", "+1", "+10"))
        self.speed = gui.add_dropdown("Speed", tuple(SPEEDS), initial_value="1×")
        with gui.add_folder("View"):
            layouts = {value: key for key, value in _LAYOUTS.items()}
            shows = {value: key for key, value in _SHOWS.items()}
            self.layout = gui.add_dropdown(
                "Layout", tuple(_LAYOUTS), initial_value=layouts[self._layout], visible=len(stage.actors) > 1
            )
            self.body = gui.add_dropdown("Body", tuple(_SHOWS), initial_value=shows[look.show])
            numbers = [str(number) for number in stage.sample_numbers] or ["0"]
            first = next((actor.numbers[0] for actor in stage.actors if actor.samples > 1), 0)
            several = len(stage.sample_numbers) > 0
            self.sample = gui.add_dropdown(
                "Sample", tuple(numbers), initial_value=str(first), visible=several, hint="the sample that is solid"
            )
            self.samples = gui.add_checkbox("Other samples", True, visible=several)
            self.head = gui.add_checkbox("Head", True, visible=bool(self.heads))
            known = any(actor.contacts is not None for actor in stage.actors)
            self.contacts = gui.add_checkbox("Contacts", True, visible=known)
            self.follow = gui.add_checkbox("Camera follows", True)
            self.dark = gui.add_checkbox("Dark", self._dark)
            reset = gui.add_button("Reset the view", icon="refresh")
        with gui.add_folder("Motions", visible=len(stage.actors) > 1):
            self.shown = [gui.add_checkbox(actor.name, True) for actor in stage.actors]
        if stage.notes:
            with gui.add_folder("Files", expand_by_default=False):
                gui.add_html(
                    '<ul style="font-size:12px;margin:0;padding:2px 12px 8px 26px">'
                    + "".join(f"<li>{escape(note)}</li>" for note in stage.notes)
                    + "</ul>"
                )

        # The callbacks run on threads of the server: they note what is wanted, step() does it.
        @self.slider.on_update
        def _(event: Any) -> None:
            if event.client_id is not None:
                self.time = float(self.slider.value)
                self._stale.set()

        @self.play_button.on_click
        def _(_: Any) -> None:
            self.play(not self.playing)

        @steps.on_click
        def _(_: Any) -> None:
            self.play(False)
            self.time = float(np.clip(self.frame + int(steps.value.replace("−", "-")), 0, stage.frames - 1))
            self._stale.set()

        for control in (
            self.sample,
            self.samples,
            self.head,
            self.contacts,
            self.follow,
            self.layout,
            self.body,
            self.dark,
            *self.shown,
        ):
            control.on_update(lambda _: self._stale.set())

        @reset.on_click
        def _(event: Any) -> None:
            self._look(list(self.server.get_clients().values()) if event.client is None else [event.client])

    def _look(self, clients: list[Any]) -> None:
        """Put the cameras of some browsers where they begin."""
        position, target = first_view(self.stage, self._layout)
        for client in clients:
            client.camera.position, client.camera.look_at, client.camera.fov = position, target, FIELD_OF_VIEW

    def _paint(self) -> None:
        """Colours of the scheme."""
        dark = self._dark
        palette = palette_of(dark)
        self.server.gui.configure_theme(
            dark_mode=dark, show_logo=False, show_share_button=False, control_width="large", brand_color=(31, 111, 181)
        )
        shade = SHADES[dark]
        line, section = mix(shade, rgb(palette.muted), 0.28), mix(shade, rgb(palette.muted), 0.55)
        self.grid.cell_color, self.grid.section_color = line, section
        self.grid.shadow_opacity = 0.35 if dark else 0.16
        for body in self.bodies:
            body.paint(dark)
        for head in self.heads:
            head.paint(rgb(palette.ink), rgb(palette.muted), shade)

    def _view(self) -> None:
        """Where new browsers, and the reset of the view, look from."""
        position, target = first_view(self.stage, self._layout)
        camera = self.server.initial_camera
        camera.position, camera.look_at, camera.fov = position, target, FIELD_OF_VIEW
        camera.up = np.array((0.0, 0.0, 1.0))

    # What moves.

    def play(self, on: bool) -> None:
        """Start or stop playing."""
        self.playing = on and self.stage.frames > 1
        self.play_button.label = "Pause" if self.playing else "Play"
        self.play_button.icon = "player-pause" if self.playing else "player-play"

    def show(self, frame: int) -> None:
        """Put everything where it is in a frame."""
        stage, layout, show = self.stage, self._layout, _SHOWS[self.body.value]
        self.frame = frame
        places = offsets(stage, layout)
        now = frame if self.follow.value else 0
        anchor = stage.framing.centers[now]
        if layout == "side":
            own = np.stack([centers[now] for centers in stage.own_centers])
            places = places + np.concatenate((anchor - own, np.zeros((len(own), 1))), axis=1)
        with self.server.atomic():
            self.world.position = (-float(anchor[0]), -float(anchor[1]), 0.0)
            # the grid is finite and comes along, by whole cells
            self.grid.position = (*(np.round(anchor / 2.0) * 2.0).tolist(), 0.0)
            for place, offset in zip(self.places, places):
                place.position = offset
            for body in self.bodies:
                index = stage.actors.index(body.actor)
                there = bool(self.shown[index].value) and bool(body.actor.present[frame])
                solid = body.sample == self.solid[index]
                body.move(
                    frame,
                    visible=there and (solid or bool(self.samples.value)),
                    show=show,
                    contacts=bool(self.contacts.value),
                    solid=solid,
                )
            seen = [actor for actor, box in zip(stage.actors, self.shown) if box.value]
            # those that share a head's path show it once where they stand in one place
            drawn = seen if layout == "side" else stage.heads(seen)
            for head in self.heads:
                head.move(stage.fps, frame, bool(self.head.value) and head.actor in drawn)
            self.readout.content = self.chart.html(frame, self._dark, self.solid)
            self.clock.value = f"{stage.seconds(frame):.2f} s of {stage.seconds(stage.frames - 1):.2f} s"
            if self.slider.value != frame:
                self.slider.value = frame

    def step(self, seconds: float) -> None:
        """Let time pass and show what has changed."""
        if self.playing:
            end = self.stage.frames - 1
            self.time += seconds * self.stage.fps * SPEEDS[self.speed.value]
            if self.time > end + 0.4 * self.stage.fps:  # a moment's rest on the last frame
                self.time = 0.0
        frame = int(np.clip(round(self.time), 0, self.stage.frames - 1))
        stale = self._stale.is_set()
        self._stale.clear()
        if stale:
            self._adopt()
        if stale or frame != self.frame:
            self.show(frame)

    def _adopt(self) -> None:
        """Take over what the panel asks for and colours or the first view depend on."""
        if bool(self.dark.value) != self._dark:
            self._dark = bool(self.dark.value)
            self._paint()
        for index, actor in enumerate(self.stage.actors):
            # one that has no sample of that number keeps its own
            if actor.samples > 1 and int(self.sample.value) in actor.numbers:
                self.solid[index] = actor.numbers.index(int(self.sample.value))
        if _LAYOUTS[self.layout.value] != self._layout:
            self._layout = _LAYOUTS[self.layout.value]
            self._view()
            self._look(list(self.server.get_clients().values()))

    def run(self, stop: threading.Event | None = None) -> None:
        """Serve until ``stop`` is set or the process is interrupted."""
        last = time.monotonic()
        while stop is None or not stop.is_set():
            time.sleep(1 / _RATE)
            now = time.monotonic()
            self.step(min(now - last, 0.25))
            last = now

    def close(self) -> None:
        """End the server."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()
