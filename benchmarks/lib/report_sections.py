"""The sections of docs/benchmarks.md: which results each is of, its tables and its plots.

Owns: which figures are shown, and how numbers are written. Does not know: the page around them, the targets.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from benchmarks.lib import plots
from benchmarks.quality.summary import plot as quality_against_bytes
from benchmarks.quality.summary import table as quality_table
from benchmarks.serve.captions import HTTP, KILLED, SERVE_TABLES, SOAK

Result = Mapping[str, Any]
Results = Mapping[str, Result]
Plots = dict[str, tuple[str, Figure]]  # a plot and its description by file name
OURS = "chatterbox-kvcache"
PEER_RESULTS = ("peer", "peer_quick")  # the first that has a figure is the one that counts


@dataclass(frozen=True)
class Section:
    """title: heading. files: names of results. command: makes them, where they do not say it themselves."""

    title: str
    files: tuple[str, ...]
    command: str
    text: Callable[[str, Result], list[str]]
    plots: Callable[[Results], Plots] = lambda results: {}
    about: str = ""


def number(value: Any) -> str:
    """A value as a reader wants it: three or four digits, thousands apart."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, Mapping) and "value" in value:
            return f"{number(value['value'])} ({' to '.join(map(number, value['interval']))})"
        return "" if value is None else ", ".join(map(number, value)) if isinstance(value, list) else str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def table(rows: Sequence[Mapping[str, Any]], columns: Iterable[str] | None = None) -> list[str]:
    """Markdown of ``rows``; all their plain columns, in order of appearance, unless ``columns`` are named."""
    chosen = list(columns or dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(chosen) + " |", "|" + " --- |" * len(chosen)]
    for row in rows:
        cells = (number(row.get(column)).replace("|", "\\|") for column in chosen)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def all_columns(name: str, result: Result) -> list[str]:
    """Whatever rows a result has: one table for each name in their column "table", without nested figures."""
    lines: list[str] = []
    for kind in dict.fromkeys(row.get("table") for row in result.get("rows", ())):
        rows = [
            {key.replace("_", " "): value for key, value in row.items() if key != "table" and _is_shown(value)}
            for row in result["rows"]
            if row.get("table") == kind
        ]
        lines += ["", *table(rows)] if lines else table(rows)
    return lines or ["No rows."]


def _is_shown(value: Any) -> bool:
    plain = isinstance(value, (int, float, str)) or value is None
    return plain or (isinstance(value, Mapping) and "value" in value and "interval" in value)


def peer_rows(result: Result, part: str) -> list[Mapping[str, Any]]:
    return [row for row in result.get("rows", ()) if part in row["measure"]]


def peer_text(name: str, result: Result) -> list[str]:
    """One line a measure and peer; what failed; what loading takes; what is installed."""
    ours = {row["measure"]: row for row in result["rows"] if row["system"] == OURS}
    rows = []
    for row in result["rows"]:
        if row["system"] == OURS:
            if not any(other["system"] != OURS and other["measure"] == row["measure"] for other in result["rows"]):
                rows.append({"measure": f"{row['measure']}, {row['unit']}", "ours": row["median"]})
            continue
        ratio, spread = row.get("times_ours_ratio"), row.get("times_ours_range")
        rows.append(
            {
                "measure": f"{row['measure']}, {row['unit']}",
                "ours": ours[row["measure"]]["median"] if row["measure"] in ours else None,
                "peer": row["system"],
                "theirs": row["median"],
                "times ours": ratio,
                "lowest to highest": None if spread is None else " to ".join(map(number, spread)),
                "turns": row["turns"],
            }
        )
    lines = table(rows)
    if result.get("failed"):
        lines += ["", "Not measured: " + "; ".join(f"{case}: {why}" for case, why in result["failed"].items()) + "."]
    heading = {"loading_ms": "loading, ms", "loaded_mib": "loaded, MiB", "loading_peak_mib": "peak of loading, MiB"}
    loading = [
        {"package": system, **{heading.get(key, key): value for key, value in one.items()}}
        for system, one in result["loading"].items()
    ]
    installed = [
        {
            "package": system,
            "dependencies it names": one["direct_dependencies"],
            "needed in all": one["distributions"] + len(one["not_installed"]),
            "of these not installed here": ", ".join(one["not_installed"]) or "none",
            "installed, MiB": one["total_mib"],
            "without torch, MiB": one["without_torch_mib"],
        }
        for system, one in result["installed"].items()
    ]
    return [*lines, "", *table(loading), "", *table(installed)]


