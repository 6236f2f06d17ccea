"""What a benchmark run leaves to be read: tables as text and HTML, plots, the worst faces.

A *run* is the content of ``results.json``: ``settings``, ``labels`` (fingerprints), ``missing``,
``scores`` (of ``utils.evaluation.score``; ``boxes`` added where asked for), ``names`` and
``samples``.
"""

import base64
import csv
import html
import importlib.util
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils import metrics
from utils.aflw2000 import BenchmarkSet
from utils.draw import draw_landmarks, printable
from utils.evaluation import ANGLES, BINS, PUBLISHED_LABELS, Prediction
from utils.files import atomic_write
from utils.photo_numbers import no_formula
from utils.photos import result_names
from utils.pictures import write_image

PICTURES = 50  # crops drawn, as published
WORST = 20
PICTURE = 240  # pixels, side of the worst faces' pictures
LABEL_NAMES = {"original": "original labels", "reannotated": "re-annotated labels"}
DEGREES = tuple(f"{low}-{high}°" for low, high in metrics.YAW_BINS)

NO_PLOTS = "matplotlib is not installed (pip install matplotlib): no plots"
OTHER_FACES = (
    "This run's faces or labels are not those of AFLW2000-3D as published: the rows of this run "
    "and the others cannot be compared."
)

# Published results on AFLW2000-3D: the SynergyNet paper (3DV 2021, arXiv 2110.09772) and its
# repository's tables, where nothing else is said. NaN: not reported.
PAPER = "SynergyNet paper"
PUBLISHED_NME = (  # by |yaw| bin, mean of the bins; percent, original labels
    ("ESR", 4.60, 6.70, 12.67, 7.99, PAPER),
    ("3DDFA (2016)", 3.43, 4.24, 7.17, 4.94, PAPER),
    ("Dense Corr", 3.62, 6.06, 9.56, 6.41, PAPER),
    ("3DSTN", 3.15, 4.33, 5.98, 4.49, PAPER),
    ("3D-FAN", 3.16, 3.53, 4.60, 3.76, PAPER),
    ("3DDFA (PAMI 2017)", 2.84, 3.57, 4.96, 3.79, PAPER),
    ("PRNet", 2.75, 3.51, 4.61, 3.62, PAPER),
    ("2DASL", 2.75, 3.46, 4.45, 3.55, PAPER),
    ("3DDFA_V2 (MR)", 2.75, 3.49, 4.53, 3.59, PAPER),
    ("3DDFA_V2 (MRS)", 2.63, 3.42, 4.48, 3.51, PAPER),
    ("3DDFA_V2, released weights", math.nan, math.nan, math.nan, 3.585, "run by its users"),
    ("SADRNet", math.nan, math.nan, math.nan, 3.46, "its paper"),
    ("SynergyNet", 2.65, 3.30, 4.27, 3.41, PAPER),
    ("SynergyNet, released weights", 2.656, 3.316, 4.268, 3.413, "run by a third party"),
)
PUBLISHED_POSE = (  # mean absolute error of yaw, pitch, roll and their mean; degrees
    ("FAN (12 points)", 6.36, 12.30, 8.71, 9.12, PAPER),
    ("HopeNet", 6.47, 6.56, 5.44, 6.16, PAPER),
    ("SSR-Net-MD", 5.14, 7.09, 5.89, 6.01, f"{PAPER}; its angles average 6.04"),
    ("FSA-Net", 4.50, 6.08, 4.64, 5.07, PAPER),
    ("QuatNet", 3.97, 5.62, 3.92, 4.50, "average of its angles; the paper prints 4.15"),
    ("TriNet", 4.20, 5.77, 4.04, 4.67, "average of its angles; the paper prints 3.97"),
    ("RankPose", 2.99, 4.75, 3.25, 3.66, PAPER),
    ("3DDFA (PAMI 2017)", 4.33, 5.98, 4.30, 4.87, PAPER),
    ("2DASL", 3.85, 5.06, 3.50, 4.13, PAPER),
    ("3DDFA_V2", 4.06, 5.26, 3.48, 4.27, PAPER),
    ("6DRepNet", math.nan, math.nan, math.nan, 3.97, "its README"),
    ("DSFNet", math.nan, math.nan, math.nan, 3.25, "its paper, CVPR 2023"),
    ("SynergyNet", 3.42, 4.09, 2.55, 3.35, PAPER),
    ("SynergyNet, second weights", math.nan, math.nan, math.nan, 3.31, "its authors"),
    ("SynergyNet, released weights", 3.566, 4.059, 2.539, 3.388, "run by a third party"),
)

