"""What is counted and timed, as Prometheus reads it (`GET /metrics`).

One registry a process, and the web process serves its own: there is one of them in an installation, and whoever runs
more lets Prometheus ask each. Labels are names of ours (a policy, a route's template), never what a request brought:
an id or an address would be a series for everybody who asks, and anybody who may read metrics would learn it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

disable_created_metrics()  # type: ignore[no-untyped-call]

REGISTRY = CollectorRegistry(auto_describe=True)
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
OURS = re.compile(rb"^(# (?:HELP|TYPE) )?pharos_", re.MULTILINE)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""From a page out of memory to an answer of a slow model."""

LIMIT_HITS = Counter(
    "pharos_rate_limit_hits_total", "Tries refused, by the policy that refused them.", ["source"], registry=REGISTRY
)
LIMITS_FAILED_OPEN = Counter(
    "pharos_rate_limit_failed_open_total",
    "Tries let through uncounted because the store of counts was gone, by policy.",
    ["source"],
    registry=REGISTRY,
)
REQUESTS = Counter(
    "http_requests_total",
    "Requests by method, route and status; 0 where no answer began.",
    ["method", "route", "status"],
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "pharos_http_request_duration_seconds",
    "Seconds from a request's head to the end of its answer.",
    ["method", "route", "status_code"],
    buckets=SECONDS,
    registry=REGISTRY,
)
BACKUP_AGE = Gauge(
    "pharos_backup_age_seconds",
    "Age of the newest backup that was restored and compared; NaN without one.",
    registry=REGISTRY,
)
OFFSITE_AGE = Gauge(
    "pharos_backup_offsite_age_seconds",
    "Age of the newest backup with a copy off the machine; NaN without one.",
    registry=REGISTRY,
)
DRILL_AGE = Gauge(
    "pharos_drill_age_seconds", "Time since the last restore drill that passed; NaN without one.", registry=REGISTRY
)
RESTORE_SECONDS = Gauge(
    "pharos_restore_seconds", "What the last drill or verification took; NaN before either.", registry=REGISTRY
)
BACKUP_NOTICES = Gauge(
    "pharos_backup_notice",
    "1 while something must be done about backups, by what it is.",
    ["notice"],
    registry=REGISTRY,
)
STREAMS_ACTIVE = Gauge(
    "pharos_sse_connections_active", "Streams of events that somebody follows now.", ["endpoint"], registry=REGISTRY
)
CLAIMS_UNSUPPORTED = Counter(
    "pharos_unsupported_claims_total", "Sentences of answers that no cited passage supports.", registry=REGISTRY
)
TURNS_RUNNING = Gauge("pharos_turns_running", "Answers in the making in this process.", registry=REGISTRY)
TURNS_ENDED = Counter("pharos_turns_total", "Answers that ended here, by how.", ["state"], registry=REGISTRY)
FEEDBACK_SPOOLED = Gauge(
    "pharos_feedback_spooled", "Opinions of answers that wait as files for the database.", registry=REGISTRY
)
CACHE_HITS = Counter("rag_cache_hits_total", "Answers given again from the cache.", registry=REGISTRY)
CACHE_MISSES = Counter("rag_cache_misses_total", "Answers looked for in the cache and not found.", registry=REGISTRY)
FALLBACK_ACTIVE = Gauge(
    "pharos_fallback_active", "1 while a store is gone and processes keep for themselves.", ["store"], registry=REGISTRY
)
ANSWER_SECONDS = Histogram(
    "pharos_answer_stage_seconds",
    "Seconds of a stage of an answer: rewrite, retrieve, first_word (the model's), llm (to its last), total.",
    ["stage"],
    buckets=SECONDS,
    registry=REGISTRY,
)
DISK_FREE = Gauge(
    "pharos_disk_free_bytes",
    "Bytes free on the disk of the data, the uploads, the backups.",
    ["holds"],
    registry=REGISTRY,
)
DISK_TOTAL = Gauge("pharos_disk_total_bytes", "Bytes of that disk in all.", ["holds"], registry=REGISTRY)


def count_answer(*, method: str, route: str, status: int, seconds: float) -> None:
    """Count one answer; `route` is a template, and a method of nobody's standard counts as "other"."""
    known = method if method in METHODS else "other"
    REQUESTS.labels(known, route, str(status)).inc()
    REQUEST_SECONDS.labels(known, route, str(status)).observe(seconds)


def show_from_start(counter: Counter, sources: Iterable[str]) -> None:
    """Let series begin at 0: the first increase of one that appears at 1 is seen by no alert."""
    for source in sources:
        counter.labels(source)


show_from_start(TURNS_ENDED, ("done", "failed", "stopped", "interrupted"))


def render_metrics(aliases: Iterable[str] = ()) -> bytes:
    """All series of this process in the text format 0.0.4, ours under each of these other prefixes as well (C-12)."""
    text = generate_latest(REGISTRY)
    ours = b"".join(line for line in text.splitlines(keepends=True) if OURS.match(line))
    return text + b"".join(OURS.sub(rb"\g<1>%s_" % alias.encode(), ours) for alias in aliases)
