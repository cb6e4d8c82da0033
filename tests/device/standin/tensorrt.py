"""A stand-in for NVIDIA's `tensorrt`: it computes nothing of TensorRT's, it only answers like it.

It shows that build.py asks for the right things in the right order, with the names that the
version in STANDIN_TENSORRT has (8.6.1, 10.3.0, 11.4.0); it says nothing about engines or speed.
Its "ONNX" files are JSON: an engine multiplies each image with a fixed matrix. STANDIN_FAULTS
lists what goes wrong (`nan:FILE`, `wrong:FILE`, `silent:FILE`, `no_build:FILE`, `no_parse:FILE`,
`no_load:FILE`), STANDIN_LOG is a file that takes one JSON line for each thing that matters.
"""

import ctypes
import enum
import json
import os
import struct
from pathlib import Path

import cudart

__version__ = os.environ["STANDIN_TENSORRT"]
MAJOR = int(__version__.split(".")[0])


def record(event: str, **facts) -> None:
    with Path(os.environ["STANDIN_LOG"]).open("a") as stream:
        stream.write(json.dumps({"event": event, **facts}) + "\n")


def has_fault(name: str, file: str) -> bool:
    return f"{name}:{file}" in os.environ.get("STANDIN_FAULTS", "").split(",")


class _Named(enum.IntEnum):
    def __str__(self) -> str:  # as pybind11 writes it
        return f"{type(self).__name__}.{self.name}"


# The numbers are those of each version: what reads them instead of the names goes wrong here.
NetworkDefinitionCreationFlag = _Named(
    "NetworkDefinitionCreationFlag",
    {
        8: {"EXPLICIT_BATCH": 0, "EXPLICIT_PRECISION": 1},
        10: {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1},
        11: {"STRONGLY_TYPED": 0, "PREFER_JIT_PYTHON_PLUGINS": 1},
    }[MAJOR],
)
BuilderFlag = _Named(
    "BuilderFlag",
    {
        8: {"FP16": 0, "INT8": 1, "TF32": 7},
        10: {"FP16": 0, "BF16": 17, "INT8": 1, "TF32": 7},
        11: {"TF32": 5},
    }[MAJOR],
)
MemoryPoolType = _Named("MemoryPoolType", {"WORKSPACE": 0})
ProfilingVerbosity = _Named("ProfilingVerbosity", {"DETAILED": 2})
LayerInformationFormat = _Named("LayerInformationFormat", {"JSON": 1})
TensorIOMode = _Named("TensorIOMode", {"INPUT": 1, "OUTPUT": 2})
DataType = _Named("DataType", {"FLOAT": 0, "HALF": 1, "INT8": 2, "INT32": 3})


class ILogger:
    Severity = _Named("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})

    def __init__(self) -> None:
        self.is_made = True


class IProfiler:
    def __init__(self) -> None:
        self.is_made = True


class _Plain:
    """Refuses attributes that TensorRT's object does not have."""

    __slots__ = ()


class INetworkDefinition(_Plain):
    __slots__ = ("description", "file", "flags")

    def __init__(self, flags: int) -> None:
        self.flags, self.description, self.file = flags, None, ""


class IOptimizationProfile(_Plain):
    __slots__ = ("shapes",)

    def __init__(self) -> None:
        self.shapes = {}

    def set_shape(self, name: str, low, middle, high) -> None:
        self.shapes[name] = [list(low), list(middle), list(high)]


class ITimingCache(_Plain):
    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data


class IBuilderConfig(_Plain):
    __slots__ = ("cache", "flags", "profile", "profiling_verbosity", "workspace")

    def __init__(self) -> None:
        self.flags, self.profile, self.workspace = [], None, None

    def set_memory_pool_limit(self, pool, pool_size: int) -> None:
        self.workspace = (str(pool), pool_size)

    def set_flag(self, flag) -> None:
        self.flags.append(flag.name)

    def create_timing_cache(self, serialized_timing_cache: bytes):
        if serialized_timing_cache == b"broken":
            return None
        return ITimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache, ignore_mismatch: bool) -> bool:
        if cache.data not in {b"", f"cache of {__version__}".encode()} and not ignore_mismatch:
            return False
        self.cache = cache
        return True

    def add_optimization_profile(self, profile) -> int:
        self.profile = profile
        for low, middle, high in profile.shapes.values():
            if any(low[i] > middle[i] or middle[i] > high[i] for i in range(len(low))):
                return -1
        return 0


