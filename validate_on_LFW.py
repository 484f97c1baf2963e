"""Score a checkpoint on pairs of faces, masked and unmasked: AUC, accuracy over folds, TAR at FAR, ROC picture.

Without arguments: the newest best.pt, or else the shipped network, on the config's LFW photos and pairs.
torchrun --nproc_per_node=4 validate_on_LFW.py  shares the faces out over four GPUs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from Data_loader.Data_loader_facenet_mask import LFWestMask_dataloader
from Evaluation.pictures import check_picture, plot_roc, write_pictures
from Evaluation.report_page import write_page
from Evaluation.scores import AS_IS, evaluate_lfw, format_table, pair_distances, score_pairs
from Evaluation.thresholds import PROTOCOLS
from Models.checkpoint import faces_of, find_checkpoint, load_checkpoint, network_from_checkpoint, require
from Script_tools.files import DataError, file_errors, user_path, write_whole
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import ROOT, add_config_arguments, config_from_args, refuse_beside
from Training.distributed import gather_rows, is_main, main_first, process_group, rank, world_size

__all__ = ["evaluate_lfw", "main"]  # the function is known by this script's name
SETTINGS = (  # those of config_mask.py that are read here
    "LFW_data_path LFW_pairs cache_path output_path predictor_path test_seed test_masks test_batch_size num_workers"
).split()


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="a .pt file (default: the newest best.pt, or else the shipped)"
    )
    parser.add_argument("--data_path", metavar="FOLDER", help="photos, one folder per person (default: LFW_data_path)")
    parser.add_argument(
        "--pairs_path",
        metavar="FILE",
        help="pairs in LFW's format (default: what create_pairs.py made of --data_path, or else LFW_pairs)",
    )
    parser.add_argument(
        "--picture",
        metavar="PATH",
        help="ROC picture (default: ROC_images/<run>/<checkpoint>_<data>.png, <data>_<masks> unless flat)",
    )
    parser.add_argument(
        "--pictures",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="also write the hardest false accepts and false rejects, with what the network looks at, and histograms "
        "of the distances (default: into a folder named like the ROC picture)",
    )
    parser.add_argument("--html", metavar="FILE", help="write figures and pictures as one page to look at, as well")
    parser.add_argument(
        "--as_is", action="store_true", help="draw no masks: the photos show real ones (--test_masks as_is)"
    )
    parser.add_argument("--json", metavar="PATH", help="write the figures as JSON as well")
    parser.add_argument("--average_flip", action="store_true", help="average a face's embedding and its mirror image's")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: cuda where there is a GPU)")
    add_config_arguments(parser, SETTINGS)
    return parser.parse_args(argv)


def test_paths(args: argparse.Namespace, config: dict, trained_with: dict) -> tuple[str, str]:
    """Photos and pairs to test on: what the command line says, else the config's, else those of the training run."""
    refuse_beside(args, "data_path", ("LFW_data_path",))
    refuse_beside(args, "pairs_path", ("LFW_pairs",))
    if args.data_path or args.pairs_path:
        made = Path(f"{user_path(args.data_path)}_pairs.txt") if args.data_path else None
        beside = str(made) if made and made.is_file() else config["LFW_pairs"]  # create_pairs.py puts it there
        return args.data_path or config["LFW_data_path"], args.pairs_path or beside
    chosen = config
    if args.LFW_data_path is None and args.LFW_pairs is None and not Path(config["LFW_pairs"]).exists():
        # such as the drawn people of the demo; the shipped network's are relative, as in the config
        chosen = {key: path and str(ROOT / path) for key, path in trained_with.items() if key.startswith("LFW_")}
    return chosen["LFW_data_path"], chosen["LFW_pairs"]


def main(argv=None) -> dict | None:
    args = parse_args(argv)
    with process_group(args.device) as device:
        return validate(args, device)


def validate(args: argparse.Namespace, device: torch.device) -> dict | None:
    """Score the checkpoint, print and write what is asked for; the report, in the first of several processes."""
    config = config_from_args(args)
    if args.picture:
        check_picture(args.picture)
    if args.html and Path(args.picture or "a.png").suffix != ".png":
        raise DataError(f"--html takes PNG pictures: --picture {args.picture} is none")
    path = find_checkpoint(args.checkpoint, config["output_path"])
    checkpoint = load_checkpoint(path)
    require(checkpoint, path, "progress", "train_people")
    trained_with = {**config, **checkpoint["config"]}
    model = network_from_checkpoint(checkpoint, path).to(device)
    data_path, pairs_path = test_paths(args, config, trained_with)
    print(
        f"checkpoint {path}, epoch {checkpoint['progress']['epoch']}\nphotos     {data_path}\npairs      {pairs_path}"
    )

    start = time.perf_counter()
    # size and, unless another is asked for, seed of the training run: its test faces may be aligned and masked already
    seed = trained_with["test_seed"] if args.test_seed is None else config["test_seed"]
    same = {**faces_of(checkpoint["config"]), "test_seed": seed}
    settings = {**config, **same, "LFW_data_path": data_path, "LFW_pairs": pairs_path}
    if args.as_is:
        settings["test_masks"] = "as_is"
    masks = settings["test_masks"]
    with main_first():
        test_set = LFWestMask_dataloader(settings, checkpoint["train_people"], rank(), world_size())
    aligned = time.perf_counter()
    protocols = AS_IS if masks == "as_is" else PROTOCOLS
    distances = pair_distances(model, test_set, device, args.average_flip, protocols, gather_rows)
    if not is_main():
        return None
    summaries, evaluations = score_pairs(test_set.pairs, distances)
    print(format_table(summaries))
    print(f"aligning or reading the cache took {aligned - start:.1f} s, scoring {time.perf_counter() - aligned:.1f} s")

    name = f"{path.stem}_{Path(data_path).name}{'' if masks == 'flat' else f'_{masks}'}"
    picture = args.picture or Path(config["output_path"], "ROC_images", path.parent.name, f"{name}.png")
    plot_roc(evaluations, picture, title=f"{path.parent.name}, {path.name} on {Path(data_path).name}")
    print(f"ROC picture: {picture}")
    shown = [(Path(picture), "ROC")]
    if args.pictures is not None or args.html:
        folder = args.pictures or Path(picture).with_suffix("")
        best = {protocol: summary["best_distance"] for protocol, summary in summaries.items()}
        shown += write_pictures(model, test_set, distances, best, protocols, folder, device)
        print(f"hardest pairs and histograms of the distances: {folder}")
    if args.html:
        facts = {"network": path, "photos": data_path, "pairs": pairs_path, "masks": masks}
        write_page(args.html, f"{path.name} tested on {Path(data_path).name}", facts, summaries, shown)
        print(f"page: {args.html}")
    report = {"checkpoint": str(path), "masks": masks, "protocols": summaries}
    if args.json:
        with file_errors(args.json):
            write_whole(args.json, json.dumps(report, indent=2) + "\n")
    return report


if __name__ == "__main__":
    run_script(main)
