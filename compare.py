"""Two photos: the same person or not, how far apart, and where the network looks.

A folder in place of one photo: the people in it (one sub-folder each, or one photo each) who are nearest to the other.
Exit code: 0 the same person, 10 different people, 20 no answer (nearer than strangers mostly are, but not near enough;
no face, no photo, or a checkpoint without thresholds, which Evaluation/calibration.py adds), 2 wrong arguments. Without
--checkpoint: the newest best.pt if it has thresholds, or else the shipped network.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from config_mask import config as default_config
from Data_preprocessing.find_face import NoAnswer
from Data_preprocessing.photo_files import left_out, photos_in
from Evaluation.face_cache import FaceCache
from Evaluation.face_reader import Face, FaceReader
from Evaluation.thresholds import decide, protocol_of
from Models.checkpoint import SHIPPED, as_written, find_checkpoint, load_checkpoint
from Script_tools.files import DataError, file_errors, write_whole
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.settings import ROOT, add_config_arguments, config_from_args

FAR = 1e-3  # of strangers that may pass for the same person, where nothing else is asked for
EXIT_CODES = {"same": 0, "different": 10, "unclear": 20, None: 20}
DETECTORS = {
    "hog": "dlib's HOG detector",
    "hog upsampled": "dlib's HOG detector on the photo at twice its size",
    "hog lenient": "dlib's HOG detector, below its usual threshold",
    "cnn": "dlib's CNN detector",
    "yunet": "YuNet",
    "yunet upsampled": "YuNet on the photo at twice its size",
    "yunet framed": "YuNet on the photo with a border around it",
    "yunet lenient": "YuNet, below its usual threshold",
    "whole image": "no detector; the whole image is taken, for it looks like an aligned crop",
}
WEARING = {None: "", True: "masked", False: "unmasked"}
SIDES = {"unmasked": "both unmasked", "masked": "both masked", "cross": "one masked, one not"}


class Comparer(FaceReader):
    """A checkpoint made ready to read photos and to judge distances. ``Comparer()`` is the shipped network.

    Args:
        path: the checkpoint. predictor_path: of dlib's 68-landmark model. device: None: a GPU where there is one.
        far: of the strangers, the share that may pass for the same person; None: FAR, or the lowest that the thresholds
            have.
        average_flip, largest: see ``FaceReader``.

    Raises:
        DataError: no such checkpoint, no landmark model, or no thresholds for ``far``.
    """

    def __init__(
        self,
        path: str | Path = SHIPPED,
        predictor_path: str = str(ROOT / default_config["predictor_path"]),
        device: torch.device | None = None,
        far: float | None = None,
        average_flip: bool = False,
        largest: bool = False,
    ):
        super().__init__(path, predictor_path, device or choose_device(), average_flip, largest)
        with as_written(path):
            if far is None and self.thresholds:
                far = max(FAR, *(self.thresholds[protocol][-1]["far"] for protocol in SIDES))
            self.far = far
            for protocol in SIDES if self.thresholds else ():
                decide(0.0, self.thresholds[protocol], far)

    def compare(self, first: Face, second: Face, searched: int = 1) -> dict:
        """Distance and verdict in plain types; "verdict": same, different, unclear, or None without thresholds.

        ``searched``: of how many faces ``second`` is one. As many strangers have as many chances to be near, so "same"
        is said at a rate as many times lower; where the thresholds have none so low, nobody is.
        """
        report = {"distance": float(np.linalg.norm(first.embedding - second.embedding)), "verdict": None}
        if not self.thresholds or not self.head:
            return report
        protocol = protocol_of(first.seems_masked, second.seems_masked)
        verdict = decide(report["distance"], self.thresholds[protocol], self.far, searched)
        return report | {
            "verdict": verdict.word,
            "strangers_that_would_pass": verdict.far,
            "protocol": protocol,
            "threshold": verdict.limit,
            "threshold_far": verdict.decided_far,
            "threshold_tar": verdict.tar,
            "threshold_tar_most": verdict.tar_most,
            "distance_by_threshold": report["distance"] / decide(0.0, self.thresholds[protocol], self.far).limit,
            "different_beyond": verdict.apart,
            "one_person_beyond": list(verdict.missed),
        }


def compare_photos(comparer: Comparer, first: Path, second: Path, picture: str | None) -> dict:
    """The report on two photos; writes the picture if a path is given."""
    faces = comparer.read(first), comparer.read(second)
    report = comparer.compare(*faces)
    if picture:
        draw(*faces, headline(report), picture)
    return {"first": faces[0].record(), "second": faces[1].record(), **report}


def compare_with_folder(
    comparer: Comparer, photo: Path, folder: Path, nearest: int, picture: str | None, cache: FaceCache | None = None
) -> dict:
    """The report on the people of ``folder`` nearest to ``photo``; the picture shows the first of them."""
    query, best = comparer.read(photo), {}
    entries, left = photos_in(folder)
    entries = [entry for entry in entries if not (entry[1].exists() and entry[1].samefile(photo))]
    answers = comparer.read_many([path for _, path in entries], cache, desc=f"faces of {folder.name}")
    pairs = list(zip(entries, answers, strict=True))
    faces = [(person, face) for (person, _), face in pairs if isinstance(face, Face)]
    skipped = [str(face) for _, face in pairs if isinstance(face, NoAnswer)]
    for person, face in faces:
        found = {"person": person, **face.record(), **comparer.compare(query, face, len(faces))}
        if person not in best or likeness(found) < likeness(best[person]):
            best[person] = found
    if not best:
        raise NoAnswer(f"{folder}: not one of its {len(entries)} photos has a face to compare with.")
    order = sorted(best.values(), key=likeness)[:nearest]
    if picture:
        title = f"nearest of {len(best)}: {order[0]['person']:.44}\n{headline(order[0])}"
        draw(query, comparer.read(order[0]["path"]), title, picture)
    return {
        "first": query.record(),
        "nearest": order,
        "people_searched": len(best),
        "photos_searched": len(entries) - len(skipped),
        "photos_skipped": skipped,
        "files_left_out": dict(left),
        "far": comparer.far,
        "verdict": order[0]["verdict"],
    }


def likeness(found: dict) -> float:
    """By which people are ranked, the smallest first: the distance by the threshold of its own protocol, for faces
    with and without masks lie apart differently."""
    return found.get("distance_by_threshold", found["distance"])


def caption(face: Face) -> str:
    """What the picture says of a face."""
    name, masked = Path(face.path).name, ""
    if face.masked is not None:
        masked = f"\nseems {WEARING[face.seems_masked]} (mask: {face.masked:.0%})"
    return f"{name if len(name) <= 44 else name[:41] + '...'}\ndetector: {face.aligned.detector}{masked}"


def draw(first: Face, second: Face, title: str, path: str) -> None:
    """Write the picture of two faces."""
    from Evaluation.pictures import ShownFace, plot_comparison  # matplotlib takes half a second to import

    shown = [
        ShownFace(face.photo, face.aligned.box, face.seen, face.attention, caption(face)) for face in (first, second)
    ]
    plot_comparison(*shown, title, path)


def in_words(report: dict) -> str:
    """The verdict of ``Comparer.compare`` in words."""
    if report["verdict"] is None:
        return "no verdict"
    if report["verdict"] == "different":
        return "different people"
    if report["verdict"] == "unclear":
        return f"cannot tell (1 in {round(1 / report['strangers_that_would_pass']):,} strangers is as near)"
    return f"same person (1 in {round(1 / report['strangers_that_would_pass']):,} strangers would pass)"


def headline(report: dict) -> str:
    """Distance, who wears a mask, and verdict of ``Comparer.compare`` in one line."""
    sides = f" ({SIDES[report['protocol']]})" if report["verdict"] else ""
    return f"distance {report['distance']:.3f}{sides}: {in_words(report)}"


def describe_face(record: dict) -> str:
    """One line on a photo's face."""
    many = f"; {record['faces_found']} faces, {record['face_taken']} is taken" if record["faces_found"] > 1 else ""
    turned = f", in the photo turned by {record['turned']} degrees anticlockwise" if record["turned"] else ""
    text = f"{record['path']}: face found by {DETECTORS[record['detector']]}{turned}{many}"
    if record["seems_masked"] is None:
        return text
    return f"{text}; seems {WEARING[record['seems_masked']]} (mask: {record['mask_probability']:.0%})"


