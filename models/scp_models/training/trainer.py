"""A Lightning trainer for whoever shows and keeps the results itself."""

from typing import Any

import lightning as L


def quiet_trainer(device: str, **options: Any) -> L.Trainer:
    """A trainer on one device that trains and nothing else: no logs, checkpoints, bars, summaries or trial batches.

    Args:
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        options: further arguments of ``lightning.Trainer``, such as the length, callbacks and the root folder.
    """
    kind, _, number = device.partition(":")
    return L.Trainer(
        accelerator="gpu" if kind == "cuda" else "cpu",
        devices=[int(number or 0)] if kind == "cuda" else 1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
