"""Two photos: the same person or not, how far apart, and what the network sees.

A folder in place of one photo: the people in it (one sub-folder each, or one photo each) who are nearest to the other.
Two folders: the person of the second who is nearest to each photo of the first; --json has the nearest few. With
--face all likewise for each face of photos or folders, such as photos of groups.
Exit code: 0 the same person, 10 different people (everybody in the folder is another one), 20 no answer (nearer than
strangers mostly are, but not near enough; no face, no photo, or a checkpoint without thresholds, which
Evaluation/calibration.py adds), 2 wrong arguments; of two folders, or with --face all, 0 or 10 where it is so of all.
Without --checkpoint: the newest best.pt if it has thresholds, or else the shipped network.
"""

import argparse
import gc
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
if __name__ == "__main__":
    gc.disable()  # until all is imported: to look for garbage in what torch brings takes 0.2 of two seconds

from Data_preprocessing.find_face import TAKEN, NoAnswer
from Data_preprocessing.photo_files import left_out
from Evaluation.comparer import FAR, Comparer, read_gallery, search
from Evaluation.face_cache import FaceCache, open_cache
from Evaluation.face_reader import Face, add_reader_arguments
from Models.checkpoint import SHIPPED, find_checkpoint, load_checkpoint
from Script_tools.files import DataError, file_errors, write_whole
from Script_tools.script import ScriptParser, choose_device, run_script
from Script_tools.settings import add_config_arguments, config_from_args

__all__ = ["Comparer", "NoAnswer", "main"]  # from compare import Comparer
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
NO_THRESHOLDS = (
    "The checkpoint has no thresholds, so a distance has no meaning yet: add them with python Evaluation/calibration.py"
)
WEARING = {None: "", True: "masked", False: "unmasked"}
IN_WORDS = {"unmasked": "both unmasked", "masked": "both masked", "cross": "one masked, one not"}


@contextmanager
def one_thread() -> Iterator[None]:
    """One face is too little for several threads: on a machine with other work they wait for each other, so that two
    photos took 5.1 to 7.0 s to compare instead of 3.9 to 5.3 (measured in turn). The number is the process's: here, not
    in ``Comparer``, which several threads may use."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare_photos(comparer: Comparer, first: Path, second: Path, picture: str | None) -> dict:
    """The report on two photos; writes the picture if a path is given."""
    with one_thread():
        faces = comparer.read(first), comparer.read(second)
    report = comparer.compare(*faces)
    if picture:
        draw(*faces, headline(report), picture)
    return {"first": faces[0].record(), "second": faces[1].record(), **report}


def compare_with_folder(
    comparer: Comparer, photo: Path, folder: Path, nearest: int, picture: str | None, cache: FaceCache | None = None
) -> dict:
    """The report on the people of ``folder`` nearest to ``photo``; the picture shows the first of them."""
    with one_thread():
        query = comparer.read(photo)
    gallery = read_gallery(comparer, folder, cache)
    report = search(comparer, query, gallery, nearest)
    if picture:
        best = report["nearest"][0]
        title = f"nearest of {report['people_searched']}: {best['person']:.44}\n{headline(best)}"
        draw(query, comparer.read(best["path"]), title, picture)
    return report | {"photos_skipped": gallery.skipped, "files_left_out": gallery.left}


def compare_folders(
    comparer: Comparer, probes: Path, folder: Path, nearest: int, cache: FaceCache | None = None
) -> dict:
    """The reports on the people of ``folder`` nearest to each face of ``probes``; "verdict" is 'same', or
    'different', if all are. Each is a folder, or a photo."""
    queries, gallery = read_gallery(comparer, probes, cache), read_gallery(comparer, folder, cache)
    reports, skipped = [], list(queries.skipped)
    for query in queries.faces:
        try:
            reports.append(search(comparer, query, gallery, nearest))
        except NoAnswer as error:
            skipped.append(str(error))
    if not reports:
        raise NoAnswer(f"{probes}: not one of its photos can be compared. {' '.join(skipped[:1])}".rstrip())
    verdicts = {report["verdict"] for report in reports} | ({None} if skipped else set())
    return {
        "probes": reports,
        "probes_skipped": skipped,
        "photos_skipped": gallery.skipped,
        "files_left_out": dict(Counter(queries.left) + Counter(gallery.left)),
        "verdict": verdicts.pop() if verdicts in ({"same"}, {"different"}) else None,
    }


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
    rate = f"{at_most(report)}1 in {round(1 / report['strangers_that_would_pass']):,} strangers"
    return f"cannot tell ({rate} is as near)" if report["verdict"] == "unclear" else f"same person ({rate} would pass)"


def at_most(report: dict) -> str:
    """'at most ' before the checkpoint's lowest rate: how far below it a smaller distance is was not measured."""
    return "at most " if report["strangers_that_would_pass"] == report["lowest_far"] else ""


def headline(report: dict) -> str:
    """Distance, who wears a mask, and verdict of ``Comparer.compare`` in one line."""
    sides = f" ({IN_WORDS[report['protocol']]})" if report["verdict"] else ""
    return f"distance {report['distance']:.3f}{sides}: {in_words(report)}"


def describe_face(record: dict) -> str:
    """One line on a photo's face."""
    many = f"; {record['faces_found']} faces, {record['face_taken']} is taken" if record["faces_found"] > 1 else ""
    turned = f", in the photo turned by {record['turned']} degrees anticlockwise" if record["turned"] else ""
    text = f"{record['path']}: face found by {DETECTORS[record['detector']]}{turned}{many}"
    if record["seems_masked"] is None:
        return text
    return f"{text}; seems {WEARING[record['seems_masked']]} (mask: {record['mask_probability']:.0%})"


