"""What a label is, one file a task; a new task is a file and a line in `TASKS`."""

from local_update import Task
from tasks.classification import Classification
from tasks.segmentation import Segmentation

TASKS: dict[str, Task] = {
    "classification": Classification(),
    "segmentation": Segmentation(),
}