def peer_plots(results: Results) -> Plots:
    result = next((results[name] for name in PEER_RESULTS if name in results), {})
    items = [
        (row["measure"], row["times_ours_ratio"], *row["times_ours_range"])
        for row in result.get("rows", ())
        if row["unit"] == "ms" and row["system"] != OURS and 0.05 < row.get("times_ours_ratio", 0) < 50
        if not row["measure"].startswith("`") and "audio said" not in row["measure"]
    ]
    if not items:
        return {}
    drawn = plots.bars("Time of the peer over ours", items, unit="right of the line ours is faster", mark=1.0)
    return {"benchmark_peer": ("Time of the peer over ours, by measure", drawn)}


def decode_text(name: str, result: Result) -> list[str]:
    rows = result["rows"]
    peer = {row["position"]: row for row in rows if row["policy"].startswith("chatterbox-tts")}
    against = [
        {
            "position": row["position"],
            "`static`, ms a step": row["ms_per_step"],
            "chatterbox-tts 0.1.7, ms a step": peer[row["position"]]["ms_per_step"],
            "times its tokens per second": row["times_the_peer"],
        }
        for row in rows
        if "times_the_peer" in row
    ]
    by_case = {(row["policy"], row["rows"], row["position"]): row["ms_per_step"] for row in rows}
    ends = [
        {
            "rows": count,
            **{
                f"`{policy}` at {position}, ms": by_case.get((policy, count, position))
                for policy in ("static", "dynamic")
                for position in (100, 1000)
            },
        }
        for count in sorted({row["rows"] for row in rows})
    ]
    return [*table(against), "", *table(ends)]


def decode_plots(results: Results) -> Plots:
    rows = results.get("t3_decode", {}).get("rows", ())
    series: dict[str, list[plots.Point]] = {}
    for row in rows:
        if row["rows"] in (2, 8) and row["policy"] in ("static", "dynamic"):
            series.setdefault(f"{row['policy']}, {row['rows']} rows", []).append((row["position"], row["ms_per_step"]))
        elif row["policy"].startswith("chatterbox-tts"):
            series.setdefault(f"{row['policy']}, 2 rows", []).append((row["position"], row["ms_per_step"]))
    if not series:
        return {}
    drawn = plots.lines("A decode step of T3", series, x_label="position", y_label="ms")
    return {"benchmark_t3_decode": ("Milliseconds of a decode step by position, policy and rows", drawn)}


def memory_plots(results: Results) -> Plots:
    series = {
        f"{name}.json": list(enumerate(results[name]["resident_mib"], 1))[::5]
        for name in ("memory", "soak")
        if name in results
    }
    drawn = plots.lines("Memory of one process", series, x_label="generations", y_label="resident MiB")
    return {"benchmark_memory": ("Resident memory after each generation of one process", drawn)}


def hour_plots(results: Results) -> Plots:
    """Time per token, time per chunk and memory against the minute, each over its median of all minutes."""
    shown = {"t3_ms_per_token": "T3, ms a token", "s3gen_ms_per_chunk": "S3Gen, ms a chunk", "resident_mib": "MiB"}
    series = {}
    for mode in ("append", "history"):
        its = [row for row in results["streaming_hour"].get("rows", ()) if row["mode"] == mode]
        for name, label in shown.items() if its else ():
            middle = statistics.median(row[name] for row in its)
            series[f"{mode}: {label} ({middle:.3g})"] = [(row["minute"], row[name] / middle) for row in its]
    if not series:
        return {}
    labels = {"x_label": "minute of audio", "y_label": "over its median, which is in ()"}
    drawn = plots.lines("An hour in one stream", series, **labels)
    return {"streaming_hour": ("Time per token, per chunk and memory against the minute", drawn)}


def quality_plots(results: Results) -> Plots:
    drawn = quality_against_bytes(results["quality"]["rows"])
    return {"quality_vs_bytes": ("Phone errors and log-mel distance against bytes of the cache", drawn)}


