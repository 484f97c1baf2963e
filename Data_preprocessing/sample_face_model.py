"""The head of a drawn person: a height field and a painted texture, from numpy and OpenCV alone.

Face units: 1 is half a face's width; u points right, v down from the line of the eyes, z (the height) to the camera.
Why dlib finds these heads and tells them apart: the relief gives the detection, the painted features give the
landmarks; proportions stay near dlib's mean face, the mouth's height hangs on nose and chin, the neck lies in the
chin's shadow and the eyes have small glints. The numbers were tuned by eye and by dlib: they have no other source.
"""

from types import SimpleNamespace
from typing import NamedTuple

import cv2
import numpy as np

TEXELS = 72  # texture pixels per face unit
LEFT, TOP, RIGHT, BOTTOM = -1.45, -1.95, 1.45, 2.6  # what the texture covers: head, long hair, neck
U = ((np.arange(round((RIGHT - LEFT) * TEXELS)) + 0.5) / TEXELS + LEFT).astype(np.float32)[None, :]
V = ((np.arange(round((BOTTOM - TOP) * TEXELS)) + 0.5) / TEXELS + TOP).astype(np.float32)[:, None]
SHAPE = (V.shape[0], U.shape[1])
SPAN = np.linspace(-1, 1, 25, dtype=np.float32)  # along a feature, from its left end to its right end
SIDES = (-1, 1)  # left and right in the picture
NOWHERE = -9.0  # height where there is no surface

SKINS = np.float32([  # colours here are RGB 0..255
    (238, 208, 190), (228, 188, 165), (216, 170, 140), (200, 146, 110), (172, 116, 84), (138, 88, 62), (110, 70, 50),
])  # fmt: skip
HAIRS = np.float32([(26, 24, 26), (60, 42, 32), (104, 66, 40), (196, 150, 92), (140, 60, 36), (166, 162, 160)])
IRISES = np.float32([(70, 44, 30), (110, 70, 40), (80, 120, 150), (90, 130, 90), (110, 120, 120)])
FAIR = 2.5  # skins up to this place in the list go with every hair and iris, darker ones with the first few
LASHES, LIPSTICK, EYE_WHITE, TEETH, THROAT = (20, 18, 22), (178, 70, 82), (214, 206, 200), (228, 220, 205), (60, 22, 30)

SPREAD = 2.25  # how far people lie apart, in the deviations below; above 3 dlib begins to lose the odd ones
MEASURES = {  # of a person: mean and deviation, in face units unless said otherwise; _u, _v, _z: places, _w, _h: sizes
    "width": (1.03, 0.06), "top": (1.55, 0.05), "chin": (1.58, 0.08), "depth": (1.15, 0.08),  # of the head
    "jaw": (2.7, 0.31),  # exponent of the lower outline: 2 is an ellipse, more is squarer
    "cheek_z": (0.08, 0.03), "chin_z": (0.1, 0.035), "ridge_z": (0.07, 0.03),  # ridge: of the brows
    "eye_u": (0.46, 0.03), "eye_w": (0.187, 0.017), "eye_h": (0.092, 0.013), "eye_tilt": (0.015, 0.02),
    "lid": (0.06, 0.013),  # from the eye's edge up to the fold of the lid
    "brow_v": (-0.29, 0.035), "brow_w": (0.31, 0.03), "brow_h": (0.052, 0.018), "brow_arch": (0.05, 0.025),
    "brow_tilt": (0.0, 0.03), "brow_ink": (0.75, 0.11),  # ink: opacity
    "nose_v": (0.68, 0.055), "nose_w": (0.2, 0.035), "nose_z": (0.36, 0.06), "bridge_w": (0.1, 0.015),
    "mouth_place": (0.36, 0.025), "mouth_w": (0.375, 0.04),  # place: share of the way from nose to chin
    "lip_top": (0.07, 0.02), "lip_bottom": (0.095, 0.025), "lip_red": (0.5, 0.22),  # red: 0 skin .. 1 lipstick
    "hairline": (-0.9, 0.1), "widow": (0.06, 0.07), "parting": (0.0, 0.067),  # v; dip in the middle; slant
}  # fmt: skip

Traits = SimpleNamespace  # see make_traits
Lips = SimpleNamespace  # see mouth_curves


class HairStyle(NamedTuple):
    thickness: float
    end: float  # v where it ends beside the face
    opening: float  # half-width of the face it leaves free, in widths of the head


