"""Write a checkpoint's network as ONNX and compare what ONNX Runtime computes with PyTorch on 64 made-up faces.

Without arguments: the newest best.pt, written beside it as best.onnx; where nothing was trained, the shipped network.

input   images     (N, 3, S, S) float32 RGB in [-1, 1], S = the checkpoint's image_size, any N
output  embedding  (N, embedding_dim) float32 rows of norm 1
        attention  (N, 1, h, w) float32 0..1; only where the network has the branch
        mask       (N,) float32 0..1, how sure the mask head is; only where the checkpoint has one

What a user of the file must know besides (alignment, scaling, distance, thresholds) stands in its metadata.
ONNX Runtime reads it, and OpenCV 5 (cv2.dnn.readNetFromONNX).
Needs three packages more: pip install onnx onnxscript onnxruntime
"""

import argparse
import copy
import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from Models.attention_modules import ScaledConv2d
from Models.checkpoint import faces_of, find_checkpoint, load_checkpoint, network_from_checkpoint
from Models.mask_head import with_features
from Script_tools.chip_geometry import chip_points
from Script_tools.files import DataError, file_errors, sha256_of, write_whole
from Script_tools.script import ScriptParser, run_script
from Script_tools.settings import add_config_arguments, config_from_args

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18  # of 2022: ONNX Runtime from 1.14, and most converters, read it
MAX_DIFFERENCE = 1e-4  # between PyTorch and ONNX Runtime, of any value of any output
MAX_HALF = 2e-2  # likewise, with weights in half precision
FACES = 32  # of each kind to compare on
# how a face becomes an input and two embeddings a distance, for whoever has only the file
ALIGNMENT = {
    "dlib": "dlib 68 landmarks, padding {padding:g}",
    "yunet": "OpenCV YuNet, similarity of the five points to {points} px of the image",
}
FACE_METADATA = {
    "colour_order": "RGB",
    "scaling": "(value - mean) / std of values 0..255",
    "mean": "127.5",
    "std": "127.5",
    "distance": "Euclidean on unit vectors",
}
EMBEDDINGS = {  # by the thresholds' average_flip
    False: "embeddings as they come out",
    True: "the mean of a face's embedding and its mirror image's, divided by its length",
}


def require_packages() -> None:
    """Raise DataError, with the command that installs them, if one of the optional packages is missing."""
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise DataError(f"Exporting needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")


