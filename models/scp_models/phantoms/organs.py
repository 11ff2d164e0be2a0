"""The organs: where they lie (mm to the right, front and top of the upper abdomen's middle) and their density (HU)."""

from collections.abc import Sequence

import numpy as np

from scp_models.phantoms.canvas import Canvas, Window, smooth_union
from scp_models.phantoms.fields import Corner, SmoothField

_FOREVER = float("inf")


def _chain(rng: np.random.Generator, points: Sequence[Sequence[float]], wobble: float) -> np.ndarray:
    """A curve through ``points``, displaced at random by ``wobble`` mm and refined once."""
    base = np.asarray(points, float) + rng.normal(0, wobble, (len(points), 3))
    middle = (base[:-1] + base[1:]) / 2 + rng.normal(0, wobble / 2, (len(points) - 1, 3))
    curve = np.empty((2 * len(base) - 1, 3))
    curve[::2], curve[1::2] = base, middle
    return curve


def _tree(
    rng: np.random.Generator, start: np.ndarray, direction: np.ndarray, length: float, radius: float, depth: int
) -> list[tuple[np.ndarray, float]]:
    """A branching vessel: (end points ``[2, 3]``, radius in mm) of every segment."""
    direction = direction / np.linalg.norm(direction)
    end = start + length * direction
    segments = [(np.stack([start, end]), radius)]
    if depth:
        for _ in range(2):
            turned = direction + rng.normal(0, 0.55, 3)
            segments += _tree(rng, end, turned, length * rng.uniform(0.7, 0.9), radius * 0.74, depth - 1)
    return segments


class Body:
    """Everything about a patient that is drawn at random: build, contrast phase, vessels, bowel, cysts."""

    def __init__(self, rng: np.random.Generator, low: Sequence[float], high: Sequence[float]) -> None:
        self.width, self.depth = 168 + rng.normal(0, 8), 118 + rng.normal(0, 7)
        self.fat = rng.uniform(9, 30)
        self.wall = rng.uniform(11, 16)
        self.liver_hu = rng.normal(108, 13)
        self.vessel_hu = self.liver_hu + rng.uniform(28, 60)
        self.spleen_hu = self.liver_hu + rng.uniform(5, 22)
        self.kidney_hu = self.liver_hu + rng.uniform(45, 85)
        self.muscle_hu = rng.normal(58, 4)
        self.bone_hu = rng.normal(190, 30)
        self.disc_phase = rng.uniform(0, 33)
        self.rib_phase = rng.uniform(0, 2 * np.pi)
        self.texture = SmoothField(rng, low, high, 4.5)
        self.coarse_texture = SmoothField(rng, low, high, 11.0)
        self.table = rng.uniform(6, 12)

        self.portal = [
            s for turn in ((1, 0.1, 0.15), (-0.7, 0.7, 0.5)) for s in self._branch(rng, (14, 2, 8), turn, 6.0)
        ]
        veins = ((0.9, 0.2, -0.7), (0.2, 0.9, -0.5), (0.7, -0.5, -0.6))
        self.hepatic = [s for turn in veins for s in self._branch(rng, (20, -22, 78), turn, 5.0)]
        self.gall_bladder = (rng.normal(46, 4), rng.normal(42, 4), rng.normal(-18, 5))
        self.gall_bladder_radii = (rng.uniform(11, 18), rng.uniform(17, 26), rng.uniform(16, 24))
        self.stomach_hu = rng.uniform(15, 60)
        self.stomach_gas = rng.uniform(48, 66)

        self.colon = [
            _chain(rng, ((108, -10, -150), (104, -5, -95), (98, 12, -62)), 5),
            _chain(rng, ((98, 30, -62), (60, 70, -75), (0, 80, -85), (-55, 70, -60), (-95, 35, -10)), 6),
            _chain(rng, ((-104, 0, 5), (-110, -20, -60), (-106, -15, -150)), 5),
        ]
        self.bowel: list[tuple[np.ndarray, float, float]] = []
        for _ in range(18):
            start = np.array([rng.uniform(-75, 70), rng.uniform(5, 70), rng.uniform(-140, -45)])
            steps = np.cumsum(rng.normal(0, (19, 12, 9), (6, 3)), axis=0)
            content = float(
                rng.choice([rng.uniform(10, 35), rng.uniform(25, 45), -650.0, 240.0], p=[0.4, 0.35, 0.1, 0.15])
            )
            points = np.clip(start + steps, (-85, 0, -160), (80, 78, -40))
            self.bowel.append((points, float(rng.uniform(9, 14)), content))
        self.cysts = [
            (np.array([side * rng.uniform(45, 72), rng.uniform(-62, -32), rng.uniform(-70, 0)]), rng.uniform(4, 13))
            for side in (1, 1, -1, -1)
            if rng.random() < 0.5
        ]
        if rng.random() < 0.4:
            self.cysts.append((np.array([-95, -35, 40]) + rng.normal(0, 10, 3), rng.uniform(4, 11)))

    @staticmethod
    def _branch(
        rng: np.random.Generator, start: tuple[float, float, float], turn: tuple[float, float, float], radius: float
    ) -> list[tuple[np.ndarray, float]]:
        return _tree(rng, np.array(start, float), np.array(turn) + rng.normal(0, 0.12, 3), 34.0, radius, 5)