SHORT, FULL = HairStyle(0.07, 0.0, 0.96), HairStyle(0.15, 0.15, 0.96)
LONG_STYLES = (HairStyle(0.16, 1.3, 0.9), HairStyle(0.16, 2.3, 0.88))  # to the chin, to the shoulders
HAIR_STYLES = (None, SHORT, FULL, *LONG_STYLES)  # None: shaved


class Person(NamedTuple):
    """What all photos of one person share. Arrays are SHAPE float32, colours (*SHAPE, 3) float32."""

    traits: Traits
    skin: np.ndarray
    whiskers: np.ndarray  # fine grain of brows and beard, mean 0
    hair_alpha: np.ndarray  # opacity, 0..1
    hair_colour: np.ndarray
    hair_height: np.ndarray  # NOWHERE where it lies flat on the head


class Expression(NamedTuple):
    smile: float  # -0.5 sad .. 1 broad smile
    gap: float  # between the lips
    lids: float  # factor on the opening of the eyes
    brows: float  # shift of the brows, down
    gaze: tuple[float, float]  # shift of the irises, (u, v)


class Head(NamedTuple):
    """One head with one expression, unlit: SHAPE float32 each."""

    height: np.ndarray  # z, or NOWHERE
    colour: np.ndarray  # (*SHAPE, 3)
    gloss: np.ndarray  # strength of the highlight, 0..255


class Patch(NamedTuple):
    window: tuple[slice, slice]  # of the texture
    alpha: np.ndarray  # opacity in it, float32 0..1


def bell(x: np.ndarray, centre: float, width: float) -> np.ndarray:
    return np.exp(-0.5 * ((x - centre) / width) ** 2)


def rise(x: np.ndarray, softness: float) -> np.ndarray:
    """0 for negative x, 1 for positive x, with a soft passage."""
    return 1 / (1 + np.exp(-np.clip(x / softness, -30, 30)))