def export_network(
    network: torch.nn.Module, image_size: int, metadata: dict[str, str], mask_head: dict | None = None
) -> bytes:
    """The bytes of an ONNX file that computes what ``network`` does, with any batch size.

    Args:
        network: on the CPU, in evaluation mode.
        image_size: side of its input in px; other sizes are refused by the file.
        metadata: stored as the file's ``metadata_props``.
        mask_head: of the checkpoint, to become an output too.

    Raises:
        DataError: an optional package is missing.
    """
    require_packages()
    import onnx

    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, ScaledConv2d):
            module.fold()  # OpenCV refuses convolutions whose weights are computed
    outputs = ["embedding"] + ["attention"] * (network.face_attention is not None) + ["mask"] * (mask_head is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about parts of itself
        program = torch.onnx.export(
            OutputTensors(network, mask_head),
            (torch.zeros(2, 3, image_size, image_size),),  # of one image, the batch size would become a constant
            input_names=["images"],
            output_names=outputs,
            dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
            opset_version=OPSET,
            dynamo=True,
            custom_translation_table={torch.ops.aten.adaptive_max_pool2d.default: _global_max_pool},
            verbose=False,
        )
    model = program.model_proto
    _remove_traces(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model.SerializeToString()


class OutputTensors(torch.nn.Module):
    """The network without the None among its outputs, which ONNX does not have, and its mask head behind them."""

    def __init__(self, network: torch.nn.Module, mask_head: dict | None = None):
        super().__init__()
        self.network, self.mask_head = network, mask_head is not None
        if mask_head is not None:
            self.register_buffer("weight", mask_head["weight"].float()[:, None])  # OpenCV multiplies matrices only
            self.bias = mask_head["bias"]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, S, S) float32 -> embedding and, where there are such, attention and (N,) mask."""
        embedding, attention, features = with_features(self.network, images)
        outputs = (embedding,) if attention is None else (embedding, attention)
        if not self.mask_head:
            return outputs
        return (*outputs, torch.sigmoid(features.float() @ self.weight + self.bias).flatten())


def in_half_precision(model: bytes) -> bytes:
    """The ONNX file with the weights of its convolutions and matrices stored in float16; they become float32 again
    when it is loaded."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(model)
    weights = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    back = []
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            name, stored = tensor.name, f"{tensor.name}_half"
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), stored))
            back.append(helper.make_node("Cast", [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*back, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def without_moves(model: bytes) -> bytes:
    """The ONNX file with a straightener that moves nothing: the weights of its last layer are zero."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(model)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("network.straightener.out."):
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), tensor.name))
    return model.SerializeToString()


def _global_max_pool(x, output_size):
    """adaptive_max_pool2d to 1 x 1, as CBAM uses it: the exporter does not know this operator."""
    from onnxscript import opset18 as op

    if list(output_size) != [1, 1]:
        raise DataError(f"adaptive_max_pool2d to {output_size} cannot be exported, only to 1 x 1")
    maximum = op.ReduceMax(x, op.Constant(value_ints=[2, 3]), keepdims=1)
    return maximum, maximum  # in place of the positions of the maxima, which nobody reads


def _remove_traces(model) -> None:
    """Take out the names of the exporting machine's source files, which the exporter stores with each node."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]


def max_difference(
    model: bytes,
    network: torch.nn.Module,
    images: np.ndarray,
    batch_sizes: Sequence[int],
    mask_head: dict | None = None,
) -> float:
    """The largest absolute difference of any output between ONNX Runtime and PyTorch, both on the CPU.

    Args:
        model: the bytes of an ONNX file.
        images: (N, 3, S, S) uint8 RGB.
        batch_sizes: of ONNX Runtime; PyTorch takes all images at once.

    Returns:
        NaN if one of the two gives NaN.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    scaled = ((images.astype(np.float32) - 127.5) / 127.5).astype(np.float32)
    with torch.inference_mode():
        expected = OutputTensors(network, mask_head)(torch.from_numpy(images))
    differences = []
    for size in batch_sizes:
        batches = [session.run(None, {"images": scaled[i : i + size]}) for i in range(0, len(scaled), size)]
        found = [np.concatenate(part) for part in zip(*batches, strict=True)]
        differences += [np.abs(got - wanted.numpy()).max() for got, wanted in zip(found, expected, strict=True)]
    return float(np.max(differences))


def noise_and_smooth_faces(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """(2 * count, 3, size, size) uint8: first noise in every pixel, then images of a few soft patches."""
    noise = rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    patches = torch.from_numpy(rng.uniform(0, 255, (count, 3, 4, 4)))
    smooth = torch.nn.functional.interpolate(patches, size=(size, size), mode="bilinear", align_corners=True)
    return np.concatenate([noise, smooth.round().numpy().astype(np.uint8)])


def check_export(
    model: bytes,
    network: torch.nn.Module,
    image_size: int,
    rng: np.random.Generator,
    mask_head: dict | None = None,
    half: bool = False,
) -> float:
    """The largest difference from PyTorch on noise and on smooth images, in batches of 1 and of 32.

    A straightener is compared on smooth images alone, and on both with nothing moved: in noise of single pixels a
    rounding error of 6e-6 in its move makes 7e-4 in what comes out (measured; on real faces it makes 9e-7).

    Raises DataError if it is not below MAX_DIFFERENCE, or, for a file with ``half`` precision, MAX_HALF.
    """
    limit = MAX_HALF if half else MAX_DIFFERENCE
    images = noise_and_smooth_faces(FACES, image_size, rng)
    compared = [(model, network, images)]
    if network.straightener is not None:
        unmoved = copy.deepcopy(network)
        for weight in unmoved.straightener.out.parameters():
            torch.nn.init.zeros_(weight)
        compared = [(model, network, images[FACES:]), (without_moves(model), unmoved, images)]
    differences = [max_difference(*each, (1, FACES), mask_head) for each in compared]
    difference = float(np.max(differences))
    if not difference < limit:  # NaN too
        raise DataError(
            f"The exported network differs from PyTorch by {difference:.2g}, which is not below {limit:g}: "
            "no file is written. "
            + ("Leave --half out." if half else "Try other versions of torch, onnxscript, onnxruntime, or checkpoint.")
        )
    return difference


def checkpoint_metadata(checkpoint: dict, path: str | Path) -> dict[str, str]:
    """What the ONNX file says of its network and its use; ``path`` is the checkpoint's file."""
    config, cut = checkpoint["config"], faces_of(checkpoint["config"])
    points = chip_points(cut["image_size"], cut["padding"]).round(2).tolist()
    metadata = {
        "alignment": ALIGNMENT[cut["detector"]].format(padding=cut["padding"], points=points),
        **FACE_METADATA,
        "image_size": str(config["image_size"]),
        "embedding_dim": str(config["embedding_dim"]),
        "epoch": str(checkpoint["progress"]["epoch"]),
        "checkpoint_sha256": sha256_of(path),
    }
    if cut["detector"] == "yunet":
        metadata["five_points"] = json.dumps(points)
    if "thresholds" in checkpoint:
        metadata["thresholds"] = json.dumps(checkpoint["thresholds"])
        metadata["thresholds_of"] = EMBEDDINGS[checkpoint["thresholds"]["average_flip"]]
    return metadata


def parse_args(argv=None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="a .pt file (default: the newest best.pt, or else the shipped)"
    )
    parser.add_argument("--output", metavar="PATH", help="the file to write (default: the checkpoint's name, .onnx)")
    parser.add_argument(
        "--half", action="store_true", help="weights in half precision: half as large, for ONNX Runtime, not for OpenCV"
    )
    add_config_arguments(parser, ("output_path", "seed"))
    return parser.parse_args(argv)


def main(argv=None) -> Path:
    """Run the script; returns the path of the ONNX file."""
    args = parse_args(argv)
    config = config_from_args(args)
    require_packages()
    path = find_checkpoint(args.checkpoint, config["output_path"])
    output = Path(args.output).expanduser() if args.output else path.with_suffix(".onnx")
    if output.suffix != ".onnx":
        raise DataError(f"--output {output}: the name must end in .onnx")
    checkpoint = load_checkpoint(path)
    network = network_from_checkpoint(checkpoint, path)
    image_size = checkpoint["config"]["image_size"]
    epoch = checkpoint["progress"]["epoch"]
    print(f"checkpoint {path}, epoch {epoch}, input (N, 3, {image_size}, {image_size})", flush=True)
    head = checkpoint.get("mask_head")
    model = export_network(network, image_size, checkpoint_metadata(checkpoint, path), head)
    if args.half:
        model = in_half_precision(model)
    difference = check_export(model, network, image_size, np.random.default_rng(config["seed"]), head, args.half)
    with file_errors(output):
        write_whole(output, model)
    print(f"largest difference from PyTorch on {2 * FACES} images in batches of 1 and {FACES}: {difference:.1e}")
    print(f"ONNX, {len(model) / 1e6:.1f} MB: {output}")
    return output


if __name__ == "__main__":
    run_script(main)