def place(record: dict) -> str:
    """Which face of a photo it is, where each of several is taken."""
    if record["face_taken"] != TAKEN["all"] or record["faces_found"] == 1:
        return ""
    left, top, right, bottom = record["box"]
    return f" (face at {left}, {top} to {right}, {bottom})"


def share(low: float, high: float) -> str:
    """'7%', or '7% to 86%'."""
    texts = f"{low:.0%}", f"{high:.0%}"
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


def describe_probes(report: dict) -> str:
    """A line for each photo of two folders that were compared."""
    lines, first = [f"network {report['checkpoint']}"], report["probes"][0]
    for probe in report["probes"]:
        best = probe["nearest"][0]
        found = f"{best['distance']:.3f}  {best['person']}  {in_words(best)}  {best['path']}{place(best)}"
        lines.append(f"{probe['first']['path']}{place(probe['first'])}: {found}")
    what, those = ("faces", " photos") if first["first"]["face_taken"] == TAKEN["all"] else ("photos", "")
    without = [f"and {len(report[part])}{those} without an answer" for part in ("probes_skipped", "photos_skipped")]
    lines.append(
        f"{len(report['probes'])} {what} ({without[0]}), each sought among {first['people_searched']} people, "
        f"{first['photos_searched']} {what} ({without[1]})"
    )
    lines += [f"  {problem}" for problem in (report["probes_skipped"] + report["photos_skipped"])[:5]]
    if report["files_left_out"]:
        lines.append(left_out(report["files_left_out"]))
    return "\n".join([*lines, *([NO_THRESHOLDS] if first["nearest"][0]["verdict"] is None else [])])


def describe(report: dict) -> str:
    """The whole report as text for the screen."""
    if "error" in report:
        return f"network {report['checkpoint']}\nno answer: {report['error']}"
    if "probes" in report:
        return describe_probes(report)
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
        return "\n".join([*lines, NO_THRESHOLDS])
    photos = report.get("photos_searched", 1)
    too_loose = deciding["threshold_far"] * photos > report.get("far", 1) * (1 + 1e-9)
    passing = share(deciding["threshold_tar"], deciding["threshold_tar_most"])
    beyond = share(*deciding["one_person_beyond"])
    passes = (
        f"same up to {deciding['threshold']:.3f}, where 1 in {round(1 / deciding['threshold_far']):,} strangers "
        f"passes, and {passing} of the pairs of one person do; "
    )
    lines.append(
        f"({IN_WORDS[deciding['protocol']]}: {'' if too_loose else passes}different beyond "
        f"{deciding['different_beyond']:.3f}, where {beyond} of the pairs of one person are)"
    )
    of = report.get("thresholds_of", "other people")
    lines.append(f"(measured on {of}; where two shares stand, by the set of people)")
    if "nearest" in report:
        if far := deciding["strangers_that_would_pass"]:
            by_chance = f"{at_most(deciding)}about {photos * far:.2g}"
            lines.append(f"Of {photos} photos of strangers {by_chance} are as near by chance.")
        if too_loose:
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
    parser.add_argument("second", metavar="B", help="a photo, or such a folder")
    parser.add_argument("--checkpoint", metavar="PATH", help="a .pt file (default: see above)")
    parser.add_argument(
        "--far",
        type=float,
        metavar="SHARE",
        help=f"of strangers that may pass (default: {FAR}, or the lowest)",
    )
    parser.add_argument("--nearest", type=int, default=5, metavar="K", help="people of a folder (default: %(default)s)")
    parser.add_argument(
        "--picture", metavar="PATH", help="write photos, faces, and attention if it varies, as a picture"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="PATH",
        help="write the answer as JSON; without PATH, or with -, print it instead of the text",
    )
    parser.add_argument(
        "--no_cache",
        action="store_true",
        help="neither keep the embeddings of a folder's faces nor use kept ones",
    )
    add_reader_arguments(parser)
    add_config_arguments(parser, ("output_path", "cache_path", "predictor_path"))
    return parser.parse_args(argv)


def main(argv=None) -> dict:
    """Run the script; returns the report, with its "exit_code"."""
    args = parse_args(argv)
    config = config_from_args(args)
    paths = [Path(name).expanduser() for name in (args.first, args.second)]
    folders, each = sum(map(os.path.isdir, paths)), args.face == "all"
    if args.picture and (folders == 2 or each):
        raise DataError("--picture shows one photo's nearest: not where both are folders, nor with --face all")
    if args.nearest < 1:
        raise DataError(f"--nearest {args.nearest}: must be 1 or more")
    if args.picture:
        from Evaluation.pictures import check_picture

        check_picture(args.picture)
    if args.json and os.path.isdir(args.json):
        raise DataError(f"--json {args.json} is a folder: name the file to write")
    checkpoint_path = Path(args.checkpoint or checkpoint_with_thresholds(config["output_path"])).expanduser()
    comparer = Comparer(
        checkpoint_path,
        config["predictor_path"],
        choose_device(args.device),
        args.far,
        args.average_flip,
        args.face,
    )
    if folders == 1:
        paths.sort(key=os.path.isdir)
    try:
        cache = open_cache(config["cache_path"]) if folders and not args.no_cache else None
        if folders == 2 or each:
            report = compare_folders(comparer, *paths, args.nearest, cache)
        elif folders:
            report = compare_with_folder(comparer, *paths, args.nearest, args.picture, cache)
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
    gc.enable()
    report = main()
    sys.stdout.flush()
    sys.exit(report["exit_code"])


if __name__ == "__main__":
    run_script(script)
