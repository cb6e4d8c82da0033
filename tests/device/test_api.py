"""Every name of TensorRT's that build.py uses exists in the versions it is for."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device.packages import STANDIN
from vitdeploy.device import assemble
from vitdeploy.device.onboard.contents import GraphSpec, InputSpec
from vitdeploy.device.onboard.versions import WEAK_FLAGS, plan_builds

ONBOARD = Path(assemble.__file__).parent / "onboard"
LISTS = ["8.6.1", "10.3.0", "11.4.0"]
# By convention a variable of this name holds an object of this class (see onboard.engine).
RECEIVERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "inspector": "EngineInspector",
}


def dotted(node: ast.AST) -> str | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return ".".join([node.id, *names]) if isinstance(node, ast.Name) else None


def names_used() -> set[str]:
    """`Builder.create_network`, `MemoryPoolType.WORKSPACE`, `ILogger`, ... of the modules."""
    found = set()
    for module in ("engine", "execution", "inspector", "candidates"):
        for node in ast.walk(ast.parse((ONBOARD / f"{module}.py").read_text())):
            name = dotted(node) if isinstance(node, ast.Attribute) else None
            first, _, rest = (name or "").partition(".")
            if first == "trt":
                found.add(rest)
            elif first in RECEIVERS and module != "candidates":
                found.add(f"{RECEIVERS[first]}.{rest.partition('.')[0]}")
    return found


USED = names_used()
# By name in onboard.versions, looked up there for the versions that have them.
BY_VERSION = {
    "8.6.1": {"NetworkDefinitionCreationFlag.EXPLICIT_BATCH"},
    "10.3.0": {"NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.BF16"},
    "11.4.0": {"NetworkDefinitionCreationFlag.STRONGLY_TYPED"},
}


def flags_asked_for(version: str) -> set[str]:
    """The flags that plans for this version name."""
    numbers = tuple(int(part) for part in version.split("."))
    names = set()
    for precision in [*WEAK_FLAGS, "w4a16"]:
        graphs = [
            GraphSpec(precision, "strong", "s", "", "10.0", {}),
            GraphSpec(precision, "weak", "w", "", "8.6", {}),
        ]
        if precision == "w4a16":
            graphs = graphs[:1] if numbers >= (10, 0, 0) else []
        if precision == "bf16" and numbers < (10, 0, 0):
            graphs = []  # INT4 and BF16 graphs say themselves which TensorRT they are for
        for plan in plan_builds(graphs, precision, numbers) if graphs else ():
            names |= {f"NetworkDefinitionCreationFlag.{name}" for name in plan.network_flags}
            names |= {f"BuilderFlag.{name}" for name in plan.builder_flags}
    return names


def test_the_collection_sees_what_matters():
    assert {
        "Builder.build_serialized_network",
        "IBuilderConfig.set_timing_cache",
        "IExecutionContext.execute_async_v3",
        "MemoryPoolType.WORKSPACE",
        "ILogger.Severity.ERROR",
        "EngineInspector.get_engine_information",
    } <= USED
    assert len(USED) > 30


@pytest.mark.parametrize("version", LISTS)
def test_names_and_flags_are_in_the_versions_list(version: str, shared: Path):
    listed = json.loads((shared / f"data/tensorrt/api_{version}.json").read_text())
    checked = {name for name in USED | flags_asked_for(version) if name in listed}
    assert {name for name in checked if not listed[name]} == set()
    assert len(checked) > 20


@pytest.mark.parametrize("version", LISTS)
def test_flags_are_those_of_the_version(version: str):
    assert flags_asked_for(version) >= BY_VERSION[version]
    if version == "11.4.0":
        assert not [name for name in flags_asked_for(version) if name.startswith("BuilderFlag.")]


def missing_names(module: str, names: set[str], environment: dict[str, str]) -> list[str]:
    """The names that a `tensorrt` in another process does not have."""
    code = (
        f"import json, sys, {module} as trt, functools\n"
        "missing = []\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try: functools.reduce(getattr, name.split('.'), trt)\n"
        "    except AttributeError: missing.append(name)\n"
        "print(json.dumps(missing))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(sorted(names))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


# Members of instances: the stand-in sets them where the object is made.
IN_INSTANCES = {"IExecutionContext.profiler", "__version__"}


@pytest.mark.parametrize("version", LISTS)
def test_the_stand_in_has_what_is_used_and_nothing_that_the_version_lacks(
    version: str, shared: Path
):
    environment = {
        "PYTHONPATH": str(STANDIN), "STANDIN_TENSORRT": version, "STANDIN_LOG": os.devnull,
    }  # fmt: skip
    names = (USED | flags_asked_for(version)) - IN_INSTANCES
    assert missing_names("tensorrt", names, environment) == []
    listed = json.loads((shared / f"data/tensorrt/api_{version}.json").read_text())
    absent = {name for name, is_there in listed.items() if not is_there}
    assert set(missing_names("tensorrt", absent, environment)) == absent


BINDINGS = os.environ.get("VITDEPLOY_TRT_BINDINGS", "")
SYMBOLS = (
    "createInferBuilder_INTERNAL createInferRuntime_INTERNAL createInferRefitter_INTERNAL "
    "createNvOnnxParser_INTERNAL createNvOnnxParserRefitter_INTERNAL getBuilderPluginRegistry "
    "getPluginRegistry getNvOnnxParserVersion initLibNvInferPlugins getInferLibVersion "
    "_ZN11nvuffparser15createUffParserEv _ZN14nvcaffeparser117createCaffeParserEv "
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi "
    "_ZN14nvcaffeparser123shutdownProtobufLibraryEv"
)


@pytest.mark.trt
@pytest.mark.parametrize("version", LISTS)
def test_nvidias_own_bindings_have_every_name(version: str, tmp_path: Path):
    """VITDEPLOY_TRT_BINDINGS: a folder with the unpacked binding wheels, by version."""
    folder = Path(BINDINGS) / version
    if not BINDINGS or not (folder / "tensorrt_bindings").is_dir():
        pytest.skip("VITDEPLOY_TRT_BINDINGS names no folder with the bindings of this version")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make the libraries that the bindings look for")
    source = tmp_path / "stub.c"
    source.write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in SYMBOLS.split()))
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser", "nvparsers"):
        library = f"lib{name}.so.{version.partition('.')[0]}"
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{library}",
                "-o",
                tmp_path / library,
                source,
            ],
            check=True,
        )
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(folder)}
    names = USED | flags_asked_for(version)
    assert missing_names("tensorrt_bindings", names, environment) == []


def half_precision_product(path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "weight"], ["product"]),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(weight, "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_nvidias_rtx_builder_takes_what_build_py_asks(tmp_path: Path):
    """TensorRT for RTX has the API of TensorRT 11 and builds without a GPU."""
    trt = pytest.importorskip("tensorrt_rtx", reason="NVIDIA's RTX builder is not installed")
    from vitdeploy.device.onboard.engine import EngineRequest, build_engine
    from vitdeploy.device.onboard.failure import Failure

    half_precision_product(tmp_path / "m.onnx")
    graph = GraphSpec("fp16", "strong", "m.onnx", "", "10.0", {})
    (plan,) = plan_builds([graph], "fp16", (11, 4, 0))

    def request(optimum: int, cache: bytes = b"", name: str = "m.onnx") -> EngineRequest:
        spec = InputSpec("x", "float32", ("batch", 12), (1, 12), (optimum, 12), (8, 12))
        return EngineRequest(tmp_path / name, plan, (spec,), 1 << 28, cache)

    built = build_engine(trt, request(2))
    assert len(built.data) > 1000
    assert build_engine(trt, request(2, built.timing_cache)).data
    assert build_engine(trt, request(2, b"of another version")).data
    with pytest.raises(Failure, match="refuses the shapes x") as caught:
        build_engine(trt, request(9))
    assert caught.value.exit_code == 5
    text = (tmp_path / "m.onnx").read_bytes().replace(b"MatMul", b"NoSuch")
    (tmp_path / "bad.onnx").write_bytes(text)
    with pytest.raises(Failure, match=r"does not read 'bad\.onnx'.*NoSuch") as caught:
        build_engine(trt, request(2, name="bad.onnx"))
    assert caught.value.exit_code == 5