# ------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Table:
    """Rows of a name and cells: numbers are shown with ``digits`` decimals, NaN as a dash."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    digits: int = 2
    note: str = ""

    def cells(self) -> list[list[str]]:
        return [[self._cell(value) for value in row] for row in self.rows]

    def _cell(self, value: str | float) -> str:
        if isinstance(value, str):
            return value
        return "-" if math.isnan(value) else f"{value:.{self.digits}f}"


def published_text(scores: dict) -> str:
    """The protocol's numbers in the form that the published evaluation prints."""
    nme = scores["nme"]["original"]["raw"]
    lines = ["Facial Alignment on AFLW2000-3D (NME):"]
    for (low, high), key in zip(metrics.YAW_BINS, BINS, strict=True):
        lines.append(f"[{low:2d}, {high}]   Mean: {nme[key]:.3f}, Std: {nme[f'std_{key}']:.3f}")
    lines.append(f"[ 0, 90]   Mean: {nme['balanced']:.3f}, Std: {nme['std_balanced']:.3f}")
    if "pose" in scores:
        pose = scores["pose"]["published"]
        each = ", ".join(f"{pose[angle]:.3f}" for angle in ANGLES)
        lines.append("Face orientation estimation:")
        lines.append(f"Mean MAE = {pose['mean']:.3f} (in deg), [yaw,pitch,roll] = [{each}]")
    return "\n".join(lines)


NME_COLUMNS = (*BINS, "balanced", "mean", "median", "failure_rate", "auc")
NME_HEADER = ("", *DEGREES, "bins' mean", "faces' mean", "median", "> 8 %", "AUC 8 %")


def own_tables(scores: dict) -> list[Table]:
    """What the published evaluation leaves out, and what it prints."""
    nme = {
        f"{LABEL_NAMES[labels]}, {name}": numbers
        for labels, found in scores["nme"].items()
        for name, numbers in found.items()
    }
    tables = [
        Table(
            "68 landmarks, NME in % of √(w·h)",
            NME_HEADER,
            _nme_rows(nme),
            note=f"{_faces_in_bins(scores['counts'])} Raw: of the face model; refined: after the "
            "landmark refiner. > 8 %: share of the faces with a larger error. AUC 8 %: area under "
            "the cumulative error curve up to 8 %, of the largest possible.",
        ),
        Table(
            "NME by part of the face, in % of √(w·h) of the whole",
            ("", *metrics.PARTS),
            [(name, *numbers["parts"].values()) for name, numbers in nme.items()],
        ),
    ]
    if "dense" in scores:
        dense = scores["dense"]
        tables.append(
            Table(
                "Dense mesh, NME in % of √(w·h) of the 68 landmarks",
                NME_HEADER,
                _nme_rows({f"{dense['vertices']} vertices": dense["nme"]}),
                note="2D, without alignment. Published dense errors have other norms and points.",
            )
        )
    if "aflw21" in scores:
        aflw21 = scores["aflw21"]
        tables.append(
            Table(
                "AFLW, NME in % of √(w·h) of the visible points",
                NME_HEADER,
                _nme_rows(aflw21["nme"]),
                note=f"{_faces_in_bins(aflw21['counts'])} 19 of AFLW's 21 points: the 68 landmarks "
                "have no ear lobes. Published AFLW errors are divided by AFLW's own face boxes.",
            )
        )
    if "pose" in scores:
        tables.append(_pose_table(scores["pose"]))
    if scores.get("boxes"):
        tables.append(_boxes_table(scores["boxes"]))
    return tables


def _nme_rows(nme: dict[str, dict]) -> list[tuple]:
    return [(name, *(numbers[c] for c in NME_COLUMNS)) for name, numbers in nme.items()]


def _faces_in_bins(counts: dict[str, int]) -> str:
    return f"Faces in the yaw bins: {', '.join(map(str, counts.values()))}."


def _pose_table(pose: dict[str, dict]) -> Table:
    columns = (*ANGLES, "mean", *BINS)
    return Table(
        "Head pose, mean absolute error in degrees",
        ("", *ANGLES, "mean", *DEGREES),
        [(name, *(errors.get(c, math.nan) for c in columns)) for name, errors in pose.items()],
        note="Published: the angle formulas behind the published tables, whose yaw mixes "
        "in pitch and roll. Exact: the angles as the labels mean them (of the two triples "
        "that mean a rotation the one nearer to the label), differences the short way "
        "round. Geodesic: the single turn between both rotations.",
    )