def share(low: float, high: float) -> str:
    """'7%', or '7% to 86%'."""
    texts = f"{low:.0%}", f"{high:.0%}"
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def describe(report: dict) -> str:
    """The whole report as text for the screen."""
    if "error" in report:
        return f"no answer: {report['error']}"
    lines = [f"network {report['checkpoint']}", describe_face(report["first"])]
    deciding = report
    if "nearest" in report:
        deciding = report["nearest"][0]
        for number, found in enumerate(report["nearest"], start=1):
            lines.append(f"{number:>3}. {found['distance']:.3f}  {found['person']}  {in_words(found)}  {found['path']}")
        lines.append(
            f"searched: {report['people_searched']} people, {report['photos_searched']} photos; without an answer: "
            f"{len(report['photos_skipped'])} photos"
        )
        lines += [f"  {problem}" for problem in report["photos_skipped"][:5]]
        if report["files_left_out"]:
            lines.append(left_out(report["files_left_out"]))
    else:
        lines += [describe_face(report["second"]), f"distance {report['distance']:.3f}", in_words(report)]
    if deciding["verdict"] is None:
        return "\n".join([*lines, "The checkpoint has no thresholds, so a distance has no meaning yet: add them with "
                          "python Evaluation/calibration.py"])  # fmt: skip
    passing = share(deciding["threshold_tar"], deciding["threshold_tar_most"])
    beyond = share(*deciding["one_person_beyond"])
    lines.append(
        f"({SIDES[deciding['protocol']]}: same up to {deciding['threshold']:.3f}, where 1 in "
        f"{round(1 / deciding['threshold_far']):,} strangers passes, and {passing} of the pairs of one person do; "
        f"different beyond {deciding['different_beyond']:.3f}, where {beyond} of them are)"
    )
    of = report.get("thresholds_of", "other people")
    lines.append(f"(measured on {of}; where two shares stand, by the set of people)")
    if "nearest" in report:
        photos, far = report["photos_searched"], deciding["strangers_that_would_pass"]
        if far:
            lines.append(f"Of {photos} photos of strangers about {photos * far:.2g} are as near by chance.")
        if deciding["threshold_far"] * photos > report["far"] * (1 + 1e-9):
            lines.append(
                f"To name one of {photos} photos at 1 in {round(1 / report['far']):,}, a threshold for 1 in "
                f"{round(photos / report['far']):,} strangers is needed; the checkpoint's lowest is 1 in "
                f"{round(1 / deciding['threshold_far']):,}."
            )
    return "\n".join(lines)