def memory_text(name: str, result: Result) -> list[str]:
    keys = ("calls", "warmup_calls", "resident_mib_after_warmup", "resident_mib_at_end", "ratio")
    return table([{key.replace("_", " "): result[key] for key in keys}])


def eviction_text(name: str, result: Result) -> list[str]:
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in result["rows"]:
        case = {
            "popularity": row["workload"],
            "MB": row["total_mb"],
            "of it host, MB": row["total_mb"] - row["device_mb"],
        }
        shown = f"{row['hit_rate']:.2f}, {row['saved']:.2f}"
        rows.setdefault(tuple(case.values()), case)[f"`{row['policy']}`"] = shown
    return table(list(rows.values()))


def voice_text(name: str, result: Result) -> list[str]:
    return table(
        [
            {
                "texts": f"{kind} ({one['texts']})",
                **{meter.replace("_", " "): x[0] for meter, x in one["figures"].items()},
            }
            for kind, one in result["sets"].items()
        ]
    )


def s3gen_plots(results: Results) -> Plots:
    """Error in units of noise, of the judging flow, against the time of the published size's piece."""
    judged = results.get("judging_flow", {}).get("rows", {})
    series: dict[str, list[tuple[str, float, float]]] = {}
    for row in results["s3gen"].get("rows", ()):
        name = _judged_case(row)
        if row["model"] == "english" and name in judged:
            label = f"{row['memory']}, {row['steps']} steps" + (
                f", {row['without guidance']} plain" * bool(row["without guidance"])
            )
            point = (label, row["seconds a piece of 1 s"], judged[name]["in_noise"][0])
            series.setdefault(row["precision"], []).append(point)
    if not series:
        return {}
    labels = {"x_label": "seconds a piece of 1 s takes S3Gen", "y_label": "error, in units of noise"}
    drawn = plots.named_points("What S3Gen leaves out, and what it saves", series, **labels)
    return {"benchmark_s3gen": ("Error in units of noise against the seconds that a piece of a stream takes", drawn)}


def _judged_case(row: Mapping[str, Any]) -> str:
    """What the judging flow calls the case of a row."""
    remembered = {"none": "", "prompt": ", prompt remembered", "past": ", past remembered"}[row["memory"]]
    fewer = f", {row['steps']} steps, {row['without guidance']} without guidance" if row["steps"] < 10 else ""
    return f"in pieces{remembered}{fewer}"


def judging_text(name: str, result: Result) -> list[str]:
    titles = {
        "decibels": "dB",
        "in_noise": "in noise",
        "whisper": "words wrong",
        "dnsmos": "dnsmos",
        "distillmos": "distillmos",
    }
    return table(
        [
            {"the mel is made": case, **{title: _with_interval(row.get(figure)) for figure, title in titles.items()}}
            for case, row in result["rows"].items()
        ]
    )


def _with_interval(figure: Sequence[float] | None) -> dict[str, Any] | None:
    return None if figure is None else {"value": figure[0], "interval": figure[1:]}


def meters_text(name: str, result: Result) -> list[str]:
    materials = ("clean", "noise", "another speaker", "silence", "shuffled words")
    rows = []
    for meter, row in result["meters"].items():
        values = {material: row["values"][material][0] for material in materials}
        told = ", ".join(row["clean_is_better_by"]) + ("" if row["passes"] else ": not all")
        rows.append({"meter": meter.replace("_", " "), **values, "told from clean": told})
    return table(rows)


def quality_text(name: str, result: Result) -> list[str]:
    return quality_table(result["rows"]).splitlines()


def watermark_text(name: str, result: Result) -> list[str]:
    keys = ("case", "perth_whole", "perth_1s_lowest", "perth_1s_found", "perth_2s_found", "mark_to_speech_db")
    return table([{key.replace("_", " "): row.get(key) for key in keys} for row in result["rows"]])


def hour_text(name: str, result: Result) -> list[str]:
    figures = {key.replace("_", " "): value for key, value in result.items() if isinstance(value, (int, float))}
    return table([{"figure": key, "value": value} for key, value in figures.items()])


STREAMS_TABLES = {
    "tiny": "The embedded voice, streams at once.",
    "threads of generate": "The embedded voice, calls of `generate`; ratios are of audio a second.",
    "fifth": "The embedded voice, a stream joins others: their median gap between chunks, over that before.",
    "one": "The embedded voice, one call alone; *times ours* is the time that the other commit takes.",
    "tokens": "T3 of the published size at position 100, streams with guidance, tokens alone.",
    "mix": "Decode steps of 16 requests of 10, 10, 10 and 100 tokens, four times over.",
    "published": "T3 and S3Gen, published size. A call that fails, or does not say what it says alone, is no audio.",
}


