"""What findings on the targets of `vltool check` mean, as long as they cannot be read at all."""

from __future__ import annotations

from vltool.audit.finding import Rule

RULES: tuple[Rule, ...] = (
    Rule(
        id="recipe-invalid",
        severity="error",
        means="a recipe does not say what a run needs, or contradicts itself",
        why="`vltool train` refuses it at once, with the same words and exit code 2. Nothing that the recipe names was "
        "judged, because it is not certain what it names.",
        remedy="Mend the line that is shown. `vltool render-config RECIPE` prints each key with the file and line that "
        "it came from, and `vltool render-config --schema` is a JSON Schema for editors.",
        covers="FAQ: ValueError: self.dataset: [], self.cached_dataset: []. Please input the training dataset.",
    ),
    Rule(
        id="recipe-length",
        severity="error",
        means="a recipe sets no length",
        why="Without it ms-swift takes the length of the base model, 262,144 tokens: a step of one long record may "
        "then need more memory than there is, hours after the start.",
        remedy="Write `global_max_length`, as many tokens as your longest record has: `vltool check` says how many "
        "that are. It sets `model.max_model_len` and `template.max_length` alike.",
        covers="health check: `global_max_length` or `template.max_length` set",
    ),
    Rule(
        id="base-path",
        severity="error",
        means="the base model's path is missing, leads nowhere, or to no Qwen3-VL that can be trained",
        why="The base is loaded after the processes have started and have waited for a GPU; and a wrong base that "
        "loads gives an adapter that fits no other model.",
        remedy="Let `model.model` name the folder of a downloaded checkpoint with its `config.json`, tokenizer and "
        "shards: by its path, or by `VLTOOL_MODEL` for the shipped recipes.",
        covers="health check: Correct base model path",
    ),
    Rule(
        id="recipe-note",
        severity="note",
        means="a recipe says something in an old spelling, twice, or to no effect",
        why="The recipe is read as it is meant, so nothing has to be done. What has no effect may have been meant to "
        "have one.",
        remedy="Write it as the note says, or take the line out.",
        covers="FAQ: ValueError: self.dataset: [], self.cached_dataset: []. Please input the training dataset.",
    ),
    Rule(
        id="fusion-invalid",
        severity="error",
        means="a fusion config is malformed, or contradicts itself",
        why="Neither `vltool fuse` nor a recipe that names it in `custom.fusion_config` can read it.",
        remedy="Mend the line that is shown.",
    ),
    Rule(
        id="path-absent",
        severity="error",
        means="a file or folder that was named is not there, or cannot be read by position",
        why="A run that needs it ends before its first step. Compressed records can be fused, but not trained on, as "
        "training reads them in random order.",
        remedy="Mend the path: relative paths begin at the folder of the file that writes them. Unpack compressed "
        "records, or write the mixture out with `vltool fuse`.",
    ),
    Rule(
        id="target-unknown",
        severity="error",
        means="a target is neither a recipe, a fusion config, a .jsonl of records nor a checkpoint folder",
        why="It was not judged.",
        remedy="Name one of these. Of a run folder, name one of its checkpoints.",
    ),
)
