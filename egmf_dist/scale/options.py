"""What ``egmf plan`` is asked; a module of its own, because the command line reads it without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PlanOptions:
    """What is planned."""

    hosts: int = 1
    """machines"""
    gpus_per_host: int = 1
    """GPUs (ranks) of each"""
    hardware: str = "h200"
    """h100, h200, a100, l40s, 4090 or cpu"""
    inside: str | None = None
    """link inside of a host: nvlink4, nvlink3, pcie4, infiniband, ethernet; null: the hardware's usual one"""
    outside: str | None = None
    """link between hosts, by the same names; null: the hardware's usual one"""
    shape: str | None = None
    """a published model's shape in place of backbone.path: gemma3-270m, mistral-7b, qwen2.5-0.5b, -7b, -32b, -72b"""
    price: float | None = None
    """of a GPU for an hour, in your currency"""
    store: float | None = None
    """GB/s that the data's store gives a host; null: not asked"""
    host_memory: float | None = None
    """GB of a host's memory for each of its GPUs; null: the hardware's usual"""
    cores_per_gpu: int = 8
    """cores of a host for each of its GPUs, which loader processes may use"""
    sweep: bool = False
    """also other numbers of hosts, and with --out a picture"""
    dry_run: bool = False
    """also the share of a global batch that each rank reads, and its micro-batches"""
    table: bool = False
    """in place of all else: backbones of 0.27B to 72B on 1 to 1,024 GPUs, each with the settings that are advised; a
    rank's share stays training.global_batch by the GPUs given"""
    every_layer: bool = False
    """rehearse all of the backbone's layers, and do not conclude from a few: minutes for a large one"""
    calibrate: bool = False
    """measure this machine's rates first, for about a minute: with --hardware cpu"""
    clock: Literal["wall", "cpu"] = "wall"
    """what --calibrate counts: seconds that pass, or those that a process computes, where the machine is busy"""