KIDNEYS = ((58.0, -46.0, -38.0), (-58.0, -46.0, -28.0))
_KIDNEY_RADII = (27.0, 29.0, 55.0)


def cavity_distance(canvas: Canvas, window: Window, body: Body) -> np.ndarray:
    """Signed distance to the inside of the abdominal wall."""
    radii = (body.width - body.fat - body.wall, body.depth - 0.8 * body.fat - body.wall, _FOREVER)
    return canvas.ellipsoid(window, (0, 4, 0), radii)


def paint_body(canvas: Canvas, body: Body) -> None:
    """Table, skin, fat, the muscular wall with its ribs, the cavity's fat, back muscles and spine."""
    everything = canvas.everything
    _, y, z = canvas.deformed
    back = canvas.axes[1][None, :, None] + body.depth * 1.04 + body.table - (canvas.axes[0] ** 2 / 1400)[:, None, None]
    canvas.paint(everything, canvas.cover((2.5 - np.abs(back)).astype(np.float32)), -40.0)

    outer = canvas.ellipsoid(everything, (0, 0, 0), (body.width, body.depth, _FOREVER))
    # A lying back is flat.
    outer = np.minimum(outer, y + np.float32(0.93 * body.depth))
    canvas.paint(everything, canvas.cover(outer), 15.0)
    canvas.paint(everything, canvas.cover(outer - 2), -105 + 6 * body.coarse_texture(*canvas.axes))
    wall_radii = (body.width - body.fat, body.depth - 0.8 * body.fat, _FOREVER)
    wall = canvas.ellipsoid(everything, (0, 4, 0), wall_radii)
    texture = body.texture(*canvas.axes)
    canvas.paint(everything, canvas.cover(np.minimum(wall, outer - 6)), body.muscle_hu + 9 * texture)
    cavity = cavity_distance(canvas, everything, body)
    # Between the wall's muscle layers, and between them and the cavity, there are seams of fat.
    seams = 0.55 * np.exp(-np.square((wall - 0.55 * body.wall + texture) / 1.1)) * (z < 0)
    canvas.paint(everything, seams, -80.0)
    _paint_ribs(canvas, body, wall, z)
    canvas.paint(everything, canvas.cover(cavity), -98.0)
    # Mesenteric vessels: bright dots in the fat.
    dots = np.clip(np.abs(texture) * 1.6 - 3.1, 0, 1) * canvas.cover(cavity - 6) * (z < 20)
    canvas.paint(everything, dots, 90.0)
    canvas.paint(everything, canvas.cover(canvas.ellipsoid(everything, (0, -72, 0), (72, 27, _FOREVER))), -90.0)
    for side in (-1, 1):
        for center, radii in (((side * 31, -80, 0), (28, 21, _FOREVER)), ((side * 64, -68, 0), (20, 14, _FOREVER))):
            muscle = canvas.ellipsoid(everything, center, radii)
            streaks = np.clip(texture * 1.2 - 1.4, 0, 1) * 60
            canvas.paint(everything, canvas.cover(muscle), body.muscle_hu + 8 * texture - streaks)
        psoas = canvas.window((side * 36 - 20, -60, -200), (side * 36 + 20, -15, 25))
        if psoas:
            size = np.clip((25 - z[psoas]) / 60, 0, 1)
            share = canvas.cover(canvas.ellipsoid(psoas, (side * 34, -38, 0), (17, 20, _FOREVER)) - 15 * (1 - size))
            canvas.paint(psoas, share, body.muscle_hu + 4)
    _paint_spine(canvas, body)


