"""JSON files that a person or another program may have touched: one reader, one-line refusals."""

import json
from pathlib import Path

from utils.errors import UserError
from utils.schema import Check, Mismatch, anything, shown

LARGEST_JSON = 512 * 2**20  # bytes


def read_json(path: Path, check: Check = anything, advice: str = "restore or remove it") -> dict:
    """The names and values in a JSON file, as `check` takes them.

    Raises `UserError`, which ends with `advice`, for a file that is missing, damaged or anything
    else than that.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise Mismatch(f"larger than {LARGEST_JSON >> 20} MB")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise Mismatch(f"holds {shown(content)}, not names and values")
        check(content, "")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {advice}") from None
    except Mismatch as error:
        raise UserError(f"{path}: {error}; {advice}") from None
    except RecursionError:
        raise UserError(f"{path}: not JSON that is read (nested too deeply); {advice}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({one_line(error)}); {advice}") from None
    return content


def one_line(error: Exception) -> str:
    """The first line of an error's text, clipped: it may quote the file."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