def blotches(rng: np.random.Generator, cell_h: int, cell_w: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Smooth random field (shape) float32 of mean 0; blotches of about cell_h x cell_w pixels."""
    coarse = rng.standard_normal((shape[0] // cell_h + 2, shape[1] // cell_w + 2), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def curve(u: object, v: object) -> np.ndarray:
    return np.stack(np.broadcast_arrays(u, v), axis=1).astype(np.float32)


def between(u: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Outline (2 N, 2) of what lies between the curves (u, upper) and (u, lower)."""
    return np.concatenate([curve(u, upper), curve(u, lower)[::-1]])


def cover(corners: object, width: float | None = None, blur: float = 0.7) -> Patch:
    """What a polygon (N, 2) encloses, or a line of some width through its corners; face units, but blur in texels."""
    texels = (np.float32(corners) - np.float32((LEFT, TOP))) * TEXELS - 0.5
    thickness = 0 if width is None else max(1, round(width * TEXELS))
    margin = 3 * blur + thickness + 2
    left, top = np.maximum(texels.min(axis=0) - margin, 0).astype(int)
    right, bottom = np.minimum(np.ceil(texels.max(axis=0) + margin), SHAPE[::-1]).astype(int)
    alpha = np.zeros((bottom - top, right - left), np.uint8)
    sixteenths = [np.round((texels - (left, top)) * 16).astype(np.int32)]  # OpenCV's sub-pixel form, shift 4
    if thickness:
        cv2.polylines(alpha, sixteenths, False, 255, thickness, cv2.LINE_AA, 4)
    else:
        cv2.fillPoly(alpha, sixteenths, 255, cv2.LINE_AA, 4)
    return Patch(np.s_[top:bottom, left:right], cv2.GaussianBlur(alpha, (0, 0), blur).astype(np.float32) / 255)


def blend(colour: np.ndarray, patch: Patch, paint: object, opacity: float = 1.0) -> None:
    """Paint on ``colour`` in place; ``paint`` is one RGB colour, or one for each texel of the patch."""
    under = colour[patch.window]
    under += (opacity * patch.alpha)[..., None] * (np.asarray(paint, np.float32) - under)


def make_person(rng: np.random.Generator) -> Person:
    """Draw one person's traits and paint what stays the same in all photos."""
    traits = make_traits(rng)
    return Person(traits, paint_skin(traits, rng), blotches(rng, 2, 2), *make_hair(traits, rng))


def make_traits(rng: np.random.Generator) -> Traits:
    """One person's MEASURES, uniform around the means, colours (skin, hair, iris) (3,) float32, and the rest."""
    traits = Traits(**{
        name: mean + SPREAD * deviation * float(rng.uniform(-1, 1)) for name, (mean, deviation) in MEASURES.items()
    })  # fmt: skip
    traits.mouth_v = traits.nose_v + (traits.chin - traits.nose_v) * traits.mouth_place
    tone = float(rng.uniform(0, len(SKINS) - 1))
    fairer, is_fair = int(tone), tone < FAIR
    traits.skin = SKINS[fairer] + (SKINS[fairer + 1] - SKINS[fairer]) * (tone - fairer)
    traits.hair = HAIRS[rng.integers(len(HAIRS) if is_fair else 3)] * float(rng.uniform(0.75, 1.15))
    traits.iris = IRISES[rng.integers(len(IRISES) if is_fair else 2)] * float(rng.uniform(0.75, 1.2))
    traits.style = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
    traits.beard = 0.0 if traits.style in LONG_STYLES else float(rng.choice([0, 0, 0.25, 0.8]))  # opacity
    traits.age = float(rng.choice([0, 0, 0.5, 1]))  # opacity of wrinkles
    traits.freckles = 60 if rng.uniform() < 0.3 else 0  # how many
    return traits


def mouth_curves(traits: Traits, expression: Expression) -> Lips:
    """Lips between curves top..upper and lower..bottom (25,) over u; v: their height, end: u of the right corner."""
    v, end = traits.mouth_v + 0.2 * expression.gap, traits.mouth_w * (1 + 0.12 * expression.smile)
    seam, gap = v - 0.09 * expression.smile * SPAN**2, expression.gap * (1 - SPAN**2)
    upper, lower = seam - 0.4 * gap, seam + 0.6 * gap
    top = upper - traits.lip_top * (1 - np.abs(SPAN) ** 2.2) * (1 - 0.22 * bell(SPAN, 0, 0.1))
    bottom = lower + traits.lip_bottom * (1 - np.abs(SPAN) ** 2.4)
    return Lips(u=SPAN * end, top=top, upper=upper, lower=lower, bottom=bottom, v=v, end=end)


def head_radius(traits: Traits, jaw_drop: float = 0.0) -> np.ndarray:
    """How far out each texel lies: 0 in the middle of the face, 1 on the outline of the head. SHAPE float32."""
    across = np.abs(U) / (traits.width * (1 - 0.05 * np.clip(V, 0, 2)))
    skull, jaw = np.clip(-V, 0, None) / traits.top, np.clip(V, 0, None) / (traits.chin + jaw_drop)
    return across**2.4 + (skull**2.6 + jaw**traits.jaw)


def shape_head(traits: Traits, expression: Expression, mouth: Lips, radius: np.ndarray) -> np.ndarray:
    """Height field of the bald head with ears and neck. SHAPE float32."""
    height = traits.depth * np.clip(1 - radius, 0, None) ** 0.45
    for bump, u, v, width, length in face_bumps(traits, expression, mouth):
        height += (bump * bell(V, v, length)) * bell(U, u, width)
    tip = traits.nose_v
    ridge = np.interp(V, [-0.28, -0.1, tip - 0.14, tip - 0.04, tip + 0.06], [0, 0.3, 0.85, 1, 0]).astype(np.float32)
    breadth = np.interp(V, [-0.2, 0.1, tip - 0.1], traits.bridge_w * np.float32((0.95, 1, 1.5))).astype(np.float32)
    height += traits.nose_z * cv2.GaussianBlur(ridge, (0, 0), 2.7) * bell(U, 0, breadth)
    for side in SIDES:  # the fold from the nose's wing past the mouth
        wing, corner = side * (traits.nose_w + 0.04), side * (mouth.end + 0.04)
        fold = [(wing, tip - 0.02), (corner, mouth.v - 0.16), (corner + side * 0.06, mouth.v + 0.02)]
        window, alpha = cover(fold, 0.03, 2.5)
        height[window] -= (0.012 + 0.04 * max(expression.smile, 0) + 0.02 * traits.age) * alpha
    height[radius >= 1] = NOWHERE
    ear = ((np.abs(U) - traits.width - 0.02) / 0.14) ** 2 + ((V - 0.2) / 0.34) ** 2
    shell = 0.2 * np.sqrt(np.clip(1 - ear, 0, None)) * (1 - 0.5 * np.exp(-4 * ear)) - 0.1
    neck = 1 - (U / (0.62 * traits.width + 0.08 * np.clip(V - 1.6, 0, 1) ** 2)) ** 2
    throat = 0.62 * np.sqrt(np.clip(neck, 0, None)) - 0.35
    behind = np.maximum(np.where(ear < 1, shell, NOWHERE), np.where((neck > 0) & (V > 0.6), throat, NOWHERE))
    return np.maximum(height, behind)


def face_bumps(traits: Traits, expression: Expression, mouth: Lips) -> list[tuple[float, ...]]:
    """Bell-shaped bumps and hollows of a face: (height, u, v, width, length)."""
    smile, gap = max(expression.smile, 0), expression.gap
    middle = [
        (0.28 * traits.nose_z, 0, traits.nose_v - 0.06, 0.09, 0.075),  # tip of the nose
        (0.09, 0, mouth.v - 0.05, 0.32, 0.2),  # teeth behind the lips
        (0.05, 0, mouth.v - 0.5 * traits.lip_top - 0.4 * gap, 0.55 * mouth.end, 0.55 * traits.lip_top),
        (0.06, 0, mouth.v + 0.6 * traits.lip_bottom + 0.6 * gap, 0.5 * mouth.end, 0.55 * traits.lip_bottom),
        (-0.06, 0, mouth.v + traits.lip_bottom + 0.1 + gap, 0.22, 0.05),  # above the chin
        (-0.03, 0, (traits.nose_v + mouth.v) / 2, 0.035, 0.09),  # below the nose
        (traits.chin_z, 0, traits.chin - 0.2, 0.17, 0.13),
    ]
    paired = [
        (0.42 * traits.nose_z, 0.82 * traits.nose_w, traits.nose_v - 0.02, 0.065, 0.075),  # wings of the nose
        (-0.17, traits.eye_u, 0, 0.2, 0.13),  # socket
        (0.07, traits.eye_u, 0.01, 0.15, 0.085),  # eyeball
        (traits.ridge_z, 0.38, traits.brow_v + 0.02, 0.26, 0.09),
        (traits.cheek_z * (1 + 0.5 * smile), 0.58, 0.5, 0.2, 0.2),
        (-0.05, 0.62, 0.95, 0.16, 0.2),  # hollow of the cheek
        (-0.04 - 0.03 * smile, mouth.end + 0.06, mouth.v - 0.04 * expression.smile, 0.06, 0.07),  # corners of the mouth
    ]
    return middle + [(bump, side * u, *rest) for bump, u, *rest in paired for side in SIDES]


def make_hair(traits: Traits, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Opacity, colour and height of the hair, as Person holds them."""
    style, hairline = traits.style, traits.hairline + traits.widow * bell(U, 0, 0.18) - 0.15 * U**2
    if style is None:  # stubble
        alpha = 0.5 * rise(hairline - 0.05 - V, 0.05) * (head_radius(traits) < 1)
        colour = np.broadcast_to(0.7 * traits.hair + 0.2 * traits.skin, (*SHAPE, 3))
        return alpha, colour, np.full(SHAPE, NOWHERE, np.float32)
    if style is FULL:
        hairline = hairline + traits.parting * U
    wave = 0.05 * np.sin(4 * V) if style in LONG_STYLES else 0
    ends = (V - style.end + 0.4) / 0.45
    across = np.abs(U) / (traits.width + style.thickness + wave)
    radius = across**2.4 + (np.clip(-V, 0, None) / (traits.top + style.thickness)) ** 2.6 + np.clip(ends, 0, None) ** 4
    strands = blotches(rng, 24, 2)
    opening = (style.opening - 0.1, style.opening, style.opening, 0.64)  # narrower on top, and behind the neck
    face = traits.width * np.interp(V, [-1.2, -0.2, 0.8, 1.5], opening)
    is_bare = (np.abs(U) < face) & (V > hairline + 0.02 * strands)
    alpha = cv2.GaussianBlur(((radius < 1) & ~is_bare).astype(np.float32), (0, 0), 1.2)
    dome = 0.85 * traits.depth * np.sqrt(np.clip(1 - radius, 0, None)) - 0.12 * np.clip(V, 0, 2) + 0.02 * strands
    dome = cv2.GaussianBlur(dome, (0, 0), 1.5)
    return alpha, traits.hair * (1 + 0.16 * strands)[..., None], np.where(alpha > 0.8, dome, np.float32(NOWHERE))


def draw_head(person: Person, expression: Expression) -> Head:
    """Shape and paint the person's head with an expression."""
    traits = person.traits
    mouth = mouth_curves(traits, expression)
    radius = head_radius(traits, jaw_drop=0.5 * expression.gap)
    height = shape_head(traits, expression, mouth, radius)
    head = Head(height, person.skin.copy(), np.full(SHAPE, 18, np.float32))
    chin_shadow = 0.2 + 0.35 * rise(traits.chin + 0.35 - V, 0.12)
    head.colour[...] *= 1 - (chin_shadow * ((radius >= 1) & (V > 0.5)))[..., None]
    if traits.beard:
        paint_beard(head.colour, person, mouth, radius)
    paint_mouth(head, traits, expression, mouth)
    for side in SIDES:
        paint_eye(head, traits, expression, side)
        paint_brow(head.colour, person, expression, side)
    blend(head.colour, Patch(np.s_[:, :], person.hair_alpha), person.hair_colour)
    # hair lies at least a little above the head, or the skin shows through where the head bulges
    hair = np.where(person.hair_height > NOWHERE, np.maximum(person.hair_height, height + 0.03), height)
    return head._replace(height=hair)


def paint_skin(traits: Traits, rng: np.random.Generator) -> np.ndarray:
    """The skin and what is painted on it whatever the expression: (*SHAPE, 3) float32."""
    mirrored, skin, nose_v, nose_w = np.abs(U), traits.skin, traits.nose_v, traits.nose_w
    redness = 0.5 * bell(V, 0.5, 0.2) * bell(mirrored, 0.58, 0.24)  # of cheeks and nose
    redness += 0.5 * bell(V, nose_v - 0.05, 0.12) * bell(U, 0, 0.16)
    darkness = 0.16 * bell(V, 0, 0.12) * bell(mirrored, traits.eye_u, 0.24)
    darkness += 0.12 * bell(V, -0.05, 0.15) * bell(mirrored, 0.2, 0.08)  # between eye and nose
    tone = (1 + 0.025 * blotches(rng, 6, 6) + 0.03 * blotches(rng, 30, 30)) * (1 - darkness)
    colour = skin * tone[..., None] * (1 - redness[..., None] * np.float32((0, 0.12, 0.14)))
    for u, v in np.clip(rng.normal((0, 0.4), (0.42, 0.16), (traits.freckles, 2)), -1, 1):
        blend(colour, cover([(u, v), (u + 0.01, v)], 0.02, 0.6), skin * (0.68, 0.55, 0.45), rng.uniform(0.3, 0.8))
    for v in (-0.72, -0.6, -0.48):  # wrinkles of the forehead
        wrinkle = curve(0.5 * SPAN, v + 0.03 * np.cos(1.5 * SPAN))
        blend(colour, cover(wrinkle, 0.012, 1.4), skin * 0.55, 0.4 * traits.age)
    around = np.linspace(0, 2 * np.pi, 14)
    for side in SIDES:
        nostril = curve(nose_w * (side * 0.52 + 0.27 * np.cos(around)), nose_v + 0.035 + 0.022 * np.sin(around))
        blend(colour, cover(nostril, blur=0.9), skin * 0.25, 0.8)
        wing = [(side * nose_w * u, nose_v + v) for u, v in ((1, -0.1), (1.2, -0.02), (1.05, 0.05), (0.8, 0.06))]
        blend(colour, cover(wing, 0.02, 1.2), skin * 0.5, 0.5)
    return colour


def paint_beard(colour: np.ndarray, person: Person, mouth: Lips, radius: np.ndarray) -> None:
    traits, u = person.traits, np.abs(U)
    alpha = np.maximum(rise(V - mouth.v - 0.08, 0.05), rise(u - mouth.end - 0.14, 0.05))  # not on the mouth,
    alpha *= rise(V - 0.35, 0.1) * rise(u - 0.2 - 0.9 * (mouth.v - V), 0.1)  # the nose and the upper cheeks
    lip, corner = mouth.v - traits.lip_top - 0.09, mouth.end + 0.1
    moustache = cover([(-corner, mouth.v + 0.05), (-0.12, lip), (0.12, lip), (corner, mouth.v + 0.05)], 0.1, 2)
    alpha[moustache.window] = np.maximum(alpha[moustache.window], moustache.alpha)
    alpha *= rise(radius - 0.42, 0.05 if traits.beard > 0.5 else 0.12) * (radius < 1) * (1 + 0.25 * person.whiskers)
    blend(colour, Patch(np.s_[:, :], np.clip(alpha, 0, 1)), 0.8 * traits.hair, 0.9 * traits.beard)


def paint_mouth(head: Head, traits: Traits, expression: Expression, mouth: Lips) -> None:
    lips = cover(between(mouth.u, mouth.top, mouth.bottom), blur=1)
    natural = traits.skin * np.float32((0.82, 0.58, 0.62))
    lipstick = np.float32(LIPSTICK) * (0.5 + 0.5 * traits.skin[0] / 240)
    blend(head.colour, lips, natural + (lipstick - natural) * traits.lip_red, 0.85)
    head.gloss[lips.window] += 20 * lips.alpha
    if expression.gap > 0.015:
        blend(head.colour, cover(between(0.9 * mouth.u, mouth.upper, mouth.lower)), THROAT)
        blend(head.colour, cover(between(0.8 * mouth.u, mouth.upper, 0.45 * mouth.upper + 0.55 * mouth.lower)), TEETH)
    blend(head.colour, cover(curve(mouth.u, mouth.upper), 0.022), traits.skin * (0.35, 0.22, 0.25), 0.85)


def paint_eye(head: Head, traits: Traits, expression: Expression, side: int) -> None:
    colour, skin, u = head.colour, traits.skin, side * traits.eye_u + SPAN * traits.eye_w
    opening, axis = traits.eye_h * expression.lids, 0.01 - traits.eye_tilt * side * SPAN
    top = axis - opening * (1 - np.abs(SPAN) ** 2.3)
    bottom = axis + 0.62 * opening * (1 - np.abs(SPAN) ** 2.1)
    window, alpha = cover(between(u, top, bottom), blur=0.5)
    blend(colour, Patch(window, alpha), EYE_WHITE)
    v = V[window[0]]
    iris_u = U[:, window[1]] - side * traits.eye_u - expression.gaze[0]
    iris_v = v + 0.005 - 0.4 * expression.gaze[1]
    distance = np.hypot(iris_u, iris_v)
    iris = traits.iris * (0.55 + 5 * np.clip(distance, 0, 0.1))[..., None]  # lighter outwards
    blend(colour, Patch(window, alpha * rise(0.098 - distance, 0.006)), iris)
    pupil_and_rim = np.maximum(rise(0.042 - distance, 0.005), 0.6 * bell(distance, 0.098, 0.012))
    blend(colour, Patch(window, alpha * pupil_and_rim), LASHES)
    blend(colour, Patch(window, alpha * rise(-0.01 - 0.3 * traits.eye_h - v, 0.015)), LASHES, 0.35)  # the lid's shade
    glint = bell(np.hypot(iris_u + 0.035, iris_v + 0.035), 0, 0.017)
    blend(colour, Patch(window, alpha * glint), (255, 255, 255), 0.95)
    head.gloss[window] += 25 * alpha
    blend(colour, cover(curve(u, top), 0.03), LASHES, 0.9)
    blend(colour, cover(curve(u, bottom), 0.012), 0.42 * skin, 0.6)
    blend(colour, cover(curve(u, top - traits.lid * (1 - 0.5 * SPAN**2)), 0.014, 1), 0.5 * skin, 0.65)
    blend(colour, cover(curve(u, bottom + 0.075), 0.014, 2), 0.6 * skin, 0.3 + 0.3 * traits.age)


def paint_brow(colour: np.ndarray, person: Person, expression: Expression, side: int) -> None:
    traits = person.traits
    out = SPAN * side  # -1 at the nose .. 1 at the temple
    v = traits.brow_v + 0.03 + expression.brows - traits.brow_arch * (1 - (out - 0.25) ** 2) - traits.brow_tilt * out
    half = traits.brow_h * np.clip(1 - 0.19 * (out + 1) ** 2, 0.1, 1) * np.clip(5 * out + 5.6, 0.4, 1)
    window, alpha = cover(between(side * 0.48 + SPAN * traits.brow_w, v - half, v + half), blur=1.2)
    hairy = np.clip(alpha * (1 + 0.25 * person.whiskers[window]), 0, 1)
    blend(colour, Patch(window, hairy), 0.55 * traits.hair + 4, traits.brow_ink)
