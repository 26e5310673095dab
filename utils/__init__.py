"""Formulas, logs, checkpoints, tables and figures."""

import logging
import os

# A home that cannot be written to is no news to whoever asked for a number.
logging.getLogger("matplotlib").setLevel(logging.ERROR)

if "MPLBACKEND" in os.environ:
    # Figures are files here and need no backend, but Matplotlib refuses to be imported under the
    # name of one that it does not know.
    _backend = os.environ.pop("MPLBACKEND")
    import matplotlib

    try:
        matplotlib.rcParams["backend"] = _backend
        os.environ["MPLBACKEND"] = _backend
    except ValueError:
        pass
