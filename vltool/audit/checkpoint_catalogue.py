"""What findings on checkpoints mean, those of assertions among them."""

from __future__ import annotations

from vltool.audit.finding import Rule

_SAFETENSORS = "https://huggingface.co/docs/safetensors/index#format"
_PEFT = "https://huggingface.co/docs/peft/main/en/developer_guides/checkpoint"
_LFS = "https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"
_ASSERTED = (
    "Something that you asserted of the checkpoint, with `--expect`, is not so. What is deployed would not be what the "
    "recipe trains."
)

CHECKPOINT_RULES: tuple[Rule, ...] = (
    Rule(
        id="ckpt-unreadable",
        severity="error",
        means="a file or link cannot be read, or leads in a circle",
        why="Whoever loads or copies the checkpoint stops at it, or follows the circle.",
        remedy="Mend the link or the permissions, take the file away, or copy the checkpoint again.",
    ),
    Rule(
        id="ckpt-unfinished",
        severity="warning",
        means="a file was never written to its end",
        why="A run or a download was interrupted. The other files may be of an earlier state, or may be missing too.",
        remedy="Take the remains away. If they belong to this checkpoint, copy it again or use the one before it.",
    ),
    Rule(
        id="ckpt-lfs-pointer",
        severity="error",
        means="a git-lfs pointer lies where a file should",
        why="The repository was cloned without its large files: what lies here are three lines of text that name them.",
        remedy="Run `git lfs pull` in the clone, or download the files themselves.",
        source=_LFS,
    ),
    Rule(
        id="ckpt-header",
        severity="error",
        means="a safetensors file is truncated, lies about its sizes, or is none",
        why="It cannot be loaded. A file that is shorter than its header says was cut off on the way, or the disk was "
        "full when it was written.",
        remedy="Copy the file again, compare checksums, or use another checkpoint.",
        source=_SAFETENSORS,
    ),
    Rule(
        id="ckpt-index",
        severity="error",
        means="an index and the files beside it disagree",
        why="Loaders believe the index: what it does not name is not loaded, and what it names in the wrong file is "
        "not found. Most often files of two checkpoints lie in one folder.",
        remedy="Copy the checkpoint into an empty folder, or write it again with the tool that made it.",
    ),
    Rule(
        id="ckpt-shard-missing",
        severity="error",
        means="a file that the index names is absent",
        why="Some loaders stop; others go on with random weights in its place, and say so in one line of a long log.",
        remedy="Copy the shard too.",
    ),
    Rule(
        id="ckpt-config",
        severity="warning",
        means="config.json cannot be read",
        why="Without it a model cannot be built, nor is it known whether its head is tied to the embedding.",
        remedy="Copy config.json again.",
    ),
    Rule(
        id="ckpt-adapter-config",
        severity="error",
        means="adapter_config.json is absent or cannot be read",
        why="It holds the rank's scale, the targets and the base. No tool loads the adapter without it, and its "
        "tensors alone do not say them.",
        remedy="Take it from another checkpoint of the same run.",
        covers="health check: Adapter config correct (for LoRA mode)",
        source=_PEFT,
    ),
    Rule(
        id="ckpt-trainer-state",
        severity="warning",
        means="trainer_state.json cannot be read, or belongs to another step",
        why="A run that goes on from here would count from the wrong step, or not start.",
        remedy="Give the folder the name of its step, or go on from another checkpoint.",
    ),
    Rule(
        id="ckpt-weights",
        severity="error",
        means="there is the beginning of a checkpoint, without weights",
        why="A run was ended while it was saving, or only small files were copied.",
        remedy="Copy the checkpoint again, or use the one before it.",
    ),
    Rule(
        id="ckpt-pickle",
        severity="error",
        means="weights are pickled, and reading them would run code",
        why="A pickle is a program that is run to read it. vltool opens none. Beside .safetensors it is a warning, "
        "because some loaders take the pickle first.",
        remedy="Where you trust where they come from, write them as .safetensors; otherwise take them away.",
        source="https://docs.python.org/3/library/pickle.html",
    ),
    Rule(
        id="ckpt-sharded-state",
        severity="error",
        means="weights exist only in the shards of DeepSpeed or FSDP",
        why="Neither peft nor a server loads them, and the shards are pickled.",
        remedy="Gather them: `python zero_to_fp32.py --safe_serialization . OUT`, or `accelerate merge-weights`.",
        source="https://huggingface.co/docs/accelerate/main/en/usage_guides/deepspeed",
    ),
    Rule(
        id="ckpt-mixture",
        severity="warning",
        means="an adapter and a whole model lie in one folder",
        why="Loaders differ in which of them they take. A whole model where an adapter was to be is also what is left "
        "when a trainer was made without its adapter.",
        remedy="Keep them in folders of their own. If no whole model was to be there, look at how it was trained.",
        covers="troubleshooting: Full model saved instead of adapter",
    ),
    Rule(
        id="ckpt-base",
        severity="warning",
        means="the base model is damaged",
        why="The adapter may be sound, but there is no whole base to load it on.",
        remedy="Download the base again.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="ckpt-base-absent",
        severity="note",
        means="the base model is not on this host, so that names are held against the configuration alone",
        why="Shapes and targets were not compared with the base.",
        remedy="Name its folder: `vltool inspect-ckpt DIR --base BASE`.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="ckpt-base-moved",
        severity="warning",
        means="the adapter lies over other weights than the base's",
        why="PiSSA, OLoRA and LoftQ take something out of the base before training. On the base as it was downloaded, "
        "the adapter gives another model than the trained one, without an error.",
        remedy="Convert it to a plain LoRA, as peft's `save_pretrained(path_initial_model_for_weight_conversion=…)` "
        "does.",
        source="https://huggingface.co/docs/peft/main/en/developer_guides/lora#pissa",
    ),
    Rule(
        id="ckpt-missing",
        severity="error",
        means="tensors are absent that the configuration or the base asks for",
        why="A module whose tensors are missing works as if it had not been trained; of a whole model it gets random "
        "weights. A module of `modules_to_save` that is absent was not saved.",
        remedy="Save the checkpoint again from the trained model, or use another one.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
    ),
    Rule(
        id="ckpt-unexpected",
        severity="warning",
        means="tensors are there that nothing asks for",
        why="They are ignored when the checkpoint is loaded. Often weights and configuration are of two runs, or the "
        "base is another.",
        remedy="See whether `adapter_config.json` and the base are the run's own.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
    ),
    Rule(
        id="ckpt-shape",
        severity="error",
        means="a tensor does not fit its module in the base",
        why="The checkpoint was trained on another base, of another size most often, and cannot be loaded on this one.",
        remedy="Name the base that it was trained on.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="ckpt-rank",
        severity="error",
        means="a factor's rank is not the configuration's",
        why="Loading fails, or the scale alpha/rank is not the one it was trained with.",
        remedy="Take `adapter_config.json` from the run that made the weights.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="ckpt-tied",
        severity="warning",
        means="the head and the embedding are one in the base, and only one of them was trained in full",
        why="After merging they differ, and a loader that ties them again throws the trained one away.",
        remedy="Write `tie_word_embeddings: false` into the merged model's `config.json`, or train both.",
    ),
    Rule(
        id="ckpt-resume",
        severity="note",
        means="training cannot go on from here",
        why="The optimizer's state is not in the folder. A next stage needs none; resuming the same run does.",
        remedy="Keep the whole folder where the run is to be resumed.",
    ),
    Rule(
        id="ckpt-not-finite",
        severity="error",
        means="a tensor holds NaN or infinity",
        why="Every answer of the model is NaN. Training diverged before it was saved.",
        remedy="Go back to an earlier checkpoint, lower the learning rate, and let `vltool check` judge the records.",
        covers="troubleshooting: NaN loss",
    ),
    Rule(
        id="ckpt-untrained",
        severity="error",
        means="factors lora_B are zero throughout, as before training",
        why="A LoRA begins with lora_B = 0, and one that stays so changes nothing: no gradient reached it. If all are "
        "zero, the run trained nothing.",
        remedy="See in the run's log which towers got a gradient, and whether its images reached the model.",
        covers="troubleshooting: Zero gradients for vision/aligner",
        source="https://arxiv.org/abs/2106.09685",
    ),
    Rule(
        id="ckpt-zero",
        severity="warning",
        means="a weight is zero throughout",
        why="A trained weight is not. Most often space was made for it that nobody filled.",
        remedy="See whether it was ever written; compare with `--diff BASE --values`.",
    ),
    Rule(
        id="ckpt-not-decoded",
        severity="note",
        means="tensors are of a type whose values are not looked into",
        why="Whether they are finite is not known.",
        remedy="Nothing, if the type is meant. Otherwise write the weights as BF16.",
    ),
)