def checkpoint_with_thresholds(output_path: str) -> Path:
    """The newest best.pt if it has thresholds, or else the shipped network: without them there is no verdict."""
    newest = find_checkpoint(None, output_path)
    if newest == SHIPPED or not SHIPPED.is_file() or "thresholds" in load_checkpoint(newest):
        return newest
    print(
        f"note: {newest} has no thresholds (Evaluation/calibration.py adds them): taking the shipped network",
        file=sys.stderr,
    )
    return SHIPPED


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__, usage="%(prog)s A B [options]")
    parser.add_argument("first", metavar="A", help="a photo, or a folder of photos or of people")
    parser.add_argument("second", metavar="B", help="a photo, or such a folder; not both")
    parser.add_argument("--checkpoint", metavar="PATH", help="a .pt file (default: see above)")
    parser.add_argument(
        "--far",
        type=float,
        metavar="SHARE",
        help=f"of strangers that may pass (default: {FAR}, or the lowest)",
    )
    parser.add_argument("--nearest", type=int, default=5, metavar="K", help="people of a folder (default: %(default)s)")
    parser.add_argument("--picture", metavar="PATH", help="write photos, aligned faces and attention as a picture")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="PATH",
        help="write the answer as JSON; without PATH, or with -, print it instead of the text",
    )
    parser.add_argument(
        "--average_flip",
        action="store_true",
        help="average a face's embedding and its mirror image's; with thresholds it is done as it was for them",
    )
    parser.add_argument(
        "--face", choices=("middle", "largest"), default="middle",
        help="which of several faces in a photo: the one nearest its middle (default), or the largest",
    )  # fmt: skip
    parser.add_argument(
        "--no_cache",
        action="store_true",
        help="keep no embeddings of a folder's faces for the next search",
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")
    add_config_arguments(parser, ("output_path", "cache_path", "predictor_path"))
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Run the script; returns the report, with its "exit_code"."""
    args = parse_args(argv)
    config = config_from_args(args)
    paths = [Path(name).expanduser() for name in (args.first, args.second)]
    if all(path.is_dir() for path in paths):
        raise DataError("Both are folders: give one photo, and a photo or a folder to compare it with.")
    if args.nearest < 1:
        raise DataError(f"--nearest {args.nearest}: must be 1 or more")
    if args.picture:
        from Evaluation.pictures import check_picture

        check_picture(args.picture)
    if args.json and Path(args.json).is_dir():
        raise DataError(f"--json {args.json} is a folder: name the file to write")
    checkpoint_path = Path(args.checkpoint or checkpoint_with_thresholds(config["output_path"])).expanduser()
    comparer = Comparer(
        checkpoint_path,
        config["predictor_path"],
        choose_device(args.device),
        args.far,
        args.average_flip,
        args.face == "largest",
    )
    try:
        if any(path.is_dir() for path in paths):
            photo, folder = sorted(paths, key=Path.is_dir)
            cache = None if args.no_cache else FaceCache(Path(config["cache_path"], "faces.sqlite"))
            report = compare_with_folder(comparer, photo, folder, args.nearest, args.picture, cache)
        else:
            report = compare_photos(comparer, *paths, args.picture)
    except NoAnswer as error:
        report = {"verdict": None, "error": str(error)}
    of = (comparer.thresholds or {}).get("data", "unknown people")
    report = {
        "checkpoint": str(checkpoint_path),
        "thresholds_of": of,
        **report,
        "exit_code": EXIT_CODES[report["verdict"]],
    }
    text = json.dumps(report, indent=2)
    if args.json and args.json != "-":
        with file_errors(args.json):
            write_whole(args.json, text + "\n")
    print(text if args.json == "-" else describe(report))
    return report


def script() -> None:
    """``main``, its answer as exit code."""
    report = main()
    sys.stdout.flush()
    sys.exit(report["exit_code"])


if __name__ == "__main__":
    run_script(script)
