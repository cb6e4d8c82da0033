"""Bundles with a fault put into them, whose hashes match all the same."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import numpy_helper

from vitdeploy.bundle import sha256_from_file


def rewrite_artefact(
    bundle: Path, change: Callable[[onnx.ModelProto], object], name: str = "onnx/model.onnx"
) -> None:
    """Edit a graph of a bundle in place and bring the manifest up to date."""
    path = bundle / name
    proto = onnx.load(path)
    change(proto)
    onnx.save(proto, path)
    update_manifest(bundle, name)


def forget_file(bundle: Path, name: str) -> None:
    """Remove a file of a bundle, and its entries in the manifest."""
    (bundle / name).unlink()
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] != name]
    for part in manifest["parts"]:
        part["extra_files"] = [entry for entry in part["extra_files"] if entry["path"] != name]
    path.write_text(json.dumps(manifest))


def update_manifest(bundle: Path, name: str) -> None:
    """Write the present hash and size of one file into the manifest."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    entries = [entry for entry in manifest["files"] if entry["path"] == name]
    entries += [entry for entry in manifest["parts"] if entry["path"] == name]
    for entry in entries:
        entry["sha256"] = sha256_from_file(bundle / name)
        entry["bytes"] = (bundle / name).stat().st_size
    path.write_text(json.dumps(manifest))


def input_quantizer(proto: onnx.ModelProto, product: str) -> onnx.NodeProto:
    """Return the QuantizeLinear whose result the node called `product` reads."""
    made_by = {name: node for node in proto.graph.node for name in node.output}
    node = next(node for node in proto.graph.node if node.name == product)
    return made_by[made_by[node.input[0]].input[0]]


def shrink_range(proto: onnx.ModelProto, product: str, factor: float) -> None:
    """Divide the scale of what `product` reads, so that large values are clipped."""
    name = input_quantizer(proto, product).input[1]
    scale = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / factor, name))
