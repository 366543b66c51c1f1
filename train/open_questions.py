"""`duplex ask`: open questions, answered by a language model itself, so that what a model made from it says is what it knows.

The questions are those that people typed to each other; which of them are for val and test follows from their words alone.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from codec.plain import is_file, one_line, parse_mapping, shown
from duplex.cli import run
from duplex.errors import UserError
from train.bank import writing
from train.corpus import chat_sentences, clean_sentence
from train.precision import has_bfloat16
from train.sources import find_source
from train.world import Exchange

SKILL = "open"
_OPENINGS = re.compile(r"^(what|who|where|when|why|how|do|does|did|can|could|is|are|have|would|should|which)\b", re.IGNORECASE)
# What only makes sense after something that was said before.
_POINTING = re.compile(
    r"\b(it|its|it's|that|that's|this|these|those|they|them|their|he|she|him|his|her|there|one|else|too|either|then|so)\b", re.IGNORECASE
)
_APOLOGY = re.compile(r"\b(sorry|as an? (chatbot|AI|language|assistant|helpful)|confusion|misunderstanding|not sure)\b", re.IGNORECASE)
_MAX_QUESTION_WORDS, _MAX_ANSWER_WORDS, _MAX_NEW_TOKENS = 10, 16, 32
_BATCH = 32
# What it reads before every question: that answers are short and spoken.
_EXAMPLES = [
    ("user", "What is a hammer?"),
    ("assistant", "A hammer is a tool for driving nails."),
    ("user", "Do you like music?"),
    ("assistant", "Yes, I enjoy talking about music."),
]


def open_questions(count: int) -> list[str]:
    """Distinct questions that stand alone, without their question mark.

    Raises:
        UserError: the corpus is not installed, or has fewer.
    """
    known: dict[str, str] = {}
    for text in chat_sentences(10**9, seed=0):
        words = text.rstrip("?").split()
        if text.endswith("?") and 3 <= len(words) <= _MAX_QUESTION_WORDS and _OPENINGS.match(text) and not _POINTING.search(text):
            question = " ".join(words)
            known.setdefault(question.lower(), question[:1].lower() + question[1:])
    if count > len(known):
        raise UserError(f"{count} questions are asked for, and the corpus has {len(known)} that stand alone; ask for fewer")
    return list(known.values())[:count]


def question_split(question: str) -> str:
    """The split that a question belongs to: eight of ten are for train."""
    place = zlib.crc32(question.lower().encode()) % 10
    return "train" if place < 8 else ("val" if place == 8 else "test")


def spoken_answer(text: str) -> str | None:
    """The first sentence of what a language model wrote, where it can be said and is no apology; else None."""
    first = re.split(r"(?<=[.!?])\s", text.strip(), maxsplit=1)[0]
    return clean_sentence(first, _MAX_ANSWER_WORDS) if first.endswith((".", "!")) and not _APOLOGY.search(first) else None


def write_answers(source: str, questions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Let a language model answer questions, greedily; those whose answer cannot be said are left out.

    Args:
        source: As in `train.language_model.read_language_model`; its tokenizer has to have a chat template.

    Raises:
        UserError: there is no such model, or it cannot chat.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = find_source(source, ("config.json", "*.safetensors", "tokenizer*", "special_tokens_map.json"))
    ggufs = sorted(folder.glob("*.gguf"))
    named = {"gguf_file": ggufs[0].name} if ggufs else {}
    dtype = torch.bfloat16 if has_bfloat16("cpu") else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, padding_side="left", **named)
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=dtype, **named).eval()
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"{source} is no language model that transformers can run ({one_line(error)}); give another") from error
    if not tokenizer.chat_template:
        raise UserError(f"{source} has no chat template, so it was not taught to answer; give an instruction-tuned model")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    for begin in range(0, len(questions), _BATCH):
        asked = questions[begin : begin + _BATCH]
        chats = [[*_EXAMPLES, ("user", f"{question[:1].upper()}{question[1:]}?")] for question in asked]
        messages = [[{"role": role, "content": text} for role, text in chat] for chat in chats]
        prompts = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in messages]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.inference_mode():
            out = model.generate(**inputs, max_new_tokens=_MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id)
        written = tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for question, text in zip(asked, written, strict=True):
            answer = spoken_answer(text)
            if answer:
                yield question, answer


def read_answers(path: str | Path, split: str) -> list[Exchange]:
    """Open questions of a split, from a file that `duplex ask` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    if not is_file(path):
        raise UserError(f"there is no file {path} of open questions; make it with `duplex ask SOURCE {path}`")
    return [Exchange(SKILL, question, answer) for question, answer in _read_pairs(path) if question_split(question) == split]


def _read_pairs(path: str | Path) -> list[tuple[str, str]]:
    try:
        return [_pair(parse_mapping(line)) for line in Path(path).read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no open questions ({one_line(error)}); make it again with `duplex ask SOURCE {path}`") from error


def _drop_cut_line(path: Path) -> None:
    """Take away the last line where it was not written whole."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        with path.open("r+b") as handle:
            handle.truncate(data.rfind(b"\n") + 1)


def _pair(line: dict) -> tuple[str, str]:
    question, answer = line.get("question"), line.get("answer")
    if not (isinstance(question, str) and isinstance(answer, str) and question.strip() and answer.strip()):
        raise ValueError(f"a line has the question {shown(question)} and the answer {shown(answer)}")
    return question, answer


def main(argv: list[str] | None = None) -> None:
    """Ask what has not been asked yet, and add it to the file.

    Raises:
        UserError: a number out of range, no such model, or a file that holds something else.
    """
    parser = argparse.ArgumentParser(prog="duplex ask", description="Let a language model answer open questions, for `duplex synth`.")
    parser.add_argument("source", help="an instruction-tuned language model: a folder, `package:NAME`, or OWNER/NAME on the hub")
    parser.add_argument("file", type=Path, help="JSON lines of questions and answers; what it holds already is kept")
    parser.add_argument("--questions", type=int, default=4000, help="how many questions are asked (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.questions < 1:
        raise UserError(f"--questions {args.questions} is too few; give 1 or more")
    asked, known = open_questions(args.questions), set[str]()
    if is_file(args.file):
        with writing(args.file):
            _drop_cut_line(args.file)
        known = {question for question, _ in _read_pairs(args.file)}
    begin = max((i + 1 for i, question in enumerate(asked) if question in known), default=0)
    count = len(known)
    with writing(args.file):
        args.file.parent.mkdir(parents=True, exist_ok=True)
        with args.file.open("a") as out:
            for question, answer in write_answers(args.source, asked[begin:]):
                out.write(json.dumps({"question": question, "answer": answer}) + "\n")
                out.flush()
                count += 1
                print(f"\r{count} answers", end="", flush=True)
    print(f"\r{args.file}: {count} answers to {args.questions} questions")


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
