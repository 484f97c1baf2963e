"""One photo -> its masked face, its aligned face and its attention target."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from Data_preprocessing.face_alignment import FaceAligner, model_mark, yunet_mark
from Data_preprocessing.manifest import ManifestRow, OutputFolders
from Data_preprocessing.mask_drawing import (
    DRAWING,
    MaskChoice,
    choose_mask,
    draw_attention_target,
    draw_mask,
    white_box,
)
from Script_tools.chip_geometry import PADDING

NO_FACE, NO_MASKED_FACE = "the detector finds no face", "masked face not found"  # a row's reasons
NO_MASK, NO_COLOUR = "none", (0, 0, 0)  # a row's kind and colour where no mask is drawn


class AlignmentSettings(NamedTuple):
    """What aligned and masked photos depend on, and where they go."""

    data_path: Path  # 'person/file' photos lie below it
    outputs: OutputFolders
    image_size: int  # side of the aligned faces, px
    seed: int  # of the masks' choice
    predictor_path: str | Path  # dlib's landmark model
    mask_kinds: tuple[str, ...] = ("flat",)  # from which a mask is chosen; of none, no mask is drawn
    # a photo is done only if its bytes have the CRC-32 of its row, not just its size; a photo that is gone counts as
    # done if its images are there
    check_content: bool = False
    chain: str = "hog"  # the detectors, a key of face_alignment.CHAINS
    # draw the mask on the whole photo, then find and align the masked face anew, by the chain 'full'; the landmarks
    # and the attention target are those of the unmasked face
    realign: bool = False
    padding: float = PADDING  # room around the face, as a share of its size
    detector: str = "dlib"  # or yunet

    def mask(self, source: str) -> MaskChoice | None:
        """The mask of the photo 'person/file'; None where no mask is drawn."""
        return choose_mask(self.seed, source, self.mask_kinds) if self.mask_kinds else None

    def how(self) -> dict[str, str | float | bool | None]:
        """What is not in every row of the manifest, in plain types."""
        return {
            "detector": self.detector,
            "padding": self.padding,
            "chain": self.chain,
            "realign": self.realign,
            "drawing": DRAWING if set(self.mask_kinds) - {"flat"} else None,  # flat is drawn as it always was
            "landmark_model": model_mark(self.predictor_path),
            "face_model": yunet_mark() if self.detector == "yunet" else None,
        }


def align_and_mask(
    photo: np.ndarray, row: ManifestRow, settings: AlignmentSettings, aligner: FaceAligner
) -> tuple[ManifestRow, tuple[np.ndarray, ...] | None]:
    """The photo's completed row (without ``face``) and its images: masked face, aligned face, attention target.

    ``photo`` is (H, W, 3) uint8 RGB. The images are None where no face is found.
    """
    aligned = aligner.align(photo, chain=settings.chain)
    if aligned is None:
        return row._replace(status="no_face", reason=NO_FACE), None
    # the mask is drawn from the very landmarks that the manifest holds, so that it can be drawn again from there
    landmarks = np.round(aligned.landmarks.astype(np.float64), 2).astype(np.float32)
    mask = settings.mask(row.source)
    masked = aligned.chip
    if mask and settings.realign:
        # the photo may show others, without masks: only the same face counts
        masked_photo = draw_mask(photo, aligned.photo_landmarks, mask)
        again = aligner.align(masked_photo, chain="full", inside=aligned.box)
        if again is None:
            return row._replace(status="no_face", reason=NO_MASKED_FACE), None
        masked = again.chip
    elif mask:
        masked = draw_mask(aligned.chip, landmarks, mask)
    target = draw_attention_target(landmarks, settings.image_size, mask)
    row = row._replace(
        status="ok", reason="", num_faces=aligned.num_faces, landmarks=landmarks, box=white_box(target),
        kind=mask.kind if mask else NO_MASK, colour=mask.colour if mask else NO_COLOUR,
    )  # fmt: skip
    return row, (masked, aligned.chip, target)
