"""The options of transformers' tokenizers that mean here what they say, and why no others do.

All others are refused: an option that changes nothing would pass for one that works.
"""

from __future__ import annotations

from typing import Any

NO = (None, False)
Table = dict[str, tuple[tuple[Any, ...], str]]  # name -> values that are taken, why no others
CALL: Table = {
    "text_pair": ((None,), "a sequence is one text; join the two"),
    "text_target": ((None,), "labels are no text; tokenizer.collator() makes those of predictions"),
    "text_pair_target": ((None,), "a sequence is one text"),
    "add_special_tokens": ((None, True), "a sequence always starts with its document's row"),
    "padding": ((None, True, "longest"), "several texts are always padded to the longest of them"),
    "truncation": (
        (None, True, "longest_first", "only_first", *NO, "do_not_truncate"),
        "there is one text, which is cut at its end",
    ),
    "stride": ((None, 0), "what is cut off is lost; cut long texts before"),
    "is_split_into_words": (NO, "the tokenizer cuts; give whole texts"),
    "pad_to_multiple_of": ((None,), "texts are padded to the longest of them"),
    "padding_side": ((None, "right"), "padding is always at the end"),
    "return_tensors": ((None, "pt"), "the outcome is always tensors of torch"),
    "return_token_type_ids": (NO, "a sequence is one text"),
    "return_attention_mask": ((None, True), "it is always returned"),
    "return_overflowing_tokens": (NO, "what is cut off is lost; cut long texts before"),
    "return_special_tokens_mask": (NO, "get_special_tokens_mask(input_ids) gives it"),
    "return_offsets_mapping": (NO, "rows joined are the text, byte by byte: rows(text) gives them"),
    "return_length": (NO, "attention_mask.sum(1) gives it"),
    "verbose": ((None, True, False), ""),
}
DECODE: Table = {
    "skip_special_tokens": ((None, True), "bytes that are no text have no characters"),
    "clean_up_tokenization_spaces": (NO, "the text comes out as it went in"),
}
LOAD: Table = {
    "padding_side": ((None, "right"), "padding is always at the end"),
    "truncation_side": ((None, "right"), "texts are always cut at their end"),
    **dict.fromkeys(
        ("n", "v", "segmenter", "input", "alone", "model_max_length", "do_lower_case"),
        ((None,), "it belongs to the model and is not changed at loading"),
    ),
}
SAVE: Table = {
    "push_to_hub": (NO, "save it, and upload the folder"),
    "filename_prefix": ((None,), "the file has one name"),
}
PAD_CALL = {name: CALL[name] for name in CALL if "pad" in name or "return_" in name} | {
    "max_length": ((None,), "texts are padded to the longest of them"),
    "verbose": CALL["verbose"],
}


def check_options(call: str, options: dict[str, Any], table: Table, all_known: bool = True) -> None:
    """Raise ValueError on an option that means nothing here, or, if `all_known`, is in no table."""
    for name, given in options.items():
        value = getattr(given, "value", given)  # transformers has enumerations for some
        if name not in table:
            if all_known:
                raise ValueError(f"tokenizer {call}: there is no {name} here; leave it out")
            continue
        fitting, why = table[name]
        if not any(type(value) is type(one) and value == one for one in fitting):
            raise ValueError(f"tokenizer {call}: {name}={value!r}: {why}; leave it out")
