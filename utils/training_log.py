"""What a training run leaves to be looked at: log.csv, curves.png, TensorBoard's events."""

import csv
import importlib.util
from pathlib import Path

from utils.cli import say
from utils.files import atomic_write


class TrainingLog:
    """A line per epoch in ``folder/log.csv``, drawn in ``folder/curves.png``.

    TensorBoard's events go to ``folder/tensorboard`` where the package ``tensorboard`` is
    installed. Curves need matplotlib.

    Args:
        folder: of the run; made at the first line.
        epochs: how many are kept of the log of the run that is resumed: those in its checkpoint.
            The lines after them are of work that was not saved.

    Raises:
        ValueError: their log is not as it was written.
    """

    def __init__(self, folder: Path, epochs: int = 0) -> None:
        self.path = folder / "log.csv"
        self.rows: list[dict[str, str]] = []
        if epochs and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                table = csv.DictReader(file)
                if "epoch" not in (table.fieldnames or ()):
                    raise ValueError(f"{self.path}: not as it was written; move it away to go on")
                try:
                    self.rows = [row for row in table if int(row["epoch"]) <= epochs]
                except (TypeError, ValueError) as error:
                    raise ValueError(
                        f"{self.path}: not as it was written ({error}); move it away to go on"
                    ) from error
        self.events = None
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(folder / "tensorboard", purge_step=epochs + 1)

    def add(self, row: dict[str, float]) -> None:
        """Adds an epoch and writes both files anew, complete or not at all.

        A file that another program keeps open (Windows) is written with the next epoch.
        """
        self.rows.append({name: str(value) for name, value in row.items()})
        try:
            self._write()
        except PermissionError as error:
            say(f"{error}: this epoch is added with the next one")
        if self.events is not None:
            for name, value in row.items():
                self.events.add_scalar(name, value, row["epoch"])
            self.events.flush()

    def _write(self) -> None:
        names = column_names(self.rows)
        with atomic_write(self.path, "w") as file:
            writer = csv.DictWriter(file, names, restval="nan", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        if importlib.util.find_spec("matplotlib"):
            draw_curves(self.rows, self.path.with_name("curves.png"))


def column_names(rows: list[dict[str, str]]) -> list[str]:
    """Of all epochs: one of skipped steps has no losses, and a resumed run may have others."""
    return list(dict.fromkeys(name for row in rows for name in row))


def draw_curves(rows: list[dict[str, str]], path: Path) -> None:
    """Loss terms, validation error and learning rate over the epochs, as one PNG."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window system

    def column(name: str) -> list[float]:
        return [float(row.get(name, "nan")) for row in rows]

    means = ("original", "reannotated", "original_refined", "reannotated_refined")
    epochs = column("epoch")
    names = column_names(rows)
    panels = [
        ("training loss", [n for n in names if n.startswith("loss")], "log"),
        (
            "validation NME, % of the face's box",
            # of the benchmark's scores the means; the yaw bins are in log.csv
            [n for n in names if n.startswith("nme") or n.endswith(means)],
            "log",
        ),
        (
            "validation pose error, degrees",
            [n for n in names if n.startswith(("pose", "aflw_pose"))],
            "linear",
        ),
        ("learning rate", ["lr"], "linear"),
    ]
    figure = Figure(figsize=(12, 7), layout="constrained")
    for axes, (title, lines, scale) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for name in lines:
            axes.plot(epochs, column(name), marker=".", label=name)
        axes.set(title=title, xlabel="epoch", yscale=scale)
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