def _paint_ribs(canvas: Canvas, body: Body, wall: np.ndarray, z: np.ndarray) -> None:
    x, y, _ = canvas.deformed
    # Ribs run forwards and downwards: at one height a slice cuts several of them, obliquely.
    course = 2 * np.pi * (z + np.float32(0.75) * y) / np.float32(34) + np.float32(body.rib_phase)
    height = (np.cos(course) - np.float32(0.35)) * np.float32(9)
    middle = np.float32(4.2) - np.abs(wall - np.float32(0.6 * body.wall))
    above = z - np.float32(0.45) * np.abs(x) + np.float32(90)  # the costal arch: fewer ribs in front and below
    front = np.clip((70 - y) / 6, 0, 1)
    rib = np.minimum(np.minimum(height, middle), above)
    canvas.paint(canvas.everything, canvas.cover(rib) * front, 330.0)
    canvas.paint(canvas.everything, canvas.cover(rib - 1.8) * front, 150.0)


def _paint_spine(canvas: Canvas, body: Body) -> None:
    window = canvas.window((-60, -112, -250), (60, -25, 250))
    if window is None:
        return
    z = canvas.deformed[2][window]
    texture = body.texture(*(a[s] for a, s in zip(canvas.axes, window, strict=True)))
    # Vertebra and disc alternate every 33 mm; 8 mm of it is disc.
    disc = canvas.cover(4 - np.abs((z + np.float32(body.disc_phase)) % 33 - np.float32(16.5)))
    for side in (-1, 1):
        process = canvas.ellipsoid(window, (side * 30, -68, 0), (22, 5, _FOREVER))
        canvas.paint(window, canvas.cover(process) * (1 - disc) * 0.8, 260.0)
        canvas.paint(window, canvas.cover(canvas.ellipsoid(window, (side * 15, -72, 0), (6, 12, _FOREVER))), 320.0)
    canvas.paint(window, canvas.cover(canvas.ellipsoid(window, (0, -94, 0), (5, 15, _FOREVER))), 300.0)
    vertebra = canvas.ellipsoid(window, (0, -47, 0), (23, 18, _FOREVER))
    canvas.paint(window, canvas.cover(vertebra), 420.0 - 330 * disc)
    inner = body.bone_hu + 35 * texture
    canvas.paint(window, canvas.cover(vertebra - 2.5), inner + disc * (85 - inner))
    canvas.paint(window, canvas.cover(canvas.ellipsoid(window, (0, -72, 0), (12, 9, _FOREVER))), 25.0)


def _solid(canvas: Canvas, center: Corner, radii: Corner, value: float, inside: np.ndarray) -> None:
    """An ellipsoid of one density, cut off at the cavity's wall."""
    window = canvas.window(np.subtract(center, radii), np.add(center, radii))
    if window:
        shape = np.minimum(canvas.ellipsoid(window, center, radii), inside[window] - 3)
        canvas.paint(window, canvas.cover(shape), value)


def _pipe(canvas: Canvas, points: np.ndarray, radius: float, value: float | np.ndarray) -> None:
    tube = canvas.tube(points, radius)
    if tube:
        canvas.paint(tube[0], canvas.cover(tube[1]), value)


