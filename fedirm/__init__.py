"""What `pip install` gives: the command `fedirm`, and the program's modules out of others' way.

The modules keep their plain names (`utils`, `test`, ...): installed, they lie below this package,
in `fedirm/house/`, and can be imported only once `fedirm.house_on_path()` has put that folder on
the path. In a checkout, and in an editable install, that folder is the checkout itself.
"""

import sys
from pathlib import Path


def house() -> Path:
    """The folder that train_main.py lies in."""
    here = Path(__file__).resolve().parent
    return here / "house" if (here / "house").is_dir() else here.parent


def house_on_path() -> Path:
    """Put the program's folder before all others on the path; that folder."""
    if (folder := str(house())) not in sys.path:
        sys.path.insert(0, folder)
    return house()


def load(path, *arguments, **named):
    """`predict.load`: the trained network of a run's folder or a checkpoint, ready to predict."""
    house_on_path()
    from predict import load as load_model

    return load_model(path, *arguments, **named)