def _boxes_table(scores: dict[str, dict]) -> Table:
    rows = []
    for kind, boxes in scores.items():
        for labels, found in boxes["nme"].items():
            for name, numbers in found.items():
                good = boxes["found"] * (1 - numbers["failure_rate"] / 100)
                rows.append(
                    (
                        f"{kind}, {LABEL_NAMES[labels]}, {name}",
                        *(numbers[column] for column in (*BINS, "balanced")),
                        boxes["nme_supplied"][labels][name]["balanced"],
                        boxes["moved"],
                        boxes["found"],
                        good,
                    )
                )
    return Table(
        "Other boxes, NME in %",
        ("", *DEGREES, "bins' mean", "supplied", "moved", "found", "≤ 8 %"),
        rows,
        note="Crops cut again from the whole pictures. Supplied: bins' mean of the same faces with "
        "the supplied boxes. Moved: mean shift of the raw landmarks, % of √(w·h) of their box. "
        "Found: % of the faces that have such a box; the errors are theirs alone. ≤ 8 %: share "
        "of all faces that are found and have an error up to that.",
    )


def published_tables(run: dict) -> list[Table]:
    """The published results with ours among them, best last."""
    scores, ours = run["scores"], run["settings"]["weights"]
    note = "" if run["settings"]["labels"] == PUBLISHED_LABELS else OTHER_FACES

    def table(what: str, header: Sequence[str], published: tuple, own: Sequence[float]) -> Table:
        rows = [*published, (f"→ {ours}", *own, "this run")]
        # without a mean, because a yaw bin is empty, a row stands first, where the worst one does
        rows.sort(key=lambda row: -row[4] if math.isfinite(row[4]) else -math.inf)
        title = f"Beside published results: {what}"
        return Table(title, ("", *header, "source"), rows, note=note)

    nme = scores["nme"]["original"]["raw"]
    own = [nme[key] for key in (*BINS, "balanced")]
    tables = [table("NME in %, original labels", (*DEGREES, "bins' mean"), PUBLISHED_NME, own)]
    if "pose" in scores:
        header = (*ANGLES, "mean")
        own = [scores["pose"]["published"][key] for key in header]
        what = "head pose, mean absolute error in degrees"
        tables.append(table(what, header, PUBLISHED_POSE, own))
    return tables


def _synergynet(rows: tuple) -> list[float]:
    """The four numbers of the SynergyNet paper itself in a table of published results."""
    return next(list(row[1:5]) for row in rows if row[0] == "SynergyNet")


def comparison_table(compared: dict[str, dict[str, float]], a: str, b: str) -> Table:
    """The result of ``utils.evaluation.compare`` of the runs called ``a`` and ``b``."""
    rows = []
    for name, found in compared.items():
        verdict = "not certain"
        if found["low"] > 0:
            verdict = "A is better"
        elif found["high"] < 0:
            verdict = "B is better"
        numbers = (found[key] for key in ("a", "b", "difference", "low", "high"))
        rows.append((name, *numbers, verdict))
    return Table(
        "Mean of the yaw bins; NME in %, angles in degrees",
        ("", "A", "B", "B - A", "from", "to", ""),
        rows,
        digits=3,
        note=f"A: {a}; B: {b}. From, to: 95 % interval of B - A (paired bootstrap within "
        "the bins); where it holds 0 the difference may be chance.",
    )