def paint_organs(canvas: Canvas, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Everything in the cavity except the liver: lungs, heart, great vessels, kidneys, spleen, stomach, bowel.

    Returns:
        Where the kidneys are, uint8, 1 the left and 2 the right one without its hilum; and the density once they were
        painted, so that what was painted over them later can be told.
    """
    inside = cavity_distance(canvas, canvas.everything, body)
    _paint_bowel(canvas, body, inside)
    sides = np.zeros(canvas.hu.shape, np.uint8)
    for kidney in KIDNEYS:
        _paint_kidney(canvas, body, kidney, sides)
    painted = canvas.hu.copy()
    _solid(canvas, (-93, -36, 40), (30, 40, 50), body.spleen_hu, inside)
    for center, radius in body.cysts:
        _solid(canvas, center, (radius,) * 3, 6.0, inside)
    pancreas = np.array([(34, 10, -12), (14, 20, 2), (-22, 14, 14), (-68, -12, 30)], float)
    tube = canvas.tube(pancreas, 10.5)
    if tube:
        lobules = body.texture(*(a[s] for a, s in zip(canvas.axes, tube[0], strict=True)))
        canvas.paint(tube[0], canvas.cover(tube[1] + 1.8 * lobules), body.liver_hu - 18 + 12 * lobules)
    _paint_stomach(canvas, body, inside)
    _pipe(canvas, np.array([(28, 4, -150), (30, 6, -60), (12, 10, -8), (14, 2, 8)], float), 6.0, body.vessel_hu)
    _pipe(canvas, np.array([(10, 8, 0), (-30, 0, 16), (-78, -22, 32)], float), 4.0, body.vessel_hu)
    _pipe(canvas, np.array([(-10, -16, 18), (-8, 6, -20), (-4, 14, -150)], float), 4.0, body.vessel_hu + 15)
    _paint_thorax(canvas, body, inside)
    _pipe(
        canvas,
        np.array([(-9, -22, -220), (-11, -24, 0), (-16, -34, 120), (-18, -38, 220)], float),
        11.5,
        body.vessel_hu + 12,
    )
    for side in (-1, 1):
        renal = np.array([(-8, -22, -30), (side * 30, -32, -34), (side * 48, -42, -36)], float)
        _pipe(canvas, renal, 4.0, body.vessel_hu)
    return sides, painted


def _paint_kidney(canvas: Canvas, body: Body, center: tuple[float, float, float], sides: np.ndarray) -> None:
    window = canvas.window(np.subtract(center, _KIDNEY_RADII), np.add(center, _KIDNEY_RADII))
    if window is None:
        return
    # The hilum opens towards the spine: an ellipsoid of fat is taken from that side, with the pelvis in it.
    towards_spine = -np.sign(center[0])
    kidney = canvas.ellipsoid(window, center, _KIDNEY_RADII)
    hilum = (center[0] + 17 * towards_spine, center[1] + 6, center[2])
    sinus = canvas.ellipsoid(window, hilum, (19, 11, 24))
    texture = body.texture(*(a[s] for a, s in zip(canvas.axes, window, strict=True)))
    canvas.paint(window, canvas.cover(kidney), body.kidney_hu)
    canvas.paint(window, canvas.cover(np.minimum(kidney - 8, 3 * texture)), body.kidney_hu - 38)
    canvas.paint(window, canvas.cover(sinus), -70.0)
    canvas.paint(window, canvas.cover(canvas.ellipsoid(window, hilum, (10, 6, 17))), 12.0)
    sides[window][(kidney > 0) & (sinus < 0)] = 2 if center[0] > 0 else 1


def _paint_bowel(canvas: Canvas, body: Body, inside: np.ndarray) -> None:
    for points, radius, content in body.bowel:
        tube = canvas.tube(points, radius)
        if tube:
            window, distance = tube
            distance = np.minimum(distance, inside[window] - 4)
            canvas.paint(window, canvas.cover(distance), 85.0)
            canvas.paint(window, canvas.cover(distance - 2.6), content)
    for points in body.colon:
        tube = canvas.tube(points, 21.0)
        if tube:
            window, distance = tube
            axes = [a[s] for a, s in zip(canvas.axes, window, strict=True)]
            mottle, bulges = body.texture(*axes), body.coarse_texture(*axes)
            distance = np.minimum(distance + 3.5 * bulges, inside[window] - 4)
            canvas.paint(window, canvas.cover(distance), 70.0)
            stool = 15 - 420 * np.clip(mottle + 0.6 * bulges, 0, 1.6)
            canvas.paint(window, canvas.cover(distance - 2.6), stool)


def _paint_stomach(canvas: Canvas, body: Body, inside: np.ndarray) -> None:
    window = canvas.window((-105, -25, -30), (25, 85, 100))
    if window is None:
        return
    fundus = canvas.ellipsoid(window, (-58, 18, 52), (40, 44, 44))
    antrum = canvas.ellipsoid(window, (-22, 48, 4), (50, 26, 26))
    shape = np.minimum(smooth_union(fundus, antrum, 16), inside[window] - 4)
    axes = [a[s] for a, s in zip(canvas.axes, window, strict=True)]
    folds = body.texture(*axes)
    canvas.paint(window, canvas.cover(shape), 82.0)
    canvas.paint(window, canvas.cover(shape - 4.5 - folds), body.stomach_hu + 10 * body.coarse_texture(*axes))
    # Gas floats: in a lying patient it is in front, above a level that is flat in the scanner.
    level = (axes[1] - body.stomach_gas).astype(np.float32)[None, :, None]
    canvas.paint(window, canvas.cover(np.minimum(shape - 4.5 - folds, level)), -920.0)


def _paint_thorax(canvas: Canvas, body: Body, inside: np.ndarray) -> None:
    window = canvas.window((-200, -130, -15), (200, 130, 400))
    if window is None:
        return
    _, y, z = (c[window] for c in canvas.deformed)
    right_dome = canvas.ellipsoid(window, (65, -5, 22), (76, 86, 86))
    left_dome = canvas.ellipsoid(window, (-66, 2, 14), (80, 90, 86))
    middle = canvas.ellipsoid(window, (0, -25, 0), (34, 48, _FOREVER))
    back = canvas.ellipsoid(window, (0, -88, 0), (88, 31, _FOREVER))
    heart = canvas.ellipsoid(window, (-22, 32, 128), (66, 52, 46))
    below = np.maximum(np.maximum(right_dome, left_dome), np.maximum(np.maximum(middle, back), heart + 5))
    # The pleural recess reaches lower behind than in front.
    recess = (z - np.float32(0.5) * y - 24) * np.float32(0.9)
    lung = np.minimum(np.minimum(inside[window] + 1, recess), -below)
    vessels = np.clip(body.texture(*(a[s] for a, s in zip(canvas.axes, window, strict=True))) * 2 - 3.4, 0, 1)
    canvas.paint(window, canvas.cover(lung), -845 + 520 * vessels)
    canvas.paint(window, canvas.cover(np.minimum(heart, inside[window] - 4)), body.vessel_hu - 45)
    canvas.paint(window, canvas.cover(canvas.ellipsoid(window, (-30, 30, 132), (34, 28, 32))), body.vessel_hu + 5)
    oesophagus = np.array([(-14, -14, 60), (-8, -20, 220)], float)
    _pipe(canvas, oesophagus, 8.0, 55.0)


def liver_distance(canvas: Canvas, window: Window, body: Body) -> np.ndarray:
    """Signed distance to the liver: two lobes under the diaphragm, cut by the neighbours below."""
    x, z = canvas.deformed[0][window], canvas.deformed[2][window]
    right = canvas.ellipsoid(window, (63, -6, 22), (71, 81, 82))
    left = canvas.ellipsoid(window, (4, 40, 42), (68, 36, 38))
    shape = smooth_union(right, left, 22)
    lower = (z + 72 + np.float32(0.62) * (x - 110)) * np.float32(0.85)  # the visceral surface rises to the left
    porta = canvas.ellipsoid(window, (16, -4, -8), (34, 24, 22))
    fissure = canvas.ellipsoid(window, (12, 66, 14), (4.5, 34, 34))
    shape = np.minimum(np.minimum(shape, lower), -np.maximum(porta, fissure))
    kidney = canvas.ellipsoid(window, KIDNEYS[0], np.add(_KIDNEY_RADII, 5))
    spine = canvas.ellipsoid(window, (-8, -50, 0), (44, 34, _FOREVER))
    vena_cava = canvas.ellipsoid(window, (20, -24, 0), (14, 11, _FOREVER))
    gall_bladder = canvas.ellipsoid(window, body.gall_bladder, np.add(body.gall_bladder_radii, 1))
    neighbours = np.maximum(np.maximum(kidney, spine), np.maximum(vena_cava, gall_bladder))
    return np.minimum(np.minimum(shape, -neighbours), cavity_distance(canvas, window, body) - 3)


def paint_liver(canvas: Canvas, body: Body) -> np.ndarray:
    """Paint liver, its vessels, the vena cava and the gall bladder; returns the liver's share of every voxel."""
    liver = np.zeros_like(canvas.hu)
    _pipe(canvas, np.array([(22, -24, -220), (20, -24, 60), (14, -16, 110)], float), 11.0, body.vessel_hu - 10)
    window = canvas.window((-80, -95, -85), (145, 95, 110))
    if window is not None:
        share = canvas.cover(liver_distance(canvas, window, body))
        liver[window] = share
        axes = [a[s] for a, s in zip(canvas.axes, window, strict=True)]
        canvas.paint(window, share, body.liver_hu + 2.5 * body.coarse_texture(*axes))
    for points, radius in (*body.portal, *body.hepatic):
        tube = canvas.tube(points, radius)
        if tube:
            canvas.paint(tube[0], canvas.cover(tube[1]) * liver[tube[0]], body.vessel_hu)
    low, high = (
        np.subtract(body.gall_bladder, body.gall_bladder_radii),
        np.add(body.gall_bladder, body.gall_bladder_radii),
    )
    bladder = canvas.window(low, high)
    if bladder:
        shape = canvas.ellipsoid(bladder, body.gall_bladder, body.gall_bladder_radii)
        canvas.paint(bladder, canvas.cover(shape), 70.0)
        canvas.paint(bladder, canvas.cover(shape - 1.8), 10.0)
    return liver
