"""A student -> a folder that embeds without torch.

A student and sample images enter; ONNX, OpenVINO or TorchScript files leave. Exactness and speed
are measured first; a file that is not exact enough is not written.
"""

from whiten.export.exporting import Exports, export

__all__ = ["Exports", "export"]