class Builder(_Plain):
    __slots__ = ()

    def __init__(self, logger) -> None:
        assert isinstance(logger, ILogger)
        assert logger.is_made

    def create_network(self, flags: int = 0):
        names = [f.name for f in NetworkDefinitionCreationFlag if flags >> int(f) & 1]
        return INetworkDefinition(names)

    def create_builder_config(self):
        return IBuilderConfig()

    def create_optimization_profile(self):
        return IOptimizationProfile()

    def build_serialized_network(self, network, config):
        record(
            "build",
            file=network.file,
            network_flags=network.flags,
            builder_flags=config.flags,
            workspace=config.workspace,
            shapes=config.profile.shapes if config.profile else None,
            verbosity=config.profiling_verbosity.name,
            cache=config.cache.data.decode(),
        )
        if has_fault("no_build", network.file):
            return None
        config.cache.data = f"cache of {__version__}".encode()
        return json.dumps({**network.description, "file": network.file}).encode()


class ParserError(_Plain):
    def __str__(self) -> str:
        return "In node 3 with name: blocks.0 (importNode): UNSUPPORTED_NODE"


class OnnxParser(_Plain):
    __slots__ = ("network", "num_errors")

    def __init__(self, network, logger) -> None:
        self.network, self.num_errors = network, 0

    def parse_from_file(self, model: str) -> bool:
        self.network.file = Path(model).name
        self.network.description = json.loads(Path(model).read_text())
        self.num_errors = int(has_fault("no_parse", self.network.file))
        return not self.num_errors

    def get_error(self, index: int):
        return ParserError()


class Runtime(_Plain):
    __slots__ = ()

    def __init__(self, logger) -> None:
        assert logger.is_made

    def deserialize_cuda_engine(self, serialized_engine: bytes):
        description = json.loads(serialized_engine)
        return None if has_fault("no_load", description["file"]) else ICudaEngine(description)


class EngineInspector(_Plain):
    __slots__ = ("description",)

    def __init__(self, description) -> None:
        self.description = description

    def get_engine_information(self, form) -> str:
        is_int8 = "int8" in self.description["file"]
        tensor = {"Name": "h", "Dimensions": [1, 4]}
        if MAJOR < 11:
            tensor["Format/Datatype"] = "Int8 NC/32HW32" if is_int8 else "Half row-major"
            names = {"Bindings": ["x", "logits"]}
        else:
            tensor.update({"DataType": "Int8" if is_int8 else "Half", "Format": "kLINEAR"})
            names = {"I/O Tensors": [{"Name": "x"}, {"Name": "logits"}]}
        layers = [
            {"Name": "fc1_gemm", "LayerType": "gemm", "Inputs": [tensor], "Outputs": []},
            {"Name": "_gemm_mha_v2_myl0", "LayerType": "fusion", "Inputs": [], "Outputs": []},
        ]
        return json.dumps({"Layers": layers, **names})


class ICudaEngine(_Plain):
    __slots__ = ("description", "num_io_tensors")

    def __init__(self, description) -> None:
        self.description, self.num_io_tensors = description, 2

    def get_tensor_name(self, index: int) -> str:
        return ("x", "logits")[index]

    def get_tensor_mode(self, name: str):
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str):
        return DataType.FLOAT

    def create_execution_context(self):
        return IExecutionContext(self.description)

    def create_engine_inspector(self):
        return EngineInspector(self.description)


class IExecutionContext:
    def __init__(self, description) -> None:
        self.description, self.shapes, self.addresses = description, {}, {}
        self.profiler = None

    def set_input_shape(self, name: str, shape) -> bool:
        self.shapes[name] = tuple(shape)
        return shape[0] <= self.description["most_images"]

    def get_tensor_shape(self, name: str):
        return (self.shapes["x"][0], len(self.description["matrix"][0]))

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        file, matrix = self.description["file"], self.description["matrix"]
        images, width = self.shapes["x"][0], len(matrix)
        cudart.state.work_ms = self.description["ms"]
        data = ctypes.string_at(self.addresses["x"], 4 * images * width)
        values = struct.unpack(f"<{images * width}f", data)
        out = []
        for image in range(images):
            row = values[image * width : (image + 1) * width]
            out += [sum(v * m[j] for v, m in zip(row, matrix)) for j in range(len(matrix[0]))]  # noqa: B905 - Python 3.8
        if has_fault("silent", file):
            return True
        if has_fault("nan", file):
            out[-1] = float("nan")
        if has_fault("wrong", file):
            out = out[::-1]
        ctypes.memmove(self.addresses["logits"], struct.pack(f"<{len(out)}f", *out), 4 * len(out))
        if self.profiler is not None:
            self.profiler.report_layer_time("fc1_gemm", 0.25)
            self.profiler.report_layer_time("_gemm_mha_v2_myl0", 0.5)
        return True
