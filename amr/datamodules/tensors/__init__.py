"""Data that are tensors already: the data module `Tensors`, and atoms of inputs of which only the shape is known.

`amr.datamodules.Tensors` is the module's public path; `module.py` is not imported here, so that atoms stay light.
"""

from amr.datamodules.tensors.shapes import kind_atoms, tensor_atoms, tensor_picture

__all__ = ["kind_atoms", "tensor_atoms", "tensor_picture"]
