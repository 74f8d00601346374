"""The formats that a network is exported to: a record each of how it is written and opened, and what that needs.

All but torch-export are made of one ONNX file, which is written when it is first asked for.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import first_line
from ..support.files import write_bytes
from ..support.untyped import Foreign

ONE_FILE = 2**30  # bytes of weights at most that stay inside an ONNX file, which ends at 2 GB
Run = Callable[[Sequence[Tensor]], Sequence[object]]  # inputs in their order to outputs in theirs


@dataclass(frozen=True)
class Traced:
    """The operations of a network, as `torch.export` traced them.

    Attributes:
        inputs, outputs: names, in the order of the trace.
        scratch: folder for the ONNX file that other formats are made of.
    """

    program: Foreign
    inputs: Sequence[str]
    outputs: Sequence[str]
    scratch: Path

    def onnx(self) -> Path:
        """The network as ONNX file, made at the first call; large weights lie in a file beside it."""
        file = self.scratch / "model.onnx"
        if not file.exists():
            torch.onnx.export(
                self.program,
                f=str(file),
                input_names=self.inputs,
                output_names=self.outputs,
                external_data=sum(value.nbytes for value in self.program.state_dict.values()) > ONE_FILE,
                dynamo=True,
                verbose=False,
            )
        return file


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file: name of its file; parts of it begin alike.
        packages: that writing it imports.
        write: makes the file.
        open: runs it, on as many threads as torch uses.
        exact: whether it computes as precisely as the network; otherwise how far it is apart is said, not refused.
        unpickled: opening it can run any code.
    """

    file: str
    packages: tuple[str, ...]
    write: Callable[[Traced, Path], None]
    open: Callable[[Path], Run]
    exact: bool = True
    unpickled: bool = False


def _write_onnx(traced: Traced, file: Path) -> None:
    made = traced.onnx()
    for part in made.parent.glob(f"{made.name}*"):
        shutil.copy(part, file.parent)


def _write_int8(traced: Traced, file: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(traced.onnx()), str(file), per_channel=True, weight_type=QuantType.QInt8)


def _open_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class but this
        raise ValueError(first_line(error)) from error
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Sequence[Foreign]:
        feeds = {name: value.detach().numpy() for name, value in zip(names, inputs, strict=True)}
        found: Sequence[object] = session.run(None, feeds)
        return found

    return run


def _write_openvino(traced: Traced, file: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(str(traced.onnx())), str(file), compress_to_fp16=False)


def _open_openvino(file: Path) -> Run:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def run(inputs: Sequence[Tensor]) -> Sequence[Foreign]:
        found = compiled([value.detach().numpy() for value in inputs])
        return [found[output] for output in compiled.outputs]

    return run


def _write_torch(traced: Traced, file: Path) -> None:
    # By way of memory: where the disk is full, torch would end the process.
    buffer = io.BytesIO()
    torch.export.save(traced.program, buffer)
    write_bytes(file, buffer.getvalue())


def _open_torch(file: Path) -> Run:
    network: Foreign = torch.export.load(str(file)).module()

    def run(inputs: Sequence[Tensor]) -> Sequence[Foreign]:
        found: Sequence[Foreign] = network(*inputs)
        return found

    return run


_ONNX = ("onnxscript", "onnxruntime")
FORMATS: Mapping[str, Format] = {
    "onnx": Format("model.onnx", _ONNX, _write_onnx, _open_onnx),
    "onnx-int8": Format("model_quantized.onnx", _ONNX, _write_int8, _open_onnx, exact=False),
    "openvino": Format("openvino_model.xml", ("onnxscript", "openvino"), _write_openvino, _open_openvino),
    "torch-export": Format("model.pt2", (), _write_torch, _open_torch, unpickled=True),
}
