"""Say in one line what Hydra or OmegaConf found wrong: key, value, what is allowed, what to do."""

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from amc_lightning.errors import UserError
from amc_lightning.schema import CONF_DIR, Config


def refuse_unknown_keys(cfg: DictConfig, schema: type = Config, prefix: str = "") -> None:
    """Refuse keys that ``+key=value`` added where the schema is closed: nothing would ever read them."""
    hints = get_type_hints(schema)
    for name in cfg:
        key = f"{prefix}{name!s}"
        if name not in hints:
            raise _no_such_key(key, OmegaConf.select(cfg, str(name)))
        if is_dataclass(hints[name]) and isinstance(hints[name], type) and not OmegaConf.is_missing(cfg, name):
            refuse_unknown_keys(cfg[name], hints[name], f"{key}.")


def explain(error: HydraException | OmegaConfBaseException, overrides: Sequence[str]) -> str:
    """Say in one line what Hydra or OmegaConf found wrong: key, value, what is allowed, what to do.

    Args:
        error: what composing the configuration raised.
        overrides: the command line, to find the value that was given.
    """
    text = str(error) + "\n" + str(error.__cause__ or "")
    given = {key.lstrip("+~"): value for key, _, value in (item.partition("=") for item in overrides)}
    if match := re.search(r"Could not find '([\w./-]+)/([\w.-]+)'", text):
        group, choice = match.groups()
        options = sorted(re.findall(r"^\t([\w.-]+)$", text, flags=re.M)) or _choices(group)
        return str(_unknown(group, choice, options, f"Add conf/{group}/{choice}.yaml to define it."))
    if isinstance(error, OverrideParseException):
        return str(
            UserError(
                "command line",
                error.override,
                "cannot be read as key=value",
                f"({lines(text)[0]})",
                "Quote lists for the shell: 'cascade.order=[pgm,fgsm]'.",
            )
        )
    if match := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", text):
        return _explain_refused(error, text, match.group(1), given)
    if (match := re.search(r"full_key: (\S+)", text)) and "Value" in text:
        key = match.group(1)
        problem = next(
            line
            for line in text.splitlines()
            if line.strip().startswith(("Value", "Error merging")) and "override" not in line
        )
        wanted = re.search(r"(?:converted to|of type:?) '?([\w.\[\], |]+)'?$", problem)
        allowed = f"needed: {wanted.group(1)}" if wanted else "needed: another type"
        return str(UserError(key, given.get(key), "has the wrong type", allowed, f"Change {key}."))
    if match := re.search(r"Key '(\w+)' (?:is )?not in '?\w+'?\s+full_key: (\S+)", text):
        key = match.group(2)
        close = difflib.get_close_matches(key, all_keys(), n=1, cutoff=0.6)
        hint = f"Did you mean {close[0]}?" if close else "Remove it, or see --cfg job for the keys there are."
        return f"{key}: no such key. {hint}"
    if "Missing mandatory value" in text and (match := re.search(r"full_key: (\S+)", text)):
        return f"{match.group(1)}: has no value yet. Set it on the command line: {match.group(1)}=..."
    return " ".join(lines(text))


def secret_among(overrides: Sequence[str]) -> str | None:
    """Say so if a key or password stands on the command line: Hydra would write it into the run folder.

    The value is not repeated.

    Args:
        overrides: the command line.
    """
    for item in overrides:
        key, given, _ = item.lstrip("+~").partition("=")
        if given and re.search(r"(?i)(^|[._])(api_?key|password|passwd|secret|credentials?|(access|auth)_token)$", key):
            return (
                f"{key}: a key or password on the command line would be written to the run folder; allowed: none. "
                "Run wandb login, or set WANDB_API_KEY in the environment."
            )
    return None


def _explain_refused(error: Exception, text: str, key: str, given: Mapping[str, str]) -> str:
    """Say why Hydra would not override, append or delete a key."""
    value = given.get(key)
    if "Could not delete" in text:
        return f"{key}: cannot be removed, as there is no such key. See --cfg job for every key."
    if "already at" in text:
        problem, do = "is added by +, but this key is there already", f"Write {shlex.quote(f'{key}={value}')}."
        return str(UserError(key, value, problem, "needed: no +", do))
    if "@" in key:
        known = re.search(r"Did you mean to override (?:one of )?(.+)\?", text)
        allowed = f"known: {known.group(1) if known else 'none'}"
        do = f"{shlex.quote(f'+{key}={value}')} adds it."
        return str(UserError(key, value, "is set, but nothing is composed there", allowed, do))
    missing = re.search(r"full_key: (\S+)", text)
    parent = getattr(error.__cause__, "parent_node", None)  # of OmegaConf's errors: where the key was looked for
    return str(_no_such_key(key, value, missing=missing.group(1) if missing else key, parent=parent))


def lines(text: str) -> list[str]:
    """Return the lines of a message that say something, each once."""
    return list(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip() not in ("", "None")))


def all_keys(*, top_only: bool = False) -> list[str]:
    """Return every key of the schema, dotted, and every configuration group."""
    groups = [path.name for path in sorted(CONF_DIR.iterdir()) if path.is_dir()]
    if top_only:
        return sorted({item.name for item in fields(Config)} | set(groups))
    return sorted({*_walk(Config, ""), *groups})


def _walk(node: type, prefix: str) -> list[str]:
    keys = []
    for name, hint in get_type_hints(node).items():
        keys.append(prefix + name)
        if is_dataclass(hint) and isinstance(hint, type):
            keys += _walk(hint, f"{prefix}{name}.")
    return keys


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def _unknown(group: str, choice: str, options: Sequence[str], otherwise: str) -> UserError:
    close = difflib.get_close_matches(choice, options, n=1)
    hint = f"Did you mean {group}={close[0]}? {otherwise}" if close else otherwise
    return UserError(group, choice, "is not a known choice", f"known: {', '.join(options)}", hint)


def _no_such_key(key: str, value: object, *, missing: str | None = None, parent: object = None) -> UserError:
    """Refuse a key.

    Args:
        key: what was set.
        value: what it was set to.
        missing: the first part of ``key`` that there is not; ``key`` itself if left out.
        parent: the node above ``missing``; ``+`` can add to it if the schema leaves its keys open.
    """
    missing = missing or key
    problem = "is set, but there is no " + ("such key" if missing == key else missing)
    above, _, name = missing.rpartition(".")
    if isinstance(parent, DictConfig) and not is_dataclass(OmegaConf.get_type(parent)):
        there = [str(sibling) for sibling in parent]
        close = difflib.get_close_matches(name, there, n=1, cutoff=0.6)
        add = f"{shlex.quote(f'+{key}={value}')} adds it."
        hint = f"Did you mean {above}.{close[0]}? Otherwise {add}" if close else add
        return UserError(key, value, problem, f"known there: {', '.join(there) or 'none'}", hint)
    known = all_keys()
    close = difflib.get_close_matches(missing, known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]}?" if close else "See --cfg job for every key."
    siblings = [other for other in known if other.rpartition(".")[0] == above] if above else []
    listed = ", ".join(siblings or all_keys(top_only=True))
    return UserError(key, value, problem, f"known: {listed}", hint)
