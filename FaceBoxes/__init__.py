"""FaceBoxes, the face detector in front of SynergyNet.

    from FaceBoxes import FaceBoxes
    detector = FaceBoxes()  # or FaceBoxes("weights.pth")
    boxes = detector(bgr_image)  # (n, 5) float32: x1 y1 x2 y2 score

Zhang et al., "FaceBoxes: A CPU Real-time Face Detector with High Accuracy", IJCB 2017.
``detector`` is the file to read first; ``network`` alone needs torch.
"""

from FaceBoxes.detector import DETECT_SIZE, FaceBoxes, detection_scale

__all__ = ["DETECT_SIZE", "FaceBoxes", "detection_scale"]
