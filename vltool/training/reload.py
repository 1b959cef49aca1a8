"""A checkpoint over the base that it names, loaded by transformers and peft alone: does it give the same logits?

Run as `python -m vltool.training.reload RUN_DIR CHECKPOINT`, or with more such pairs; the last lines of its
output are JSON, one for each pair.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import logging

from vltool.checkpoint.census import take_census
from vltool.run.evidence import Evidence
from vltool.run.folder import PLAN_FILE_NAME
from vltool.run.plan import RunPlan
from vltool.training.probe import load_probe, logits_at
from vltool.training.quantized import keep_packed


def main(run_dir: Path, checkpoint: Path) -> str:
    """Compare a checkpoint's logits with those that the run kept of its trained model."""
    logging.disable_progress_bar()
    plan = RunPlan.from_json((run_dir / PLAN_FILE_NAME).read_bytes())
    census = take_census(checkpoint)
    base = census.base or str(checkpoint)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, plan.arguments["torch_dtype"])
    packing = Evidence.read(run_dir).quantization
    if packing is None:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype).to(device)
    else:
        config = BitsAndBytesConfig.from_dict(packing)
        model = AutoModelForImageTextToText.from_pretrained(
            base, dtype=dtype, quantization_config=config, device_map=device
        )
        keep_packed(model)
    if census.base is not None:
        model = PeftModel.from_pretrained(model, str(checkpoint))
    model.eval()
    inputs, at_P2, wanted_PV = load_probe(run_dir)
    autocast = torch.bfloat16 if plan.arguments["bf16"] else None
    with torch.no_grad(), torch.autocast(device, dtype=autocast, enabled=autocast is not None):
        got_PV = logits_at(model, inputs, at_P2).cpu()
    return json.dumps(
        {
            "base": base,
            "difference": float((got_PV - wanted_PV).abs().max()),
            "scale": float(wanted_PV.abs().max()),
        }
    )


if __name__ == "__main__":
    paths = [Path(argument) for argument in sys.argv[1:]]
    results = [main(run, saved) for run, saved in zip(paths[::2], paths[1::2], strict=True)]
    # At the end and on lines of their own: builds of extensions talk on stdout too.
    sys.stdout.write("\n" + "\n".join(results) + "\n")
