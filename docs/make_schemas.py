"""Write the JSON schemas of the control messages: python docs/make_schemas.py (a test checks that they are current)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaptsplit.device_bridge.control import SCHEMAS as CONTENTS
from adaptsplit.device_bridge.control import Envelope

SCHEMAS = Path(__file__).resolve().parents[1] / "device_bridge" / "schemas"


DIALECT = "https://json-schema.org/draft/2020-12/schema"


def whole(name: str) -> dict[str, Any]:
    """Return the schema of a whole message: the envelope with this name and this kind of data."""
    envelope = Envelope.model_json_schema(by_alias=True)
    content = CONTENTS[name].model_json_schema(ref_template="#/$defs/{model}")
    inner = content.pop("$defs", {})
    envelope["properties"] |= {"schema": {"const": name}, "data": {"$ref": "#/$defs/Data"}}
    head = {"$schema": DIALECT, "$id": f"urn:{name.replace('.', ':').replace('/', ':')}", "title": name}
    return envelope | head | {"description": content.get("description", ""), "$defs": {"Data": content, **inner}}


def documents() -> dict[str, str]:
    """Return the text of each file by its name: ``adaptsplit.state/1`` stands in ``state-1.json``."""
    named = {name.removeprefix("adaptsplit.").replace("/", "-"): whole(name) for name in CONTENTS}
    return {f"{name}.json": json.dumps(value, indent=1, sort_keys=True) + "\n" for name, value in named.items()}


if __name__ == "__main__":
    SCHEMAS.mkdir(exist_ok=True)
    for old in SCHEMAS.glob("*.json"):
        if old.name not in documents():
            old.unlink()
    for name, text in documents().items():
        (SCHEMAS / name).write_text(text, encoding="utf-8")