EXPECT_RULES: tuple[Rule, ...] = (
    Rule(
        id="expect-kind",
        severity="error",
        means="an assertion on the kind of checkpoint fails",
        why=f"{_ASSERTED} A whole model in place of an adapter was most often saved by a trainer that was made without "
        "its adapter.",
        remedy="Look at the run's table of trainable parameters, or mend the assertion.",
        covers="troubleshooting: Full model saved instead of adapter",
    ),
    Rule(
        id="expect-tower",
        severity="error",
        means="an assertion on the towers fails",
        why=_ASSERTED,
        remedy="Compare `freeze_llm`, `freeze_vit`, `freeze_aligner` and the targets with what was meant.",
    ),
    Rule(
        id="expect-rank",
        severity="error",
        means="an assertion on ranks or alpha fails",
        why=_ASSERTED,
        remedy="Use the checkpoint of the recipe's own run, or mend the assertion.",
        covers="health check: Adapter config correct (for LoRA mode)",
    ),
    Rule(
        id="expect-base",
        severity="error",
        means="an assertion on the base fails",
        why=f"{_ASSERTED} An adapter on another base than its own gives nonsense, or worse: answers that look right.",
        remedy="Deploy it on its own base, or mend the assertion.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="expect-modules",
        severity="error",
        means="an assertion on modules held in full fails",
        why=_ASSERTED,
        remedy="Compare `tuner.modules_to_save` of the recipe with that of `adapter_config.json`.",
        covers="health check: `modules_to_save` lists any full-tuned modules (if used)",
    ),
    Rule(
        id="expect-size",
        severity="error",
        means="an assertion on the size fails",
        why=f"{_ASSERTED} More than expected is most often a whole model, or weights in fp32.",
        remedy="See per tower what is held, and in which types.",
    ),
    Rule(
        id="expect-dtype",
        severity="error",
        means="an assertion on types of elements fails",
        why=_ASSERTED,
        remedy="Write the weights in the type that is asked for, or mend the assertion.",
    ),
    Rule(
        id="expect-values",
        severity="error",
        means="an assertion on values fails",
        why=f"{_ASSERTED} Values that are not finite, or factors that were never trained, look well in every header.",
        remedy="Go back to an earlier checkpoint, and look at the run's losses.",
        covers="troubleshooting: NaN loss",
    ),
    Rule(
        id="expect-step",
        severity="error",
        means="an assertion on the trainer's state fails",
        why=f"{_ASSERTED} The run ended early, or an earlier checkpoint was copied.",
        remedy="Use a later checkpoint, or resume the run.",
    ),
)

RULES = (*CHECKPOINT_RULES, *EXPECT_RULES)
