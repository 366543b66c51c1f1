"""Plain data of files that anybody may have written: YAML and JSON, and how to quote them in a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

MAX_YAML_CHARS = 1 << 19
MAX_YAML_NODES = 50_000  # an alias counts as all that it stands for
MAX_JSON_NODES = 2_000_000
_SHOWN = 120


def parse_yaml(text: str | bytes) -> Any:
    """What a YAML text stands for.

    Raises:
        ValueError: it is no YAML of plain data, is nested too deeply, or stands for too much; the message is one line.
    """
    if len(text) > MAX_YAML_CHARS:
        raise ValueError(f"it has {len(text)} characters where {MAX_YAML_CHARS} are allowed")
    try:
        data = yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:  # of scalars, many kinds
        raise ValueError(f"it is not YAML of plain data: {one_line(error)}") from error
    _check(data, MAX_YAML_NODES)
    return data


def parse_json(text: str | bytes) -> Any:
    """What a JSON text stands for.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or stands for too much; the message is one line.
    """
    try:
        data = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not JSON: {one_line(error)}") from error
    _check(data, MAX_JSON_NODES)
    return data


def parse_mapping(text: str | bytes) -> dict:
    """What a JSON text stands for, where that is a mapping.

    Raises:
        ValueError: as `parse_json`, or it stands for something else.
    """
    data = parse_json(text)
    if not isinstance(data, dict):
        raise ValueError(f"it holds {shown(data)}, which is no mapping")
    return data


def _check(data: Any, max_nodes: int) -> None:
    waiting, count = [data], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > max_nodes:
            raise ValueError(f"it stands for more than {max_nodes} values")
        if isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list | tuple | set):
            waiting += node
        elif isinstance(node, int):
            if not -(2**63) <= node < 2**64:
                raise ValueError("it holds a whole number of more than 64 bits")
        elif isinstance(node, str) and ("\0" in node or not _is_text(node)):
            raise ValueError("it holds a text with a character that no text has (a null or half a surrogate pair)")


def _is_text(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def is_file(path: str | Path) -> bool:
    """Whether there is a file of this name; no where no file can have it, as it is too long for one or holds a null."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def shown(value: object) -> str:
    """A value as a sentence quotes it: on one line, and cut where it is long."""
    return one_line(repr(value), _SHOWN)


def one_line(value: object, limit: int = 300) -> str:
    """The text of a value on one line, cut after `limit` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[:limit] + " ..."
