"""Names of devices to devices that exist."""

import torch

from pipeline.errors import ContractError


def resolve(name: str) -> torch.device:
    """The device of "auto" (CUDA if there is one, else the CPU), "cpu", "cuda" or "cuda:<n>".

    Raises ContractError when CUDA is asked for and absent.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name != "auto" and not torch.cuda.is_available():
        why = "this torch is built without CUDA" if torch.version.cuda is None else "no usable GPU or driver"
        raise ContractError(f'model.device: {name} asked for, but {why}; use "auto" or "cpu"')
    index = torch.device("cuda" if name == "auto" else name).index or 0
    if index >= torch.cuda.device_count():
        there = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise ContractError(f"model.device: {name} asked for, but there is only {there}")
    return torch.device("cuda", index)