def table_text(table: Table) -> str:
    """A table for terminals."""
    rows = [table.header, *table.cells()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [table.title]
    for row in rows:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        lines.append("  ".join(["  " + row[0].ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


# ------------------------------------------------------------------------------------- pictures


def worst(samples: dict[str, np.ndarray]) -> np.ndarray:
    """Indices of the faces with the largest raw error against the original labels, worst first."""
    return np.argsort(-samples["nme_original_raw"], kind="stable")[:WORST]


def worst_picture(data: BenchmarkSet, prediction: Prediction, index: int) -> np.ndarray:
    """(240, 480, 3) uint8: a crop with its label's landmarks on the left, the network's right."""
    crop = cv2.resize(data.crops([index])[0], (PICTURE, PICTURE), interpolation=cv2.INTER_CUBIC)
    first, last = data.roi_boxes[index].reshape(2, 2, 1)  # pixels of the box, label frame
    both = (data.landmarks["original"][index, :2], prediction.landmarks["raw"][index, :2])
    # cropping and resizing lay pixel edges on edges, landmarks are pixel centres
    zoom = PICTURE / (last - first + 1)
    return np.hstack([draw_landmarks(crop.copy(), (p - first + 0.5) * zoom - 0.5) for p in both])


def draw_plots(run: dict) -> bytes:
    """One page of plots as PNG. Needs matplotlib."""
    from matplotlib.figure import Figure  # no pyplot: no global state, no window system

    scores, samples = run["scores"], run["samples"]
    published = run["settings"]["labels"] == PUBLISHED_LABELS  # else nothing to compare with
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    nme = [
        (labels, name, numbers)
        for labels, found in scores["nme"].items()
        for name, numbers in found.items()
    ]

    limits = np.linspace(0, 10, 400)
    curves = [(*key, samples[f"nme_{key[0]}_{key[1]}"]) for *key, _ in nme]
    if "nme_dense" in samples:
        curves.append(("dense", "raw", samples["nme_dense"]))
    for labels, name, errors in curves:
        curve = metrics.cumulative_errors(errors, limits)
        axes[0].plot(limits, curve, label=f"{labels} {name}", **_look(labels, name, "line"))
    axes[0].axvline(metrics.FAILURE, color="grey", lw=0.8)
    axes[0].set(title="cumulative error curve", xlabel="NME, %", ylabel="faces, %", ylim=(0, 101))
    axes[0].set_xlim(0, 10)

    groups = {(k, n): [numbers[key] for key in (*BINS, "balanced")] for k, n, numbers in nme}
    if published:
        groups["SynergyNet", "published"] = _synergynet(PUBLISHED_NME)
    _bars(axes[1], groups, [*DEGREES, "mean"])
    axes[1].set(title="NME by yaw", ylabel="%")

    for low, high in metrics.YAW_BINS[::2]:
        for sign in (-1, 1):
            axes[2].axvspan(sign * low, sign * high, color="grey", alpha=0.08, lw=0)
    axes[2].plot(samples["yaw"], samples["nme_original_raw"], ".", ms=4, alpha=0.5)
    axes[2].set(title="every face (original labels, raw)", xlabel="yaw, degrees", ylabel="NME, %")
    axes[2].set_ylim(bottom=0)

    groups = {(k, n): list(numbers["parts"].values()) for k, n, numbers in nme}
    _bars(axes[3], groups, list(metrics.PARTS))
    axes[3].set(title="NME by part of the face", ylabel="%")

    if "pose" in scores:
        pose = scores["pose"]
        groups = {
            ("pose", k): [pose[k][key] for key in (*ANGLES, "mean")] for k in ("published", "exact")
        }
        if published:
            groups["SynergyNet", "published"] = _synergynet(PUBLISHED_POSE)
        _bars(axes[4], groups, [*ANGLES, "mean"])
        axes[4].set(title="head pose error by angle", ylabel="degrees")
        _bars(axes[5], {("pose", k): [pose[k][key] for key in BINS] for k in pose}, list(DEGREES))
        axes[5].set(title="head pose error by yaw", ylabel="degrees")
    else:
        for empty in axes[4:]:
            empty.text(0.5, 0.5, "no labelled angles", ha="center")
            empty.set_axis_off()
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.set_axisbelow(True)
        if panel.get_legend_handles_labels()[0]:
            panel.legend(fontsize=8, loc="best" if panel is not axes[0] else "lower right")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


# label set or way to read angles -> colour; what is refined is lighter or dashed
COLOURS = {"original": "C0", "reannotated": "C1", "dense": "C2", "SynergyNet": "0.6"}
COLOURS |= {"published": "C0", "exact": "C1", "geodesic": "C2"}


def _look(group: str, name: str, kind: str) -> dict[str, object]:
    look: dict[str, object] = {"color": COLOURS[name if group == "pose" else group]}
    if name == "refined":
        look |= {"linestyle": "--"} if kind == "line" else {"alpha": 0.55}
    return look


def _bars(axes, groups: dict[tuple[str, str], list[float]], names: list[str]) -> None:
    width = 0.8 / len(groups)
    for i, (key, values) in enumerate(groups.items()):
        places = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        label = key[1] if key[0] == "pose" else " ".join(key)
        axes.bar(places, values, width, label=label, **_look(*key, "bar"))
    axes.set_xticks(range(len(names)), names)
    axes.margins(y=0.3)  # room for the legend


# ------------------------------------------------------------------------------------- the page

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.6em } h2 { font-size: 1.15em; margin: 2em 0 .4em }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, .text { text-align: left }
tr.own { background: #fff3c4; font-weight: 600 }
p.note, dl { color: #555; font-size: .9em; max-width: 60em }
dt { float: left; clear: left; width: 9em } dd { margin-left: 9em }
img { max-width: 100% }
figure { display: inline-block; margin: .5em; width: 480px } figcaption { font-size: .85em }
"""


def html_report(run: dict, data: BenchmarkSet, prediction: Prediction, plots: bytes | None) -> str:
    """The whole report as one file that needs no other: tables, plots, the worst faces.

    Args:
        run: see the module.
        plots: of ``draw_plots``; None where matplotlib is missing, which the page says.
    """
    scores, settings = run["scores"], run["settings"]
    tables = [*own_tables(scores), *published_tables(run)]
    parts = [
        "<h1>AFLW2000-3D protocol</h1>",
        f"<pre>{html.escape(published_text(scores))}</pre>",
        "<dl>",
        *(
            f"<dt>{html.escape(name.replace('_', ' '))}</dt><dd>{html.escape(str(value))}</dd>"
            for name, value in settings.items()
        ),
        "</dl>",
        *(f'<p class="note">Left out: {html.escape(s)}.</p>' for s in run["missing"]),
        *(_table_html(table) for table in tables),
        "<h2>Plots</h2>",
        f'<img alt="plots" src="{_data_url("png", plots)}">'
        if plots is not None
        else f'<p class="note">Left out: {NO_PLOTS}.</p>',
        f"<h2>The worst {min(WORST, len(data))}</h2>",
        '<p class="note">By raw landmarks against the original labels. Left: the label; right: the '
        "network.</p>",
    ]
    for index in worst(run["samples"]):
        picture = cv2.imencode(".jpg", worst_picture(data, prediction, index))[1].tobytes()
        name = html.escape(printable(data.names[index]))
        error, yaw = run["samples"]["nme_original_raw"][index], data.yaw[index]
        parts.append(
            f'<figure><img alt="{name}" src="{_data_url("jpeg", picture)}">'
            f"<figcaption>{name}: NME {error:.2f} %, yaw {yaw:.0f}°</figcaption></figure>"
        )
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>AFLW2000-3D: {html.escape(settings['weights'])}</title>"
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table_html(table: Table) -> str:
    kinds = [
        ' class="text"' if any(isinstance(cell, str) for cell in cells) else ""
        for cells in zip(*table.rows, strict=True)
    ]

    def row(cells: Sequence[str], tag: str) -> str:
        own = ' class="own"' if cells[0].startswith("→") else ""
        inner = zip(kinds, map(html.escape, cells), strict=True)
        return f"<tr{own}>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in inner)}</tr>"

    rows = [row(table.header, "th"), *(row(cells, "td") for cells in table.cells())]
    note = f'\n<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"<h2>{html.escape(table.title)}</h2>\n<table>{''.join(rows)}</table>{note}"


def _data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


# ------------------------------------------------------------------------------------- files


def write_results(out: Path, run: dict, data: BenchmarkSet, prediction: Prediction) -> None:
    """Writes a run's pictures, numbers, plots and page into a folder (``benchmark.py --help``)."""
    for index, name in enumerate(result_names([Path(n) for n in data.names[:PICTURES]])):
        crop = data.crops([index])[0]
        drawn = draw_landmarks(crop, prediction.crop_landmarks[index, :2])
        write_image(out / f"{name}.jpg", drawn)
    with atomic_write(out / "results.json", "w") as file:
        json.dump(_plain(run), file, indent=1, allow_nan=False)
    with atomic_write(out / "samples.csv", "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *run["samples"]])
        columns = (np.round(values, 6).tolist() for values in run["samples"].values())
        names = map(no_formula, data.names)
        writer.writerows(zip(names, *columns, strict=True))
    plots = None
    if importlib.util.find_spec("matplotlib"):
        plots = draw_plots(run)
        with atomic_write(out / "plots.png") as file:
            file.write(plots)
    else:
        (out / "plots.png").unlink(missing_ok=True)  # an earlier run's: of other numbers
    with atomic_write(out / "report.html", "w") as file:
        file.write(html_report(run, data, prediction, plots))


def read_run(path: Path) -> dict:
    """A run's ``results.json`` (or the folder it lies in) with its samples as arrays.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not the result of a benchmark run.
    """
    path = path / "results.json" if path.is_dir() else path
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; benchmark.py writes it to its --out folder")
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        samples = {k: np.array(v, dtype=np.float64) for k, v in run["samples"].items()}
        fine = {column.shape for column in samples.values()} == {(len(samples["yaw"]),)}
        told = [run["settings"][name] for name in ("labels", "weights", "border")]
        told += run["labels"].values()
        fine = fine and all(isinstance(text, str) for text in told)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fine = False
    if not fine:
        raise ValueError(f"{path}: not a results.json of benchmark.py")
    return {**run, "samples": samples}


def _plain(value: object) -> object:
    """Dicts, lists, arrays, numbers and text as any JSON reader takes them: NaN and infinity
    become None, bytes of file names that are no text a question mark."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
