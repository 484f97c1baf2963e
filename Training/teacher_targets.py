"""What a teacher, a face recognition network as it comes, wants the embedding of each image of a batch to be."""

import torch
import torch.nn.functional as F

from Models.face_trunks import FaceTrunks

ROUND = 16  # blends are looked at in batches of a multiple of it


class Teacher:
    """Gives the targets of a batch's images, whatever mask, light and place they are shown with.

    dlib's unit descriptors lie in a narrow cone (the mean of 14,830 real faces' has length 0.91), so that a network
    which always answers with the mean is nearly right, and learns the rest slowly: after 10,000 images its AUC was 0.76
    with the descriptors as they are, 0.80 with their directions from the mean (unmasked, ResNet-18 at 80 px, one seed).
    As descriptors the directions are a little worse: AUC 0.9967 instead of 0.9973 on those faces.

    Args:
        descriptors: (F, D) float32 unit rows, of the index's unmasked faces.
        centred: the targets are directions from their mean.
        network: looks at blends of faces, which have no stored descriptor.
        half: what it computes in; None: float32.
        mean: (D,) float32 from which the directions are, in place of the mean of ``descriptors``: that of the run that
            is gone on from, for with another one all targets would move.

    Attributes:
        mean: the same; zeros where the targets are not centred.
    """

    def __init__(
        self,
        descriptors: torch.Tensor,
        centred: bool,
        network: FaceTrunks | None = None,
        half: torch.dtype | None = None,
        mean: torch.Tensor | None = None,
    ):
        own = descriptors.mean(dim=0) if mean is None else mean
        self.mean = own if centred else torch.zeros(descriptors.shape[1])
        self._network, self._half = network, half
        self._descriptors = descriptors  # not their directions as well: for millions of faces that is gigabytes

    def _directions(self, descriptors: torch.Tensor) -> torch.Tensor:
        return F.normalize(descriptors - self.mean.to(descriptors.device), dim=1)

    def __call__(self, batch: dict) -> torch.Tensor:
        """(N, D) float32 unit rows on the device of the batch's images, N = 3 B.

        ``batch``: images (B, 3, 3, H, W), triplet (B, 3) rows of the index; where there are blends: blends
        (M, 3, s, s) uint8 RGB, and blended (M,), which of the N images they are.
        """
        targets = self._directions(self._descriptors[batch["triplet"].flatten()])
        targets = targets.to(batch["images"].device, non_blocking=True)
        if len(batch.get("blends", ())):
            targets[batch["blended"]] = self._directions(self._look(batch["blends"]))
        return targets

    @torch.no_grad()
    def _look(self, faces: torch.Tensor) -> torch.Tensor:
        count = len(faces)
        # how many there are changes from batch to batch, and cuDNN looks for the fastest way anew for each number
        faces = torch.cat([faces, faces.new_zeros(-count % ROUND, *faces.shape[1:])])
        with torch.autocast(faces.device.type, self._half, enabled=self._half is not None):
            return self._network(faces)[0][:count]
