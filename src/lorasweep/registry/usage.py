"""The code in a README that loads an exported model with transformers and PEFT alone and asks it something.

It asks as the trial was asked: a causal model by its prompt, its classes by the likelihoods of their responses, an
extractive one by windows. Neighbours: `registry.export` and `registry.trial` (write the README), `registry.card`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorasweep.models.base import LOADERS

if TYPE_CHECKING:
    from lorasweep.registry.card import Facts

PACKED_BASE = "base"  # the folder of a base that goes along
PIPELINES = {  # of the hub
    "classification": "text-classification",
    "causal_lm": "text-generation",
    "question_answering": "question-answering",
}


def snippet(facts: Facts, kind: str, place: str, settings: dict[str, Any]) -> str:
    """Python that loads an exported model from `place` with transformers and peft alone and answers a text. Of
    `settings`: base_model, base_revision, own_dtype, trust_remote_code."""
    trusted = ", trust_remote_code=True" if settings.get("trust_remote_code") else ""
    lines = _load(facts, kind, place, settings, trusted)
    lines += [f"tokenizer = AutoTokenizer.from_pretrained({place!r}{trusted})"]
    if facts.head == "question_answering":
        lines += _extract(facts)
    elif facts.head == "causal_lm":
        lines += _score(facts.asking) if facts.asking["predict"] == "score" else _generate(facts.asking)
    else:
        lines += _classify(facts)
    return "\n".join([*lines, ""])


def _load(facts: Facts, kind: str, place: str, settings: dict[str, Any], trusted: str) -> list[str]:
    loader = LOADERS[facts.head]
    imports = [f"from transformers import {loader}, AutoTokenizer", ""]
    torch = [] if facts.head == "classification" else ["import torch"]
    if kind == "merged":
        return [*torch, *imports, f"model = {loader}.from_pretrained({place!r}{trusted}).eval()"]
    where = f"folder + '/{PACKED_BASE}'" if facts.base_packed else repr(settings["base_model"])
    revision = f", revision={settings['base_revision']!r}" if settings.get("base_revision") else ""
    lines = [*torch, "from peft import PeftModel", *(_folder(place, imports) if facts.base_packed else imports)]
    if facts.head == "classification":
        lines += [
            f"labels = {facts.labels!r}",
            f"base = {loader}.from_pretrained(",
            f"    {where}{revision}, num_labels={len(facts.labels)}, id2label=dict(enumerate(labels)),",
            "    label2id={label: i for i, label in enumerate(labels)}, ignore_mismatched_sizes=True,",
        ]
    else:
        lines += [f"base = {loader}.from_pretrained(", f"    {where}{revision},"]
    adapted = f"PeftModel.from_pretrained(base, {'folder' if facts.base_packed else repr(place)})"
    # PEFT's wrapper for question answering drops token_type_ids
    adapted += ".get_base_model()" if facts.head == "question_answering" else ""
    return [*lines, f"    dtype={settings['own_dtype'] or 'float32'!r}{trusted},", ")", f"model = {adapted}.eval()"]


def _folder(place: str, imports: list[str]) -> list[str]:
    """Imports, and where the files lie. Not by `subfolder=`: beside an adapter transformers would load the adapter."""
    if "/" not in place:
        return [*imports, f"folder = {place!r}"]
    return ["from huggingface_hub import snapshot_download", *imports, f"folder = snapshot_download({place!r})"]


def _classify(facts: Facts) -> list[str]:
    second = ", ['its second text']" if facts.paired else ""
    length = facts.settings["data"]["max_length"]
    return [
        "model.config.pad_token_id = tokenizer.pad_token_id",
        f"batch = tokenizer(['a text']{second}, truncation=True, max_length={length}, padding=True, "
        "return_tensors='pt')",
        "probabilities = model(**batch).logits.softmax(-1)",
        "answers = [model.config.id2label[int(best)] for best in probabilities.argmax(-1)]",
    ]


def _prompt(asking: dict[str, Any]) -> list[str]:
    """The prompt with its slots filled; its tokens without an end-of-text token that the tokenizer may add."""
    filled = "".join(f".replace('{{{slot}}}', {slot})" for slot in asking["slots"])
    return [
        *[f"{slot} = '{'an' if slot[0] in 'aeiou' else 'a'} {slot}'" for slot in asking["slots"]],
        f"template = {asking['prompt']!r}",
        f"prompt = template{filled}",
        f"shown = tokenizer(prompt)['input_ids']{_open(asking)}",
    ]


def _open(asking: dict[str, Any]) -> str:
    return f"[:-{asking['closed']}]" if asking["closed"] else ""


def _score(asking: dict[str, Any]) -> list[str]:
    end = "" if asking["end"] is None else f" + [{asking['end']}]"
    return [
        *_prompt(asking),
        f"responses = {asking['responses']!r}",
        "likelihoods = []",
        "for response in responses.values():",
        f"    whole = tokenizer(prompt + {asking['lead']!r} + response)['input_ids']{_open(asking)}",
        "    joins = whole[: len(shown)] == shown and len(whole) > len(shown)",
        "    alone = tokenizer(response, add_special_tokens=False)['input_ids']",
        f"    tokens = (whole[len(shown) :] if joins else alone){end}",
        "    with torch.no_grad():",
        "        logits = model(input_ids=torch.tensor([shown + tokens])).logits[0, len(shown) - 1 : -1]",
        "    each = logits.float().log_softmax(-1)[range(len(tokens)), tokens]",
        f"    likelihoods.append(each{'' if asking['score_end'] else '[:-1]'}.{asking['score']}())",
        "probabilities = torch.stack(likelihoods).softmax(0)",
        "answer = list(responses)[int(probabilities.argmax())]",
    ]


def _generate(asking: dict[str, Any]) -> list[str]:
    return [
        *_prompt(asking),
        "ids = torch.tensor([shown])",
        "written = model.generate(",
        f"    input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens={asking['max_new_tokens']}, "
        "do_sample=False,",
        f"    eos_token_id={asking['end_ids']!r}, pad_token_id=tokenizer.pad_token_id,",
        ")",
        "answer = tokenizer.decode(written[0, len(shown) :], skip_special_tokens=True).strip()",
    ]


def _extract(facts: Facts) -> list[str]:
    task, length = facts.settings["task"], facts.settings["data"]["max_length"]
    return [
        "question, context = 'a question', 'its context'",
        "batch = tokenizer(",
        f"    question, context, truncation='only_second', max_length={length}, stride={task['stride']}, padding=True,",
        "    return_overflowing_tokens=True, return_offsets_mapping=True, return_tensors='pt',",
        ")",
        "places = batch.pop('offset_mapping')",
        "del batch['overflow_to_sample_mapping']",
        "in_context = torch.tensor([[part == 1 for part in batch.sequence_ids(i)] for i in range(len(places))])",
        "with torch.no_grad():",
        "    out = model(**batch)",
        "start, end = out.start_logits.float(), out.end_logits.float()",
        "none = (start[:, 0] + end[:, 0]).min()",
        f"spans = (in_context[:, :, None] & in_context[:, None, :]).triu().tril({task['max_answer_tokens'] - 1})",
        "scores = (start[:, :, None] + end[:, None, :]).masked_fill(~spans, float('-inf'))",
        "window, first, last = (int(at) for at in torch.unravel_index(scores.argmax(), scores.shape))",
        "no_answer = float((none - scores.max()).sigmoid())",
        "found = context[places[window, first, 0] : places[window, last, 1]].strip()",
        f"answer = '' if no_answer > {task['no_answer_threshold']} else found",
    ]
