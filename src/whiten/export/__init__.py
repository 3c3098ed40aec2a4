"""Export a student to a folder that embeds without torch.

Takes a student and sample images; writes ONNX, OpenVINO or TorchScript files. Exactness and speed
are measured first; a file that is not exact enough is not written.
"""

from whiten.export.exporting import Exports, export

__all__ = ["Exports", "export"]
