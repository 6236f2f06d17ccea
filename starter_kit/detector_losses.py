"""What the detector's anchors should say, and the losses that tell them (train_detector.py)."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from FaceBoxes.anchors import anchors, encode
from FaceBoxes.network import ANCHORS_PER_CELL, MAP_CHANNELS
from utils.boxes import areas, intersections, overlaps

SMALLEST = 14  # pixels of height; smaller faces are neither asked for nor punished
MATCH = 0.35  # intersection over union from which an anchor answers for a face (FaceBoxes, 3.4)
NEGATIVES = 7  # hardest background anchors per face anchor
# Face anchors that a batch counts as having at least: one with few or none must not move the
# weights more than one full of faces.
LEAST_FACES = 20
FAINT = 0.05  # probability from which the box of a teacher's anchor is worth learning
# Weight of a feature-map cell without a face; the teacher's face probability is added to it.
EVERYWHERE = 0.1


def targets(boxes: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """What each anchor of a square picture should say.

    Faces count when their centre is in the picture, and are cut at its border. Neither face nor
    background are other faces that reach into it, those that are too small, and "don't know" boxes.

    Args:
        boxes: (n, 5) x1 y1 x2 y2 score, pixels; a score below 0.5 is "don't know".
        side: of the picture, pixels.

    Returns:
        label (A,) int64: 1 face, 0 background, -1 neither; offset (A, 4) float32, as ``encode``
        gives it, zeros where the label is not 1.
    """
    priors = anchors(side, side)  # (A, 4) relative
    label = np.zeros(len(priors), np.int64)
    offset = np.zeros((len(priors), 4), np.float32)
    cut = np.clip(boxes[:, :4], 0, side)
    visible = areas(cut) > 0
    cut, boxes = cut[visible], boxes[visible]
    if not len(boxes):
        return label, offset
    centre = (boxes[:, :2] + boxes[:, 2:4]) / 2
    wanted = ((centre > 0) & (centre < side)).all(axis=1) & (boxes[:, 4] >= 0.5)
    wanted &= (cut[:, 3] - cut[:, 1] >= SMALLEST) & (cut[:, 2] - cut[:, 0] >= SMALLEST / 2)
    cut = cut / side
    corners = np.concatenate(
        [priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1
    )
    common, overlap = intersections(corners, cut), overlaps(corners, cut)  # (A, n)
    unsure = ~wanted
    if unsure.any():
        inside = common[:, unsure] / areas(corners)[:, None]
        enough = np.minimum(0.25, 0.8 * overlap[:, unsure].max(axis=0))  # tiny faces overlap little
        label[((overlap[:, unsure] > enough) | (inside > 0.5)).any(axis=1)] = -1
    if wanted.any():
        faces, overlap = cut[wanted], overlap[:, wanted]
        best_face = overlap.argmax(axis=1)  # (A,)
        positive = overlap.max(axis=1) >= MATCH
        best_anchor = overlap.argmax(axis=0)  # (n,): every face has at least one anchor
        positive[best_anchor] = True
        best_face[best_anchor] = np.arange(len(faces))
        label[positive] = 1
        offset[positive] = encode(faces[best_face[positive]], priors[positive])
    return label, offset


def multibox_loss(
    loc: Tensor, logits: Tensor, labels: Tensor, offsets: Tensor
) -> dict[str, Tensor]:
    """Smooth L1 over face anchors, cross entropy over them and the hardest background anchors.

    Args:
        loc, offsets: (B, A, 4). logits: (B, A, 2). labels: (B, A), 1 face, 0 background, -1 none.

    Returns:
        ``box`` and ``score``, each a sum over the batch per face anchor.
    """
    face, background = labels == 1, labels == 0
    count = int(face.sum())
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.clamp(min=0).flatten(), reduction="none")
    entropy = entropy.view_as(labels)
    total = max(count, LEAST_FACES)
    hard = entropy[background].topk(min(NEGATIVES * total, int(background.sum()))).values
    return {
        "box": F.smooth_l1_loss(loc[face], offsets[face], reduction="sum") / total,
        "score": (entropy[face].sum() + hard.sum()) / total,
    }


def distillation_loss(
    loc: Tensor,
    logits: Tensor,
    taught_loc: Tensor,
    taught_logits: Tensor,
    labels: Tensor,
    offsets: Tensor,
    certain: Tensor,
) -> dict[str, Tensor]:
    """Cross entropy with a teacher's probabilities and smooth L1 to its boxes, over all anchors.

    The entropy is weighted by the distance of the probabilities (Li et al., Generalized Focal
    Loss, NeurIPS 2020, equation 3, exponent 1), in place of mining. Where the labels have a face
    that the teacher misses, the labels decide if they are certain; else only the box is learnt.

    Args:
        loc, taught_loc, offsets: (B, A, 4). logits, taught_logits: (B, A, 2).
        labels: (B, A), 1 face, 0 background, -1 none. certain: (B,) bool.

    Returns:
        ``box`` and ``score``, each a sum over the batch per face anchor.
    """
    probability = taught_logits.softmax(dim=2)[..., 1]  # (B, A)
    face = labels == 1
    missed = face & (probability < 0.5)
    seen = (face & (probability >= 0.5)).any(dim=1)
    by_label = certain & ~seen & face.any(dim=1)  # (B,)
    taught = ~by_label[:, None]
    margin = logits[..., 1] - logits[..., 0]
    distance = (margin.detach().sigmoid() - probability).abs()
    entropy = F.binary_cross_entropy_with_logits(margin, probability, reduction="none")
    score = (entropy * distance * (taught & ~missed)).sum()
    sure = torch.where(probability > FAINT, probability, 0.0) * taught
    box = (F.smooth_l1_loss(loc, taught_loc, reduction="none").sum(dim=2) * sure).sum()
    labelled = 0.5 * (missed & taught)
    box = box + (F.smooth_l1_loss(loc, offsets, reduction="none").sum(dim=2) * labelled).sum()
    total = sure.sum().clamp(min=LEAST_FACES)
    terms = {"box": box / total, "score": score / total}
    if by_label.any():
        count = face[by_label].sum()
        extra = multibox_loss(loc[by_label], logits[by_label], labels[by_label], offsets[by_label])
        share = count / (total + count)
        terms = {key: value + share * extra[key] for key, value in terms.items()}
    return terms


class Hints(nn.Module):
    """How well a teacher's feature maps can be read off a student's, through one linear map each.

    Romero et al., "FitNets: hints for thin deep nets", ICLR 2015. Faces are few, so the outputs
    alone say little about the rest of a picture; the maps say something in every cell of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers = nn.ModuleList([nn.Conv2d(c, c, 1) for c in MAP_CHANNELS])

    def forward(
        self,
        maps: tuple[Tensor, ...],
        taught_maps: tuple[Tensor, ...],
        taught_logits: Tensor,
        used: Tensor,
    ) -> Tensor:
        """Mean square error relative to the variance of the teacher's maps in the batch.

        Args:
            maps, taught_maps: (B, C, h, w) each, as ``FaceBoxesNet.maps`` gives them.
            taught_logits: (B, A, 2), which say where the faces are.
            used: (B,) bool, the pictures that count.
        """
        probability = taught_logits.softmax(dim=2)[..., 1]  # (B, A)
        read = maps[-len(ANCHORS_PER_CELL) :]
        sizes = [x[0, 0].numel() * n for x, n in zip(read, ANCHORS_PER_CELL, strict=True)]
        faces = [
            of_map.unflatten(1, (-1, n)).amax(2)  # (B, h * w)
            for of_map, n in zip(probability.split(sizes, 1), ANCHORS_PER_CELL, strict=True)
        ]
        faces = faces[:1] * (len(maps) - len(read)) + faces  # the inner maps' cells are the first's
        terms = []
        for reader, map_, taught, face in zip(self.readers, maps, taught_maps, faces, strict=True):
            weight = (EVERYWHERE + face) * used[:, None]
            weight = weight.view(-1, 1, *map_.shape[2:])
            weight = weight / weight.sum().clamp(min=1e-6)
            mean = (taught * weight).sum((0, 2, 3), keepdim=True)
            variance = ((taught - mean) ** 2 * weight).sum()  # of all channels
            error = ((reader(map_).float() - taught) ** 2 * weight).sum()
            terms.append(error / variance.clamp(min=1e-6))
        return torch.stack(terms).mean()
