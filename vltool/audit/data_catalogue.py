"""What findings on records and their mixtures mean."""

from __future__ import annotations

from vltool.audit.finding import Rule

_MEND = (
    "Mend the record, or the program that wrote it. With `data.on_bad_record: skip` training leaves it out, and counts "
    "it; the finding is then a warning."
)

RULES: tuple[Rule, ...] = (
    Rule(
        id="record-json",
        severity="error",
        means="a line is not one JSON object in UTF-8",
        why="Training cannot read the record. A file that was cut off while it was written ends in such a line; a key "
        "that stands twice would lose one of its values without a word.",
        remedy=f"Write one object a line, with `json.dumps(record, ensure_ascii=False)` say. {_MEND}",
    ),
    Rule(
        id="record-field",
        severity="error",
        means="a field is unknown, missing, of the wrong type, or contradicts another",
        why="A misspelt field is a field that training does not see. An image under a wrong key, such as "
        '`{"type": "image", "url": …}`, would be left out of the conversation: the model then learns to describe '
        "pictures that it was not shown, and vision tower and aligner get no gradient.",
        remedy='Name fields as the README does; an item of a message is `{"type": "image", "image": PATH}`. ' + _MEND,
        covers="troubleshooting: Zero gradients for vision/aligner",
        source="https://github.com/modelscope/ms-swift/blob/main/swift/llm/template/template_inputs.py",
    ),
    Rule(
        id="record-size",
        severity="error",
        means="width or height is missing, impossible, or not the image's",
        why="Coordinates are put on the model's grid by the declared size. If it is not that of the image as it is "
        "shown, after its EXIF orientation, every box of the record is learnt at a wrong place.",
        remedy="Take width and height from the image after `ImageOps.exif_transpose`, and see whether the geometry was "
        f"drawn on that. {_MEND}",
    ),
    Rule(
        id="record-geometry",
        severity="error",
        means="a box, polygon or polyline is malformed, leaves the image, or is not exactly one",
        why="Clamped to the image's border it would teach the model places at which there is nothing; of two "
        "geometries of one object, one would have to be dropped silently.",
        remedy=f"Give each object one of `bbox_2d`, `poly` and `line`, in pixels of the image as it is shown. {_MEND}",
    ),
    Rule(
        id="record-text",
        severity="error",
        means="a text is empty, or holds what the model's template takes for an instruction",
        why="A literal `<|image_pad|>` counts as the place of an image, so that placeholders and images no longer "
        "agree; `<|im_end|>` ends the turn in the middle of the answer.",
        remedy=f"Take the token out of the text: the template places images by itself. {_MEND}",
        covers="health check: Image placeholders match image count in user messages",
    ),
    Rule(
        id="record-image",
        severity="error",
        means="an image is missing, damaged, too large, too thin, or none",
        why="The run would stop at this record, in the middle of an epoch. An image longer than 200 times its width is "
        "refused by the model's processor.",
        remedy="Copy the image again, or mend its path: it begins at the folder of the .jsonl, or at `ROOT_IMAGE_DIR` "
        f"where that is set. {_MEND}",
        covers="health check: Vision tokens present (`pixel_values`, `image_grid_thw`)",
    ),
    Rule(
        id="record-answer",
        severity="error",
        means="a record has nothing of what the recipe trains on",
        why="Without an answer there is no token to learn from: a record without `summary` under `custom.use_summary`, "
        "say.",
        remedy="Add what is missing, or choose with `custom.use_summary` what the records do have. " + _MEND,
    ),
    Rule(
        id="record-length",
        severity="error",
        means="a record has more tokens than the length knob allows",
        why="Cut off, its answer would end in the middle of a JSON text, and the model would learn to end so. vltool "
        "never cuts a record, and stops instead.",
        remedy="Raise `global_max_length`, lower `template.max_pixels`, or split the record. The memory plan of "
        f"`vltool check` says what a longer step costs. {_MEND}",
        covers="troubleshooting: OOM",
    ),
    Rule(
        id="records-none",
        severity="error",
        means="a file holds no record",
        why="There is nothing to train on, or to evaluate with.",
        remedy="See whether the program that writes the file came to its end.",
    ),
    Rule(
        id="records-unlisted",
        severity="error",
        means="a file has more problems than are listed",
        why="A mistake in the program that writes records is in all of them; the first thousand problems show what it "
        "is.",
        remedy="Mend those that are listed, and check again.",
    ),
    Rule(
        id="records-unusable",
        severity="error",
        means="not one record of a file can be used",
        why="Even where bad records are left out, nothing would remain.",
        remedy="Mend the records; most often all of them have the same problem.",
    ),
    Rule(
        id="fusion-records",
        severity="error",
        means="the targets of a mixture, or a source, have no record that can be used, or all have too many",
        why="A ratio is counted from the records of the targets, and drawn from those of the source: without either "
        "there is no mixture.",
        remedy="Mend the records of that dataset, or take it out of the fusion config.",
    ),
    Rule(
        id="fusion-ratio",
        severity="warning",
        means="a source's ratio rounds to no record at all",
        why="The source is in the config and not in the training.",
        remedy="Raise its ratio, or take it out.",
    ),
    Rule(
        id="fusion-note",
        severity="note",
        means="a fusion config has a key without effect",
        why="It may have been meant to have one.",
        remedy="Take the line out.",
    ),
)