def by_table(tables: Mapping[str, str]) -> Callable[[str, Result], list[str]]:
    """A text of each kind of table, under what it is of; what failed. ``tables``: what each is of, in order."""

    def text(name: str, result: Result) -> list[str]:
        lines: list[str] = []
        for kind, about in tables.items():
            rows = [row for row in result["rows"] if row["table"] == kind]
            if rows:
                lines += [about, "", *all_columns(name, {"rows": rows}), ""]
        if result.get("failed"):
            failed = "; ".join(f"{case}: {why}" for case, why in result["failed"].items())
            lines += [f"Not measured: {failed}.", ""]
        return lines[:-1]

    return text


PRECISION_TABLES = {
    "speed": "Milliseconds, and times as fast as float32 in the same run; *(in, out)*: as Turbo's files have weights.",
    "tokens": "The embedded voice: seeded runs with float32's tokens; the likeliest token where the others are given.",
}

QUALITY_COLUMNS = """\
The embedded voice: single sentences and pairs by turns, in four voices cloned from recordings of flite. The
number behind a name is the budget, speech positions that a row may hold beside its prefix; `window_size` is half of it.

- *bytes*: of a cache that is as large as the utterance, over `static`'s; *KiB/s*, per second of the exact audio.
- *tokens/s*: of steps, over those of `static`, all in turn in one run, on a CPU that other work shared; the median.
- *same*: share of cases with the exact tokens; *leading*: of the exact tokens, before the first that differs; *places*:
  of the places, with the same token. *ran on*: stopped at 1.5 times the exact length, which bounds *duration*.
- *phones*: errors of T3's speech tokens against the phones that flite would say, which no recogniser has to hear;
  *words*: errors by a recogniser; *more than exact* with its 95% interval, over texts.
- *log-mel* (dB) and *F0* (semitones, voiced frames): root mean squares against the exact output, one warped onto the
  other in time. Where tokens are the same, the exact run's figures are copied.
- *speaker*: cosine to the reference recording, by the voice's own encoder.
- *another seed* is the yardstick: what chance alone changes."""
KVCACHE = "make bench-kvcache"
SECTIONS = (
    Section(
        "Against the packages this one replaces",
        PEER_RESULTS,
        "make bench-peer",
        peer_text,
        peer_plots,
        "The same weights, texts, threads and torch; each package is a process of its own. Above 1 ours takes less.\n"
        "Peers are installed with what they need to run: chatterbox-tts names a web UI as well, which is not there.\n"
        "*Peak above memory before* is what a call takes for a while. *Known*: ours has met the recording, or the\n"
        "voice, before. Ours is this tree's environment, counted without its extras.",
    ),
    Section(
        "T3: a decode step",
        ("t3_decode", "t3_decode_avx2"),
        KVCACHE,
        decode_text,
        decode_plots,
        "Two rows are one request with guidance. The plot is of `t3_decode.json`.",
    ),
    Section(
        "Products with weights",
        ("linear", "linear_avx2"),
        KVCACHE,
        all_columns,
        about="Gigabytes a second at which a product reads its weights.",
    ),
    Section(
        "Small matrices",
        ("small_products",),
        "python -m benchmarks.speed.small_products",
        all_columns,
        about="A step of the embedded voice's T3 with the rule for small matrices and without it.",
    ),
    Section(
        "T3: the first token", ("prefill", "prefill_turbo"), KVCACHE, all_columns, about="Ratios are to a new voice."
    ),
    Section("T3: memory of 1,000 tokens", ("decode_memory",), KVCACHE, all_columns),
    Section("Packed keys and values", ("codecs",), KVCACHE, all_columns),
    Section(
        "Which voices stay",
        ("eviction",),
        KVCACHE,
        eviction_text,
        about="Hit rate, and share of the computing that is saved, by what the cache may hold and who leaves first.",
    ),
    Section(
        "What forgetting and packing cost in speech",
        ("quality",),
        "python -m benchmarks.quality.quality",
        quality_text,
        quality_plots,
        QUALITY_COLUMNS,
    ),
    Section("Streaming", ("streaming",), "python -m benchmarks.streaming.streaming", all_columns),
    Section(
        "Many streams at once",
        ("streams",),
        "make bench-streams",
        by_table(STREAMS_TABLES),
        about="A player starts with 100 ms of audio and plays in real time: *waited seconds* is how long all players\n"
        "of a turn stood still after that. Where calls come one after another the first audio is counted from the\n"
        "first call. Brackets are 95% intervals of the median of paired turns.",
    ),
    Section("The server: speech over HTTP", ("serve",), "make bench-serve", by_table(SERVE_TABLES), about=HTTP),
    Section("The server: many clients", ("serve_soak",), "make serve-soak", by_table(SERVE_TABLES), about=SOAK),
    Section("The server: killed in its work", ("serve_killed",), "make serve-killed", all_columns, about=KILLED),
    Section(
        "Two cores for one chunk, or one for each of two",
        ("cores",),
        "python -m benchmarks.speed.cores",
        all_columns,
        about="The embedded voice's S3Gen: a chunk of 25 speech tokens behind a context of 50 and the voice.",
    ),
    Section(
        "Tokens that differ in company",
        ("row_counts",),
        "python -m benchmarks.speed.row_counts",
        all_columns,
        about="The embedded voice, requests alone and with others. *at most*: a million, at 95%.",
    ),
    Section(
        "Bits that do not depend on others",
        ("batch_invariant",),
        "python -m benchmarks.speed.batch_invariant",
        all_columns,
        about="`engine.batch_invariant=true` and the default in turn, on a machine that others used too.",
    ),
    Section("Streaming for an hour", ("streaming_hour",), "make streaming-hour", hour_text, hour_plots),
    Section(
        "Import",
        ("import_time",),
        "python -m benchmarks.speed.import_time",
        all_columns,
        about="A whole process that does nothing else, the interpreter's start included. Ratios are to `import torch`.",
    ),
    Section(
        "The watermark on a stream",
        ("watermark_stream",),
        "python -m benchmarks.streaming.watermark",
        watermark_text,
        about="What Perth's own detector says, 0 to 1, of the whole and of excerpts of one and two seconds.",
    ),
    Section("Memory of a long-lived process", ("memory", "soak"), "make memory, make soak", memory_text, memory_plots),
    Section("The embedded voice", ("voice_eval",), "make voice-eval", voice_text),
    Section(
        "What S3Gen may leave out",
        ("judging_flow",),
        "make judging-flow",
        judging_text,
        about="A flow of ten steps with noise and guidance (docs/models.md), fed with true speech tokens. *In noise*:\n"
        "the distance to the mel that is made at once, in units of that of two mels from different noise.\n"
        "*Words wrong*: by whisper-base. Brackets are 95% intervals over texts.",
    ),
    Section(
        "Weights in fewer bits",
        ("precision",),
        "make bench-precision",
        by_table(PRECISION_TABLES),
        about="Published sizes, synthetic weights, what this CPU has; T3's decode step and a prefill, all in turn.",
    ),
    Section(
        "Loading",
        ("loading",),
        "make bench-loading",
        all_columns,
        about="A process for each case: seconds, and resident memory before, behind loading, at most, after speech.",
    ),
    Section(
        "Near to real time",
        ("realtime",),
        "make bench-realtime",
        all_columns,
        about="A stream of the published size in a voice that is known, a process for each case. *rtf*: what its\n"
        "reader waited over what it plays; *dry*: seconds that a player stood still; *generate*: the same as a whole,\n"
        "its seconds over those that it plays. `realtime` is the preset (docs/performance.md).",
    ),
    Section(
        "S3Gen: a piece of a stream",
        ("s3gen",),
        "make bench-s3gen",
        all_columns,
        s3gen_plots,
        "One second new, behind two of context and a voice of ten, at the published size with synthetic weights. The\n"
        "plot has the errors of the judging flow above; *plain*: steps without guidance. What int8 adds is not in it.",
    ),
    Section(
        "Meters of speech",
        ("meters",),
        "make meters",
        meters_text,
        about="Forty sentences of flite's slt, as they are and made worse. *Told from clean*: the 95% interval of the"
        " difference, over sentences, is on one side of 0.",
    ),
)
