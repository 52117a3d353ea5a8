"""The heat map of error rates: stages by attacks, the numbers of the table in colour."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from amc_lightning.report import wording
from amc_lightning.report.columns import columns
from amc_lightning.report.palette import footnote, new_figure
from amc_lightning.report.record import Results

COLORS = colormaps["YlOrBr"]
"""Darker is worse, also in greyscale."""


def draw_error_rates(results: Results) -> Figure | None:
    """Draw the error table as a heat map on a scale of 0 to 100 %; None if no stage has been measured.

    Args:
        results: of which the primary threat model is shown.
    """
    if not results.measured:
        return None
    shown = columns(results)
    rates = [[column.rate(stage) for column in shown] for stage in results.measured]
    values = np.array([[np.nan if rate is None else rate.error for rate in row] for row in rates])

    figure = new_figure(max(6.0, 0.88 * len(shown) + 2.6), max(3.9, 0.62 * len(results.measured) + 2.3))
    ax = figure.subplots()
    image = ax.imshow(np.ma.masked_invalid(values), cmap=COLORS, vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            if rate is None:
                ax.text(j, i, "-", ha="center", va="center")
                continue
            for text, offset, size in ((wording.percent(rate.error), 5, 11), (wording.interval(rate), -10, 7.5)):
                ax.annotate(
                    text,
                    (j, i),
                    (0, offset),
                    textcoords="offset points",
                    ha="center",
                    va="center",
                    color=ink(rate.error),
                    fontsize=size,
                )
    for j in range(1, len(shown)):
        if shown[j].group != shown[j - 1].group:
            ax.axvline(j - 0.5, color="white", linewidth=6)
    headings = ["\n".join(column.heading).strip().replace("<=", " \u2264 ") for column in shown]
    ax.set_xticks(range(len(shown)), headings, fontsize=9.5)
    ax.set_yticks(range(len(results.measured)), [stage.label for stage in results.measured], fontsize=10)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_ylabel("model after stage", fontsize=10)
    for spine in ax.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=ax, label="error rate (%), lower is better", pad=0.02, ticks=range(0, 101, 20))
    figure.suptitle(
        f"Error rates by stage and attack: {results.defence} on {results.dataset.name}{wording.under(results)}",
        fontsize=13,
    )
    footnote(figure, wording.sizes(results), wording.strengths(results))
    return figure


def ink(error: float) -> str:
    """Return black or white, whichever has the greater contrast (WCAG 2, relative luminance) on the cell's colour."""
    channels = np.asarray(COLORS(error / 100)[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return "black" if (luminance + 0.05) / 0.05 > 1.05 / (luminance + 0.05) else "white"
